# SPDX-License-Identifier: Apache-2.0
"""SET_IRQS: the check of a request, and its effect on the interrupts of a device.

Threads: the device lane.  The state is the device's (devmodel.irq).  Source: <linux/vfio.h>; the checks and
their order are the kernel's (vfio_set_irqs_validate_and_prepare()).
"""

import errno
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from devmodel.device.base import Device
from devmodel.irq.eventfd import Eventfd, Watcher
from devmodel.irq.irqs import Action
from devmodel.irq.kinds import ClientFds, PciIrq
from devmodel.vfio.flags import IrqSet

ACTIONS = {
    IrqSet.ACTION_MASK: Action.MASK,
    IrqSet.ACTION_UNMASK: Action.UNMASK,
    IrqSet.ACTION_TRIGGER: Action.TRIGGER,
}
ELEMENT_BYTES = {IrqSet.DATA_NONE: 0, IrqSet.DATA_BOOL: 1, IrqSet.DATA_EVENTFD: 4}
KNOWN = IrqSet.DATA_TYPE_MASK | IrqSet.ACTION_TYPE_MASK

Lending = Callable[[], AbstractContextManager[Callable[[int], Eventfd]]]
"""Opens a function that borrows a client's eventfds by their numbers.  Borrowing raises ``OSError``: EBADF
for no descriptor, EINVAL for one that is no eventfd."""


@dataclass(frozen=True, slots=True)
class IrqRequest:
    """One SET_IRQS: ``count`` vectors of ``index`` from ``start`` on, and its flags (:class:`IrqSet`)."""

    flags: int
    index: int
    start: int
    count: int


class IrqData(NamedTuple):
    """Access to the data behind the request, for use after the request was found valid.

    ``room`` is the number of bytes. ``flags`` reads a given number of truth values, ``descriptors`` a given
    number of descriptor numbers.
    """

    room: int
    flags: Callable[[int], bytes]
    descriptors: Callable[[int], Sequence[int]]


def set_irqs(device: Device, request: IrqRequest, data: IrqData, lending: Lending, watcher: Watcher) -> None:
    """Carry the request out.

    Raises ``OSError``: EINVAL for an invalid request, EFAULT and EBADF as ``data`` and ``lending`` do,
    ENOTTY for an unknown action, otherwise as :meth:`devmodel.irq.irqs.Irqs.set`.
    """
    kind = _checked_kind(device, request, data.room)
    numbers = data.descriptors(request.count) if kind == IrqSet.DATA_EVENTFD else ()
    flags = data.flags(request.count) if kind == IrqSet.DATA_BOOL else None
    action = ACTIONS.get(request.flags & IrqSet.ACTION_TYPE_MASK)
    if action is None:
        raise OSError(errno.ENOTTY, f"SET_IRQS flags {request.flags:#x}")
    where = (request.index, action, request.start, request.count)
    if kind == IrqSet.DATA_EVENTFD:
        listen = partial(_route, device, request) if action is Action.TRIGGER else None
        with lending() as borrow:
            device.irq.set(*where, ClientFds(numbers, borrow, watcher, listen))
    else:
        device.irq.set(*where, flags)
    if action is Action.TRIGGER:
        device.irqs_set()
    device.irqs_asked(request.flags, request.index, request.start, request.count)


def _route(device: Device, request: IrqRequest, position: int, eventfd: Eventfd) -> None:
    device.route_interrupt(PciIrq(request.index), request.start + position, eventfd)


def _checked_kind(device: Device, request: IrqRequest, room: int) -> int:
    """The kind of the data.  Raises ``OSError(EINVAL)`` when any part of the request is not valid."""
    flags, index, start, count = request.flags, request.index, request.start, request.count
    vectors = device.irq.count(index)
    kind = flags & IrqSet.DATA_TYPE_MASK
    element = ELEMENT_BYTES.get(kind)
    if (
        index >= len(device.irqs)
        or flags & ~KNOWN
        or start >= vectors
        or start + count > vectors
        or element is None
        or room < count * element
    ):
        raise OSError(errno.EINVAL, f"SET_IRQS on {count} from {start} of {index}")
    return kind
