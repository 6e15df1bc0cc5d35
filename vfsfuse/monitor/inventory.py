# SPDX-License-Identifier: Apache-2.0
"""What is in a mounted lab: PCI functions, GPUs with their types of vGPU, vGPUs and slots.

`inventory` reads a lab's files and gives what it finds as plain tuples, which a question can send
(vfsfuse.asking); `gather` makes an Inventory of them.  A device that goes meanwhile is left out.  Few files
are read for each device, because there may be 10,000.  Source: docs/sysfs.md, docs/frameworks.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from vfsfuse.asking import Refusal
from vfsfuse.monitor import files

PULSE = 200
"""After so many looks without a result there is an empty item, which says that the lab answers."""
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_VENDOR_TYPE = re.compile(r"\s*(\d{1,10})\s*:\s*(.*)", re.ASCII)


class Type(NamedTuple):
    """A type of vGPU that a parent offers.  `left` is how many more there is room for, None where the
    framework lists a type only while there is room.  `memory` is bytes of video memory, None without any."""

    name: str
    left: int | None
    memory: int | None
    description: str


class Parent(NamedTuple):
    """A GPU, or another device that vGPUs are made of.  Memory is bytes, None without any.  `types` is empty
    while it does not have its host driver."""

    name: str
    framework: str
    driver: str | None
    vgpus: int | None
    memory: int | None
    free: int | None
    types: tuple[Type, ...]


class Function(NamedTuple):
    """A PCI function.  Ids are hexadecimal digits, as lspci -n shows them.  `nodes` are its files of VFIO,
    `physfn` is the physical function of a virtual one, `vfs` the virtual functions of a physical one, of
    `totalvfs`; None without SR-IOV."""

    address: str
    class_code: str
    vendor: str
    device: str
    subsystem: str
    driver: str | None
    group: str | None
    nodes: tuple[str, ...]
    physfn: str | None
    vfs: int | None
    totalvfs: int | None


class Vgpu(NamedTuple):
    """A vGPU.  `name` is `vgpu<N>`, or the address of the virtual function that it is; `device` is its name
    as a device of VFIO.  `nodes` are its files of VFIO.  `state` is "unbound", "bound", or "online" after
    vgpu_start."""

    name: str
    device: str
    uuid: str | None
    type: str | None
    parent: str
    group: str | None
    nodes: tuple[str, ...]
    state: str


class Slot(NamedTuple):
    """A physical slot.  `address` is where its card is, or would be; `functions` are those of the card."""

    name: str
    address: str
    functions: tuple[str, ...]


class Inventory(NamedTuple):
    """All of a lab."""

    parents: tuple[Parent, ...]
    functions: tuple[Function, ...]
    vgpus: tuple[Vgpu, ...]
    slots: tuple[Slot, ...]


KINDS: dict[str, type[Any]] = {"parent": Parent, "function": Function, "vgpu": Vgpu, "slot": Slot}
Item = tuple[str, tuple[Any, ...]]
PULSE_ITEM: Item = ("", ())


def gather(items: Iterable[Item]) -> Inventory:
    """The Inventory that `inventory` has given in items."""
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for kind, values in items:
        if kind:
            found[kind].append(KINDS[kind](*values))
    parents = [
        parent._replace(types=tuple(Type(*each) for each in parent.types)) for parent in found["parent"]
    ]
    vgpus = sorted(found["vgpu"], key=lambda vgpu: files.in_order(vgpu.name))
    return Inventory(tuple(parents), tuple(found["function"]), tuple(vgpus), tuple(found["slot"]))


def check(lab: str) -> None:
    """Raises Refusal unless a lab is mounted at `lab`.  OSError if its server is gone or refuses us."""
    os.listdir(lab)  # another user's lab is closed to us
    if not os.path.isdir(f"{lab}/sys/class/vgpu"):
        raise Refusal(f"{lab}: no lab is mounted there (vfsfuse mount {lab})")


def inventory(lab: str) -> Iterator[Item]:
    """What is in the lab mounted at `lab`, as items for `gather`.  Raises Refusal, and OSError when the
    server is gone."""
    check(lab)
    return _Reader(lab).items()


class _Reader:
    """One look at a lab."""

    def __init__(self, lab: str) -> None:
        self._lab = lab
        self._nodes: dict[str, str] = {}
        """The file of each device, by the device's name."""
        self._groups: dict[str, str] = {}
        """The file of each group, by the group's number."""
        self._vendor_parents: dict[str, Parent] = {}
        self._types: dict[str, tuple[str, str]] = {}
        """The parent and the type of each mediated vGPU."""

    def items(self) -> Iterator[Item]:
        yield from self._read_nodes()
        addresses = files.names(f"{self._lab}/sys/bus/pci/devices")
        for address in addresses:
            yield from self._function(address)
        for parent in self._vendor_parents.values():
            yield "parent", _plain(parent)
        physical = set(addresses)
        for name in files.names(f"{self._lab}/sys/class/mdev_bus"):
            if name not in physical:
                yield from self._mdev_parent(name, f"{self._lab}/sys/class/mdev_bus/{name}", None)
        yield from self._vgpus()
        for name in files.names(f"{self._lab}/sys/bus/pci/slots"):
            place = files.text(f"{self._lab}/sys/bus/pci/slots/{name}/address")
            if place is not None:
                there = tuple(each for each in addresses if each.startswith(f"{place}."))
                yield "slot", tuple(Slot(name, place, there))

    def _read_nodes(self) -> Iterator[Item]:
        for name in files.names(f"{self._lab}/sys/class/vfio"):
            self._groups[name.removeprefix("noiommu-")] = f"dev/vfio/{name}"
        devices = f"{self._lab}/sys/class/vfio-dev"
        for number, name in enumerate(files.names(devices), start=1):
            path = (files.target(f"{devices}/{name}") or "").split("/")
            if len(path) > 2:
                self._nodes[path[-3]] = f"dev/vfio/devices/{name}"
            if not number % PULSE:
                yield PULSE_ITEM

    def _nodes_of(self, device: str, group: str | None) -> tuple[str, ...]:
        found = (None if group is None else self._groups.get(group), self._nodes.get(device))
        return tuple(node for node in found if node is not None)

    def _function(self, address: str) -> Iterator[Item]:
        path = f"{self._lab}/sys/bus/pci/devices/{address}"
        fd = files.open_directory(path)
        if fd is None:
            return
        try:
            function = self._described(address, fd)
            if function is None:
                return
            yield "function", tuple(function)
            if function.physfn is not None:
                yield from self._vendor_vgpu(function, fd)
            elif (vgpus := files.number("vgpus", fd)) is not None:
                yield from self._physical_parent(function, path, vgpus, fd)
        finally:
            os.close(fd)

    def _described(self, address: str, fd: int) -> Function | None:
        said = files.text("uevent", fd)
        if said is None:
            return None
        keys = dict(line.partition("=")[::2] for line in said.split("\n"))
        vendor, _, device = keys.get("PCI_ID", "").lower().partition(":")
        physfn = files.target_name("physfn", fd)
        totalvfs = None if physfn is not None else files.number("sriov_totalvfs", fd)
        group = files.target_name("iommu_group", fd)
        return Function(
            *(address, keys.get("PCI_CLASS", "").lower().rjust(6, "0"), vendor, device),
            *(keys.get("PCI_SUBSYS_ID", "").lower(), keys.get("DRIVER") or None, group),
            *(self._nodes_of(address, group), physfn),
            *(None if totalvfs is None else files.number("sriov_numvfs", fd), totalvfs),
        )

    def _physical_parent(self, function: Function, path: str, vgpus: int, fd: int) -> Iterator[Item]:
        if files.text("vgpu_placement", fd) is None:
            yield from self._mdev_parent(function.address, path, function.driver)
            return
        memory = files.number("vram_total", fd), files.number("vram_free", fd)
        self._vendor_parents[function.address] = Parent(
            function.address, "nvidia", function.driver, vgpus, *memory, ()
        )

    def _vendor_vgpu(self, function: Function, fd: int) -> Iterator[Item]:
        parent = self._vendor_parents.get(function.physfn or "")
        number = None if parent is None else files.text("nvidia/current_vgpu_type", fd)
        if parent is None or number is None:
            return
        if number != "0":
            address = function.address
            vgpu = Vgpu(
                *(address, address, None, number, parent.name, function.group, function.nodes, "bound")
            )
            yield "vgpu", tuple(vgpu)
        elif not parent.types:
            types = tuple(_vendor_types(files.text("nvidia/creatable_vgpu_types", fd) or ""))
            self._vendor_parents[parent.name] = parent._replace(types=types)

    def _mdev_parent(self, name: str, path: str, driver: str | None) -> Iterator[Item]:
        types = []
        for type_name in files.names(f"{path}/mdev_supported_types"):
            found = f"{path}/mdev_supported_types/{type_name}"
            left = files.number(f"{found}/available_instances")
            description = files.text(f"{found}/description") or ""
            types.append(Type(type_name, left, files.number(f"{found}/vram_size"), description))
            for number, vgpu in enumerate(files.names(f"{found}/devices"), start=1):
                self._types[vgpu] = name, type_name
                if not number % PULSE:
                    yield PULSE_ITEM
        vgpus = files.number(f"{path}/vgpus")
        memory = files.number(f"{path}/vram_total"), files.number(f"{path}/vram_free")
        driver = driver or files.target_name(f"{path}/subsystem")
        yield "parent", _plain(Parent(name, "mdev", driver, vgpus, *memory, tuple(types)))

    def _vgpus(self) -> Iterator[Item]:
        for name, directory in class_vgpus(self._lab):
            if not directory:
                yield PULSE_ITEM
            elif (vgpu := self._vgpu(name, directory)) is not None:
                yield "vgpu", tuple(vgpu)

    def _vgpu(self, name: str, directory: str) -> Vgpu | None:
        """`directory` is the absolute path of the vGPU's directory."""
        device = os.path.basename(directory)
        fd = files.open_directory(directory)
        if fd is None:
            return None
        try:
            group, online = files.target_name("iommu_group", fd), files.text("online", fd)
        finally:
            os.close(fd)
        state = "unbound" if group is None else "online" if online == "1" else "bound"
        found = _UUID.match(device)
        parent, type_name = self._types.get(device, (os.path.basename(os.path.dirname(directory)), None))
        uuid = None if found is None else found[0].lower()
        return Vgpu(name, device, uuid, type_name, parent, group, self._nodes_of(device, group), state)


def class_vgpus(lab: str) -> Iterator[tuple[str, str]]:
    """The names of the mediated vGPUs in sys/class/vgpu, each with the path of its directory.  After PULSE
    looks there is an empty pair.  Asks the lab; raises as `inventory`."""
    for vendor in files.names(f"{lab}/sys/class/vgpu"):
        place = f"{lab}/sys/class/vgpu/{vendor}"
        if not os.path.isdir(place):
            continue
        base = os.path.realpath(place)
        for number, name in enumerate(files.names(base), start=1):
            led = files.target(f"{base}/{name}")
            if led is not None:
                yield name, os.path.normpath(f"{base}/{led}")
            if not number % PULSE:
                yield "", ""


def _vendor_types(catalogue: str) -> Iterator[Type]:
    for line in catalogue.split("\n"):
        found = _VENDOR_TYPE.fullmatch(line)
        if found is not None:
            yield Type(found[1], None, None, found[2])


def _plain(parent: Parent) -> tuple[Any, ...]:
    return tuple(parent._replace(types=tuple(map(tuple, parent.types))))  # type: ignore[arg-type]
