# SPDX-License-Identifier: Apache-2.0
"""The open files of IOMMU groups, and the containers that they join.

Threads: the device lane, and threads that may wait. State is under ``Group.lock``; a container's lock is
taken after it.
Source: <linux/vfio.h> (VFIO_GROUP_GET_STATUS to VFIO_GROUP_GET_DEVICE_FD), Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple

from devmodel.vfio.group import Assignable, DeviceLink, Group, GroupContainer, OpenGroup
from devmodel.vfio.lingering import LastClient, lives


class GroupStatus(NamedTuple):
    """The flags of VFIO_GROUP_GET_STATUS."""

    viable: bool
    container_set: bool


class GroupFile(OpenGroup):
    """The only open of a group. It ends when the file and every device file from it are closed.

    It is ``revoked`` when the last device of the group has left and is closed. A revoked file is in no
    container. It stays of no use when the group gets a device again.
    """

    __slots__ = ("_closed", "_users", "group", "revoked")

    def __init__(self, group: Group, client_ended: Callable[[], bool]) -> None:
        """For :func:`open_group`."""
        self.group = group
        self.client = LastClient(group, client_ended)
        self.container: GroupContainer | None = None
        self.links: dict[Assignable, DeviceLink] = {}
        self._users = 1
        self._closed = self.revoked = False

    def used_by(self, client_ended: Callable[[], bool]) -> None:
        """Another client uses the file now. ``client_ended`` is as that of :func:`open_group`."""
        with self.group.lock:
            self.client = LastClient(self.group, client_ended)

    @property
    def devices(self) -> int:
        """How many device files there are. Under the group's lock."""
        return self._users - (not self._closed) - (self.group.joining is not None)

    def status(self) -> GroupStatus:
        """Whether the group can be used, and whether it has a container. ``OSError(ENODEV)`` once it is
        :attr:`revoked`."""
        with self.group.lock:
            self._check_group()
            in_container = self.container is not None
            return GroupStatus(in_container or self._viable, in_container)

    def set_container(self, container: GroupContainer | None, rawio: bool = False) -> None:
        """Join ``container``; None stands for a file that is neither a container nor an iommufd. It may wait
        for clients, as :meth:`Container.attach`, so a thread that may wait calls it.

        Raises ``OSError``: EINVAL when the group has a container already or is joining one, ENODEV once the
        file is :attr:`revoked` or while all devices of the group are being removed, EBADFD for None. For a
        container that claims the group EPERM when that is not viable, or bound to an iommufd, or as
        :meth:`Group.check_rawio`. Otherwise as :meth:`GroupContainer.attach`.
        """
        with self.group.lock:
            if self.container is not None or self.group.joining is not None:
                raise OSError(errno.EINVAL, "the group has a container already")
            self._check_group()
            if self.group.leaving:
                raise OSError(errno.ENODEV, f"group {self.group.number} is about to lose its devices")
            if container is None:
                raise OSError(errno.EBADFD, "not a VFIO container")
            if container.claims:
                self.group.check_rawio(rawio)
                if not self._viable:
                    raise OSError(errno.EPERM, f"group {self.group.number} is in use")
            self.group.joining = container
            self.get()
        joined: GroupContainer | None = None
        try:
            container.attach(self.group)
            joined = container
        finally:
            with self.group.lock:
                self.container, self.group.joining = joined, None
                self.group.end_if_gone()
                self.put()  # the file may have been closed meanwhile
                self.group.let_go()

    def unset_container(self, may_wait: bool = False) -> None:
        """Leave the container. Raises ``OSError``: EINVAL without a container, EBUSY while a device is open
        that the container has claimed, or the group is joining the container. Waits as
        :meth:`Group.patiently`."""

        def attempt() -> None:
            container = self.container
            if container is None and self.group.joining is None:
                raise OSError(errno.EINVAL, "the group has no container")
            if self._users > 1 and (container is None or container.claims):
                self.client.check()
                raise OSError(errno.EBUSY, "a device of the group is open, or the group is joining")
            self._leave()

        self.group.patiently(attempt, may_wait)

    def get_device(self, name: str, rawio: bool = False) -> Assignable:
        """The device ``name``. The name may include a VF token, as for vfio-pci.

        Raises ``OSError``: ENODEV if there is none, also once the file is :attr:`revoked`; EINVAL and EACCES
        for the token, EINVAL without container and IOMMU, EPERM as :meth:`Group.check_rawio`.
        """
        with self.group.lock:
            self._check_group()
            found = next((each for each in self.group.devices if each.answers_to(name)), None)
            if found is None:
                raise OSError(errno.ENODEV, f"group {self.group.number} has no device {name!r}")
            if self.container is None:
                raise OSError(errno.EINVAL, "the group has no container")
            self.container.check_ready()
            self.group.check_rawio(rawio)
            return found

    def close(self) -> None:
        """The file is closed. Its device files keep the group in its container. May be called twice."""
        with self.group.lock:
            if not self._closed:
                self._closed = True
                self.put()

    def get(self) -> None:
        """Count a device file, or a call under way. For :class:`DeviceFile`, under the group's lock."""
        self._users += 1

    def put(self) -> None:
        """Uncount a file. The last one ends the use of the group. Called as :meth:`get`."""
        self._users -= 1
        if not self._users and not self.revoked:
            self._leave()
            self.group.opened = None
            self.group.let_go()

    @property
    def opening_waits(self) -> bool:
        """Whether to open a device may take as long as a client likes. Any thread."""
        return self.container is not None and not self.container.claims

    def link(self, device: Assignable) -> None:
        """A file of ``device`` is about to be open. Called as :meth:`get`. Raises ``OSError`` as
        :meth:`GroupContainer.link`."""
        if self.container is not None and device not in self.links and not device.users:
            made = self.container.link(device)
            if made is not None:
                self.links[device] = made

    def unlink(self, device: Assignable) -> None:
        """A file of ``device`` is closed, or could not be opened. Called as :meth:`get`."""
        if device in self.links and not device.users:
            self.links.pop(device).end()

    def revoke(self) -> None:
        """Leave the container, and answer ENODEV from then on. Under the group's lock."""
        self.revoked = True
        self._leave()

    @property
    def _viable(self) -> bool:
        """Whether a container can claim the group. Devices that an iommufd has claimed are open still."""
        return self.group.viable and (self.group.emulated or self.group.owner is None)

    def _check_group(self) -> None:
        if self.revoked:
            raise OSError(errno.ENODEV, f"group {self.group.number} has lost its devices")

    def _leave(self) -> None:
        if self.container is not None:
            self.container.detach(self.group)
            self.container = None


def open_group(
    group: Group,
    client_ended: Callable[[], bool] = lives,
    rawio: bool = False,
    may_wait: bool = False,
) -> GroupFile:
    """Open ``group`` for a client. ``client_ended`` tells later whether its process has ended, without
    waiting. ``rawio`` is whether it has CAP_SYS_RAWIO.

    Raises ``OSError``: ENODEV when the group has no device, or only devices that are being removed; EPERM as
    :meth:`Group.check_rawio`; EBUSY while it is open, or one of its devices is bound to an iommufd by its own
    character device. Waits, or raises :class:`MustWait`, as :meth:`Group.patiently`.
    """

    def attempt() -> GroupFile:
        if group.leaving:
            raise OSError(errno.ENODEV, f"group {group.number} is gone")
        group.check_rawio(rawio)
        user = group.opened or group.binding
        if user is not None:
            user.client.check()
            raise OSError(errno.EBUSY, f"{group} is open already, or a device of it is bound")
        group.opened = made = GroupFile(group, client_ended)
        return made

    return group.patiently(attempt, may_wait)
