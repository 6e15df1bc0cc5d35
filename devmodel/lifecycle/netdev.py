# SPDX-License-Identifier: Apache-2.0
"""Network interfaces: what the host drivers of functions register, as far as sysfs shows it. No packet goes
through them.

State: the lifecycle thread's; any thread may read it. Source: Documentation/ABI/testing/sysfs-class-net,
<linux/if.h>, <linux/if_arp.h>, systemd.net-naming-scheme(7) for the names of virtual functions, and the
behaviour of the kernel's network core.
"""

from __future__ import annotations

import errno
import itertools
import re
from collections.abc import Iterable, Iterator
from enum import IntFlag

from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.physical import PhysicalFunction, VirtualFunction
from devmodel.lifecycle.spec import FunctionSpec, VfSpec
from devmodel.pci.address import PciAddress

MAX_NAME = 15
"""Characters of an interface's name (IFNAMSIZ is one more)."""
NAME = re.compile(rf"(?!\.{{1,2}}$)[^/:\s]{{1,{MAX_NAME}}}", re.ASCII)
LOOPBACK = "lo"
ADDRESS_BYTES = 6
MIN_MTU, MAX_MTU, MTU = 68, 9600, 1500
MAX_ALIAS = 256
"""A write of so many bytes is too long for ``ifalias``."""
QUEUE_LENGTH = 1000
SPEED = 25_000
"""Megabits per second of every link."""
FIRST_INDEX = 1001
"""The first interface index, so that none is that of an interface of the real machine."""
ETHER, LOOPBACK_TYPE = 1, 772


class Flags(IntFlag):
    """IFF_*: the state of an interface."""

    UP = 0x1
    BROADCAST = 0x2
    LOOPBACK = 0x8
    MULTICAST = 0x1000


SETTABLE = 0xF3A5
"""Flags that a write to ``flags`` changes; the others are the driver's."""


class NetDevice:
    """A network interface: its settings, while it is registered.

    ``port`` counts the interfaces of a function. ``speed`` is None where there is no link. The link of a
    function's interface is there whenever the interface is up.
    """

    __slots__ = (
        "_flags",
        "address",
        "alias",
        "broadcast",
        "carrier_changes",
        "deferred_irqs",
        "flush_timeout",
        "group",
        "index",
        "mtu",
        "name",
        "port",
        "queue_length",
        "speed",
        "type",
    )

    def __init__(self, name: str, index: int, port: int, address: bytes) -> None:
        self.name, self.index, self.port, self.address = name, index, port, address
        self.broadcast = b"\xff" * ADDRESS_BYTES
        self._flags = Flags.UP | Flags.BROADCAST | Flags.MULTICAST
        self.type, self.mtu, self.queue_length = ETHER, MTU, QUEUE_LENGTH
        self.speed: int | None = SPEED
        self.alias = ""
        self.group = self.flush_timeout = self.deferred_irqs = 0
        self.carrier_changes = 2
        """How often its link came or went; the driver registers the interface without one."""

    @classmethod
    def loopback(cls) -> NetDevice:
        """The interface of the machine to itself."""
        made = cls(LOOPBACK, 1, 0, bytes(ADDRESS_BYTES))
        made.broadcast, made.type, made.mtu = bytes(ADDRESS_BYTES), LOOPBACK_TYPE, 65536
        made._flags, made.speed, made.carrier_changes = Flags.UP | Flags.LOOPBACK, None, 0
        return made

    @property
    def is_loopback(self) -> bool:
        return self.type == LOOPBACK_TYPE

    @property
    def flags(self) -> int:
        """Its flags, as <linux/if.h> has them."""
        return self._flags

    @flags.setter
    def flags(self, wanted: int) -> None:
        before = self._flags
        self._flags = Flags(before & ~SETTABLE | wanted & SETTABLE)
        if (before ^ self._flags) & Flags.UP and not self.is_loopback:
            self.carrier_changes += 1

    @property
    def up(self) -> bool:
        """Whether it is up, and so its link."""
        return bool(self._flags & Flags.UP)

    def set_mtu(self, mtu: int) -> None:
        """Change the largest packet. Raises ``OSError(EINVAL)`` for a size that the driver cannot do; the
        loopback takes each that is not negative as an int."""
        least, most = (0, 2**31 - 1) if self.is_loopback else (MIN_MTU, MAX_MTU)
        if not least <= mtu <= most:
            raise OSError(errno.EINVAL, f"an MTU of {mtu}, not {least} to {most}")
        self.mtu = mtu


class NetCore:
    """The network interfaces of a lab, by function. Lifecycle thread, under ``Lab.lock``."""

    def __init__(self) -> None:
        self._indexes = itertools.count(FIRST_INDEX)
        self._registered: dict[PciFunction, tuple[NetDevice, ...]] = {}

    def of(self, function: PciFunction) -> tuple[NetDevice, ...]:
        """The interfaces that the function's host driver has registered. Any thread."""
        return self._registered.get(function, ())

    def register(self, function: PciFunction) -> tuple[NetDevice, ...]:
        """The host driver has taken the function: register its interfaces, each with a new index."""
        names = interface_names(function)
        made = tuple(
            NetDevice(name, next(self._indexes), port, _address(function, port))
            for port, name in enumerate(names)
        )
        if made:
            self._registered[function] = made
        return made

    def unregister(self, function: PciFunction) -> None:
        """The host driver leaves."""
        self._registered.pop(function, None)


def interface_names(function: PciFunction) -> tuple[str, ...]:
    """The names of the interfaces that a function has with its host driver."""
    if isinstance(function, PhysicalFunction):
        return function.spec.net
    if isinstance(function, VirtualFunction) and function.physical.spec.vf is not None:
        name = vf_name(function.physical.spec, function.physical.spec.vf, function.index)
        return () if name is None else (name,)
    return ()


def vf_name(spec: FunctionSpec, vf: VfSpec, index: int) -> str | None:
    """The name of the interface of virtual function ``index``: that which the lab file gives, else that of
    the physical function's first with "v" and the index, as systemd names it. None without one."""
    if vf.driver is None:
        return None
    if index < len(vf.net):
        return vf.net[index]
    return f"{spec.net[0]}v{index}" if spec.net else None


def all_names(spec: FunctionSpec) -> Iterator[tuple[bool, str]]:
    """The names of all interfaces that a function and its virtual functions can have, each with whether it is
    that of a virtual one."""
    yield from ((False, name) for name in spec.net)
    if spec.vf is not None:
        names = (vf_name(spec, spec.vf, index) for index in range(spec.vf.count))
        yield from ((True, name) for name in names if name is not None)


def check_names(specs: Iterable[FunctionSpec]) -> None:
    """Raise ValueError when two interfaces of a lab would have the same name, or one has a name that none can
    have."""
    owners: dict[str, str] = {LOOPBACK: "the machine itself"}
    for spec in specs:
        for _, name in all_names(spec):
            if NAME.fullmatch(name) is None:
                raise ValueError(
                    f"{name!r} of {spec.name} cannot name an interface (up to {MAX_NAME} characters)"
                )
            if name in owners:
                raise ValueError(f"interface {name!r} of {spec.name} is also one of {owners[name]}")
            owners[name] = spec.name


def has_interfaces(specs: Iterable[FunctionSpec]) -> bool:
    """Whether a lab of these functions can have network interfaces."""
    return any(True for spec in specs for _ in all_names(spec))


def _address(function: PciFunction, port: int) -> bytes:
    """The Ethernet address of an interface: that of the lab file and those behind it, else one that is made
    of the function's address. It is locally administered, and always the same."""
    given = function.spec.mac if isinstance(function, PhysicalFunction) else None
    if given is None:
        return made_address(function.address, port)
    low = int.from_bytes(given[3:], "big") + port
    return given[:3] + (low & 0xFFFFFF).to_bytes(3, "big")


def made_address(where: PciAddress, port: int = 0) -> bytes:
    """A locally administered Ethernet address that no other interface of the lab is given."""
    local = 0x02 | (where.segment >> 16 & 0xF) << 4
    return bytes((local, where.segment >> 8 & 0xFF, where.segment & 0xFF, where.bus, where.devfn, port))
