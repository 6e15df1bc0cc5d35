# SPDX-License-Identifier: Apache-2.0
"""`import vfsfuse` costs nothing, and the names of the API are there for programs and for mypy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vfsfuse
from tests.commands import ROOT

PROGRAM = """\
import vfsfuse
from vfsfuse import Lab, LabError

reveal_type(Lab())
with vfsfuse.Lab({"vendor": "a"}, at="/tmp/lab") as lab:
    reveal_type(lab.parents["0000:86:00.0"].create("vgpu-4").group)
    reveal_type(lab.run(["true"]).returncode)
vfsfuse.Nothing
"""


def python(program: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {program}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_imports_nothing() -> None:
    program = "before = set(sys.modules); import vfsfuse; print(sorted(set(sys.modules) - before))"
    assert python(program) == "['vfsfuse']\n"


@pytest.mark.parametrize("name", vfsfuse.__all__)
def test_a_name_is_imported_when_it_is_used(name: str) -> None:
    program = f"import vfsfuse; print(vfsfuse.{name}.__name__, {name!r} in dir(vfsfuse))"
    assert python(program) == f"{name} True\n"


def test_the_api_imports_neither_the_server_nor_its_libraries() -> None:
    program = "from vfsfuse import *; print(*sorted(sys.modules))"
    loaded = python(program).split()
    for name in ("devmodel", "ioctl_shim", "trio", "pyfuse3", "PIL", "asyncio", "argparse"):
        assert name not in loaded


def test_there_is_no_other_name() -> None:
    with pytest.raises(AttributeError, match=r"module 'vfsfuse' has no attribute 'Nothing'"):
        vfsfuse.Nothing  # type: ignore[attr-defined]  # noqa: B018


def test_mypy_knows_the_names(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "program.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={"MYPYPATH": str(ROOT)}
    )
    said = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    types = ["vfsfuse.api.lab.Lab", "str | None", "int"]
    assert said[:3] == [f'note: Revealed type is "{each}"' for each in types], done.stdout + done.stderr
    assert 'Module has no attribute "Nothing"' in said[3]
