# SPDX-License-Identifier: Apache-2.0
"""DMA reaches the memory that was mapped, and no other: tests/clients/dma_memory.c on a real mount.

Each case leaves a page of canaries at the address that was mapped, in a memory that was not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.labs import MountedLab, described
from tests.vfio.copiers import LAB
from tests.vfio.devices import opened

Compile = Callable[..., Path]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("whose"), LAB) as mounted:
        yield mounted


def check(machine: MountedLab, client: Path, *arguments: str | Path) -> None:
    with machine.create("copier-1", "copiers") as vgpu, opened(machine, vgpu.group, vgpu.name) as device:
        fds = device.container.fd, device.device.fd
        done = subprocess.run(
            [client, *map(str, fds), *arguments],
            pass_fds=fds,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


@pytest.mark.parametrize("linking", [(), ("-static",)], ids=["dynamic", "static"])
@pytest.mark.parametrize("mode", ["gone", "kept"])
def test_an_exec(machine: MountedLab, compile_client: Compile, mode: str, linking: tuple[str, ...]) -> None:
    check(machine, compile_client("dma_memory", *linking), mode)


@needs.root("making a setuid program of root's takes root")
@pytest.mark.parametrize("mode", ["gone", "kept"])
def test_an_exec_of_a_setuid_program(
    machine: MountedLab, compile_client: Compile, tmp_path: Path, mode: str
) -> None:
    """An ordinary user maps a page, and executes a program of root's that has another page there."""
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip(f"{tmp_path} is on a file system that is mounted nosuid")
    program = Path(shutil.copy(compile_client("dma_memory"), tmp_path / "setuid"))
    program.chmod(0o4755)
    check(machine, compile_client("dma_memory"), mode, program, "0")


@pytest.mark.parametrize("mode", ["fork", "passed", "thread", "first"])
def test_other_processes_and_threads(machine: MountedLab, compile_client: Compile, mode: str) -> None:
    check(machine, compile_client("dma_memory"), mode)
