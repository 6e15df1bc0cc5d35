# SPDX-License-Identifier: Apache-2.0
"""The types that a parent offers, and the mediated devices made of them.

State: types and their tables belong to the lifecycle thread, under ``Lab.lock``; whether a device is held
open is under its group's lock, and so is the making of its model.
"""

import errno
from typing import TYPE_CHECKING
from uuid import UUID

from devmodel.device.pci import Device
from devmodel.lifecycle.resources import Share
from devmodel.lifecycle.spec import TypeSpec
from devmodel.vfio.group import Assignable, Group

if TYPE_CHECKING:
    from devmodel.lifecycle.parent import Parent


class MdevType:
    """A type a parent offers, and the devices of it that exist.

    ``share`` is what each of them takes unless asked otherwise; ``taken`` counts those whose share has not
    been given back, among them such as are gone while a client still holds them.
    """

    __slots__ = ("mdevs", "parent", "share", "spec", "taken")

    def __init__(self, spec: TypeSpec, parent: "Parent") -> None:
        self.spec = spec
        self.parent = parent
        self.share = Share.of(spec)
        self.mdevs: dict[str, Mdev] = {}
        self.taken = 0

    @property
    def name(self) -> str:
        """Its directory in ``mdev_supported_types``."""
        return self.spec.name

    @property
    def pretty_name(self) -> str:
        """What its ``name`` attribute shows."""
        return self.spec.pretty_name or self.spec.name

    @property
    def description(self) -> str:
        """What its ``description`` attribute shows."""
        return self.spec.description

    @property
    def device_api(self) -> str:
        """The VFIO API of its devices, "vfio-pci"."""
        return self.spec.device_api

    @property
    def available_instances(self) -> int:
        """How many more of this type could be created now, exactly."""
        return self.room_for(self.share)

    def room_for(self, share: Share) -> int:
        """How many more of this type could be created now with such a share, exactly."""
        room = self.parent.room_for(share)
        return room if self.spec.instances is None else min(room, self.spec.instances - self.taken)

    def charge(self, share: Share) -> None:
        """Take what one of its devices takes; the caller made sure that it is there."""
        self.taken += 1
        self.parent.charge(share)

    def refund(self, share: Share) -> None:
        """The opposite of :meth:`charge`."""
        self.taken -= 1
        self.parent.refund(share)


class Mdev(Assignable):
    """A mediated device. ``minor`` is its number as vgpu<N>, ``vfio_minor`` as vfio<N>.

    ``name`` is its directory's name; ``online`` says whether it was started. Its model comes into being when
    first used, so that an idle device costs next to nothing. It is one of VFIO's while its driver is
    ``bound`` (devmodel.lifecycle.mdevdriver).
    """

    __slots__ = (
        "_device",
        "_disposed",
        "bound",
        "instance",
        "minor",
        "online",
        "share",
        "type",
        "uuid",
        "vfio_minor",
    )
    vfio_minor: int

    def __init__(
        self,
        uuid: UUID,
        instance: int,
        name: str,
        type_: MdevType,
        share: Share,
        group: Group,
        minor: int,
        vfio_minor: int,
    ) -> None:
        super().__init__(name, group)
        self.uuid = uuid
        self.instance = instance
        self.type = type_
        self.share = share
        self.minor = minor
        self.vfio_minor = vfio_minor
        self.online = False
        self.bound = True
        self._disposed = False
        self._device: Device | None = None

    @property
    def parent(self) -> "Parent":
        """What it was made of."""
        return self.type.parent

    @property
    def device(self) -> Device:
        """Its model, made on first use, from any thread. ``OSError(ENODEV)`` once the mdev is gone."""
        device = self._device
        return device if device is not None else self._make_device()

    @property
    def made(self) -> Device | None:
        """Its model if something has used it already, and made it so. Any thread."""
        return self._device

    def bind(self) -> None:
        """Its driver is bound: clients can open it."""
        self.bound = True
        self.join()

    def unbind(self) -> None:
        """It has no driver; the caller made sure that nobody holds it."""
        self.bound = False
        self.withdraw()

    def retire(self) -> None:
        if self.bound:
            super().retire()
        elif self._disposed:
            raise OSError(errno.ENODEV, f"{self.name} is gone")

    def vanish(self) -> None:
        """Be gone at once, whoever holds it: what they have of it answers as if there was nothing.

        ``OSError(ENODEV)`` when it is gone already.
        """
        with self.group.lock:
            if self._disposed:
                raise OSError(errno.ENODEV, f"{self.name} is gone")
            self._disposed = True
            self.withdraw()
            self.group.let_go()  # who waits for its removal need not wait any longer
        if self._device is not None:
            self._device.vanish()

    def dispose(self) -> None:
        """Close the model of a device that has been retired."""
        with self.group.lock:
            self._disposed = True
            device = self._device
        if device is not None:
            device.close()

    def _make_device(self) -> Device:
        with self.group.lock:
            if self._disposed:
                raise OSError(errno.ENODEV, f"{self.name} is gone")
            if self._device is None:
                model = self.type.spec.model
                made = model(self.name, self.share.memory, self.share.options)
                made.tasks.host = self.parent.host
                made.attach_parent(self.parent.device)
                self._device = made
            return self._device
