# SPDX-License-Identifier: Apache-2.0
"""`--sanitize`: the native extension built with AddressSanitizer and UBSan, in a folder of its own.

Python itself is not instrumented, so the runtime libraries are preloaded. A report aborts the server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.stress.setting import ROOT

PACKAGES = ("vfsfuse", "devmodel", "ioctl_shim")
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"


def _library(name: str) -> str:
    done = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return os.path.realpath(done.stdout.strip())


ENVIRONMENT = {
    # Python's own allocations are never freed at exit, so leaks are the soak's to find.
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:handle_abort=0:quarantine_size_mb=16",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:abort_on_error=1",
    "LD_PRELOAD": f"{_library('libasan.so')} {_library('libubsan.so')}",
}


def build(folder: Path) -> Path:
    """A copy of the packages with a sanitized extension; returns its folder."""
    tree = folder / "sanitized"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.o")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=ignored)
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env={**os.environ, "CFLAGS": FLAGS, "LDFLAGS": FLAGS, "LDSHARED": f"gcc -shared {FLAGS}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"stress.sh: the sanitized extension was not built: {done.stderr[-3000:]}")
    return tree
