# SPDX-License-Identifier: Apache-2.0
"""examples/draw.py and draw.c: drivers without a VM draw on a vGPU, and screen.png shows the picture."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from tests import needs
from tests.commands import ROOT, VFSFUSE, run
from tests.labs import MountedLab, Vgpu

EXAMPLES = ROOT / "examples"
WIDTH, HEIGHT, SPRITE, BORDER = 640, 480, 64, 8


def expected() -> Image.Image:
    """The picture as Pillow draws it."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), (0x20, 0x40, 0x60))
    picture.paste((0xFF, 0xCC, 0), (40, 30, 240, 130))
    picture.paste((0xFF, 0xCC, 0), (60, 50, 260, 150))
    sprite = Image.new("RGB", (SPRITE, SPRITE))
    sprite.putdata([(4 * x, 4 * y, 128) for y in range(SPRITE) for x in range(SPRITE)])
    picture.paste(sprite, (300, 200))
    picture.paste(sprite, (500, 400))
    picture.paste((0xFF, 0xFF, 0xFF), (0, 0, WIDTH, BORDER))
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


def drawn(vgpu: Vgpu) -> None:
    """The screen shows the picture."""
    with Image.open(io.BytesIO((vgpu.path / "screen.png").read_bytes())) as picture:
        assert picture.size == (WIDTH, HEIGHT)
        assert picture.tobytes() == expected().tobytes()


def test_what_is_drawn_is_seen(lab: MountedLab, program: list[str]) -> None:
    """On the bare mount, with nothing else running."""
    with lab.create("vgpu-8") as vgpu:
        done = run([*program, vgpu.name, lab.path])
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
        drawn(vgpu)


def test_a_run_draws_the_same(lab: MountedLab, program: list[str]) -> None:
    """Where the lab is at /dev and /sys."""
    with lab.create("vgpu-8") as vgpu:
        done = run([*VFSFUSE, "run", "--mount", lab.path, "--", *program, vgpu.name])
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
        drawn(vgpu)


def test_two_draw_at_once(lab: MountedLab, program: list[str]) -> None:
    with lab.create("vgpu-8") as one, lab.create("vgpu-8") as other:
        children = [subprocess.Popen([*program, vgpu.name, lab.path], cwd=ROOT) for vgpu in (one, other)]
        assert [child.wait(60) for child in children] == [0, 0]
        for vgpu in (one, other):
            drawn(vgpu)


@needs.open_fuse
@needs.root("the other tests run as an ordinary user already")
def test_an_ordinary_user_draws(program: list[str]) -> None:
    """In a lab of their own, where memory cannot be mapped."""
    script = (
        "import pathlib, sys, tempfile\n"
        "from tests.commands import run\nfrom tests.labs import MountedLab\n"
        "from tests.test_draw import drawn\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "with MountedLab(folder) as lab, lab.create('vgpu-8') as vgpu:\n"
        "    done = run([*sys.argv[1:], vgpu.name, lab.path])\n"
        "    assert (done.stdout, done.stderr, done.returncode) == ('', '', 0)\n"
        "    drawn(vgpu)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        command = [str(shutil.copy(word, folder)) if word.endswith("/draw") else word for word in program]
        user = [sys.executable, "-m", "tests.ordinary_user", sys.executable, "-c", script]
        done = run([*user, *command])
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
