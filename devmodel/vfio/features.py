# SPDX-License-Identifier: Apache-2.0
"""DEVICE_FEATURE: a row for each feature has the test whether a device has it, and what GET and SET do.

Threads: the device lane.  Source: <linux/vfio.h>; the order of checks is the kernel's
(vfio_ioctl_device_feature(), vfio_check_feature()).
"""

import errno
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from devmodel.irq.eventfd import Eventfd
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.flags import DeviceFeature
from devmodel.vfio.migration import STOP_COPY, change_state, check_state, migrates, state_of
from devmodel.vfio.vfio_pci import VfioPciFunction
from devmodel.vfio.vftoken import VfToken

METHODS = DeviceFeature.GET | DeviceFeature.SET
KNOWN = DeviceFeature.MASK | METHODS | DeviceFeature.PROBE


class WakeUp(NamedTuple):
    """The data of LOW_POWER_ENTRY_WITH_WAKEUP."""

    eventfd: int
    reserved: int


class FeatureData(NamedTuple):
    """Access to the data behind the request, for use after the request was found valid.

    ``complete`` is whether the client's buffer has room for all data. ``value`` reads it: a UUID for
    PCI_VF_TOKEN, a :class:`WakeUp` for LOW_POWER_ENTRY_WITH_WAKEUP, the number of a state for
    MIG_DEVICE_STATE, None for a feature without data.
    """

    complete: bool
    value: Callable[[], Any]


Borrow = Callable[[int], Eventfd]


@dataclass(frozen=True, slots=True)
class Feature:
    """``present`` is whether an open device has the feature (else ENOTTY). ``set`` carries SET out, ``get``
    gives the data of GET."""

    present: Callable[[DeviceFile], bool]
    set: Callable[[DeviceFile, Any, Borrow], None] | None = None
    get: Callable[[DeviceFile], bytes] | None = None

    @property
    def methods(self) -> int:
        """GET, SET or both."""
        return (DeviceFeature.SET if self.set else 0) | (DeviceFeature.GET if self.get else 0)


def feature(opened: DeviceFile, flags: int, data: FeatureData, borrow: Borrow) -> bytes:
    """Carry out one DEVICE_FEATURE. Returns the data for the client.

    Raises ``OSError``: EINVAL for flags that cannot be combined, and for missing data; ENOTTY for a feature
    that the device does not have; EFAULT, EBADF and EINVAL as ``data`` and ``borrow`` do; what the feature
    raises; :class:`GivesDescriptor`.
    """
    found = checked(opened, flags, data.complete)
    if found is None:
        return b""
    if flags & DeviceFeature.GET and found.get is not None:
        return found.get(opened)
    if found.set is not None:
        found.set(opened, data.value(), borrow)
    return mig_state(opened) if flags & DeviceFeature.MASK == DeviceFeature.MIG_DEVICE_STATE else b""


def checked(opened: DeviceFile, flags: int, complete: bool) -> Feature | None:
    """The feature that is asked for; None for a PROBE, which is answered by that. Raises ``OSError`` as
    :func:`feature`."""
    methods = flags & METHODS
    if flags & ~KNOWN:
        raise OSError(errno.EINVAL, f"DEVICE_FEATURE flags {flags:#x}")
    if methods == METHODS and not flags & DeviceFeature.PROBE:
        raise OSError(errno.EINVAL, "GET and SET at once")
    found = FEATURES.get(flags & DeviceFeature.MASK)
    if found is None or not found.present(opened):
        raise OSError(errno.ENOTTY, f"no feature {flags & DeviceFeature.MASK}")
    if methods & ~found.methods:
        raise OSError(errno.EINVAL, f"DEVICE_FEATURE flags {flags:#x}")
    if flags & DeviceFeature.PROBE:
        return None
    if not methods or not complete:
        raise OSError(errno.EINVAL, "neither GET nor SET, or too little data")
    return found


def _vf_token(opened: DeviceFile) -> VfToken | None:
    found = opened.assignable
    return found.own_vf_token if isinstance(found, VfioPciFunction) else None


def _set_vf_token(opened: DeviceFile, value: UUID, borrow: Borrow) -> None:
    token = _vf_token(opened)
    if token is not None:
        token.set(value)


def _has_power(opened: DeviceFile) -> bool:
    return isinstance(opened.assignable, VfioPciFunction)


def _enter_low_power(opened: DeviceFile, value: object, borrow: Borrow) -> None:
    """Only the state is kept. The function stays at full power, which a host may choose too."""
    if opened.low_power:
        raise OSError(errno.EINVAL, "low power was entered already")
    opened.low_power = True


def _enter_with_wakeup(opened: DeviceFile, value: WakeUp, borrow: Borrow) -> None:
    """The eventfd is only checked, because a function that never sleeps is never woken."""
    if value.eventfd < 0 or value.reserved:
        raise OSError(errno.EINVAL, f"wake-up eventfd {value.eventfd}")
    borrow(value.eventfd).close()
    _enter_low_power(opened, None, borrow)


def _exit_low_power(opened: DeviceFile, value: object, borrow: Borrow) -> None:
    opened.low_power = False


# ---- migration ----


class GivesDescriptor(OSError):
    """A change of state that gives a descriptor, which the caller cannot pass on. Nothing has changed."""


def mig_state(opened: DeviceFile) -> bytes:
    """The data of MIG_DEVICE_STATE, without a descriptor."""
    return struct.pack("=Ii", state_of(opened.device), -1)


def _migrates(opened: DeviceFile) -> bool:
    return migrates(opened.device)


def _set_state(opened: DeviceFile, wanted: int, borrow: Borrow) -> None:
    if check_state(opened.device, wanted):
        raise GivesDescriptor(errno.EOPNOTSUPP, f"state {wanted} gives a descriptor")
    change_state(opened.device, wanted)


FEATURES: Mapping[int, Feature] = {
    DeviceFeature.PCI_VF_TOKEN: Feature(lambda opened: _vf_token(opened) is not None, _set_vf_token),
    DeviceFeature.LOW_POWER_ENTRY: Feature(_has_power, _enter_low_power),
    DeviceFeature.LOW_POWER_ENTRY_WITH_WAKEUP: Feature(_has_power, _enter_with_wakeup),
    DeviceFeature.LOW_POWER_EXIT: Feature(_has_power, _exit_low_power),
    DeviceFeature.MIGRATION: Feature(_migrates, get=lambda opened: struct.pack("=Q", STOP_COPY)),
    DeviceFeature.MIG_DEVICE_STATE: Feature(_migrates, _set_state, mig_state),
}
