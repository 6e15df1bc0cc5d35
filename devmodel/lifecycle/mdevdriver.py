# SPDX-License-Identifier: Apache-2.0
"""The driver of mediated devices, vfio_mdev: a vGPU that it is bound to is one of VFIO's.

State: on the lifecycle thread under ``Lab.lock``; whether a vGPU is held open is under its group's lock.
Source: the behaviour of the driver core (bind, unbind, drivers_probe), as for binding.py.
"""

import errno
import threading
from typing import Protocol

from devmodel.lifecycle.mdev import Mdev


class MdevObserver(Protocol):
    """Told of every change, on the lifecycle thread under ``Lab.lock``, once the state is complete."""

    def mdev_bound(self, mdev: Mdev) -> None:
        """The vGPU has its driver again. An exception undoes the binding."""

    def mdev_unbound(self, mdev: Mdev) -> None:
        """The vGPU has no driver any more; it keeps its numbers."""


class MdevDriver:
    """Binds and unbinds vGPUs. A new one is bound unless ``autoprobe`` (drivers_autoprobe) is off."""

    def __init__(self, lock: threading.RLock, observer: MdevObserver) -> None:
        self._lock, self._observer = lock, observer
        self.autoprobe = True

    def bind(self, mdev: Mdev) -> None:
        """Give the vGPU to VFIO. ``OSError(EBUSY)`` when it is already."""
        with self._lock:
            if mdev.bound:
                raise OSError(errno.EBUSY, f"{mdev.name} is bound")
            mdev.bind()
            try:
                self._observer.mdev_bound(mdev)
            except BaseException:
                mdev.unbind()
                raise

    def unbind(self, mdev: Mdev) -> None:
        """Take the vGPU away from VFIO; its model and what is in its memory stay as they are.

        Raises ``OSError``: ENODEV when it is not bound, EBUSY while a client holds it, which is asked to let
        go.
        """
        with self._lock:
            if not mdev.bound:
                raise OSError(errno.ENODEV, f"{mdev.name} is not bound")
            mdev.retire()
            mdev.unbind()
            self._observer.mdev_unbound(mdev)

    def probe(self, mdev: Mdev) -> None:
        """Bind the vGPU if it is not."""
        with self._lock:
            if not mdev.bound:
                self.bind(mdev)
