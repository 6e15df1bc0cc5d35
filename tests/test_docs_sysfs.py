# SPDX-License-Identifier: Apache-2.0
"""docs/sysfs.md is what the declarations give, describes every file, and lists each file of a mount in which
there is an object of every kind."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import MountedLab, described
from tests.snapshot import walk
from tests.vfio.devices import MSI, TRIGGER, eventfd, opened
from tools import sysfs_table
from tools.sysfs.places import DIRECTORY, LINK, WORDS
from tools.sysfs.rows import Row, above, all_rows, kind_of_file, pattern

MODEL = '''\
# SPDX-License-Identifier: Apache-2.0
"""A function with a BAR of each kind, and a ROM."""

from devmodel.sdk import Bar, Identity, Memory, PciDevice, power_management


class Rom(PciDevice):
    identity = Identity(0x1234, 0xC0F5, 0x1AF4, 0x1100, class_code=0x030000)

    def bars(self):
        return {0: Bar(Memory(4096), prefetch=True), 6: Bar(Memory(4096))}

    def capabilities(self):
        return (power_management(),)
'''
HOST, VFIO, NOIOMMU, ROM, NIC, VENDOR = (f"0000:{bus}:00.0" for bus in ("86", "87", "88", "89", "8a", "8b"))
LAB = f"""
models = {{ rom = "rom.py:Rom" }}

[mount]
device_mode = "0640"

[iommu.units]
dmar0 = {{}}
ivhd1 = {{ scope = ["0000:8a:00.0"] }}

[nodes.0]
cpus = "0-1"
memory = "1G"

[parents."{HOST}"]
kind = "gpu"
driver = "vgpu"
memory = "256M"
vfs = 4
options = {{ vectors = 8 }}
types.small = {{ memory = "16M", instances = 8, max_resolution = "1024x768", description = "a small one" }}

[parents."{VFIO}"]
kind = "gpu"
driver = "vgpu"
slot = "1"
memory = "64M"
types.small = {{ memory = "16M", description = "a small one" }}

[parents."{NOIOMMU}"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
iommu = false
types.small = {{ memory = "16M", description = "a small one" }}

[parents."{ROM}"]
kind = "gpu"
driver = "vgpu"
model = "rom"
memory = "64M"
types.small = {{ memory = "16M", description = "a small one" }}

[functions."0000:00:1d.0"]
bridge = "root-port"
secondary = 0x9a
capabilities = ["express", "aer"]

[functions."{NIC}"]
driver = "nic"
net = "enp138s0"
capabilities = ["vpd", "express", "aer"]
vpd = "82 01 00 41\\n78"

[parents."{VENDOR}"]
kind = "gpu"
driver = "nvidia"
framework = "nvidia"
memory = "64M"
vfs = 2
types.small-1 = {{ memory = "16M", max_resolution = "1024x768", description = "a small one" }}

[parents.mtty]
kind = "virtual"
driver = "mtty"
slots = 4
types.two = {{ description = "two ports", slots = 2, options = {{ ports = 2 }} }}

[parents.mdpy]
kind = "virtual"
driver = "mdpy"
slots = 4
types.vga = {{ description = "a framebuffer" }}

[parents.mbochs]
kind = "virtual"
driver = "mbochs"
memory = "64M"
types.small = {{ memory = "4M", description = "a display" }}
"""
WORD_TEXTS = {
    "function": ("sys/devices/pci0000:86/0000:86:00.0", "sys/devices/pci0000:00/0000:00:01.0/0000:86:00.0"),
    "vgpu": ("6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01", "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01-3"),
    "device": ("sys/devices/virtual/mtty/mtty/6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01",),
    "group": ("0", "noiommu-12"),
    "interface": ("sys/devices/pci0000:86/0000:86:00.0/net/eth0", "sys/devices/virtual/net/lo"),
}


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The kind of every path of a mount with an object of every kind."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "rom.py").write_text(MODEL)
    with described(folder, LAB) as lab:
        fill(lab)
        group = os.readlink(lab.path / "sys/bus/pci/devices" / VFIO / "iommu_group").rsplit("/", 1)[1]
        with opened(lab, group, VFIO) as client, eventfd() as fd:
            client.device.eventfds(MSI, TRIGGER, 0, fd)
            return listing(lab)


def listing(lab: MountedLab) -> dict[str, str]:
    """The kind of every path of a mount."""
    return {
        os.path.relpath(entry.path, lab.path): kind_of_file(entry.stat(follow_symlinks=False).st_mode)
        for entry in walk(lab.path)
    }


def fill(lab: MountedLab) -> None:
    """Make an object of every kind."""
    functions = lab.path / "sys/bus/pci/devices"
    (lab.path / "sys/module/vfio/parameters/enable_unsafe_noiommu_mode").write_text("Y")
    (functions / HOST / "sriov_numvfs").write_text("2")
    (functions / VENDOR / "sriov_numvfs").write_text("2")
    (functions / VENDOR / "virtfn1/nvidia/current_vgpu_type").write_text("1")
    for name in (VFIO, NOIOMMU, os.readlink(functions / HOST / "virtfn0").rsplit("/", 1)[1]):
        take(functions / name)
    for parent, type_ in ((HOST, "small"), ("mtty", "two"), ("mdpy", "vga"), ("mbochs", "small")):
        lab.create(type_, parent)
    (functions / HOST / "vgpu_create").write_text(f"{uuid.uuid4()}:3:small")


def take(function: Path) -> None:
    """Bind a function to vfio-pci."""
    (function / "driver_override").write_text("vfio-pci")
    if (function / "driver").exists():
        (function / "driver/unbind").write_text(function.name)
    (function.parent.parent / "drivers_probe").write_text(function.name)


def covers(row: Row, path: str, kind: str) -> bool:
    """Whether a row is about an entry; the lab file gives `device_mode`."""
    return row.kind.replace("device_mode", "0640") == kind and bool(pattern(row.path).fullmatch(path))


def directories() -> Iterator[str]:
    """The paths of directories that rows are in."""
    for row in all_rows():
        yield from above(row.path)


def test_the_file_is_what_the_declarations_give() -> None:
    assert sysfs_table.PATH.read_text() == sysfs_table.document(), "run python -m tools.sysfs_table"


@pytest.mark.parametrize("row", all_rows(), ids=lambda row: f"{row.model} {row.path}")
def test_every_file_is_described(row: Row) -> None:
    assert row.reading or row.kind in ("0200", "0220"), "its show(), open() or target has no docstring"
    if row.kind not in (DIRECTORY, LINK, "device_mode") and int(row.kind, 8) & 0o222:
        assert row.writing or row.path.startswith("dev/"), "its store() has no docstring"
    for text in (row.reading, row.writing):
        assert not text or (text[-1] == "." and text[0] not in "abcdefghijklmnopqrstuvwxyz"), text


@pytest.mark.parametrize(("word", "text"), [(word, text) for word, all in WORD_TEXTS.items() for text in all])
def test_a_word_stands_for(word: str, text: str) -> None:
    assert word in WORDS and pattern(f"<{word}>").fullmatch(text)
    assert not pattern(f"<{word}>").fullmatch(f"{text}/")


def test_every_entry_of_a_mount_has_a_row(entries: dict[str, str]) -> None:
    known = {path: pattern(path) for path in directories()}
    rows = all_rows()
    missing = [
        f"{path} {kind}"
        for path, kind in entries.items()
        if not any(covers(row, path, kind) for row in rows)
        and not (kind == DIRECTORY and any(each.fullmatch(path) for each in known.values()))
    ]
    assert missing == []


def test_every_row_has_an_entry_in_the_mount(entries: dict[str, str]) -> None:
    rows = {row.path: row for row in all_rows()}
    lost = [
        path
        for path, row in rows.items()
        if not any(covers(row, entry, kind) for entry, kind in entries.items())
    ]
    assert lost == []
    assert len(rows) > 120
