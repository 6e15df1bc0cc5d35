# SPDX-License-Identifier: Apache-2.0
"""The uevents of a lab: those that Linux emits when devices come, go and change, in the order of Linux.

Trio thread: the lab's observer calls it after the tree has changed.  Source: the order in which the kernel's
driver core, VFIO and mdev add and remove their devices.
"""

from __future__ import annotations

from collections.abc import Mapping

from devmodel.lifecycle.recovery import SUCCESS
from devmodel.lifecycle.spec import LabSpec
from devmodel.lifecycle.uevents import Uevents
from devmodel.vfio.group import Assignable
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.sysfs.uevent import emit
from vfsfuse.sysfs.vfio import (
    vfio_dev_name,
    vfio_dev_variables,
    vfio_group_name,
    vfio_group_variables,
)

GROUPS = "/devices/virtual/vfio"
MDEV_STATE = "MDEV_STATE"


class Announcer:
    """Emits the events of one lab."""

    def __init__(self, hub: Uevents, spec: LabSpec) -> None:
        self._hub, self._spec = hub, spec

    def added(self, own: Kobject) -> None:
        """A device has appeared."""
        emit(own, "add")

    def removed(self, own: Kobject) -> None:
        """A device is gone."""
        emit(own, "remove")

    def changed(self, own: Kobject, action: str) -> None:
        """A device was changed."""
        emit(own, action)

    def bound(self, own: Kobject, device: Assignable, vfio_minor: int | None, first: bool = True) -> None:
        """A device has a driver now; with a minor, it is a driver of VFIO. `first` is whether it is the first
        one of its group that VFIO drives."""
        if vfio_minor is not None:
            self._vfio("add", own, device, vfio_minor, first)
        emit(own, "bind")

    def unbound(self, own: Kobject, device: Assignable, vfio_minor: int | None, last: bool = True) -> None:
        """A device has lost its driver; with a minor, it was a driver of VFIO. `last` is whether VFIO drives
        none of its group any more."""
        if vfio_minor is not None:
            self._vfio("remove", own, device, vfio_minor, last)
        emit(own, "unbind")

    def recovering(self, own: Kobject, event: str) -> None:
        """The recovery of a PCI function from an error begins, or is over."""
        online = event == SUCCESS
        emit(own, "change", {"ERROR_EVENT": event, "DEVICE_ONLINE": str(int(online))})

    def offers_types(self, own: Kobject) -> None:
        """The driver of a parent begins to offer types of vGPUs."""
        emit(own, "change", {MDEV_STATE: "registered"})

    def withdraws_types(self, own: Kobject, driver: str) -> None:
        """The driver of a parent stops offering types.  The event precedes the driver's end, so it names the
        driver."""
        emit(own, "change", {MDEV_STATE: "unregistered", "DRIVER": driver})

    def _vfio(self, action: str, own: Kobject, device: Assignable, minor: int, with_group: bool) -> None:
        group, above = device.group, own.path.removeprefix("sys")
        name = vfio_dev_name(group, minor)
        events: list[tuple[str, str, Mapping[str, str]]] = [
            (f"{above}/vfio-dev/{name}", "vfio-dev", vfio_dev_variables(group, minor, self._spec.cdevs))
        ]
        if self._spec.groups and with_group:
            events.insert(0, (f"{GROUPS}/{vfio_group_name(group)}", "vfio", vfio_group_variables(group)))
        for devpath, subsystem, variables in events if action == "add" else reversed(events):
            self._hub.emit(action, devpath, subsystem, variables)
