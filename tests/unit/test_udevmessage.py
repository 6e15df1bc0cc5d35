# SPDX-License-Identifier: Apache-2.0
"""uevents as datagrams, and the names of udev's files, without a run."""

from __future__ import annotations

import struct

import pytest

from vfsfuse.run.udevdata import id_of
from vfsfuse.run.udevmessage import murmur2, properties_of, to_libudev, without_number

EVENT = b"add@/devices/a\0ACTION=add\0DEVPATH=/devices/a\0SUBSYSTEM=pci\0SEQNUM=12\0"


def test_the_number_of_the_lab_is_taken_out() -> None:
    assert without_number(EVENT) == EVENT.removesuffix(b"SEQNUM=12\0")
    assert without_number(EVENT + b"A=1\0") == EVENT + b"A=1\0"


def test_properties_are_what_follows_the_first_line() -> None:
    wanted = {"ACTION": "add", "DEVPATH": "/devices/a", "SUBSYSTEM": "pci", "SEQNUM": "12"}
    assert properties_of(EVENT) == wanted
    assert properties_of(EVENT + b"A=b=c\0B=\0nothing\0") == {**wanted, "A": "b=c", "B": ""}
    assert properties_of(b"") == properties_of(b"add@/devices/a") == {}


def test_bytes_that_are_no_text_pass_through() -> None:
    assert to_libudev(properties_of(b"\0A=\xff\0")).endswith(b"A=\xff\0")


def test_the_hash_is_that_of_libudev() -> None:
    """The values that MurmurHash2 by Austin Appleby gives on a little-endian processor."""
    values = {"": 0, "a": 0x92685F5E, "ab": 0x1AA14063, "abc": 0x13577C9B, "pci": 0x59163B92}
    values |= {"mdev": 0xBB5211C7, "vfio-dev": 0x573B34C1, "disk": 0x7BCBC5EE}
    assert {text: murmur2(text.encode()) for text in values} == values


def test_a_message_for_libudev() -> None:
    message = to_libudev({"ACTION": "add", "SUBSYSTEM": "pci", "DEVTYPE": "x"})
    assert message[:12] == b"libudev\0\xfe\xed\xca\xfe"
    assert struct.unpack_from("=3I", message, 12) == (40, 40, len(message) - 40)
    assert struct.unpack_from("!4I", message, 24) == (murmur2(b"pci"), murmur2(b"x"), 0, 0)
    assert message[40:] == b"ACTION=add\0SUBSYSTEM=pci\0DEVTYPE=x\0"


@pytest.mark.parametrize(
    ("properties", "device"),
    [
        ({"SUBSYSTEM": "mdev", "DEVPATH": "/devices/a/b"}, "+mdev:b"),
        ({"SUBSYSTEM": "vfio", "DEVPATH": "/devices/a/7", "MAJOR": "511", "MINOR": "7"}, "c511:7"),
        ({"SUBSYSTEM": "block", "DEVPATH": "/devices/a/sda", "MAJOR": "8", "MINOR": "0"}, "b8:0"),
        ({"SUBSYSTEM": "net", "DEVPATH": "/devices/virtual/net/d0", "IFINDEX": "2"}, "n2"),
        ({"SUBSYSTEM": "drivers", "DEVPATH": "/bus/pci/drivers/vgpu"}, "+drivers:pci:vgpu"),
        ({"SUBSYSTEM": "module", "DEVPATH": "/module/vfio"}, "+module:vfio"),
        ({"SUBSYSTEM": "../../x", "DEVPATH": "/devices/a"}, None),
        ({"SUBSYSTEM": "x", "DEVPATH": "/devices/a/7", "MAJOR": "../1", "MINOR": "7"}, None),
        ({"DEVPATH": "/devices/a"}, None),
        ({}, None),
    ],
)
def test_the_file_of_a_device(properties: dict[str, str], device: str | None) -> None:
    assert id_of(properties) == device
