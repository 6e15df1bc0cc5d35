# SPDX-License-Identifier: Apache-2.0
"""tests/qemu/newer.sh with a faked apt-get: why a QEMU cannot be had, and that one that is there is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu import programs

pytestmark = pytest.mark.qemu

Newer = Callable[[str], "subprocess.CompletedProcess[str]"]
OFFLINE = "E: Failed to fetch http://deb.debian.org/debian/dists/sid/InRelease  Could not connect"


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Newer:
    """Runs a copy of the script with an apt-get that runs one command; the cache is `tmp_path`/.cache."""
    script = shutil.copy(programs.CACHE.parent / "newer.sh", tmp_path)
    fake = tmp_path / "bin/apt-get"
    fake.parent.mkdir()
    monkeypatch.setattr(programs, "CACHE", tmp_path / ".cache")

    def run(command: str) -> subprocess.CompletedProcess[str]:
        fake.write_text(f"#!/bin/sh\n{command}\n")
        fake.chmod(0o755)
        environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
        return subprocess.run(
            [script, "sid"], env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    return run


def test_the_reason_is_what_the_tests_skip_with(newer: Newer) -> None:
    """Nothing else is left, and nothing is known before the script has run."""
    with pytest.raises(pytest.skip.Exception, match=r"Debian's sid is not here: run tests/qemu/newer\.sh$"):
        programs.of_suite("sid")
    done = newer(f"echo '{OFFLINE}' >&2; echo 'E: Some index files failed to download.' >&2; exit 100")
    reason = f"apt-get update of Debian's sid failed: {OFFLINE}"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"newer.sh: {reason}\n")
    assert [path.name for path in programs.CACHE.iterdir()] == ["qemu-sid.why"]
    with pytest.raises(pytest.skip.Exception) as skipped:
        programs.of_suite("sid")
    assert str(skipped.value) == f"the QEMU of Debian's sid is not here: {reason}"


def test_a_fault_of_the_script_is_a_reason_too(newer: Newer) -> None:
    """An apt-get that lists no packages."""
    assert newer("exit 0").returncode == 1
    with pytest.raises(pytest.skip.Exception, match=r"not here: tests/qemu/newer\.sh sid failed$"):
        programs.of_suite("sid")


def test_what_is_there_is_kept(newer: Newer) -> None:
    program = programs.CACHE / "qemu-sid/run"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    done = newer("exit 100")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert programs.of_suite("sid") == str(program)
