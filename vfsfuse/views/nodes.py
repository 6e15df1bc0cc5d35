# SPDX-License-Identifier: Apache-2.0
"""VFIO in the tree: dev/vfio and dev/iommu, groups, and the entries of a device that VFIO drives.

Owner is the trio thread.  The device lane makes entries of devices too (vfsfuse.kernfs.bundle), and it makes,
opens and forgets the unlisted files of vfsfuse.vfio.handover.  Ports are under a lock of their own.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from devmodel.lifecycle.spec import LabSpec
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.group import Assignable, Group
from devmodel.vfio.module import VfioModule
from ioctl_shim.lane import Opened, Opener, OpenRequest
from vfsfuse.kernfs.bundle import Bundle, Part, symlink_part
from vfsfuse.kernfs.kobject import DeviceNode, Entry, Kobject, Symlink
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.chardev import CharDir
from vfsfuse.sysfs.iommu import IommuGroupDir
from vfsfuse.sysfs.vfio import (
    GROUP_MAJOR,
    NOIOMMU,
    VFIO_MAJOR,
    ContainerDir,
    IommufdDir,
    MiscDir,
    VfioDevDir,
    VfioGroupDir,
    vfio_dev_name,
    vfio_dev_number,
    vfio_group_name,
    vfio_group_number,
)
from vfsfuse.vfio.cdev import cdev_opener
from vfsfuse.vfio.device import DeviceFops, open_device
from vfsfuse.vfio.fops import Services
from vfsfuse.vfio.group import GroupFops
from vfsfuse.vfio.iommufd import openers
from vfsfuse.vfio.port import Port
from vfsfuse.views.groups import GroupViews
from vfsfuse.views.offers import DEVICE_SIZE

VFIO_DEV = "vfio-dev"
N = TypeVar("N", bound=DeviceNode)


class VfioNodesDir(Kobject):
    """dev/vfio."""

    __slots__ = ()
    devtmpfs = of_dev = True


class CdevsDir(Kobject):
    """dev/vfio/devices."""

    __slots__ = ()
    devtmpfs = of_dev = True
    node_size = DEVICE_SIZE


class VfioNodes:
    """The files of dev/vfio, and the groups in sys/kernel/iommu_groups.

    `own` gives the directory of a device.  A plan has the parts `of_vfio` for a device that VFIO drives:
    `of_device`, and `of_cdev` for the device's own file.  One that is not behind an IOMMU is alone in a group
    that VFIO has made; it has the parts `of_fake_group` and `of_vfio_group` as well. Other groups are those
    of `groups`.
    """

    def __init__(
        self,
        spec: LabSpec,
        tree: Tree,
        services: Services,
        own: Callable[[Assignable], Kobject],
    ) -> None:
        self.spec, self.tree, self.services = spec, tree, services
        self._own = own
        self._ports: dict[Assignable, Port | None] = {}
        self._lock = threading.Lock()
        self._vfio, self._cdevs = VfioNodesDir("vfio"), CdevsDir("devices")
        self._dev = tree.make("dev")
        if spec.groups or spec.cdevs:
            tree.add(self._dev, self._vfio)
        if spec.cdevs:
            tree.add(self._vfio, self._cdevs)
        self._groups = tree.make("sys/kernel/iommu_groups")
        self._char = tree.make("sys/dev/char")
        self.of_device, self.of_cdev = self._device_parts(), self._cdev_parts()
        self.of_vfio = (*self.of_device, *self.of_cdev)
        self.of_vfio_group = self._vfio_group_parts() if spec.groups else ()
        self.of_fake_group = self._group_parts() if spec.groups else ()
        self.groups = GroupViews(tree, self._groups, own, self.of_vfio_group)

    def add_misc(self, vfio: VfioModule, st_dev: Callable[[], int]) -> None:
        """Add dev/vfio/vfio and dev/iommu, and their devices of the class misc.  `st_dev` gives that of the
        mount."""
        containers, contexts = openers(vfio, self.services, st_dev, self.spec.iommufd_container)
        if self.spec.groups:
            self._add_misc(self._vfio, "vfio", 0o666, containers, ContainerDir)
        self._add_misc(self._dev, "iommu", self.spec.device_mode, contexts, IommufdDir)

    def _add_misc(self, above: Kobject, name: str, mode: int, opener: Opener, kind: type[MiscDir]) -> None:
        self.tree.add(above, self._owned(DeviceNode(name, mode, opener, rdev=kind.rdev)))
        misc = self.tree.make("sys/class/misc")
        own = kind(name, misc, mode)
        self.tree.add(self.tree.make("sys/devices/virtual/misc"), own)
        self.tree.add(misc, Symlink(own.name, own))
        self.tree.add(self._char, Symlink(str(kind.rdev), own))

    def group_dir(self, group: Group) -> Entry | None:
        """The group's directory, while it is shown."""
        return self._groups.child(str(group.number))

    def port(self, device: Assignable) -> Port:
        """The port by which clients reach a device, made on first use.  Any thread.  Raises OSError(ENODEV)
        for a device that is gone, also one that was removed by surprise."""
        with self._lock:
            if device not in self._ports:
                raise OSError(errno.ENODEV, f"{device.name} is gone")
            found = self._ports[device]
            if found is None:
                found = self._ports[device] = Port(device)
            return found

    def open_port(self, device: Assignable) -> None:
        """A device has appeared: it has a port from now on."""
        with self._lock:
            self._ports[device] = None

    def close_port(self, device: Assignable) -> None:
        """A device is gone: its open files answer ENODEV from now on."""
        with self._lock:
            port = self._ports.pop(device, None)
        if port is not None:
            port.close()

    def renew_port(self, device: Assignable, change: Callable[[], None]) -> None:
        """A device gets another model, and files with other inode numbers, by `change`, which does not wait:
        its open files answer ENODEV from now on.  Nobody finds the old model by a new port, nor the new port
        by an old number, which `Openings.open` relies on."""
        with self._lock:
            port = self._ports.get(device)
            if port is not None:
                port.close()
                self._ports[device] = None
            change()

    def _group_parts(self) -> tuple[Part, ...]:
        """The entries of a device's group, in which the device is alone."""
        group = Part(
            self._groups,
            lambda device: str(device.group.number),
            lambda bundle: IommuGroupDir(bundle.device.group),
            directory=True,
        )
        devices = Part(group, lambda device: "devices", lambda bundle: Kobject("devices"), directory=True)
        return group, devices, symlink_part(devices, lambda device: str(device.name), self._own)

    def _device_parts(self) -> tuple[Part, ...]:
        """The entries that a device has while VFIO drives it, besides those of its group and its own file."""
        devices = self.tree.make("sys/class/vfio-dev")
        above = Part(self._own, lambda device: VFIO_DEV, lambda bundle: Kobject(VFIO_DEV), directory=True)
        own = Part(above, _name, partial(self._vfio_dev, devices), directory=True)
        names = [above, own, symlink_part(devices, _name, own)]
        if self.spec.cdevs:
            major = self._char_major(VFIO_MAJOR, devices, "vfio", f"{NOIOMMU}vfio")
            names.append(symlink_part(major, _dev_number, own))
        return tuple(names)

    def _cdev_parts(self) -> tuple[Part, ...]:
        """The device's own file."""
        return (Part(self._cdevs, _name, self._cdev),) if self.spec.cdevs else ()

    def _vfio_group_parts(self) -> tuple[Part, ...]:
        """The entries of the character device of a group, or of that of a device's group."""
        groups = self.tree.make("sys/class/vfio")
        group = Part(
            self.tree.make("sys/devices/virtual/vfio"),
            _group_name,
            lambda bundle: VfioGroupDir(_group_of(bundle.device), groups),
            directory=True,
        )
        major = self._char_major(GROUP_MAJOR, groups, "", NOIOMMU)
        return (
            group,
            symlink_part(groups, _group_name, group),
            symlink_part(major, _group_dev_number, group),
            Part(self._vfio, _group_name, self._group_node),
        )

    def _vfio_dev(self, devices: Kobject, bundle: Bundle) -> VfioDevDir:
        device = bundle.device
        return VfioDevDir(device.group, device.vfio_minor, devices, self.spec.cdevs)

    def _char_major(self, number: int, devices: Kobject, *prefixes: str) -> Kobject:
        """Where the links in sys/dev/char to devices with a major number are."""
        char = self._char
        if not isinstance(char, CharDir):
            raise TypeError(char.path)
        return char.add(number, devices, *prefixes)

    def _group_node(self, bundle: Bundle) -> DeviceNode:
        group = _group_of(bundle.device)
        opener = GroupFops.opener(group, self.services, self._open_device)
        mode, rdev = self.spec.device_mode, vfio_group_number(group)
        return self._owned(DeviceNode(vfio_group_name(group), mode, opener, rdev=rdev))

    def _cdev(self, bundle: Bundle) -> DeviceNode:
        device: Assignable = bundle.device
        opener = cdev_opener(device, lambda: self.port(device), self.services)
        mode, rdev = self.spec.device_mode, vfio_dev_number(device.vfio_minor or 0)
        return self._owned(DeviceNode(_name(device), mode, opener, DEVICE_SIZE, device.name, rdev))

    def _open_device(
        self,
        device: Assignable,
        make: Callable[[], DeviceFile],
        request: OpenRequest,
        closed: Callable[[], None],
    ) -> Opened:
        """Open a device as a file that `make` gives, through its group (vfsfuse.vfio.group.OpenDevice)."""
        port, may_wait = partial(self.port, device), not request.on_pump
        return open_device(device, make, DeviceFops, port, self.services, may_wait, closed)

    def _owned(self, node: N) -> N:
        node.uid, node.gid = self.spec.device_uid, self.spec.device_gid
        return node


def _name(device: Assignable) -> str:
    return vfio_dev_name(device.group, device.vfio_minor or 0)


def _dev_number(device: Assignable) -> str:
    return str(vfio_dev_number(device.vfio_minor or 0))


def _group_of(shown: Assignable | Group) -> Group:
    return shown if isinstance(shown, Group) else shown.group


def _group_dev_number(shown: Assignable | Group) -> str:
    return str(vfio_group_number(_group_of(shown)))


def _group_name(shown: Assignable | Group) -> str:
    return vfio_group_name(_group_of(shown))
