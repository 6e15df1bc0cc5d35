# SPDX-License-Identifier: Apache-2.0
"""The description of a lab as values: its PCI functions, its parents, their types, and settings of the whole
lab.

State: all are frozen, but for the models, which a lab exchanges when their code has changed
(:func:`exchange_model`). vfsfuse.labfile makes them from a lab file, checked and with defaults.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from uuid import UUID

from devmodel.device.pci import PciDevice

PATH_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
"""A name that can be that of a directory (of NAME_MAX bytes), and a field of a ``vgpu_create`` line."""

_NO_OPTIONS: Mapping[str, int] = MappingProxyType({})
_NO_TEXTS: Mapping[str, str] = MappingProxyType({})


class SpecError(Exception):
    """A lab cannot be made as its lab file says. The text is a line for a person: file, key, reason,
    remedy."""


class RemovalPolicy(Enum):
    """What the removal of a vGPU does while a client holds it, besides asking the client to let go."""

    BUSY = "busy"
    """It fails with EBUSY."""
    WAIT = "wait"
    """It waits until the client has let go, as VFIO does in Linux."""


class Framework(Enum):
    """How the host driver of a parent gives its vGPUs to VFIO."""

    MDEV = "mdev"
    """As mediated devices."""
    NVIDIA = "nvidia"
    """As virtual functions that the host driver keeps: files in their directory ``nvidia`` make them
    vGPUs."""


class PlacementMode(Enum):
    """Which vGPUs can be on one GPU at the same time."""

    HOMOGENEOUS = "homogeneous"
    """Those with the same video memory."""
    HETEROGENEOUS = "heterogeneous"
    """All, as long as there is a place for each."""


@dataclass(frozen=True, slots=True)
class NvidiaSpec:
    """What a parent with the framework :attr:`Framework.NVIDIA` does.

    ``files`` is how many files the directory ``nvidia`` has: 6, or the 2 of the first drivers. With
    ``physical_catalogue`` the physical function has a catalogue, too.
    """

    files: int = 6
    physical_catalogue: bool = False


@dataclass(frozen=True, slots=True)
class TypeSpec:
    """A type of vGPU that a parent offers.

    Each vGPU takes ``memory`` bytes and ``slots`` of its parent. ``instances`` is how many of this type there
    may be at once, None without limit. The type's ``name`` attribute shows ``pretty_name``, or ``name``
    without one. ``number`` is its id in the framework of NVIDIA. ``starts`` has the slots at which a vGPU may
    begin there, None for the usual ones.
    """

    name: str
    description: str
    model: type[PciDevice]
    device_api: str = "vfio-pci"
    memory: int = 0
    slots: int = 1
    instances: int | None = None
    options: Mapping[str, int] = field(default_factory=lambda: _NO_OPTIONS)
    pretty_name: str = ""
    number: int = 0
    starts: tuple[int, ...] | None = None


class BridgeKind(Enum):
    """What a bridge is, by its name in a lab file."""

    ROOT_PORT = "root-port"
    UPSTREAM = "switch-upstream"
    DOWNSTREAM = "switch-downstream"
    PCI = "pci"
    """From PCI Express to conventional PCI."""

    @property
    def is_downstream_port(self) -> bool:
        """Whether it is a port at the upper end of a link: it has ACS unless the lab file says otherwise, and
        may have a slot."""
        return self in (BridgeKind.ROOT_PORT, BridgeKind.DOWNSTREAM)


@dataclass(frozen=True, slots=True)
class BridgeSpec:
    """A bridge: the number of the bus right below it, and that of the last bus below it (None: as far as the
    functions of the lab need it)."""

    kind: BridgeKind
    secondary: int
    subordinate: int | None = None


@dataclass(frozen=True, slots=True)
class VfSpec:
    """The virtual functions that a function can have: at most ``count``, of ``model``.

    Each has ``memory`` bytes of the function's memory (0: an equal share, rounded down to a power of two;
    None: nothing, because its vGPU has that) and is taken by host driver ``driver`` (None: by none). The
    first one is ``offset`` routing ids behind the function (None: where there is room), the others ``stride``
    apart. ``shares_group`` is whether they are in the IOMMU group of the function. They appear ``delay``
    seconds after the write that enables them; the host driver fails to take those with an index in
    ``failing``. ``groups`` has the numbers of their IOMMU groups by index, ``net`` the names of their network
    interfaces. ``enabled`` is how many of them there are from the start. ``vectors`` is how many MSI-X
    vectors the function's host driver shares out among them, 0 for a driver that cannot.
    """

    count: int
    model: type[PciDevice]
    memory: int | None = 0
    options: Mapping[str, int] = field(default_factory=lambda: _NO_OPTIONS)
    texts: Mapping[str, str] = field(default_factory=lambda: _NO_TEXTS)
    driver: str | None = None
    offset: int | None = None
    stride: int = 1
    shares_group: bool = False
    delay: float = 0.0
    failing: frozenset[int] = frozenset()
    groups: tuple[int, ...] = ()
    net: tuple[str, ...] = ()
    enabled: int = 0
    vectors: int = 0


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A physical PCI function at ``address``, which is also its name.

    ``model`` is None for a ``bridge`` of the built-in model. ``driver`` is its host driver, None without one.
    ``iommu`` is whether it is behind an IOMMU. ``numa_node`` is None for the node of what is above it, and -1
    for none. ``acs`` is whether its ACS is on (None: as its kind has it). Functions with the same ``group``
    are in one IOMMU group; a number is that of the group. ``slot`` names the physical slot that it is in, and
    ``plugged`` is whether it is there from the start. ``serial`` is the device serial number, 64 bits.
    ``net`` has the names of its network interfaces, ``mac`` the address of the first one. ``parent`` says how
    it is shared among vGPUs, None for a function that is not.
    """

    address: str
    model: type[PciDevice] | None
    driver: str | None = None
    memory: int = 0
    options: Mapping[str, int] = field(default_factory=lambda: _NO_OPTIONS)
    texts: Mapping[str, str] = field(default_factory=lambda: _NO_TEXTS)
    iommu: bool = True
    numa_node: int | None = None
    acs: bool | None = None
    group: str | int | None = None
    slot: str | None = None
    plugged: bool = True
    serial: int | None = None
    bridge: BridgeSpec | None = None
    vf: VfSpec | None = None
    net: tuple[str, ...] = ()
    mac: bytes | None = None
    parent: ParentSpec | None = None

    @property
    def name(self) -> str:
        """Its address, as sysfs spells it."""
        return self.address

    @property
    def drivers(self) -> tuple[str, ...]:
        """The host drivers of the function and of its virtual functions."""
        return tuple(filter(None, (self.driver, None if self.vf is None else self.vf.driver)))


def exchange_model(spec: TypeSpec | VfSpec | FunctionSpec, model: type[PciDevice]) -> None:
    """Have everybody who knows ``spec`` find another model there (devmodel.lifecycle.renewal), so that nobody
    keeps the code of the old one. Lifecycle thread."""
    object.__setattr__(spec, "model", model)


@dataclass(frozen=True, slots=True)
class RootSpec:
    """A root bus, such as "0000:80": what is right below a host bridge. ``numa_node`` is the node that it is
    near to, -1 for none."""

    bus: str
    numa_node: int = -1


MAX_NODES, MAX_CPUS = 1024, 8192
"""NUMA nodes that Linux can tell apart, and CPUs that it can have on x86."""
LOCAL_DISTANCE, REMOTE_DISTANCE = 10, 20
"""What Linux takes for the distance of a NUMA node to itself and to another, when firmware says nothing."""


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A NUMA node of the lab's machine: its CPUs, ``threads`` of them to a core, ``memory`` in bytes, and its
    distances to all nodes in the order of their numbers, () for those that Linux takes without firmware."""

    number: int
    cpus: frozenset[int] = frozenset()
    memory: int = 0
    distances: tuple[int, ...] = ()
    threads: int = 1


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """An IOMMU unit ``name``, such as "dmar1". ``scope`` has root buses ("0000:80"), bridges and functions
    (by address) that are behind it, with all that is below them. Without a scope all others are."""

    name: str
    scope: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ParentSpec:
    """A device that vGPUs are made of.

    ``kind`` is "gpu" for a physical PCI function, which ``hardware`` describes and whose address is its name;
    or "virtual" for a device under sys/devices/virtual/<driver>/<name>. Its vGPUs share ``memory`` bytes and
    ``slots`` (None: without limit). ``framework`` is how its vGPUs are given to VFIO. ``placement`` is which
    vGPUs can be beside one another at first, None for all that there is memory for. ``type_names`` is whether
    its types have the attribute ``name``.
    """

    name: str
    kind: str
    driver: str
    types: tuple[TypeSpec, ...]
    memory: int = 0
    slots: int | None = None
    hardware: FunctionSpec | None = None
    framework: Framework = Framework.MDEV
    nvidia: NvidiaSpec = field(default_factory=NvidiaSpec)
    placement: PlacementMode | None = None
    type_names: bool = True

    @property
    def bdf(self) -> str | None:
        """The address of the PCI function that it is, None for a virtual parent."""
        return None if self.hardware is None else self.hardware.address

    @property
    def function(self) -> FunctionSpec | None:
        """The PCI function that it is, with this as its parent. None for a virtual parent."""
        return None if self.hardware is None else replace(self.hardware, parent=self)


@dataclass(frozen=True, slots=True)
class VgpuSpec:
    """A vGPU that exists from the start, of type ``type``.

    A mediated device is as a line of ``vgpu_create`` asks for it, with ``overrides`` of what the type gives;
    ``name`` is that of its directory. With the framework of NVIDIA it is virtual function ``vf``, by its
    index. ``group`` is the number of its IOMMU group, None for any. ``place`` is where the lab file says so,
    for errors.
    """

    parent: str
    type: str
    uuid: UUID | None = None
    instance: int = 0
    name: str = ""
    vf: int | None = None
    overrides: Mapping[str, str] = field(default_factory=lambda: _NO_TEXTS)
    place: str = ""
    group: int | None = None


@dataclass(frozen=True, slots=True)
class IommuSpec:
    """What the IOMMUs of a lab can do: ``dirty_tracking`` is whether they mark the pages that devices write.
    ``vtd_info`` is whether GET_HW_INFO of iommufd says that they are VT-d, with their registers.
    ``page_requests`` is whether functions can have translations cached, and ask for pages."""

    dirty_tracking: bool = True
    vtd_info: bool = False
    page_requests: bool = False


@dataclass(frozen=True, slots=True)
class LabSpec:
    """A whole lab. The kernel may cache names and attributes for ``cache`` seconds.

    ``functions`` has the PCI functions that are no parents, :attr:`all_functions` has those of parents too.
    ``roots``, ``nodes`` and ``units`` have the root buses, NUMA nodes and IOMMU units that the lab file
    names; nodes in the order of their numbers, () for those of the machine that the lab is mounted on.

    The device files belong to ``device_uid`` and ``device_gid`` (None: the user who mounted), with mode
    ``device_mode``. ``cdevs`` is whether devices have character devices of their own, as in a Linux with
    VFIO_DEVICE_CDEV; ``groups`` is whether there are those of groups and containers (VFIO_GROUP). With
    ``iommufd_container`` dev/vfio/vfio opens iommufds. ``mdev`` is whether there is the bus of mediated
    devices. ``modules`` are parameters of modules as they are loaded, by the names of
    :class:`devmodel.vfio.module.VfioModule`. ``vgpus`` exist from the start.
    ``faults`` are the fault rules from the start, as lines of the mount's file `faults`.
    ``source`` is the path of the lab file, for errors.
    """

    parents: tuple[ParentSpec, ...]
    vendor: str = "vfsfuse"
    device_mode: int = 0o600
    device_uid: int | None = None
    device_gid: int | None = None
    cache: float = 60.0
    removal: RemovalPolicy = RemovalPolicy.BUSY
    cdevs: bool = True
    groups: bool = True
    iommufd_container: bool = False
    iommu: IommuSpec = field(default_factory=IommuSpec)
    functions: tuple[FunctionSpec, ...] = ()
    roots: tuple[RootSpec, ...] = ()
    nodes: tuple[NodeSpec, ...] = ()
    units: tuple[UnitSpec, ...] = ()
    mdev: bool = True
    modules: Mapping[str, bool | int | str] = field(default_factory=lambda: MappingProxyType({}))
    vgpus: tuple[VgpuSpec, ...] = ()
    faults: tuple[str, ...] = ()
    source: str = ""

    @property
    def all_functions(self) -> tuple[FunctionSpec, ...]:
        """The physical PCI functions of the lab, in the order of the lab file: parents first."""
        return (*filter(None, (parent.function for parent in self.parents)), *self.functions)
