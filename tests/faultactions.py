# SPDX-License-Identifier: Apache-2.0
"""A lab for tests of what fault rules have happen to devices, and looks at its devices."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.commands import ROOT, one_write
from tests.labs import MountedLab, described
from tests.nic import driver_of, function, give_back, to_vfio
from tests.vfio.devices import Opened, opened

PORT, NIC = "0000:00:01.0", "0000:65:00.0"
CARD, BESIDE, INTEGRATED = "0000:66:00.0", "0000:66:00.1", "0000:00:05.0"
ALONE = "0000:67:00.0"
SLOT = "7"
LAB = f"""
[models]
copier = "{ROOT}/examples/copier.py:Copier"
accelerator = "{ROOT}/tests/vfio/models/accelerator.py:Accelerator"

[parents.copiers]
kind = "virtual"
driver = "copier"
slots = 8
types.copier-1 = {{ description = "copies" }}
types.express = {{ description = "is PCI Express", model = "accelerator" }}

[functions."{PORT}"]
bridge = "root-port"
secondary = 0x65
capabilities = ["express", "aer"]

[functions."{NIC}"]
driver = "ice"
capabilities = ["pm", "msix:4", "express", "aer"]
bars = {{ 0 = {{ size = "64K" }} }}
vfs = 4
[functions."{NIC}".vf]
driver = "iavf"
capabilities = ["express", "aer"]
bars = {{ 0 = {{ size = "4K", kind = "mem64" }} }}

[functions."{CARD}"]
driver = "nvme"
slot = "{SLOT}"
capabilities = ["express", "aer"]
bars = {{ 0 = {{ size = "4K" }} }}
[functions."{BESIDE}"]
driver = "nvme"
capabilities = ["express"]

[functions."{INTEGRATED}"]
driver = "snd"
capabilities = ["express:2.5GT,x1,no-flr", "aer"]
bars = {{ 0 = {{ size = "4K" }} }}

[functions."{ALONE}"]
driver = "nvme"
capabilities = ["express"]
bars = {{ 0 = {{ size = "4K" }} }}
"""
CONFIG, BAR0 = 7 << 40, 0
SCRATCH = 4
"""The register of an accelerator that a client can write."""
AER, EXPRESS = 0x01, 0x10
DEVSTA, UNCORRECTABLE, FIRST, CORRECTABLE = 0x0A, 0x04, 0x18, 0x10
CACHE_LINE = 0x0C
"""A register that a client can write, and that no reset keeps."""
ONES = b"\xff"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("actions"), LAB) as made:
        yield made


@pytest.fixture(autouse=True)
def as_before(lab: MountedLab) -> Iterator[None]:
    """Each test leaves no rule, and all functions with their host drivers."""
    yield
    one_write(lab.path / "faults", "clear")
    (lab.path / "sys/bus/pci/rescan").write_text("1")
    with suppress(OSError):  # it is there
        (lab.path / "sys/bus/pci/slots" / SLOT / "plug").write_text("1")
    enable(lab, 0)
    for name in (NIC, CARD, BESIDE, INTEGRATED, ALONE):
        if driver_of(function(lab, name)) in (None, "vfio-pci"):
            give_back(lab, function(lab, name))


def add(lab: MountedLab, rule: str) -> None:
    one_write(lab.path / "faults", f"add {rule}")


def enable(lab: MountedLab, count: int) -> None:
    (function(lab, NIC) / "sriov_numvfs").write_text(str(count))


def virtual(lab: MountedLab) -> dict[int, Path]:
    """The virtual functions that are there, by index."""
    own = function(lab, NIC)
    found = sorted(int(name[6:]) for name in os.listdir(own) if name.startswith("virtfn"))
    return {each: function(lab, (own / f"virtfn{each}").readlink().name) for each in found}


def read(opened: Opened, offset: int, size: int = 4) -> bytes:
    return os.pread(opened.device.fd, size, offset)


def write(opened: Opened, offset: int, data: bytes) -> None:
    assert os.pwrite(opened.device.fd, data, offset) == len(data)


def place_of(config: bytes, identity: int) -> int:
    """Where an extended capability is in a configuration space."""
    place = 0x100
    while place:
        (head,) = struct.unpack_from("<I", config, place)
        if head & 0xFFFF == identity:
            return place
        place = head >> 20
    raise LookupError(identity)


def express_of(config: bytes) -> int:
    place = config[0x34]
    while config[place] != EXPRESS:
        place = config[place + 1]
    return place


def counts(lab: MountedLab, name: str) -> dict[str, int]:
    """The counters of a function that are not 0."""
    found: dict[str, int] = {}
    for path in function(lab, name).glob("aer_*"):
        for line in path.read_text().splitlines():
            key, _, count = line.rpartition(" ")
            if int(count):
                found[f"{path.name} {key}".strip()] = int(count)
    return found


@pytest.fixture
def vgpu(lab: MountedLab) -> Iterator[Opened]:
    """An open copier, which has no PCI Express capability."""
    made = lab.create("copier-1", "copiers")
    with opened(lab, made.group, made.name) as device:
        yield device


def opened_function(lab: MountedLab, stack: ExitStack, name: str) -> Opened:
    """A function that vfio-pci drives, opened."""
    return stack.enter_context(opened(lab, to_vfio(lab, function(lab, name)), name))
