# SPDX-License-Identifier: Apache-2.0
"""DEVICE_FEATURE: one row for each feature, with what may be done to it and how many bytes it takes.  Device
lane.

Source: <linux/vfio.h>; the order of checks is the kernel's (vfio_ioctl_device_feature(),
vfio_check_feature()).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from devmodel.lifecycle.function import PhysicalFunction
from devmodel.vfio.vftoken import VfToken
from ioctl_shim._native import ffi, lib
from vfsfuse.vfio.eventfds import borrow
from vfsfuse.vfio.files import Request, answers
from vfsfuse.vfio.opened import OpenDevice

GET: int = lib.VFIO_DEVICE_FEATURE_GET
SET: int = lib.VFIO_DEVICE_FEATURE_SET
PROBE: int = lib.VFIO_DEVICE_FEATURE_PROBE
UUID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature whose SET takes `size` bytes; `present` says whether a device has it (else ENOTTY)."""

    size: int
    set: Callable[[Any, Request, bytes], None]
    present: Callable[[Any], bool]
    methods: int = SET


class FeatureCalls(OpenDevice):
    """DEVICE_FEATURE of an open device."""

    __slots__ = ()

    @answers("VFIO_DEVICE_FEATURE")
    def feature(self, request: Request) -> int:
        argument = request.argument
        flags = argument.value.flags
        methods = flags & (GET | SET)
        if flags & ~(lib.VFIO_DEVICE_FEATURE_MASK | GET | SET | PROBE):
            raise OSError(errno.EINVAL, f"DEVICE_FEATURE flags {flags:#x}")
        if methods == GET | SET and not flags & PROBE:
            raise OSError(errno.EINVAL, "GET and SET at once")
        feature = FEATURES.get(flags & lib.VFIO_DEVICE_FEATURE_MASK)
        if feature is None or not feature.present(self):
            raise OSError(errno.ENOTTY, f"no feature {flags & lib.VFIO_DEVICE_FEATURE_MASK}")
        if methods & ~feature.methods:
            raise OSError(errno.EINVAL, f"DEVICE_FEATURE flags {flags:#x}")
        if flags & PROBE:
            return 0
        if not methods or argument.argsz - argument.row.minsz < feature.size:
            raise OSError(errno.EINVAL, "neither GET nor SET, or too little data")
        data = request.caller.read(request.arg + argument.row.minsz, feature.size)
        feature.set(self, request, data)
        return 0

    def has_vf_token(self) -> bool:
        return self._vf_token is not None

    def set_vf_token(self, request: Request, data: bytes) -> None:
        if self._vf_token is not None:
            self._vf_token.set(UUID(bytes=data))

    @property
    def _vf_token(self) -> VfToken | None:
        return self.function.vf_token if isinstance(self.function, PhysicalFunction) else None

    def has_power(self) -> bool:
        return self.function is not None

    def enter_low_power(self, request: Request, data: bytes) -> None:
        """The function stays at full power, as one may whose host keeps it there; only the state is kept."""
        if self.low_power:
            raise OSError(errno.EINVAL, "low power was entered already")
        self.low_power = True

    def enter_with_wakeup(self, request: Request, data: bytes) -> None:
        """A function that never sleeps is never woken, so its eventfd is only checked."""
        entry: Any = ffi.new("struct vfio_device_low_power_entry_with_wakeup *")
        ffi.memmove(entry, data, len(data))
        if entry.wakeup_eventfd < 0 or entry.reserved:
            raise OSError(errno.EINVAL, f"wake-up eventfd {entry.wakeup_eventfd}")
        borrow(request.caller, entry.wakeup_eventfd).close()
        self.enter_low_power(request, data)

    def exit_low_power(self, request: Request, data: bytes) -> None:
        self.low_power = False


_POWER = FeatureCalls.has_power
FEATURES: Mapping[int, Feature] = {
    lib.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: Feature(
        UUID_BYTES, FeatureCalls.set_vf_token, FeatureCalls.has_vf_token
    ),
    lib.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: Feature(0, FeatureCalls.enter_low_power, _POWER),
    lib.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: Feature(
        int(ffi.sizeof("struct vfio_device_low_power_entry_with_wakeup")),
        FeatureCalls.enter_with_wakeup,
        _POWER,
    ),
    lib.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: Feature(0, FeatureCalls.exit_low_power, _POWER),
}
