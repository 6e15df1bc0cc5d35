# SPDX-License-Identifier: Apache-2.0
"""GET_IRQ_INFO and SET_IRQS of a device (<linux/vfio.h>); the checks, and their order, are the kernel's
(vfio_set_irqs_validate_and_prepare()).  Device lane."""

from __future__ import annotations

import errno
from typing import Any

from devmodel.irq.irqs import Action, ClientFds, Data, IrqIndex
from ioctl_shim._native import lib
from vfsfuse.vfio.eventfds import lender, numbers
from vfsfuse.vfio.files import Request, answers
from vfsfuse.vfio.opened import OpenDevice

INFO_FLAGS = {
    "eventfd": lib.VFIO_IRQ_INFO_EVENTFD,
    "maskable": lib.VFIO_IRQ_INFO_MASKABLE,
    "automasked": lib.VFIO_IRQ_INFO_AUTOMASKED,
    "noresize": lib.VFIO_IRQ_INFO_NORESIZE,
}
ACTIONS = {
    lib.VFIO_IRQ_SET_ACTION_MASK: Action.MASK,
    lib.VFIO_IRQ_SET_ACTION_UNMASK: Action.UNMASK,
    lib.VFIO_IRQ_SET_ACTION_TRIGGER: Action.TRIGGER,
}
ELEMENT_BYTES = {
    lib.VFIO_IRQ_SET_DATA_NONE: 0,
    lib.VFIO_IRQ_SET_DATA_BOOL: 1,
    lib.VFIO_IRQ_SET_DATA_EVENTFD: 4,
}
KNOWN_FLAGS: int = lib.VFIO_IRQ_SET_DATA_TYPE_MASK | lib.VFIO_IRQ_SET_ACTION_TYPE_MASK


class IrqCalls(OpenDevice):
    """The interrupt ioctls of an open device."""

    __slots__ = ()

    @answers("VFIO_DEVICE_GET_IRQ_INFO")
    def get_irq_info(self, request: Request) -> int:
        info = request.argument.value
        irq = self.device.irqs[info.index] if info.index < len(self.device.irqs) else None
        if irq is None:
            raise OSError(errno.EINVAL, f"irq index {info.index}")
        info.flags, info.count = info_flags(irq), irq.count
        request.argument.reply()
        return 0

    @answers("VFIO_DEVICE_SET_IRQS")
    def set_irqs(self, request: Request) -> int:
        argument = request.argument
        header = argument.value
        size = self._data_size(header, argument.argsz - argument.row.minsz)
        data = request.caller.read(request.arg + argument.row.minsz, size)
        action = ACTIONS.get(header.flags & lib.VFIO_IRQ_SET_ACTION_TYPE_MASK)
        if action is None:
            raise OSError(errno.ENOTTY, f"SET_IRQS flags {header.flags:#x}")
        if header.flags & lib.VFIO_IRQ_SET_DATA_EVENTFD:
            with lender(request.caller) as lend:
                self._set(header, action, ClientFds(numbers(data), lend, self.services.watcher))
        else:
            self._set(header, action, None if header.flags & lib.VFIO_IRQ_SET_DATA_NONE else data)
        return 0

    def _data_size(self, header: Any, room: int) -> int:
        """Bytes of data[], once everything about the request was found to be right.  Raises
        OSError(EINVAL)."""
        vectors = self.device.irq.count(header.index)
        element = ELEMENT_BYTES.get(header.flags & lib.VFIO_IRQ_SET_DATA_TYPE_MASK)
        if (
            header.index >= len(self.device.irqs)
            or header.flags & ~KNOWN_FLAGS
            or header.start >= vectors
            or header.start + header.count > vectors
            or element is None
            or room < header.count * element
        ):
            raise OSError(errno.EINVAL, f"SET_IRQS on {header.count} from {header.start} of {header.index}")
        return int(header.count * element)

    def _set(self, header: Any, action: Action, data: Data) -> None:
        self.device.irq.set(header.index, action, header.start, header.count, data)


def info_flags(irq: IrqIndex) -> int:
    return sum(flag for name, flag in INFO_FLAGS.items() if getattr(irq, name))
