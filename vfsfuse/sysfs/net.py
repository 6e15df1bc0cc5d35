# SPDX-License-Identifier: Apache-2.0
"""sys/class/net: the network interfaces of functions that their host driver has, and the loopback.

State is the interface's (devmodel.lifecycle.netdev).  show() is called on the trio thread and on the device
lane, store() on the trio thread.  Names, modes, formats and errors:
Documentation/ABI/testing/sysfs-class-net and sysfs-class-net-statistics, and the behaviour of Linux.
"""

from __future__ import annotations

import errno

from devmodel.lifecycle.netdev import ADDRESS_BYTES, MAX_ALIAS, NetDevice
from vfsfuse.kernfs.groups import AttributeGroup, Group
from vfsfuse.kernfs.kobject import Entry, Kobject
from vfsfuse.kernfs.members import Attribute, attribute, link
from vfsfuse.sysfs.kstrtox import parse_ulong
from vfsfuse.sysfs.uevent import ClassDeviceDir

NAME_PREDICTABLE, NAME_RENAMED = 2, 4
"""NET_NAME_*: who has named an interface, the kernel or somebody later."""
COUNTERS = {
    "collisions": "collisions while sending",
    "multicast": "multicast packets that were received",
    "rx_bytes": "bytes that were received",
    "rx_compressed": "compressed packets that were received",
    "rx_crc_errors": "packets received with a wrong checksum",
    "rx_dropped": "received packets that were dropped",
    "rx_errors": "bad packets that were received",
    "rx_fifo_errors": "packets lost to a full queue of the device while receiving",
    "rx_frame_errors": "packets received with a wrong frame",
    "rx_length_errors": "packets received with a wrong length",
    "rx_missed_errors": "packets that the host had no room for",
    "rx_nohandler": "received packets that nobody wanted",
    "rx_over_errors": "packets that were too long to receive",
    "rx_packets": "packets that were received",
    "tx_aborted_errors": "packets whose sending was given up",
    "tx_bytes": "bytes that were sent",
    "tx_carrier_errors": "packets not sent for want of a link",
    "tx_compressed": "compressed packets that were sent",
    "tx_dropped": "packets that were dropped before they were sent",
    "tx_errors": "packets that could not be sent",
    "tx_fifo_errors": "packets lost to an empty queue of the device while sending",
    "tx_heartbeat_errors": "heartbeats that were missed",
    "tx_packets": "packets that were sent",
    "tx_window_errors": "packets sent too late",
}


def _counter(name: str) -> Attribute:
    return Attribute(name, 0o444, lambda self: 0, doc=f"The number of {COUNTERS[name]}: 0.")


class StatisticsGroup(AttributeGroup):
    """<interface>/statistics: what has passed the interface, which is nothing."""

    __slots__ = ()
    # fmt: off
    (collisions, multicast, rx_bytes, rx_compressed, rx_crc_errors, rx_dropped, rx_errors, rx_fifo_errors,
     rx_frame_errors, rx_length_errors, rx_missed_errors, rx_nohandler, rx_over_errors, rx_packets,
     tx_aborted_errors, tx_bytes, tx_carrier_errors, tx_compressed, tx_dropped, tx_errors, tx_fifo_errors,
     tx_heartbeat_errors, tx_packets, tx_window_errors) = map(_counter, COUNTERS)
    # fmt: on


class NetDeviceDir(ClassDeviceDir):
    """<interface>: a network interface.

    `function_dir` is the directory of its function, None for the loopback.
    """

    __slots__ = ("function_dir", "interface")
    statistics = Group("statistics", StatisticsGroup)

    def __init__(self, interface: NetDevice, subsystem_dir: Kobject, function_dir: Kobject | None) -> None:
        super().__init__(interface.name, subsystem_dir)
        self.interface, self.function_dir = interface, function_dir

    def uevent_variables(self) -> dict[str, str]:
        return {"INTERFACE": self.interface.name, "IFINDEX": str(self.interface.index)}

    @property
    def is_of_function(self) -> bool:
        """Whether it is no loopback."""
        return self.function_dir is not None

    def check_up(self) -> None:
        """Raise OSError(EINVAL) while the interface is down."""
        if not self.interface.up:
            raise OSError(errno.EINVAL, f"{self.interface.name} is down")

    def link_speed(self) -> int:
        """Megabits per second. Raises OSError(EINVAL) without a link: while it is down, and for the
        loopback."""
        self.check_up()
        if self.interface.speed is None:
            raise OSError(errno.EINVAL, "there is no link")
        return self.interface.speed

    @link()
    def device(self) -> Entry | None:
        """To the function. The loopback has none."""
        return self.function_dir

    # ---- what it is ----

    @attribute()
    def address(self) -> str:
        """Its Ethernet address: that of the lab file (`mac`), or one made of the function's address."""
        return _colons(self.interface.address)

    @attribute()
    def broadcast(self) -> str:
        """The address of all."""
        return _colons(self.interface.broadcast)

    @attribute()
    def addr_assign_type(self) -> int:
        """0: the address is the hardware's own."""
        return 0

    @attribute()
    def addr_len(self) -> int:
        """The bytes of an address."""
        return ADDRESS_BYTES

    @attribute()
    def type(self) -> int:
        """1 for Ethernet, 772 for the loopback."""
        return self.interface.type

    @attribute()
    def ifindex(self) -> int:
        """Its number. It has a new one each time that its driver is bound."""
        return self.interface.index

    @attribute()
    def iflink(self) -> int:
        """The number of the interface below, which is itself."""
        return self.interface.index

    @attribute()
    def dev_id(self) -> str:
        """What tells interfaces with the same address apart: 0x0."""
        return "0x0"

    @attribute()
    def dev_port(self) -> int:
        """Its place among the interfaces of the function, from 0."""
        return self.interface.port

    @attribute()
    def name_assign_type(self) -> int:
        """4: the interface was named after it was made; 2 for the loopback, whose name is the kernel's."""
        return NAME_RENAMED if self.is_of_function else NAME_PREDICTABLE

    @attribute(when=lambda self: self.is_of_function)
    def phys_port_id(self) -> str:
        """EOPNOTSUPP: the driver does not tell. The loopback has no such file."""
        raise OSError(errno.EOPNOTSUPP, "the driver tells no port")

    @attribute(when=lambda self: self.is_of_function)
    def phys_port_name(self) -> str:
        """EOPNOTSUPP: the driver does not tell. The loopback has no such file."""
        raise OSError(errno.EOPNOTSUPP, "the driver tells no port")

    @attribute(when=lambda self: self.is_of_function)
    def phys_switch_id(self) -> str:
        """EOPNOTSUPP: the function is in no switch of its driver. The loopback has no such file."""
        raise OSError(errno.EOPNOTSUPP, "the driver has no switch")

    # ---- its link ----

    @attribute(0o644)
    def flags(self) -> str:
        """Its flags (`IFF_*`), in hexadecimal: an interface is up at first."""
        return f"{self.interface.flags:#x}"

    @flags.store
    def _store_flags(self, text: str) -> None:
        """Sets those that a user may change; with bit 0 clear, the interface is down and has no link. EINVAL:
        no number; ERANGE: more than 64 bits."""
        self.interface.flags = parse_ulong(text) & 0xFFFFFFFF

    @attribute()
    def operstate(self) -> str:
        """`up` or `down`; `unknown` for the loopback while it is up."""
        if not self.interface.up:
            return "down"
        return "up" if self.is_of_function else "unknown"

    @attribute(0o644)
    def carrier(self) -> int:
        """1: there is a link. EINVAL while the interface is down."""
        self.check_up()
        return 1

    @carrier.store
    def _store_carrier(self, text: str) -> None:
        """EOPNOTSUPP: no driver of a lab sets the link by hand."""
        raise OSError(errno.EOPNOTSUPP, "the driver sets no link")

    @attribute()
    def carrier_changes(self) -> int:
        """How often the link has come or gone."""
        return self.interface.carrier_changes

    @attribute()
    def carrier_up_count(self) -> int:
        """How often the link has come."""
        return self.interface.carrier_changes // 2

    @attribute()
    def carrier_down_count(self) -> int:
        """How often the link has gone."""
        return self.interface.carrier_changes - self.interface.carrier_changes // 2

    @attribute()
    def speed(self) -> int:
        """Megabits per second. EINVAL while the interface is down, and for the loopback."""
        return self.link_speed()

    @attribute()
    def duplex(self) -> str:
        """`full`. EINVAL while the interface is down, and for the loopback."""
        self.link_speed()
        return "full"

    @attribute()
    def dormant(self) -> int:
        """0: nothing is awaited. EINVAL while the interface is down."""
        self.check_up()
        return 0

    @attribute()
    def testing(self) -> int:
        """0: it is not being tested. EINVAL while the interface is down."""
        self.check_up()
        return 0

    @attribute()
    def link_mode(self) -> int:
        """0: the interface is up when its link is."""
        return 0

    # ---- settings ----

    @attribute(0o644)
    def mtu(self) -> int:
        """The most bytes of a packet."""
        return self.interface.mtu

    @mtu.store
    def _store_mtu(self, text: str) -> None:
        """Sets it. EINVAL: no number, or not 68 to 9600; ERANGE: more than 64 bits."""
        self.interface.set_mtu(_as_int(parse_ulong(text)))

    @attribute(0o644)
    def tx_queue_len(self) -> int:
        """The most packets that wait to be sent. From 2^31 on it is shown as a negative number, as in
        Linux."""
        return _as_int(self.interface.queue_length)

    @tx_queue_len.store
    def _store_tx_queue_len(self, text: str) -> None:
        """Sets it. EINVAL: no number; ERANGE: more than 32 bits."""
        self.interface.queue_length = _limited(parse_ulong(text), 2**32 - 1)

    @attribute(0o644)
    def netdev_group(self) -> int:
        """The number of its group of interfaces."""
        return self.interface.group

    @netdev_group.store
    def _store_netdev_group(self, text: str) -> None:
        """Sets it, 32 bits of it. EINVAL: no number; ERANGE: more than 64 bits."""
        self.interface.group = _as_int(parse_ulong(text))

    @attribute(0o644)
    def ifalias(self) -> str:
        """A text for people; empty at first."""
        return self.interface.alias

    @ifalias.store
    def _store_ifalias(self, text: str) -> None:
        """Sets it; an empty line clears it. EINVAL: more than 255 characters, or not ASCII."""
        if len(text) >= MAX_ALIAS:
            raise ValueError(f"{len(text)} characters")
        self.interface.alias = text

    @attribute(0o644)
    def gro_flush_timeout(self) -> int:
        """Nanoseconds after which received packets are passed on."""
        return self.interface.flush_timeout

    @gro_flush_timeout.store
    def _store_gro_flush_timeout(self, text: str) -> None:
        """Sets it, without effect. EINVAL: no number; ERANGE: more than 64 bits."""
        self.interface.flush_timeout = parse_ulong(text)

    @attribute(0o644)
    def napi_defer_hard_irqs(self) -> int:
        """How often an empty poll keeps interrupts off."""
        return self.interface.deferred_irqs

    @napi_defer_hard_irqs.store
    def _store_napi_defer_hard_irqs(self, text: str) -> None:
        """Sets it, without effect. EINVAL: no number; ERANGE: more than 31 bits."""
        self.interface.deferred_irqs = _limited(parse_ulong(text), 2**31 - 1)

    @attribute(0o644)
    def threaded(self) -> int:
        """0: no thread polls the interface."""
        return 0

    @threaded.store
    def _store_threaded(self, text: str) -> None:
        """EOPNOTSUPP: there is nothing to poll. EINVAL: no number."""
        parse_ulong(text)
        raise OSError(errno.EOPNOTSUPP, "there is nothing to poll")

    @attribute(0o644)
    def proto_down(self) -> int:
        """0: no protocol keeps the interface down."""
        return 0

    @proto_down.store
    def _store_proto_down(self, text: str) -> None:
        """EOPNOTSUPP: the driver does not do it. EINVAL: no number."""
        parse_ulong(text)
        raise OSError(errno.EOPNOTSUPP, "the driver does not do it")


def _colons(address: bytes) -> str:
    return address.hex(":")


def _as_int(value: int) -> int:
    """The lowest 32 bits, as C's int has them."""
    return ((value & 0xFFFFFFFF) ^ 1 << 31) - (1 << 31)


def _limited(value: int, most: int) -> int:
    if value > most:
        raise OSError(errno.ERANGE, f"{value} is more than {most}")
    return value
