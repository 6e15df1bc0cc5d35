# SPDX-License-Identifier: Apache-2.0
"""Buses and bridges of a machine: numbers, root ports that nobody named, and what cannot be."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.pci.address import PciAddress, parse_bus
from devmodel.topology.grouping import Kind
from devmodel.topology.placement import Placement, Site, place


def at(name: str, last: str | None = None) -> Site:
    """An endpoint, whose last virtual function is at `last`."""
    address = PciAddress.parse(name)
    return Site(address, address if last is None else PciAddress.parse(last))


def bridge(name: str, secondary: int, subordinate: int | None = None, kind: Kind = Kind.ROOT_PORT) -> Site:
    address = PciAddress.parse(name)
    return Site(address, address, kind, secondary, subordinate)


def shown(placement: Placement) -> dict[str, tuple[str, int, int, int, bool]]:
    return {bus: (str(each.address), *each.buses, each.automatic) for bus, each in placement.bridges.items()}


SWITCH = (
    bridge("0000:00:01.0", 1),
    bridge("0000:01:00.0", 2, kind=Kind.UPSTREAM),
    bridge("0000:02:00.0", 3, kind=Kind.DOWNSTREAM),
    bridge("0000:02:01.0", 4, 9, kind=Kind.DOWNSTREAM),
    at("0000:03:00.0"),
    at("0000:04:00.0", "0000:05:03.0"),
)


def test_a_switch() -> None:
    assert shown(place(SWITCH)) == {
        "0000:01": ("0000:00:01.0", 0, 1, 9, False),
        "0000:02": ("0000:01:00.0", 1, 2, 9, False),
        "0000:03": ("0000:02:00.0", 2, 3, 3, False),
        "0000:04": ("0000:02:01.0", 2, 4, 9, False),
    }


def test_a_bus_that_no_bridge_leads_to_gets_a_root_port() -> None:
    placement = place((*SWITCH, at("0000:20:00.0"), at("0000:10:00.0"), at("0000:00:02.0")))
    automatic = [row for row in shown(placement).values() if row[-1]]
    assert automatic == [("0000:00:03.0", 0, 0x10, 0x10, True), ("0000:00:04.0", 0, 0x20, 0x20, True)]
    assert placement.above(PciAddress.parse("0000:20:00.0")) == placement.bridges["0000:20"]
    assert placement.above(PciAddress.parse("0000:00:02.0")) is None


def test_a_root_port_is_on_the_nearest_root_bus() -> None:
    placement = place(
        (at("0000:86:00.0"), at("0000:10:00.0"), at("10000:e1:00.0")), [(0, 0x80), (0x10000, 0xE0)]
    )
    assert {bus: row[0] for bus, row in shown(placement).items()} == {
        "0000:10": "0000:00:01.0",
        "0000:86": "0000:80:01.0",
        "10000:e1": "10000:e0:01.0",
    }
    assert placement.roots == ("0000:00", "0000:80", "10000:e0")


def test_an_empty_root_bus_is_there_too() -> None:
    assert place((), [(0, 0x80)]).roots == ("0000:80",)
    assert place((at("0000:80:00.0"),), [(0, 0x80)]).roots == ("0000:80",)
    assert place(()).roots == ()


def test_devices_of_several_functions() -> None:
    placement = place((at("0000:00:01.0"), at("0000:00:01.3"), at("0000:00:02.0"), at("0000:05:00.0")))
    names = ("0000:00:01.0", "0000:00:01.3", "0000:00:02.0", "0000:00:03.0", "0000:05:00.0")
    assert [placement.multifunction(PciAddress.parse(name)) for name in names] == [True, True, *[False] * 3]


@pytest.mark.parametrize(
    ("sites", "roots", "error"),
    [
        (
            (bridge("0000:00:01.0", 5), bridge("0000:00:02.0", 5)),
            (),
            "bus 05 is below two bridges, 0000:00:01.0 and 0000:00:02.0 (give one of them another secondary)",
        ),
        (
            (bridge("0000:10:00.0", 8),),
            (),
            "0000:10:00.0 is on bus 10, so bus 08 cannot be below it (give it a secondary of 0x11 or more)",
        ),
        (
            (bridge("0000:00:01.0", 0x80),),
            [(0, 0x80)],
            "bus 80 is a root bus, not one below 0000:00:01.0 (give the bridge another secondary, or leave "
            "the root bus out)",
        ),
        (
            (bridge("0000:00:01.0", 0x10, 0x0F),),
            (),
            "the last bus below 0000:00:01.0, 0f, comes before its first, 10 (give it a higher subordinate, "
            "or none)",
        ),
        (
            (bridge("0000:00:01.0", 0x10, 0x11), bridge("0000:10:00.0", 0x12)),
            (),
            "bus 12 is below 0000:00:01.0, whose last bus is 11 (give it a subordinate of 0x12 or more, or "
            "none)",
        ),
        (
            (bridge("0000:00:01.0", 0x10, 0x1F), at("0000:15:00.0")),
            (),
            "nothing reaches 0000:15:00.0: its bus is one of those below 0000:00:01.0 (10 to 1f), but right "
            "below no bridge (put a bridge with secondary = 0x15 on a bus below 0000:00:01.0, or give the "
            "function another address)",
        ),
        (
            (bridge("0000:00:01.0", 0x10, 0x1F), bridge("0000:00:02.0", 0x18)),
            (),
            "the buses below 0000:00:01.0 (10 to 1f) and 0000:00:02.0 (18 to 18) overlap (change secondary "
            "or subordinate of one of them)",
        ),
        (
            (bridge("0000:00:01.0", 0x10, 0x90),),
            [(0, 0x80)],
            "the buses below 0000:00:01.0 (10 to 90) reach root bus 80 (give the bridge buses with lower "
            "numbers, or the root bus a higher one)",
        ),
        (
            (at("0000:05:00.0", "0000:06:02.0"), bridge("0000:00:01.0", 6)),
            (),
            "no room for the virtual functions of 0000:05:00.0: bus 06 is below another bridge (give that "
            "bus a higher number)",
        ),
    ],
)
def test_what_cannot_be(sites: tuple[Site, ...], roots: list[tuple[int, int]], error: str) -> None:
    with pytest.raises(ValueError) as caught:
        place(sites, roots)
    assert str(caught.value) == error


# ---- any machine ----

Tree = list["Tree"]
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.just(list[Tree]()), lambda below: st.lists(below, max_size=4), max_leaves=30
)


def numbered(tree: Tree, bus: int, numbers: count[int]) -> list[Site]:
    """The bridges of a tree, one for each branch, numbered depth first as firmware does."""
    sites = []
    for device, below in enumerate(tree, 1):
        secondary = next(numbers)
        inner = numbered(below, secondary, numbers)
        sites += [bridge(f"0000:{bus:02x}:{device:02x}.0", secondary), *inner]
    return sites


@given(TREES)
def test_a_tree_has_the_numbers_that_firmware_gives(tree: Tree) -> None:
    sites = numbered(tree, 0, count(1))
    found = place(sites).bridges
    assert len(found) == len(sites)
    for site in sites:
        _, secondary, last = found[f"0000:{site.secondary:02x}"].buses
        below = {secondary}
        for other in sites:  # those above come first
            if other.address.bus in below and other.secondary is not None:
                below.add(other.secondary)
        assert below == set(range(secondary, last + 1))


ANYTHING = st.lists(
    st.tuples(
        st.integers(0, 20), st.integers(1, 31), st.none() | st.integers(1, 20), st.none() | st.integers(1, 24)
    ),
    max_size=10,
    unique_by=lambda each: each[:2],
)


@given(ANYTHING, st.sets(st.integers(1, 24), max_size=2))
def test_whatever_is_placed_is_a_tree(
    drawn: list[tuple[int, int, int | None, int | None]], roots: set[int]
) -> None:
    sites = []
    for bus, device, secondary, subordinate in drawn:
        address = PciAddress(0, bus, device << 3)
        kind = Kind.ENDPOINT if secondary is None else Kind.ROOT_PORT
        sites.append(Site(address, address, kind, secondary, None if secondary is None else subordinate))
    try:
        placement = place(sites, [(0, root) for root in roots])
    except ValueError as error:
        assert str(error).endswith(")")  # it says what to do
        return
    bridges = placement.bridges
    for site in sites:
        name = site.address.bus_name
        assert (name in placement.roots) != (name in bridges)
    spans: dict[int, list[range]] = {}
    for name, each in bridges.items():
        primary, secondary, last = each.buses
        assert (primary, secondary) == (each.address.bus, parse_bus(name)[1]) and primary < secondary <= last
        assert not any(secondary <= parse_bus(root)[1] <= last for root in placement.roots)
        above = bridges.get(each.address.bus_name)
        assert above is None or last <= above.buses.subordinate
        spans.setdefault(primary, []).append(range(secondary, last + 1))
    for beside in spans.values():
        assert sum(map(len, beside)) == len(set().union(*beside))
    assert len({each.address for each in bridges.values()} | {site.address for site in sites}) == len(
        sites
    ) + sum(each.automatic for each in bridges.values())
