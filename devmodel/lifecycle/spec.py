# SPDX-License-Identifier: Apache-2.0
"""The description of a lab as values: its parents, their types, and settings of the whole lab.

State: none, all are frozen. vfsfuse.labfile makes them from a lab file, checked and with defaults.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from devmodel.device.pci import PciDevice

PATH_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
"""A name that can be that of a directory (of NAME_MAX bytes), and a field of a ``vgpu_create`` line."""

_NO_OPTIONS: Mapping[str, int] = MappingProxyType({})


class RemovalPolicy(Enum):
    """What the removal of a vGPU does while a client holds it, besides asking the client to let go."""

    BUSY = "busy"
    """It fails with EBUSY."""
    WAIT = "wait"
    """It waits until the client has let go, as VFIO does in Linux."""


@dataclass(frozen=True, slots=True)
class TypeSpec:
    """A type of vGPU that a parent offers.

    Each vGPU takes ``memory`` bytes and ``slots`` of its parent. ``instances`` is how many of this type there
    may be at once, None without limit. The type's ``name`` attribute shows ``pretty_name``, or ``name``
    without one.
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


@dataclass(frozen=True, slots=True)
class ParentSpec:
    """A device that vGPUs are made of.

    ``kind`` is "gpu" for a physical PCI function, of model ``model`` and at the address ``bdf``, which is
    also its name; or "virtual" for a device under sys/devices/virtual/<driver>/<name>. Its vGPUs share
    ``memory`` bytes and ``slots`` (None: without limit). A function with ``iommu`` False has no IOMMU:
    vfio-pci takes it only in noiommu mode. With SR-IOV it has up to ``vfs`` virtual functions of
    ``vf_model``, each with ``vf_memory`` bytes of the memory (0: an equal share). ``numa_node`` is the node
    that a function is near to, -1 for none.
    """

    name: str
    kind: str
    driver: str
    types: tuple[TypeSpec, ...]
    model: type[PciDevice] | None = None
    bdf: str | None = None
    iommu: bool = True
    memory: int = 0
    slots: int | None = None
    options: Mapping[str, int] = field(default_factory=lambda: _NO_OPTIONS)
    vfs: int = 0
    vf_model: type[PciDevice] | None = None
    vf_memory: int = 0
    numa_node: int = -1


@dataclass(frozen=True, slots=True)
class IommuSpec:
    """What the IOMMUs of a lab can do: ``dirty_tracking`` is whether they mark the pages that devices write.
    ``vtd_info`` is whether GET_HW_INFO of iommufd says that they are VT-d, with their registers."""

    dirty_tracking: bool = True
    vtd_info: bool = False


@dataclass(frozen=True, slots=True)
class LabSpec:
    """A whole lab. The kernel may cache names and attributes for ``cache`` seconds.

    The device files belong to ``device_uid`` and ``device_gid`` (None: the user who mounted), with mode
    ``device_mode``. ``cdevs`` is whether devices have character devices of their own, as in a Linux with
    VFIO_DEVICE_CDEV; ``groups`` is whether there are those of groups and containers (VFIO_GROUP). With
    ``iommufd_container`` dev/vfio/vfio opens iommufds.
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
