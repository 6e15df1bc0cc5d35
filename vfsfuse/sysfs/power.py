# SPDX-License-Identifier: Apache-2.0
"""power/: the attribute group that the directory of every device has for power management.

    class DeviceDir(UeventDir):
        power = Group("power", PowerGroup)

What a client sets is kept in the tree's root, so a device where nobody sets anything costs nothing.  show()
is called on the trio thread and on the device lane, store() on the trio thread.

Files, formats and errors: Documentation/ABI/testing/sysfs-devices-power, Documentation/power/runtime_pm.rst.
The files are those of a kernel with CONFIG_PM_ADVANCED_DEBUG and of a device that cannot wake the machine up.
"""

from __future__ import annotations

import errno
import time
from typing import Protocol

from vfsfuse.kernfs.groups import AttributeGroup
from vfsfuse.kernfs.members import attribute
from vfsfuse.kernfs.root import set_for, settings_of

CONTROL, ASYNC = "power/control", "power/async"
NS_PER_MS = 1_000_000


class RuntimePower(Protocol):
    """What is known of a device that can be power managed at run time.  No device of a lab is suspended."""

    runtime_auto: bool
    """Whether it may be suspended."""

    @property
    def runtime_usage(self) -> int:
        """How many users keep it from being suspended."""


class PowerGroup(AttributeGroup):
    """<any>/power: power management of a device.

    `owner.runtime_power` is None for a device without runtime power management.
    """

    __slots__ = ()

    @property
    def runtime(self) -> RuntimePower | None:
        """The runtime power management of the device, None without it."""
        found: RuntimePower | None = self.owner.runtime_power
        return found

    @property
    def auto(self) -> bool:
        """Whether runtime power management may suspend the device."""
        if self.runtime is not None:
            return self.runtime.runtime_auto
        return settings_of(self).get(CONTROL, "auto") == "auto"

    @attribute(0o644)
    def control(self) -> str:
        """`auto` if runtime power management may suspend the device, else `on`."""
        return "auto" if self.auto else "on"

    @control.store
    def _store_control(self, text: str) -> None:
        """Takes `auto` or `on`, without effect on the device. EINVAL for any other text."""
        chosen = _one_of(text, "auto", "on")
        if self.runtime is not None:
            self.runtime.runtime_auto = chosen == "auto"
        else:
            set_for(self, CONTROL, chosen)

    @attribute()
    def runtime_status(self) -> str:
        """`active`; `unsupported` for a device without runtime power management."""
        return "unsupported" if self.runtime is None else "active"

    @attribute()
    def runtime_active_time(self) -> int:
        """Milliseconds that the device has been active; 0 without runtime power management."""
        return 0 if self.runtime is None else max(0, time.time_ns() - self.ctime_ns) // NS_PER_MS

    @attribute()
    def runtime_suspended_time(self) -> int:
        """0: no device is suspended."""
        return 0

    @attribute(0o644)
    def autosuspend_delay_ms(self) -> str:
        """EIO: no driver uses autosuspend."""
        raise OSError(errno.EIO, "the driver does not use autosuspend")

    @autosuspend_delay_ms.store
    def _store_autosuspend(self, text: str) -> None:
        """EIO, as for reading."""
        raise OSError(errno.EIO, "the driver does not use autosuspend")

    @attribute()
    def runtime_usage(self) -> int:
        """How many users keep the device from being suspended: its driver, and `control` while it is `on`."""
        return int(not self.auto) if self.runtime is None else self.runtime.runtime_usage

    @attribute()
    def runtime_active_kids(self) -> int:
        """0: no device has children that are power managed at run time."""
        return 0

    @attribute()
    def runtime_enabled(self) -> str:
        """`enabled` or `forbidden`, as `control` says; `disabled` for a device without runtime power
        management, `disabled & forbidden` if `control` is `on` there."""
        words = ["disabled"] if self.runtime is None else []
        if not self.auto:
            words.append("forbidden")
        return " & ".join(words) or "enabled"

    @attribute(0o644, name="async")
    def asynchronous(self) -> str:
        """`enabled` if the device may be suspended beside others when the machine sleeps, else `disabled`."""
        return settings_of(self).get(ASYNC, "disabled" if self.runtime is None else "enabled")

    @asynchronous.store
    def _store_async(self, text: str) -> None:
        """Takes `enabled` or `disabled`, without effect on the device. EINVAL for any other text."""
        set_for(self, ASYNC, _one_of(text, "enabled", "disabled"))


def _one_of(text: str, *known: str) -> str:
    word = text.split("\n", 1)[0]
    if word not in known:
        raise ValueError(f"{word!r} is none of {', '.join(known)}")
    return word
