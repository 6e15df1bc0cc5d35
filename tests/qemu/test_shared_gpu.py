# SPDX-License-Identifier: Apache-2.0
"""One physical GPU: a guest's stock driver draws on a vGPU while an application drives another's engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.labs import MountedLab
from tests.qemu import drivers
from tests.qemu.conftest import VGPU, Everything
from tests.qemu.machine import in_lab
from tests.test_draw import expected

pytestmark = pytest.mark.qemu

TIMES = 3
"""How often the guest draws; the application, which is faster, does all the time."""


def test_a_guest_draws_while_an_application_uses_another_engine(
    shared_lab: MountedLab, everything: Everything, tmp_path: Path
) -> None:
    guest_side = everything.vgpus[VGPU]
    console = everything.machine.console
    name = drivers.framebuffer(console, VGPU)
    running = tmp_path / "running"
    running.touch()
    with shared_lab.create("vgpu-8") as host_side:
        assert host_side.path.parent == guest_side.path.parent  # of the same GPU
        draw = [sys.executable, str(ROOT / "examples/draw.py"), host_side.name]
        loop = ["sh", "-c", 'f=$1; shift; while [ -e "$f" ]; do "$@" && echo drawn || exit; done', "sh"]
        command = [*in_lab(shared_lab), *loop, str(running), *draw]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as application:
            assert application.stdout is not None
            try:
                for seed in range(TIMES):
                    assert application.stdout.readline() == "drawn\n"
                    drivers.assert_shows(guest_side, drivers.draw_pattern(console, name, seed))
                assert application.poll() is None
            finally:
                running.unlink()
            drawn = application.stdout.readlines()
        assert application.returncode == 0 and len(drawn) > TIMES
        shown = drivers.Picture.load(host_side.path / "screen.png")
        assert shown == drivers.Picture(*expected().size, expected().tobytes())
