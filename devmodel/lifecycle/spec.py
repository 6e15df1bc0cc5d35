# SPDX-License-Identifier: Apache-2.0
"""What a lab consists of, as plain values: parents, their types, and settings of the whole.

State: none, all frozen. A lab file makes them, checked and with defaults (vfsfuse.labfile), or a test does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from devmodel.device.pci import PciDevice

PATH_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""A name that can be a directory of the tree and a field of a ``vgpu_create`` line."""

_NO_OPTIONS: Mapping[str, int] = MappingProxyType({})


class RemovalPolicy(Enum):
    """What removing a vGPU in use does, besides asking its holder to let go."""

    BUSY = "busy"
    """It fails with EBUSY."""
    WAIT = "wait"
    """It waits until the holder has let go, as VFIO does in Linux."""


@dataclass(frozen=True, slots=True)
class TypeSpec:
    """A type of vGPU that a parent offers.

    ``memory`` is in bytes and comes out of the parent's, ``slots`` likewise out of the parent's slots;
    ``instances`` bounds how many of this type there may be at once. ``pretty_name`` is what the type's
    ``name`` attribute shows, the type's name itself unless given.
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

    ``kind`` is "gpu" for a physical PCI function at ``bdf`` (which is also its name, and whose model is
    ``model``), or "virtual" for a device under sys/devices/virtual/<driver>/<name>. ``memory`` in bytes and
    ``slots`` are what its vGPUs share; None slots is without limit. A function with ``iommu`` False has no
    IOMMU before it: vfio-pci takes it only in noiommu mode. With SR-IOV it has up to ``vfs`` virtual
    functions of ``vf_model``, each with ``vf_memory`` bytes of the memory (0: an equal share).
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


@dataclass(frozen=True, slots=True)
class LabSpec:
    """A whole lab. ``cache`` is for how many seconds the kernel may cache names and attributes.

    The device files belong to ``device_uid`` and ``device_gid`` (None: who mounted) with ``device_mode``.
    """

    parents: tuple[ParentSpec, ...]
    vendor: str = "vfsfuse"
    device_mode: int = 0o600
    device_uid: int | None = None
    device_gid: int | None = None
    cache: float = 60.0
    removal: RemovalPolicy = RemovalPolicy.BUSY
