# SPDX-License-Identifier: Apache-2.0
"""The sessions of the README and of docs/, pasted into bash: what they print must be what is shown there.

A line `...` stands for any lines, `...` within a line for any text.  Times, durations and processes of a
trace may be others than those that are shown.  /tmp/lab becomes a folder of the test's own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import domains, needs
from tests.qemu import programs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TEXTS = [README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))]
SESSIONS = [found for text in TEXTS for found in re.findall(r"```console\n(.*?)```", text, re.DOTALL)]
MARK = "<<end of command>>"
MEASURED = re.compile(r"\d\d:\d\d:\d\d\.\d{6}|<\d+\.\d{6}>|(?<=\w)\[\d+\]")
"""The time, the duration and the process in a line of a trace."""


def steps(session: str) -> Iterator[tuple[str, str]]:
    """(command, expected output) for each line that starts with `$ `."""
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected


def pattern(expected: str) -> str:
    """The expected output as a regular expression."""
    quoted = re.escape(MEASURED.sub("...", expected))
    quoted = re.sub(r"^\\\.\\\.\\\.\\?\n", "(?:.*\n)*?", quoted, flags=re.MULTILINE)
    return quoted.replace(r"\.\.\.", ".*")


def path(session: str, folder: Path) -> str:
    """PATH for a session; one that needs a newer QEMU than this system's finds it under the usual name."""
    usual = os.environ["PATH"]
    if programs.SYSTEM not in session:
        return usual
    found = programs.of_suite("trixie") if "iommufd" in session else programs.system()
    program = folder / "bin" / programs.SYSTEM
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which(found)} "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}:{usual}"


@needs.root("the README's sessions are root's")
@pytest.mark.parametrize("session", SESSIONS, ids=[session.split("\n")[0] for session in SESSIONS])
def test_session(session: str, tmp_path: Path) -> None:
    if not (ROOT / ".venv").exists():
        pytest.skip("needs the .venv that tests/run.sh makes")
    if "libvirt/run.sh" in session:
        domains.need()
    home = tmp_path / "lab"
    commands = list(steps(session.replace("/tmp/lab", str(home))))
    script = "".join(f"{command}\necho '{MARK}'\n" for command, _ in commands)
    try:
        done = subprocess.run(
            ["bash"],
            input=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            timeout=200,
            env={
                **os.environ,
                **{"XDG_STATE_HOME": str(tmp_path), "PYTEST_DEBUG_TEMPROOT": str(tmp_path)},
                "PATH": path(session, tmp_path),
            },
            check=False,
        )
    finally:
        subprocess.run(["umount", "--lazy", home], stderr=subprocess.DEVNULL, check=False)
    printed = done.stdout.split(MARK + "\n")
    assert len(printed) == len(commands) + 1, done.stdout
    for (command, expected), output in zip(commands, printed, strict=False):
        assert re.fullmatch(pattern(expected), output), f"$ {command}\n{output}\ninstead of\n{expected}"


def test_there_is_a_session_on_the_first_screen() -> None:
    """Before it stand only the paragraphs that say what vfsfuse is, and the table of alternatives."""
    assert README.index("```console") < 2500
    assert len(list(steps(SESSIONS[0]))) > 8
