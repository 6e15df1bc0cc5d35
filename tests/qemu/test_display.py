# SPDX-License-Identifier: Apache-2.0
"""The guest's stock bochs driver and both displays: what it draws is what screen.png and QEMU show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import needs
from tests.labs import MountedLab
from tests.qemu import drivers, font
from tests.qemu.conftest import MBOCHS, VGPU, Everything
from tests.qemu.guest import Guest
from tests.qemu.machine import Machine, in_lab, vfio

pytestmark = pytest.mark.qemu


def test_both_displays_have_a_driver(everything: Everything) -> None:
    console = everything.machine.console
    names = {drivers.framebuffer(console, slot) for slot in (MBOCHS, VGPU)}
    assert names == {"fb0", "fb1"}


def test_text_on_the_console(everything: Everything) -> None:
    """A page of text in random colours, in a font that the test made: every pixel of it."""
    console = everything.machine.console
    by_name = {drivers.framebuffer(console, slot): slot for slot in (MBOCHS, VGPU)}
    shown = write_text(everything.machine, "fb0", seed=1)
    drivers.assert_shows(everything.vgpus[by_name["fb0"]], shown)


@needs.passthrough
@pytest.mark.parametrize("slot", [MBOCHS, VGPU], ids=["mbochs", "vgpu"])
def test_a_pattern_and_qemus_view_of_it(everything: Everything, slot: int, tmp_path: Path) -> None:
    """Pixels written to the framebuffer device; the other display keeps its own picture."""
    machine, vgpu = everything.machine, everything.vgpus[slot]
    other = {MBOCHS: VGPU, VGPU: MBOCHS}[slot]
    first = drivers.draw_pattern(
        machine.console, drivers.framebuffer(machine.console, other), seed=10 + other
    )
    drivers.assert_shows(everything.vgpus[other], first)
    pattern = drivers.draw_pattern(machine.console, drivers.framebuffer(machine.console, slot), seed=slot)
    drivers.assert_shows(vgpu, pattern)
    drivers.assert_shows(everything.vgpus[other], first)
    dumped = drivers.Picture.load(machine.screendump(slot, tmp_path))
    assert dumped == pattern, drivers.difference(dumped, pattern)


@needs.passthrough
def test_qemus_view_of_text(everything: Everything, tmp_path: Path) -> None:
    """Of each display, QEMU's screendump and screen.png are the same picture."""
    machine = everything.machine
    by_name = {drivers.framebuffer(machine.console, slot): slot for slot in (MBOCHS, VGPU)}
    text = write_text(machine, "fb0", seed=2)
    drivers.assert_shows(everything.vgpus[by_name["fb0"]], text)
    for slot in (MBOCHS, VGPU):
        dumped = drivers.Picture.load(machine.screendump(slot, tmp_path))
        shown = drivers.Picture.load(everything.vgpus[slot].path / "screen.png")
        assert dumped == shown, drivers.difference(dumped, shown)


def test_without_mmap(shared_lab: MountedLab, guest: Guest) -> None:
    """The same with every access trapped, in a smaller mode: QEMU passes each 8 bytes of video memory on."""
    with shared_lab.create("mbochs-small", "mbochs") as mbochs:
        options = vfio(mbochs, MBOCHS, x_no_mmap="on")
        with Machine(in_lab(shared_lab), options, guest, "video=640x480") as machine:
            machine.console.wait_up()
            name = drivers.framebuffer(machine.console, MBOCHS)
            assert drivers.mode(machine.console, name) == (640, 480)
            assert "mmaps[0]" not in machine.qmp.monitor("info mtree -f")
            drivers.assert_shows(mbochs, write_text(machine, name, seed=3))
            drivers.assert_shows(mbochs, drivers.draw_pattern(machine.console, name, seed=4))
            drivers.assert_healthy(machine.console)


def write_text(machine: Machine, name: str, seed: int) -> drivers.Picture:
    """Fill the console on framebuffer device `name` with text; returns the picture that makes.

    What is left below the last line of text is black.
    """
    width, height = drivers.mode(machine.console, name)
    assert width % font.WIDTH == 0
    glyphs = font.glyphs(seed)
    page = font.page(seed, width // font.WIDTH, height // font.HEIGHT)
    machine.console.put("/tmp/font", font.psf(glyphs))
    machine.console.put("/tmp/page", font.codes(page))
    machine.console.check("loadfont </tmp/font && cat /tmp/page >/dev/tty1")
    drawn = font.draw(page, glyphs)
    return drivers.Picture(width, height, drawn.ljust(width * height * 3, b"\0"))
