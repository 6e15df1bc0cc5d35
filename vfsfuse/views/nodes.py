# SPDX-License-Identifier: Apache-2.0
"""VFIO in the tree: dev/vfio, IOMMU groups, and what makes a device one of VFIO's.

Owner is the trio thread; what `show_once` makes is made, opened and forgotten on the device lane.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from devmodel.backing import REGION_SHIFT
from devmodel.device import PciRegion
from devmodel.lab import LabSpec
from devmodel.vfio import Assignable, Group, VfioModule
from devmodel.vfio import DeviceFile as Hold
from ioctl_shim.lane import LaneFile, Opened, OpenRequest
from vfsfuse.kobject import DeviceNode, Entry, Kobject, Symlink
from vfsfuse.sysfs.mdev import IommuGroupDir, VfioDevDir, VfioGroupDir
from vfsfuse.tree import Tree
from vfsfuse.vfio.container import ContainerFile
from vfsfuse.vfio.device import open_device
from vfsfuse.vfio.group import GroupFile
from vfsfuse.vfio.handover import CONTROL, Handover
from vfsfuse.vfio.opened import Services
from vfsfuse.vfio.port import Port
from vfsfuse.views.places import Putter

Opener = Callable[[OpenRequest], Opened]
FileFinder = Callable[[int], LaneFile | None]
DEVICE_SIZE = PciRegion.COUNT << REGION_SHIFT
"""st_size of a device file.  A character device has none, but this is a regular file, and Python's mmap
refuses to map a regular one beyond its end."""


class VfioNodesDir(Kobject):
    """dev/vfio, with the unlisted files of vfsfuse.vfio.handover."""

    __slots__ = ("unlisted",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.unlisted: dict[str, int] = {}

    def hidden(self, name: str) -> int:
        try:
            return self.unlisted[name]
        except KeyError:
            raise OSError(errno.ENOENT, name) from None


class VfioNodes:
    """The files of dev/vfio, and the groups in sys/kernel/iommu_groups."""

    def __init__(
        self, spec: LabSpec, tree: Tree, services: Services, vfio: VfioModule, st_dev: Callable[[], int]
    ) -> None:
        self.spec, self.tree, self.services = spec, tree, services
        self._group_files: dict[int, Group] = {}
        self._groups: dict[int, IommuGroupDir] = {}
        self._ports: dict[Assignable, Port] = {}
        self._vfio = tree.add(tree.make("dev"), VfioNodesDir("vfio"))
        self._cdevs = tree.add(self._vfio, Kobject("devices"))
        container = ContainerFile.opener(lambda: vfio.noiommu, st_dev)
        tree.add(self._vfio, self._node("vfio", container, 0o666))
        control = self._node(CONTROL, Handover(self._group_files.get, self._show_once).open)
        tree.adopt(control)
        self._vfio.unlisted[CONTROL] = control.inode

    def group_dir(self, group: Group) -> Entry | None:
        """The group's directory, while it is shown."""
        return self._groups.get(group.number)

    def show_port(self, device: Assignable, port: Port, put: Putter) -> None:
        """The device can be opened through `port`, which is closed when it goes."""
        put.undo.callback(port.close)
        self._ports[device] = port
        put.undo.callback(self._ports.pop, device)

    def show_group(self, device: Assignable, own: Kobject, put: Putter) -> None:
        """The IOMMU group of a device, which is alone in it."""
        group = device.group
        directory = put(self.tree.make("sys/kernel/iommu_groups"), IommuGroupDir(group))
        self._groups[group.number] = directory
        put.undo.callback(self._groups.pop, group.number)
        put(put(directory, Kobject("devices")), Symlink(device.name, own))

    def show_vfio(self, device: Assignable, minor: int, own: Kobject, put: Putter) -> None:
        """What makes a device one of VFIO's: its group's file, and its own."""
        tree, group, port = self.tree, device.group, self._ports[device]
        vfio_dev = put(put(own, Kobject("vfio-dev")), VfioDevDir(minor))
        put(tree.make("sys/class/vfio-dev"), Symlink(vfio_dev.name, vfio_dev))
        group_dir = put(tree.make("sys/devices/virtual/vfio"), VfioGroupDir(group))
        put(tree.make("sys/class/vfio"), Symlink(group_dir.name, group_dir))
        node = put(self._vfio, self._node(group_dir.name, GroupFile.opener(group, self.services.find_file)))
        self._group_files[node.inode] = group
        put.undo.callback(self._group_files.pop, node.inode)

        def opener(request: OpenRequest) -> Opened:
            device.check_direct()
            return open_device(Hold(device), port, self.services)

        put(self._cdevs, self._device_node(vfio_dev.name, opener))

    def _port(self, device: Assignable) -> Port:
        """Raises OSError(ENODEV) for a device that was taken away by surprise."""
        try:
            return self._ports[device]
        except KeyError:
            raise OSError(errno.ENODEV, f"{device.name} is gone") from None

    def _show_once(self, name: str, take: Callable[[], Hold], released: Callable[[], None]) -> None:
        """Make an unlisted file in dev/vfio that opens what `take` gives, once.  Device lane."""

        def opener(request: OpenRequest) -> Opened:
            if self._vfio.unlisted.pop(name, None) is None:
                raise OSError(errno.ENXIO, "opened already")
            hold = take()
            try:
                return open_device(hold, self._port(hold.assignable), self.services, forget)
            except BaseException:
                forget()
                raise

        def forget() -> None:
            released()
            self.tree.forget(node)

        node = self._device_node(name, opener)
        self.tree.adopt(node)
        self._vfio.unlisted[name] = node.inode

    def _device_node(self, name: str, opener: Opener) -> DeviceNode:
        node = self._node(name, opener)
        node.size = DEVICE_SIZE
        return node

    def _node(self, name: str, opener: Opener, mode: int | None = None) -> DeviceNode:
        node = DeviceNode(name, self.spec.device_mode if mode is None else mode, opener)
        node.uid, node.gid = self.spec.device_uid, self.spec.device_gid
        return node
