# SPDX-License-Identifier: Apache-2.0
"""Network interfaces without a mount: names, addresses, numbers and settings."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.netdev import NetDevice, all_names, check_names, has_interfaces, made_address, vf_name
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import FunctionSpec, LabSpec, VfSpec
from devmodel.models.gpu import PhysicalGpu, Vgpu
from devmodel.pci.address import PciAddress
from tests.unit.fakes import fails
from tests.unit.test_lab import MIB, Recorder

VF = VfSpec(3, Vgpu, driver="vf")
CARD = FunctionSpec("0000:65:00.0", PhysicalGpu, "nic", 16 * MIB, net=("eth0", "eth1"), vf=VF)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (replace(CARD, vf=None), ["eth0", "eth1"]),
        (CARD, ["eth0", "eth1", "eth0v0", "eth0v1", "eth0v2"]),
        (replace(CARD, vf=replace(VF, net=("a", "b"))), ["eth0", "eth1", "a", "b", "eth0v2"]),
        (replace(CARD, vf=replace(VF, driver=None)), ["eth0", "eth1"]),
        (replace(CARD, net=()), []),
        (replace(CARD, net=(), vf=replace(VF, net=("a",))), ["a"]),
    ],
)
def test_names(spec: FunctionSpec, names: list[str]) -> None:
    assert [name for _, name in all_names(spec)] == names
    assert has_interfaces([spec]) is bool(names)
    check_names([spec])


def test_which_virtual_function_has_which_name() -> None:
    assert [vf_name(CARD, VF, index) for index in (0, 2)] == ["eth0v0", "eth0v2"]
    assert vf_name(replace(CARD, net=()), VF, 0) is None


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("eth0", "eth0"), "interface 'eth0' of 0000:65:00.0 is also one of 0000:65:00.0"),
        (("eth0", "eth0v1"), "'eth0v1' of 0000:65:00.0 is also one of"),
        (("lo",), "'lo' of 0000:65:00.0 is also one of the machine itself"),
        (("enp101s0f0np00",), "'enp101s0f0np00v0' of 0000:65:00.0 cannot name an interface"),
        (("",), "cannot name an interface"),
        ((".",), "cannot name an interface"),
        (("a b",), "cannot name an interface"),
        (("a/b",), "cannot name an interface"),
    ],
)
def test_names_that_cannot_be(names: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Lab(LabSpec((), functions=(replace(CARD, net=names),)), Recorder())


def test_made_addresses_are_local_and_differ() -> None:
    where = [PciAddress(segment, bus, devfn) for segment in (0, 1, 0xFFFF, 0x10000) for bus in (0, 255)
             for devfn in (0, 8, 255)]  # fmt: skip
    made = {made_address(each, port) for each in where for port in (0, 1)}
    assert len(made) == 2 * len(where)
    assert all(each[0] & 3 == 2 and len(each) == 6 for each in made)
    assert made_address(PciAddress(0, 0x65, 0x82)).hex(":") == "02:00:00:65:82:00"


def test_addresses_and_numbers_of_a_function() -> None:
    spec = replace(CARD, mac=bytes.fromhex("525400ffffff"))
    lab = Lab(LabSpec((), functions=(spec,)), Recorder())
    card = lab.drivers.find(CARD.address)
    assert isinstance(card, PhysicalFunction) and lab.net.of(card) == ()
    first = lab.net.register(card)
    assert [(each.name, each.address.hex(), each.port) for each in first] == [
        ("eth0", "525400ffffff", 0),
        ("eth1", "525400000000", 1),  # the vendor's part of an address never changes
    ]
    assert lab.net.of(card) == first
    lab.net.unregister(card)
    again = lab.net.register(card)
    assert [each.index for each in (*first, *again)] == [1001, 1002, 1003, 1004]
    assert [each.address for each in again] == [each.address for each in first]
    lab.close()


@pytest.mark.parametrize(
    ("written", "flags"),
    [(0, 0x2), (1, 0x3), (0x1003, 0x1003), (0xFFFFFFFF, 0xF3A7), (0x8, 0x2), (0x40, 0x2)],
)
def test_flags_that_a_user_changes(written: int, flags: int) -> None:
    interface = NetDevice("eth0", 1, 0, bytes(6))
    interface.flags = written
    assert interface.flags == flags and interface.up is bool(flags & 1)


def test_the_link_comes_and_goes_with_the_interface() -> None:
    interface, loopback = NetDevice("eth0", 1, 0, bytes(6)), NetDevice.loopback()
    for each in (interface, loopback):
        for flags in (0x1003, 0x1002, 0x1002, 0x1003):
            each.flags = flags
    assert (interface.carrier_changes, loopback.carrier_changes) == (4, 0)


@pytest.mark.parametrize("mtu", [67, 9601, -1, 0])
def test_sizes_of_packets_that_cannot_be(mtu: int) -> None:
    interface, loopback = NetDevice("eth0", 1, 0, bytes(6)), NetDevice.loopback()
    fails(errno.EINVAL, interface.set_mtu, mtu)
    assert interface.mtu == 1500
    if mtu < 0:
        fails(errno.EINVAL, loopback.set_mtu, mtu)
    else:
        loopback.set_mtu(mtu)
