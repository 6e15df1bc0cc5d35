# SPDX-License-Identifier: Apache-2.0
"""Serial numbers and MAC addresses of a captured machine, replaced by made-up ones.

A captured lab is meant to be shown to others. The same number always becomes the same made-up one, which is
counted and tells nothing of the old one.

State: a Replacements belongs to one capture. Source: <linux/pci_regs.h> (PCI_EXT_CAP_ID_DSN), PCI 3.0
appendix I (VPD), IEEE 802 (locally administered addresses).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vfsfuse.capture import vpd
from vfsfuse.capture.machine import FoundFunction, FoundNet, Machine
from vfsfuse.capture.spaces import Space, serial_bytes

SERIAL_BASE, MAC_BASE = 0x020000FFFE000000, 0x020000000000
"""A made-up serial number and a made-up MAC address are these, plus a number that counts up."""
_SERIAL_KEYWORDS = (b"SN",)
_VENDOR_KEYWORDS = re.compile(rb"[VY].")
_LIKE_A_SERIAL = re.compile(rb"[0-9A-Za-z-]*[0-9][0-9A-Za-z-]{9,}")
"""Text of a vendor's field that may identify a device: a long word with digits."""


class Replacements:
    """Made-up numbers by the real ones. ``macs`` are those of all interfaces."""

    __slots__ = ("_bytes", "_macs", "_serials", "_texts")

    def __init__(self, macs: Iterable[bytes]) -> None:
        self._serials: dict[int, int] = {}
        self._macs: dict[bytes, bytes] = {}
        self._texts: dict[bytes, bytes] = {}
        for mac in macs:
            self.mac(mac)

    def mac(self, mac: bytes) -> bytes:
        """The made-up MAC address for a real one."""
        number = MAC_BASE + len(self._macs) + 1
        return self._macs.setdefault(mac, number.to_bytes(6, "big"))

    def serial(self, serial: int) -> int:
        """The made-up serial number for a real one. Those that are no numbers, all zeros or ones, stay."""
        if serial in (0, (1 << 64) - 1):
            return serial
        return self._serials.setdefault(serial, SERIAL_BASE + len(self._serials) + 1)

    def text(self, text: bytes) -> bytes:
        """A made-up serial number for one in text, of the same length."""
        if not text.strip(b" \0"):
            return text
        number = len(self._texts) + 1
        return self._texts.setdefault(text, str(number).encode().rjust(len(text), b"0")[-len(text) :])

    def config(self, config: bytes) -> bytes:
        """Configuration space without real serial numbers and MAC addresses."""
        data = bytearray(config)
        space = Space(config)
        known: dict[bytes, bytes] = {}
        place = space.serial_place
        if place is not None:
            (serial,) = struct.unpack_from("<Q", config, place)
            old, new = serial_bytes(serial), serial_bytes(self.serial(serial))
            data[place : place + 8] = new
            if old != new:
                known |= {old: new, old[::-1]: new[::-1]}
        for mac, made_up in self._macs.items():
            known |= {mac: made_up, mac[::-1]: made_up[::-1]}
        for old, new in known.items():
            for at in Space(bytes(data)).places_of(old):
                data[at : at + len(old)] = new
        return bytes(data)

    def vpd(self, data: bytes) -> bytes:
        """Vital product data without real serial numbers. Data that cannot be read are left out."""
        resources = vpd.parse(data)
        if resources is None:
            return b""
        return vpd.pack([replace(each, fields=tuple(map(self._field, each.fields))) for each in resources])

    def _field(self, field: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        keyword, text = field
        if keyword in (vpd.CHECKSUM, vpd.FREE):
            return field
        vendors = _VENDOR_KEYWORDS.fullmatch(keyword) is not None
        if keyword in _SERIAL_KEYWORDS:
            return keyword, self.text(text)
        return (keyword, _LIKE_A_SERIAL.sub(lambda found: self.text(found[0]), text)) if vendors else field


def without_serials(machine: Machine) -> Machine:
    """The machine with made-up serial numbers and MAC addresses."""
    functions = list(machine.functions.values())
    macs = [net.mac for each in functions for net in each.net if net.mac is not None]
    made_up = Replacements([*macs, *_macs_of_serials(functions)])
    return replace(machine, functions={each.address: _without_serials(each, made_up) for each in functions})


def _without_serials(function: FoundFunction, made_up: Replacements) -> FoundFunction:
    net = tuple(
        FoundNet(each.name, None if each.mac is None else made_up.mac(each.mac)) for each in function.net
    )
    serial = function.serial
    return replace(
        function,
        config=made_up.config(function.config),
        vpd=made_up.vpd(function.vpd) if function.vpd else b"",
        net=net,
        serial=None if serial is None else made_up.serial(serial),
    )


def _macs_of_serials(functions: Sequence[FoundFunction]) -> list[bytes]:
    """The MAC addresses that serial numbers are made of: with ff:ff or ff:fe in the middle."""
    found = []
    for function in functions:
        space = Space(function.config)
        if space.serial_place is not None:
            number = function.config[space.serial_place : space.serial_place + 8][::-1]
            if number[3:5] in (b"\xff\xff", b"\xff\xfe") and any(number[:3] + number[5:]):
                found.append(number[:3] + number[5:])
    return found
