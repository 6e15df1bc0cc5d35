# SPDX-License-Identifier: Apache-2.0
"""Hardware page tables (HWPTs): the domains of IOMMUs that physical functions attach to.

An HWPT has the mappings of its IOAS, all pinned from the moment it is made. A client makes one by HWPT_ALLOC,
or the attachment of a function to an IOAS does, and then it goes with the last function.

State: references, and the automatic HWPTs of an IOAS, under ``ObjectTable.lock``. HWPTs of an IOAS are made
one after the other, under ``Ioas.attaching``, which is held while memory is pinned. What ends an HWPT does
not take that lock, and does not wait.
Source: <linux/iommufd.h> (struct iommu_hwpt_alloc), Documentation/userspace-api/iommufd.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntFlag
from itertools import count
from typing import NamedTuple

from devmodel.iommu.dmaspace import DmaSpace
from devmodel.iommufd.dirty import TrackedSpace
from devmodel.iommufd.faultqueue import FaultQueue
from devmodel.iommufd.hwinfo import IommuDevice, UnitFacts
from devmodel.iommufd.ioas import APERTURE, EVERYTHING, Ioas
from devmodel.iommufd.objects import IommufdObject, ObjectTable, ObjectType


class HwptFlag(IntFlag):
    """Flags of HWPT_ALLOC (IOMMU_HWPT_ALLOC_*, IOMMU_HWPT_FAULT_ID_VALID)."""

    NEST_PARENT = 1
    """HWPTs of guests can be nested in it."""
    DIRTY_TRACKING = 2
    FAULT_ID_VALID = 4
    """Its page faults go to a fault queue."""
    PASID = 8
    """Functions can attach with a PASID."""


_numbers = count(2**32)
_REFUSED = ~int(HwptFlag.DIRTY_TRACKING | HwptFlag.FAULT_ID_VALID | HwptFlag.PASID)
"""Unknown flags, and NEST_PARENT: nothing nests in this IOMMU."""
_NOT_NESTED = ~int(HwptFlag.FAULT_ID_VALID | HwptFlag.PASID)
"""Flags that a nested HWPT does not take."""
DATA_NONE = 0
"""The type of an HWPT without data of its own (IOMMU_HWPT_DATA_NONE)."""


class Hwpt(IommufdObject):
    """A domain of the mappings of ``ioas``. ``auto`` is one that an attachment has made.

    For functions that are behind an IOMMU with the registers of ``unit``; None: without an IOMMU. They do DMA
    through ``space``, which is ``tracked`` if the HWPT can track dirty pages. To the IOAS it is a group of
    physical functions with the number ``number``. That is not the id, which is given again before the IOAS
    has let go of the group. Its functions may ask for pages if it has a queue for that, ``faults``.
    """

    __slots__ = ("_table", "auto", "faults", "ioas", "number", "space", "tracked", "unit")
    type = ObjectType.HWPT
    destroy_waits = True
    """It lets go of all mappings, of which there may be very many."""
    emulated = False

    def __init__(
        self, table: ObjectTable, ioas: Ioas, unit: UnitFacts | None, auto: bool = False, dirty: bool = False
    ) -> None:
        """For :func:`allocated` and :func:`hwpt_for`."""
        super().__init__()
        self._table, self.ioas, self.unit, self.auto = table, ioas, unit, auto
        self.number = next(_numbers)
        self.tracked = TrackedSpace(ioas.space) if dirty else None
        self.space: DmaSpace = self.tracked or ioas.space
        self.faults: FaultQueue | None = None

    def serves(self, device: IommuDevice) -> bool:
        """Whether the function can use it: whether it is behind an IOMMU like that of the HWPT."""
        return _registers(self.unit) == _registers(device.unit)

    def fill(self) -> None:
        """Make it a domain of the IOAS, which a call has taken. Raises ``OSError`` as
        :meth:`Ioas.add_domain`, with nothing changed."""
        self._table.reserve(self)
        self._table.hold(self.ioas)
        try:
            self.ioas.add_domain(self, EVERYTHING if self.unit is None else APERTURE)
        except BaseException:
            self._table.drop(self.ioas)
            self._table.cancel(self)
            raise

    def join(self, device: IommuDevice) -> None:
        """Hold it for ``device`` until :meth:`leave`. For a call that has taken it by its id. Raises
        ``OSError``: EINVAL for a function that is behind another kind of IOMMU, as
        :meth:`IommuDevice.check_page_requests` if it has a fault queue."""
        if self.faults is not None:
            device.check_page_requests()
        if not self.serves(device) or not self.hold():
            raise OSError(errno.EINVAL, f"HWPT {self.id} is of another IOMMU")

    def leave(self, device: IommuDevice) -> None:
        """``device`` is detached: the opposite of :meth:`join` and :func:`hwpt_for`. An automatic HWPT goes
        with the last one. Does not wait. Any thread."""
        if self.faults is not None:
            self.faults.leave(device, self)
        table = self._table
        with table.lock:
            table.drop(self)
            last = self.auto and not self.users
            if last:
                table.remove(self)
                self.ioas.automatic.remove(self)
        if last:
            self.destroyed()

    def hold(self) -> bool:
        """Hold it. False, with nothing changed, for an automatic one whose last function has just gone."""
        with self._table.lock:
            there = not self.auto or bool(self.users)
            if there:
                self._table.hold(self)
            return there

    def destroyed(self) -> None:
        if self.tracked is not None:
            self.tracked.stop()
        self.ioas.remove_domain(self)
        self._table.drop(self.ioas)
        if self.faults is not None:
            self._table.drop(self.faults)


def _registers(unit: UnitFacts | None) -> tuple[int, int] | None:
    return None if unit is None else (unit.capabilities, unit.extended_capabilities)


def hwpt_for(ioas: Ioas, device: IommuDevice) -> Hwpt:
    """The automatic HWPT of ``ioas`` for ``device``, held for it until :meth:`Hwpt.leave`. The functions
    behind IOMMUs of a kind share one. It waits for the clients whose memory it pins.

    Raises ``OSError``, with nothing changed, as :meth:`Ioas.add_domain`, and ENOMEM for too many objects.
    """
    table = device.context.objects
    with ioas.attaching:
        for known in tuple(ioas.automatic):
            if isinstance(known, Hwpt) and known.serves(device) and known.hold():
                return known
        made = Hwpt(table, ioas, device.unit, auto=True)
        made.fill()
        with table.lock:
            table.publish(made)
            table.hold(made)
            ioas.automatic.append(made)
        return made


# ---- HWPT_ALLOC ----


class Wish(NamedTuple):
    """What HWPT_ALLOC asks for. ``pt`` is an IOAS or, to nest, an HWPT. ``data_size`` is that of data of the
    type ``data_type``. ``fault`` is a fault queue."""

    device: int
    pt: int
    flags: int = 0
    data_type: int = DATA_NONE
    data_size: int = 0
    reserved: int = 0
    fault: int = 0


@contextmanager
def allocated(table: ObjectTable, wish: Wish) -> Iterator[Hwpt]:
    """HWPT_ALLOC. Clients can name the new HWPT when the block has ended. It is taken back if the block
    raises. It waits for the clients whose memory it pins.

    Raises ``OSError``, in the kernel's order: EOPNOTSUPP (``reserved``), EINVAL (data without a type, or the
    opposite), ENOENT (no such function), EINVAL (no such IOAS or HWPT), EOPNOTSUPP (a flag, or data, that
    this IOMMU does not have), for an HWPT EOPNOTSUPP (flags, no data) and EINVAL (nothing can be nested in
    it), as :meth:`Ioas.add_domain`, ENOENT (the fault queue).
    """
    if wish.reserved:
        raise OSError(errno.EOPNOTSUPP, "a reserved member is set")
    if (wish.data_type == DATA_NONE) != (wish.data_size == 0):
        raise OSError(errno.EINVAL, f"{wish.data_size} bytes of data of type {wish.data_type}")
    with table.using(wish.device, IommuDevice) as device, _page_table(table, wish.pt) as pt:
        if isinstance(pt, Hwpt):
            raise _refused_nested(wish)
        made = _allocate(table, pt, device, wish)
        try:
            if wish.flags & HwptFlag.FAULT_ID_VALID:
                with table.using(wish.fault, FaultQueue) as queue:
                    table.hold(queue)
                    made.faults = queue
            yield made
        except BaseException:
            made.destroyed()
            table.cancel(made)
            raise
        table.publish(made)


@contextmanager
def _page_table(table: ObjectTable, number: int) -> Iterator[Ioas | Hwpt]:
    try:
        found = table.take(number, IommufdObject)
    except OSError as error:
        raise OSError(errno.EINVAL, error.strerror) from error
    try:
        if not isinstance(found, Ioas | Hwpt):
            raise OSError(errno.EINVAL, f"object {number} is neither an IOAS nor an HWPT")
        yield found
    finally:
        table.put(found)


def _allocate(table: ObjectTable, ioas: Ioas, device: IommuDevice, wish: Wish) -> Hwpt:
    unit, flags = device.unit, wish.flags
    dirty = bool(flags & HwptFlag.DIRTY_TRACKING)
    if (
        flags & _REFUSED
        or wish.data_type != DATA_NONE
        or (flags and unit is None)
        or (dirty and not (unit and unit.dirty_tracking))
    ):
        raise OSError(errno.EOPNOTSUPP, f"an HWPT with flags {flags:#x} and data of type {wish.data_type}")
    made = Hwpt(table, ioas, unit, dirty=dirty)
    with ioas.attaching:
        made.fill()
    return made


def _refused_nested(wish: Wish) -> OSError:
    if wish.flags & _NOT_NESTED or wish.data_type == DATA_NONE:
        return OSError(errno.EOPNOTSUPP, f"a nested HWPT with flags {wish.flags:#x}")
    return OSError(errno.EINVAL, f"HWPT {wish.pt} is no parent for nested ones")


# ---- dirty tracking ----


def tracked_space(hwpt: Hwpt) -> TrackedSpace:
    """Raises ``OSError(EOPNOTSUPP)`` for an HWPT that was made without DIRTY_TRACKING."""
    if hwpt.tracked is None:
        raise OSError(errno.EOPNOTSUPP, f"HWPT {hwpt.id} does not track dirty pages")
    return hwpt.tracked
