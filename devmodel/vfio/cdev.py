# SPDX-License-Identifier: Apache-2.0
"""Open files of devices' own character devices, dev/vfio/devices/vfio<N>: unbound, then bound to an iommufd.

An open of such a file does nothing to the device, but keeps it from being removed. BIND opens the device; the
close of the file closes it and ends the binding. A device is bound once, and not while its group is open.

Threads: the device lane opens and closes; threads that may wait bind, attach and detach. State is under the
lock of the device's group. Source: <linux/vfio.h> (VFIO_DEVICE_BIND_IOMMUFD to
VFIO_DEVICE_DETACH_IOMMUFD_PT), Documentation/driver-api/vfio.rst ("VFIO device cdev").
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from uuid import UUID

from devmodel.iommufd.context import Context
from devmodel.iommufd.device import BoundDevice, bind
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.group import Assignable
from devmodel.vfio.lingering import LastClient, lives


class CdevFile(DeviceFile):
    """One open of a device's own character device. ``client`` used it last. ``bound`` is what BIND made of
    the device, None before. ``granted`` is whether BIND has succeeded, so that the client may use the
    device."""

    __slots__ = ("_binding", "_rawio", "bound", "client", "granted")

    def __init__(
        self, assignable: Assignable, client_ended: Callable[[], bool] = lives, rawio: bool = False
    ) -> None:
        """``client_ended`` and ``rawio`` are as for :func:`devmodel.vfio.groupfile.open_group`.

        Raises ``OSError``: ENODEV when the device is gone or is being removed, EPERM for a device without an
        IOMMU and a client without CAP_SYS_RAWIO.
        """
        self.bound: BoundDevice | None = None
        self.granted = False
        self.client = LastClient(assignable.group, client_ended)
        self._binding = 0
        """How many calls of BIND are under way."""
        self._rawio = rawio
        super().__init__(assignable)

    @property
    def context(self) -> Context | None:
        return None if self.bound is None else self.bound.context

    @property
    def blocks_group(self) -> bool:
        """Whether it is bound, or about to be: then nobody can open the group."""
        return self.bound is not None or bool(self._binding)

    def bind(
        self,
        token: Callable[[], UUID] | None,
        iommufd: Callable[[], Context],
        client_ended: Callable[[], bool] = lives,
        tell: Callable[[int], None] = lambda number: None,
    ) -> None:
        """BIND: use the device, bound to the context that ``iommufd`` finds. ``token`` reads the VF token
        that the client gives, None without one. ``tell`` tells the client the id of the device in the
        context. All three are called without a lock. A thread that may wait makes the call.

        The client cannot use the device before it has been told the id: if that fails, the binding is undone,
        and no call may be under way then.

        Raises ``OSError``: EBUSY while the group is open, EINVAL when the device is bound already, by this
        file or another, EINVAL and EACCES for the token, EPERM when somebody else owns the group, as
        ``token``, ``iommufd``, ``tell`` and :func:`devmodel.iommufd.device.bind`, and ENODEV for a device
        that is gone.
        """
        found, group = self.assignable, self.assignable.group
        group.patiently(self._block_group, may_wait=True)
        try:
            if self.bound is not None:
                raise OSError(errno.EINVAL, f"{found.name} is bound by this file already")
            if token is not None and not found.takes_tokens:
                raise OSError(errno.EINVAL, f"{found.name} takes no VF token")
            given = None if token is None else token()
            with group.lock:
                found.check_token(given)
            context = iommufd()
            number = group.patiently(lambda: self._bind(context), may_wait=True)
            try:
                tell(number)
            except BaseException:
                with group.lock, ExitStack() as after:
                    self._end_binding(after)
                raise
            with group.lock:
                self.client = LastClient(group, client_ended)
                self.granted = True
        finally:
            with group.lock:
                self._binding -= 1

    def attach(self, pt_id: int) -> int:
        """ATTACH. Raises ``OSError``: EINVAL when it is not bound, else as :meth:`BoundDevice.attach`."""
        return self._bound().attach(pt_id)

    def detach(self) -> None:
        """DETACH. Raises ``OSError``: EINVAL when it is not bound, else as :meth:`BoundDevice.detach`."""
        self._bound().detach()

    def _bound(self) -> BoundDevice:
        if self.bound is None or not self.granted:
            raise OSError(errno.EINVAL, f"{self.assignable.name} is not bound to an iommufd")
        return self.bound

    # ---- under the group's lock ----

    def _opened(self) -> None:
        found = self.assignable
        found.group.check_rawio(self._rawio)
        found.cdev_opened(self)

    def _end(self, after: ExitStack) -> None:
        found = self.assignable
        found.cdev_closed(self)
        after.callback(found.group.let_go)
        self._end_binding(after)

    def _block_group(self) -> None:
        opened = self.assignable.group.opened
        if opened is not None:
            opened.client.check()
            raise OSError(errno.EBUSY, f"{self.assignable.group} is open")
        self._binding += 1

    def _bind(self, context: Context) -> int:
        found = self.assignable
        other = next((each for each in found.cdevs if each.bound is not None), None)
        if other is not None:
            other.client.check()
            raise OSError(errno.EINVAL, f"{found.name} is bound already")
        self.device.check_present()
        if not found.emulated_iommu:
            found.group.check_owner(context)
        with ExitStack() as undo:
            bound = bind(context, found)
            undo.callback(bound.unbind)
            self._start()
            undo.pop_all()
        self.bound = bound
        return bound.id

    def _end_binding(self, after: ExitStack) -> None:
        bound, self.bound, self.granted = self.bound, None, False
        if bound is None:
            return
        after.callback(bound.unbind)
        self._stop(after)
