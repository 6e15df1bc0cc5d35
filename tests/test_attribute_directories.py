# SPDX-License-Identifier: Apache-2.0
"""Attributes of a model of one's own that are in directories: as files of vGPUs and of PCI functions."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import one_write, vfsfuse
from tests.inotify import watching
from tests.labs import MountedLab, Vgpu, described
from tests.vfio.client import fails

MODEL = """\
from devmodel.sdk import Bar, DeviceAttribute, Identity, Memory, Option, PciDevice

def level(device, text):
    number = int(text)
    if number > 9:
        raise OSError(28, "too much")
    device.level = number

class Card(PciDevice):
    __slots__ = ("level",)
    identity = Identity(0x1234, 0x5EEE, 0x1AF4, 0x1100, class_code=0x088000)
    OPTIONS = {"deep": Option(0, 0, 1)}
    ATTRIBUTES = (
        DeviceAttribute("plain", lambda device: "plain"),
        DeviceAttribute("stats/reads", lambda device: 7),
        DeviceAttribute("stats/level", lambda device: device.level, level),
        DeviceAttribute("stats/engine/busy", lambda device: device.name),
        DeviceAttribute("stats/engine/unit/0/clock", lambda device: 600),
        DeviceAttribute("stats/more", lambda device: 1, when=lambda options: options["deep"]),
        DeviceAttribute("deep/a/b/c", lambda device: "c", when=lambda options: options["deep"]),
        DeviceAttribute("deep/a/x", lambda device: "x", when=lambda options: options["deep"]),
    )

    def bars(self):
        self.level = 1
        return {0: Bar(Memory(4096))}
"""
LAB = """
[models]
card = "card.py:Card"
[parents.box]
kind = "virtual"
driver = "box"
model = "card"
slots = 8
types.flat = { description = "flat" }
types.deep = { description = "deep", options = { deep = 1 } }
[parents."0000:40:00.0"]
kind = "gpu"
driver = "nogpu"
model = "card"
memory = "1M"
vfs = 2
vf_model = "card"
types.none = { description = "none", instances = 1, model = "card" }
"""
FLAT = {
    "plain": "plain",
    "stats/reads": "7",
    "stats/level": "1",
    "stats/engine/busy": "",
    "stats/engine/unit/0/clock": "600",
}
DEEP = {"stats/more": "1", "deep/a/b/c": "c", "deep/a/x": "x"}


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    folder = tmp_path_factory.mktemp("cards")
    (folder / "card.py").write_text(MODEL)
    with described(folder, LAB) as lab:
        yield lab


@pytest.fixture
def card(cards: MountedLab) -> Iterator[Vgpu]:
    with cards.create("flat", "box") as vgpu:
        yield vgpu


def shown(directory: Path) -> dict[str, str]:
    """The files of the model in a device's directory, each with its text, as listings find them."""
    found: dict[str, str] = {}
    for name in ("plain", "stats", "deep"):
        for path in [directory / name, *(directory / name).rglob("*")]:
            if path.is_file():
                found[str(path.relative_to(directory))] = path.read_text()
    return found


def expected(name: str, *wanted: dict[str, str]) -> dict[str, str]:
    lines = {path: text for each in wanted for path, text in each.items()} | {"stats/engine/busy": name}
    return {path: f"{text}\n" for path, text in lines.items()}


def test_directories_list_what_the_model_declares(cards: MountedLab, card: Vgpu) -> None:
    assert shown(card.path) == expected(card.name, FLAT)
    assert sorted(os.listdir(card.path / "stats")) == ["engine", "level", "reads"]
    assert os.listdir(card.path / "stats/engine/unit") == ["0"] and not (card.path / "deep").exists()
    with cards.create("deep", "box") as deep:
        assert shown(deep.path) == expected(deep.name, FLAT, DEEP)


def test_a_directory_is_as_one_of_sysfs(card: Vgpu) -> None:
    links = {"stats": 3, "stats/engine": 3, "stats/engine/unit": 3, "stats/engine/unit/0": 2}
    for path, count in links.items():
        found = os.stat(card.path / path)
        assert (stat.filemode(found.st_mode), found.st_nlink, found.st_size) == ("drwxr-xr-x", count, 0)
    command = ["find", str(card.path / "stats"), "-type", "f"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (len(done.stdout.splitlines()), done.stderr) == (4, "")  # find goes by st_nlink
    inside = [Path(top) / name for top, below, files in os.walk(card.path) for name in (*below, *files)]
    real = [path for path in inside if not path.is_symlink()]
    assert len({os.lstat(path).st_ino for path in real}) == len(real)
    assert (card.path / "stats/engine/../level").read_text() == "1\n"
    assert os.stat(card.path / "stats/level").st_mode & 0o777 == 0o644
    assert os.stat(card.path / "stats/reads").st_mode & 0o777 == 0o444


def test_a_file_in_a_directory_is_written(card: Vgpu) -> None:
    level = card.path / "stats/level"
    level.write_text("4\n")
    assert level.read_text() == "4\n"
    for text, error in (("x", errno.EINVAL), ("10", errno.ENOSPC)):
        fails(error, one_write, level, text)
    assert level.read_text() == "4\n"
    fails(errno.EACCES, os.open, card.path / "stats/reads", os.O_WRONLY)
    fails(errno.EPERM, os.mkdir, card.path / "stats/engine/new")
    fails(errno.EPERM, os.rmdir, card.path / "stats/engine/unit/0")
    fails(errno.EPERM, os.unlink, level)
    fails(errno.ENOENT, os.stat, card.path / "stats/engine/unit/1")
    fails(errno.ENOTDIR, os.stat, card.path / "stats/level/x")


def test_who_has_a_directory_open_finds_nothing_when_the_device_has_gone(cards: MountedLab) -> None:
    vgpu = cards.create("flat", "box")
    paths = ["stats", "stats/engine", "stats/engine/unit", "stats/engine/unit/0"]
    held = [os.open(vgpu.path / path, os.O_RDONLY) for path in paths]
    names = [os.listdir(fd) for fd in held]
    for fd, inside in zip(held, names, strict=True):
        for name in inside:
            os.stat(name, dir_fd=fd)
    file = os.open(vgpu.path / "stats/engine/busy", os.O_RDONLY)
    vgpu.remove()
    fails(errno.ENODEV, os.pread, file, 9, 0)
    os.close(file)
    for fd, inside in zip(held, names, strict=True):
        assert os.listdir(fd) == [] and stat.S_ISDIR(os.fstat(fd).st_mode)
        for name in inside:
            fails(errno.ENOENT, os.open, name, os.O_RDONLY, dir_fd=fd)
            fails(errno.ENOENT, os.stat, name, dir_fd=fd)
        os.close(fd)


def test_who_watches_a_directory_hears_of_the_device(cards: MountedLab) -> None:
    vgpu = cards.create("flat", "box")
    os.listdir(vgpu.path / "stats/engine")
    with watching(vgpu.path, vgpu.path / "stats/engine") as watch:
        vgpu.remove()
        assert watch.hear(1)[0] == (str(vgpu.path), "IN_DELETE_SELF", "")
    assert not (vgpu.path / "stats").exists()


def test_a_physical_function_and_its_virtual_ones(cards: MountedLab) -> None:
    physical = cards.path / "sys/bus/pci/devices/0000:40:00.0"
    assert shown(physical) == expected("0000:40:00.0", FLAT)
    (physical / "sriov_numvfs").write_text("2")
    virtual = (physical / "virtfn1").resolve()
    assert shown(virtual) == expected(virtual.name, FLAT)
    (virtual / "stats/level").write_text("5")
    assert [(each / "stats/level").read_text() for each in (physical, virtual)] == ["1\n", "5\n"]
    (physical / "sriov_numvfs").write_text("0")
    assert not virtual.exists()


@pytest.mark.parametrize("taken", ["vendor", "power/mine", "driver", "vgpu_uuid", "msi_irqs/x"])
def test_a_name_that_devices_have_is_refused_when_the_lab_is_mounted(tmp_path: Path, taken: str) -> None:
    (tmp_path / "card.py").write_text(MODEL.replace('"plain", lambda', f'"{taken}", lambda'))
    (tmp_path / "lab.toml").write_text(LAB)
    (tmp_path / "mnt").mkdir()
    logged = ("--log-file", tmp_path / "log")
    done = vfsfuse("mount", *logged, "--config", tmp_path / "lab.toml", tmp_path / "mnt")
    first = taken.partition("/")[0]
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    why = f"the model Card declares the attribute '{first}', but that is a name of every"
    place = 'parents."0000:40:00.0"' if first == "msi_irqs" else "parents.box.types.flat"
    assert f"/lab.toml: {place}: {why}" in done.stderr
    assert "(rename it)" in done.stderr
    checked = vfsfuse("check", tmp_path / "lab.toml")
    assert checked.returncode == 1 and checked.stderr == done.stderr.replace(
        "vfsfuse: mount", "vfsfuse: check"
    )


def test_a_name_that_cannot_be_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "card.py").write_text(MODEL.replace('"stats/reads"', '"stats/engine"'))
    (tmp_path / "lab.toml").write_text(LAB)
    (tmp_path / "mnt").mkdir()
    logged = ("--log-file", tmp_path / "log")
    done = vfsfuse("mount", *logged, "--config", tmp_path / "lab.toml", tmp_path / "mnt")
    why = "the attribute 'stats/engine' is a file, and the directory of 'stats/engine/"
    assert done.returncode == 1 and f"models.card: {tmp_path}/card.py:Card: {why}" in done.stderr
