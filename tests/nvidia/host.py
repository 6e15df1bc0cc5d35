# SPDX-License-Identifier: Apache-2.0
"""A host with this framework for tests: its lab file, and its virtual functions by what is in sysfs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.commands import one_write
from tests.labs import MountedLab, described
from tests.waiting import wait_for

PF = "0000:86:00.0"
SLOTS, SLOT = 16, 4 << 20
"""The card has so many slots, of so many bytes of video memory."""
VFS = 8
HEADER = "ID    : vGPU Name\n"


def _type(name: str, text: str, slots: int, more: str = "") -> str:
    """A type of vGPU in the lab file."""
    numbers = f"memory = {slots * SLOT}, slots = {slots}, instances = {SLOTS // slots}"
    return f'types.{name} = {{ description = "{text}", pretty_name = "{text}", {numbers}{more} }}\n'


LAB = f"""\
[parents."{PF}"]
kind = "gpu"
driver = "nvidia"
framework = "nvidia"
vendor = 0x10de
device = 0x2ab0
memory = {SLOTS * SLOT}
slots = {SLOTS}
vfs = {VFS}
""" + "".join(
    (
        _type("nvidia-11", "NVIDIA LAB-1Q", 1),
        _type("nvidia-14", "NVIDIA LAB-4Q", 4),
        _type("nvidia-24", "NVIDIA LAB-4A", 4, ", weight = 48"),
        _type("nvidia-18", "NVIDIA LAB-8Q", 8),
        _type("whole", "NVIDIA LAB-16Q", 16, ", id = 1116"),
    )
)
TYPES = {
    11: "NVIDIA LAB-1Q",
    14: "NVIDIA LAB-4Q",
    24: "NVIDIA LAB-4A",
    18: "NVIDIA LAB-8Q",
    1116: "NVIDIA LAB-16Q",
}


def catalogue(*ids: int) -> str:
    """The text of creatable_vgpu_types with these types."""
    return HEADER + "".join(f"{number:<5} : {TYPES[number]}\n" for number in TYPES if number in ids)


ALL = catalogue(*TYPES)


class Host:
    """The machine of a mounted lab."""

    def __init__(self, lab: MountedLab, pf: str = PF) -> None:
        self.lab = lab
        self.pf = lab.path / "sys/bus/pci/devices" / pf

    def enable(self, count: int = VFS) -> list[Vf]:
        """Enable virtual functions, unless they are."""
        if (self.pf / "sriov_numvfs").read_text() == "0\n":
            one_write(self.pf / "sriov_numvfs", str(count))
        return [self.vf(index) for index in range(count)]

    def vf(self, index: int) -> Vf:
        return Vf(self, index)

    @property
    def free(self) -> int:
        """Bytes of video memory that are left."""
        return int((self.pf / "vram_free").read_text())

    @property
    def vgpus(self) -> int:
        return int((self.pf / "vgpus").read_text())

    def bind(self, name: str, driver: str = "nvidia") -> None:
        one_write(self.lab.path / "sys/bus/pci/drivers" / driver / "bind", name)

    def unbind(self, name: str, driver: str = "nvidia") -> None:
        one_write(self.lab.path / "sys/bus/pci/drivers" / driver / "unbind", name)


class Vf:
    """A virtual function."""

    def __init__(self, host: Host, index: int) -> None:
        self.host, self.index = host, index
        self.path = (host.pf / f"virtfn{index}").resolve(strict=True)
        self.name = self.path.name
        self.nvidia = self.path / "nvidia"

    @property
    def group(self) -> str:
        return os.path.basename(os.readlink(self.path / "iommu_group"))

    @property
    def vfio(self) -> str:
        (name,) = os.listdir(self.path / "vfio-dev")
        return name

    @property
    def cdev(self) -> Path:
        return self.host.lab.path / "dev/vfio/devices" / self.vfio

    @property
    def type(self) -> int:
        return int(self.read("current_vgpu_type"))

    @property
    def creatable(self) -> str:
        return self.read("creatable_vgpu_types")

    def read(self, name: str) -> str:
        return (self.nvidia / name).read_text()

    def write(self, name: str, text: str) -> None:
        """One write(2), of the text and a newline."""
        one_write(self.nvidia / name, f"{text}\n")

    def set(self, number: int | str) -> None:
        self.write("current_vgpu_type", str(number))

    @contextlib.contextmanager
    def typed(self, number: int) -> Iterator[Vf]:
        """A vGPU of this type for a while."""
        self.set(number)
        try:
            yield self
        finally:
            self.set(0)


def is_used(vf: Vf) -> bool:
    """Whether a client uses it: it refuses what is refused only then."""
    try:
        vf.write("vgpu_params", " ")
    except PermissionError:
        return True
    return False


def wait_until_free(vf: Vf) -> None:
    """The server hears of a close a moment later."""
    wait_for(lambda: not is_used(vf))


@contextlib.contextmanager
def host_of(folder: Path, settings: str = "", text: str = LAB, count: int = VFS) -> Iterator[Host]:
    """A host whose lab file has `settings` before the parent."""
    with described(folder, settings + text) as lab:
        host = Host(lab)
        if count:
            host.enable(count)
        yield host
