# SPDX-License-Identifier: Apache-2.0
"""KVM's VFIO device under `vfsfuse run`: a compiled C client adds files of a lab to its virtual machines.

No guest runs.  The kernel's KVM makes the machines and their VFIO devices, and answers what the lab does not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tests.commands
from tests.commands import vfsfuse
from tests.labs import MountedLab

Compile = Callable[..., Path]
SKIPPED = 77


@pytest.mark.parametrize("mode", ["errors", "files", "numbers", "forked", "many", "free", "held", "swapped"])
def test_files_of_a_lab(lab: MountedLab, compile_client: Compile, mode: str) -> None:
    program = compile_client("kvm_vfio")
    with lab.create() as vgpu:
        done = vfsfuse("run", "--mount", lab.path, "--", program, vgpu.group, vgpu.vfio, vgpu.name, mode)
        if done.returncode == SKIPPED:
            pytest.skip(done.stdout.strip())
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "ok\n")


def test_nobody_is_told_of_the_supervisors_question(
    compile_client: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener and an observer learn of the client's own calls alone, and all goes as without them."""
    calls = tmp_path / "calls"
    for name, value in {"LISTENER_LOG": str(calls), "LISTENER_RULES": "[]", "OBSERVERS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tests.commands, "VFSFUSE", [sys.executable, "-m", "tests.listening_server"])
    with MountedLab(tmp_path) as lab:
        test_files_of_a_lab(lab, compile_client, "files")
    names = {
        line["name"] for line in map(json.loads, calls.read_text().splitlines()) if line["kind"] == "ioctl"
    }
    assert names == {"VFIO_GROUP_SET_CONTAINER", "VFIO_SET_IOMMU", "VFIO_GROUP_GET_DEVICE_FD"}
