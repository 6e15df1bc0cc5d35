# SPDX-License-Identifier: Apache-2.0
"""examples/draw.py and draw.c: drivers without a VM draw on a vGPU, and screen.png shows the picture."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.lab import ROOT, VFSFUSE, MountedLab, run

EXAMPLES = ROOT / "examples"
WIDTH, HEIGHT, SPRITE = 640, 480, 64


def expected() -> Image.Image:
    """The picture as Pillow draws it."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), (0x20, 0x40, 0x60))
    picture.paste((0xFF, 0xCC, 0), (40, 30, 240, 130))
    picture.paste((0xFF, 0xCC, 0), (60, 50, 260, 150))
    sprite = Image.new("RGB", (SPRITE, SPRITE))
    sprite.putdata([(4 * x, 4 * y, 128) for y in range(SPRITE) for x in range(SPRITE)])
    picture.paste(sprite, (300, 200))
    picture.paste(sprite, (500, 400))
    return picture


@pytest.fixture(params=["python", "c"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The command that runs the example."""
    if request.param == "python":
        return [sys.executable, "-W", "error", str(EXAMPLES / "draw.py")]
    compiler = shutil.which("gcc")
    assert compiler is not None, "gcc is not installed (apt-get install gcc libc6-dev)"
    built = tmp_path / "draw"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, "-O1", *warnings, "-o", built, EXAMPLES / "draw.c"], check=True)
    return [str(built)]


def test_what_is_drawn_is_seen(lab: MountedLab, program: list[str]) -> None:
    with lab.create("vgpu-8") as vgpu:
        done = run([*VFSFUSE, "run", "--mount", lab.path, "--", *program, vgpu.name])
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
        with Image.open(io.BytesIO((vgpu.path / "screen.png").read_bytes())) as picture:
            assert picture.size == (WIDTH, HEIGHT)
            assert picture.tobytes() == expected().tobytes()


def test_two_draw_at_once(lab: MountedLab, program: list[str]) -> None:
    with lab.create("vgpu-8") as one, lab.create("vgpu-8") as other:
        command = [*VFSFUSE, "run", "--mount", str(lab.path), "--", *program]
        children = [subprocess.Popen([*command, vgpu.name], cwd=ROOT) for vgpu in (one, other)]
        assert [child.wait(60) for child in children] == [0, 0]
        for vgpu in (one, other):
            with Image.open(io.BytesIO((vgpu.path / "screen.png").read_bytes())) as picture:
                assert picture.tobytes() == expected().tobytes()
