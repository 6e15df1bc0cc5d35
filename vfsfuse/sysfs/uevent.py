# SPDX-License-Identifier: Apache-2.0
"""uevents in sysfs: the directories that events are about, and their attribute `uevent`.

Trio thread; the device lane calls show() too.  Source: Documentation/ABI/testing/sysfs-uevent,
lib/kobject_uevent.c.
"""

from __future__ import annotations

import errno
import re
from abc import abstractmethod
from collections.abc import Mapping

from vfsfuse.kernfs.groups import Group
from vfsfuse.kernfs.kobject import Entry, Kobject
from vfsfuse.kernfs.members import attribute, link, store_only
from vfsfuse.kernfs.root import root_of
from vfsfuse.sysfs.power import PowerGroup, RuntimePower

ACTIONS = ("add", "remove", "change", "move", "online", "offline", "bind", "unbind")
SYNTHETIC = re.compile(
    rf"(?P<action>{'|'.join(ACTIONS)})"
    r"(?: (?P<uuid>[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})"
    r"(?P<arguments>(?: [A-Za-z0-9]+=[A-Za-z0-9]+)*))?",
    re.ASCII,
)
ROOM, MOST_VARIABLES = 2048, 64
"""How many bytes the variables of an event may have in all, each with one at its end, and how many variables
there may be: UEVENT_BUFFER_SIZE and UEVENT_NUM_ENVP of Linux."""

WITHOUT_DRIVER = ("add", "remove", "unbind")
"""Events of a device that has no driver yet, or no driver any more."""


def check_synthetic(text: str) -> re.Match[str]:
    """The parts of a text that asks for a synthetic event.  Raises ValueError for any other text."""
    found = SYNTHETIC.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no uevent action")
    return found


class UeventDir(Kobject):
    """A directory that events are about."""

    __slots__ = ()

    @property
    @abstractmethod
    def uevent_subsystem(self) -> str:
        """SUBSYSTEM in its events."""

    def uevent_variables(self) -> Mapping[str, str]:
        """The variables in its events besides ACTION, DEVPATH, SUBSYSTEM and SEQNUM."""
        return {}

    def emit(self, action: str, extra: Mapping[str, str] | None = None) -> None:
        """Emit the event that the kernel would emit now, or after the directory was removed."""
        variables = dict(self.uevent_variables())
        if action in WITHOUT_DRIVER:
            variables.pop("DRIVER", None)
        if action == "unbind":
            variables.pop("MODALIAS", None)
        self._emit(action, variables, extra)

    def synthesise(self, text: str) -> None:
        """Emit the synthetic event that a write to `uevent` asks for.  Raises ValueError for another text,
        and OSError(ENOMEM) for one that asks for too much."""
        found = check_synthetic(text)
        arguments = (argument.split("=") for argument in (found["arguments"] or "").split())
        extra = {"SYNTH_UUID": found["uuid"] or "0"}
        extra |= {f"SYNTH_ARG_{key}": value for key, value in arguments}
        variables = self.uevent_variables()
        self._check_room(found["action"], {**extra, **variables})
        self._emit(found["action"], variables, extra)

    def _check_room(self, action: str, variables: Mapping[str, str]) -> None:
        """Raise OSError(ENOMEM) when an event would have more variables, or longer ones, than Linux has room
        for."""
        number = root_of(self).uevents.seqnum + 1
        own = {"ACTION": action, "DEVPATH": self.path.removeprefix("sys"), "SEQNUM": str(number)}
        said = {**own, "SUBSYSTEM": self.uevent_subsystem, **variables}
        if len(said) > MOST_VARIABLES or sum(len(f"{key}={value}\0") for key, value in said.items()) > ROOM:
            raise OSError(
                errno.ENOMEM, f"the event has no room in {ROOM} bytes, or in {MOST_VARIABLES} variables"
            )

    def _emit(self, action: str, variables: Mapping[str, str], extra: Mapping[str, str] | None) -> None:
        path = self.path.removeprefix("sys")
        root_of(self).uevents.emit(action, path, self.uevent_subsystem, variables, extra)


class UeventStoreDir(UeventDir):
    """A bus, a driver or a module: its `uevent` takes an action, and shows nothing."""

    __slots__ = ()

    @store_only()
    def uevent(self, text: str) -> None:
        """Emits an event of the object: an action, such as `add`, which a UUID and `KEY=value` may follow.
        EINVAL: another text. ENOMEM: too many arguments, or too long ones."""
        self.synthesise(text)


class DeviceDir(UeventDir):
    """The directory of a device: its `uevent` shows the variables, a line each, and takes an action."""

    __slots__ = ()
    power = Group("power", PowerGroup)

    @property
    def runtime_power(self) -> RuntimePower | None:
        """The runtime power management of the device, None for one without it."""
        return None

    @attribute(0o644)
    def uevent(self) -> str:
        """The variables of its events, a line each: `KEY=value`."""
        return "\n".join(f"{key}={value}" for key, value in self.uevent_variables().items())

    @uevent.store
    def _store_uevent(self, text: str) -> None:
        """Emits an event of the device: an action, such as `add`, which a UUID and `KEY=value` may follow.
        EINVAL: another text. ENOMEM: too many arguments, or too long ones."""
        self.synthesise(text)


class BareDeviceDir(Kobject):
    """A device without bus and class, such as a host bridge: it has no events."""

    __slots__ = ()
    power = Group("power", PowerGroup)
    runtime_power: RuntimePower | None = None

    @attribute(0o644)
    def uevent(self) -> str:
        """Empty: a device without bus and class has no events."""
        return ""

    @uevent.store
    def _store_uevent(self, text: str) -> None:
        """Takes an action, as other devices do, and emits nothing. EINVAL: another text."""
        check_synthetic(text)


class ClassDeviceDir(DeviceDir):
    """The directory of a device of a class, whose directory is `subsystem_dir`."""

    __slots__ = ("subsystem_dir",)

    def __init__(self, name: str, subsystem_dir: Kobject) -> None:
        super().__init__(name)
        self.subsystem_dir = subsystem_dir

    @property
    def uevent_subsystem(self) -> str:
        return self.subsystem_dir.name

    @link()
    def subsystem(self) -> Entry | None:
        """To the class of the device."""
        return self.subsystem_dir


def emit(directory: Kobject, action: str, extra: Mapping[str, str] | None = None) -> None:
    """Emit an event of a device; `directory` is its directory, or was until it was removed."""
    if not isinstance(directory, DeviceDir):
        raise TypeError(f"{directory.path} is not the directory of a device")
    directory.emit(action, extra)
