# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run`: what an open node of the lab is for fstat(2), newfstatat(2) and statx(2)."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import vfsfuse
from tests.labs import MountedLab, Vgpu

Compile = Callable[..., Path]
WAYS = ("fstat", "newfstatat", "statx")


@pytest.fixture
def vgpu(lab: MountedLab) -> Iterator[Vgpu]:
    with lab.create() as made:
        yield made


@pytest.fixture
def client(compile_client: Compile) -> Path:
    return compile_client("stats_client")


def lines(vgpu: Vgpu, *command: str | Path, options: tuple[str, ...] = ()) -> list[list[str]]:
    """The words that `command` prints under the lab of `vgpu`, up to its "ok"."""
    done = vfsfuse("run", "--mount", vgpu.lab.path, *options, "--", *command)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    *found, last = done.stdout.splitlines()
    assert last == "ok"
    return [line.split() for line in found]


def owner(vgpu: Vgpu, path: str) -> str:
    """The owner of a file, by its path, as a program sees it: an ordinary user is root there."""
    return vfsfuse("run", "--mount", vgpu.lab.path, "--", "stat", "--format=%u:%g", path).stdout.strip()


def number(vgpu: Vgpu, attribute: str) -> str:
    return (vgpu.lab.path / "sys" / attribute / "dev").read_text().strip()


@pytest.mark.parametrize("kind", ["group", "container", "iommu", "cdev"])
def test_an_open_node_is_a_character_device(vgpu: Vgpu, client: Path, kind: str) -> None:
    """With the number, the owner and the times that the lab shows, however it was opened."""
    cdev = next((vgpu.path / "vfio-dev").iterdir()).name
    path, attribute = {
        "group": (f"vfio/{vgpu.group}", f"class/vfio/{vgpu.group}"),
        "container": ("vfio/vfio", "class/misc/vfio"),
        "iommu": ("iommu", "class/misc/iommu"),
        "cdev": (f"vfio/devices/{cdev}", f"class/vfio-dev/{cdev}"),
    }[kind]
    shown = lines(vgpu, client, "show", f"/dev/{path}")
    node = (vgpu.lab.path / "dev" / path).stat()
    mode = f"{stat.S_IFCHR | stat.S_IMODE(node.st_mode):o}"
    rest = [str(node.st_nlink), owner(vgpu, f"/dev/{path}"), str(int(node.st_mtime)), str(node.st_ino)]
    assert shown == [[way, mode, number(vgpu, attribute), "0", "0", *rest] for way in (*WAYS, *WAYS)]


def test_a_device_from_its_group_is_an_anonymous_inode(vgpu: Vgpu, client: Path) -> None:
    """As on Linux: no type, mode 0600, of root."""
    shown = lines(vgpu, client, "device", f"/dev/vfio/{vgpu.group}:{vgpu.name}")
    root = owner(vgpu, "/")
    assert [line[:7] for line in shown] == [[way, "600", "0:0", "0", "0", "1", root] for way in WAYS]


@pytest.mark.parametrize("mode", ["errors", "vfork", "signals", "threads", "changing"])
def test_the_answer_is_right_in_a(vgpu: Vgpu, client: Path, mode: str) -> None:
    assert lines(vgpu, client, mode, f"/dev/vfio/{vgpu.group}") == []


def test_a_static_client_sees_the_same(vgpu: Vgpu, compile_client: Compile) -> None:
    program = compile_client("stats_client", "-static")
    assert lines(vgpu, program, "threads", f"/dev/vfio/{vgpu.group}") == []


def test_other_files_of_the_lab_stay_what_they_are(vgpu: Vgpu) -> None:
    """Attributes, also those that the lane answers, and directories of dev."""
    script = 'import os,sys;print(*[oct(os.fstat(os.open(p, 0)).st_mode) for p in sys.argv[1:]]);print("ok")'
    files = [f"/sys/bus/mdev/devices/{vgpu.name}/{name}" for name in ("uevent", "mdev_type/name")]
    shown = lines(vgpu, "python3", "-c", script, *files, "/dev/vfio", "/dev/null")
    assert [stat.S_IFMT(int(mode, 8)) for mode in shown[0]] == [
        *(stat.S_IFREG, stat.S_IFREG),
        *(stat.S_IFDIR, stat.S_IFCHR),
    ]
