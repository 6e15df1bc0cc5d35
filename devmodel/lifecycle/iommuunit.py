# SPDX-License-Identifier: Apache-2.0
"""IOMMU units as the host has them, and the default domain of a function behind one.

The registers of a unit say what PinningBackend does. The host drivers of a group do DMA in the default domain
of the group. A container or an iommufd takes the group out of that domain.

State: the lifecycle thread's, under ``Lab.lock``. Source: Intel Virtualization Technology for Directed I/O
4.1 chapter 11.4 (capability registers), AMD I/O Virtualization Technology 3.08 chapters 3.2 and 3.4.9
(capability header, extended features), Documentation/ABI/testing/sysfs-kernel-iommu_groups.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from enum import Enum
from typing import ClassVar, NamedTuple, Protocol

from devmodel.iommu.backend import PinningBackend
from devmodel.lifecycle.spec import IommuSpec

FIRST_ADDRESS, REGISTERS_SIZE = 0xFED9_0000, 0x1000
"""Where the registers of the first unit are, and how many bytes. Those of the others are below."""
_ND_65536, _FRO, _MAMV, _PSI, _DWD_DRD = 6, 0x20 << 24, 9 << 48, 1 << 39, 3 << 54
_COHERENT, _QUEUED, _INTERRUPTS, _X2APIC, _PASS_THROUGH, _SNOOP = 1, 1 << 1, 1 << 3, 1 << 4, 1 << 6, 1 << 7
_IRO, _MHMV = 0x50 << 8, 0xF << 20
_SCALABLE, _MARKS_DIRTY, _SECOND_STAGE = 1 << 43, 1 << 45, 1 << 46
_DEVICE_TLB, _PAGE_REQUESTS = 1 << 2, 1 << 29
_AMD_CAPABILITY, _AMD_IOMMU, _AMD_REVISION, _AMD_EXTENDED_FEATURES = 0x0F, 3 << 16, 1 << 19, 1 << 27
_AMD_PAGE_REQUESTS, _INVALIDATE_ALL, _MARKS_ACCESS, _MARKS_WRITES = 1 << 1, 1 << 6, 1 << 49, 1 << 52


class DomainType(Enum):
    """Types of a default domain, by their names in sysfs."""

    DMA_FQ = "DMA-FQ"
    """Translated; what was unmapped is invalidated later, in batches."""
    DMA = "DMA"
    """Translated; what is unmapped is invalidated at once."""
    IDENTITY = "identity"
    """Not translated."""


class DefaultDomain:
    """The default domain of an IOMMU group."""

    __slots__ = ("type",)
    AUTO: ClassVar[str] = "auto"
    """What a client writes to get the type of a new group."""

    def __init__(self) -> None:
        self.type = DomainType.DMA_FQ

    def choose(self, name: str, claimed: bool) -> None:
        """Change the type. ``claimed`` is whether a driver, a container or an iommufd uses the group
        now.

        Raises ValueError for an unknown name, ``OSError(EPERM)`` while the group is claimed. The change from
        DMA to DMA_FQ is possible at any time.
        """
        wanted = DomainType.DMA_FQ if name == self.AUTO else DomainType(name)
        deferred = name == DomainType.DMA_FQ.value and self.type is DomainType.DMA
        if claimed and not deferred:
            raise OSError(errno.EPERM, "a driver or a client uses the group")
        self.type = wanted


class Domain(NamedTuple):
    """What tells the domain that a function is in from others."""

    identity: bool
    owner: object


class Translated(Protocol):
    """A function behind a unit, as the unit sees it."""

    @property
    def domain(self) -> Domain | None:
        """The domain that it is in now, None while its DMA is blocked. Any thread."""


class IommuUnit(NamedTuple):
    """DMA remapping unit ``number``, which can do what ``spec`` says. ``given`` is the name that the lab file
    gives to it, empty without one."""

    number: int
    spec: IommuSpec = IommuSpec()
    given: str = ""

    @property
    def name(self) -> str:
        """Its name in sysfs."""
        return self.given or f"dmar{self.number}"

    @property
    def is_amd(self) -> bool:
        """Whether it is one of AMD's, by its name. Others are VT-d's."""
        return self.name.startswith("ivhd")

    @property
    def amd_header(self) -> int:
        """The capability header of AMD's units."""
        return _AMD_CAPABILITY | _AMD_IOMMU | _AMD_REVISION | _AMD_EXTENDED_FEATURES

    @property
    def amd_features(self) -> tuple[int, int]:
        """The extended features of AMD's units, both registers: four levels of page tables, and whether the
        pages that devices write are marked."""
        dirty = _MARKS_ACCESS | _MARKS_WRITES if self.dirty_tracking else 0
        return _INVALIDATE_ALL | dirty | (_AMD_PAGE_REQUESTS if self.page_requests else 0), 0

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version of the architecture. Dirty bits in page tables came with scalable mode,
        without which Linux uses no page requests either."""
        return (6, 0) if self._scalable else (1, 0)

    @property
    def address(self) -> int:
        """Where its registers are."""
        return FIRST_ADDRESS - self.number * REGISTERS_SIZE

    @property
    def capabilities(self) -> int:
        """The capability register: widths and page sizes of the backend."""
        width = PinningBackend.iova_ranges[-1][1].bit_length()
        large = sum(1 << index for index, bits in enumerate((21, 30)) if PinningBackend.pgsizes >> bits & 1)
        levels = 1 << (width - 30) // 9  # bit 2 of SAGAW: 4 levels, for 48 bits
        return (
            _ND_65536 | levels << 8 | (width - 1) << 16 | _FRO | large << 34 | _PSI | _MAMV | _DWD_DRD
        )  # fmt: skip

    @property
    def extended_capabilities(self) -> int:
        """The extended capability register."""
        more = _SCALABLE | _SECOND_STAGE if self._scalable else 0
        more |= _MARKS_DIRTY if self.dirty_tracking else 0
        more |= _DEVICE_TLB | _PAGE_REQUESTS if self.page_requests else 0
        return _COHERENT | _QUEUED | _INTERRUPTS | _X2APIC | _PASS_THROUGH | _SNOOP | _IRO | _MHMV | more

    @property
    def _scalable(self) -> bool:
        return self.dirty_tracking or self.page_requests

    @property
    def dirty_tracking(self) -> bool:
        """Whether it marks the pages that devices write."""
        return self.spec.dirty_tracking

    @property
    def page_requests(self) -> bool:
        """Whether functions can have translations cached, and ask for pages."""
        return self.spec.page_requests

    @property
    def vtd_info(self) -> bool:
        """Whether GET_HW_INFO says that it is VT-d, with its registers."""
        return self.spec.vtd_info and not self.is_amd

    @property
    def domains_supported(self) -> int:
        """How many domains it can tell apart."""
        return 1 << 4 + 2 * (self.capabilities & 0x7)

    @staticmethod
    def domains_used(functions: Iterable[Translated]) -> int:
        """How many domains ``functions``, which are those behind it, are in."""
        return len({function.domain for function in functions} - {None})
