# SPDX-License-Identifier: Apache-2.0
"""IOMMU groups from a topology: examples worked out by hand, and what holds for every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.pci.address import PciAddress
from devmodel.topology.grouping import Grouping, Kind, Node, bridges_above, found_order, iommu_groups

PORT, UP, DOWN, PCI = Kind.ROOT_PORT, Kind.UPSTREAM, Kind.DOWNSTREAM, Kind.PCI_BRIDGE
Groups = Mapping[int, Sequence[str]]


def node(
    name: str,
    kind: Kind = Kind.ENDPOINT,
    above: Node | None = None,
    acs: bool = False,
    multi: bool = False,
    express: bool = True,
    named: str | int | None = None,
) -> Node:
    """A function of domain 0; ``name`` is as "01:00.0"."""
    return Node(PciAddress.parse(f"0000:{name}"), kind, above, acs, multi, express, named)


def names(nodes: Sequence[Node]) -> list[str]:
    return [str(each.address).removeprefix("0000:") for each in nodes]


def grouped(*nodes: Node) -> dict[int, list[str]]:
    return {number: names(members) for number, members in iommu_groups(found_order(nodes))}


@pytest.mark.parametrize(
    ("acs", "expected"),
    [
        (True, {0: ["00:00.0"], 1: ["00:01.0"], 2: ["01:00.0", "01:00.1"]}),
        (False, {0: ["00:00.0"], 1: ["00:01.0", "01:00.0", "01:00.1"]}),
    ],
)
def test_a_desktops_gpu_and_its_audio(acs: bool, expected: Groups) -> None:
    port = node("00:01.0", PORT, acs=acs)
    gpu, audio = (node(f"01:00.{function}", above=port, multi=True) for function in (0, 1))
    assert grouped(audio, gpu, port, node("00:00.0")) == expected


@pytest.mark.parametrize(
    ("port_acs", "down_acs", "expected"),
    [
        (True, True, [["00:01.0"], ["01:00.0"], ["02:00.0"], ["02:01.0"], ["03:00.0"], ["04:00.0"]]),
        (True, False, [["00:01.0"], ["01:00.0"], ["02:00.0", "03:00.0"], ["02:01.0", "04:00.0"]]),
        (False, True, [["00:01.0", "01:00.0", "02:00.0", "02:01.0", "03:00.0", "04:00.0"]]),
        (False, False, [["00:01.0", "01:00.0", "02:00.0", "02:01.0", "03:00.0", "04:00.0"]]),
    ],
)
def test_a_switch(port_acs: bool, down_acs: bool, expected: list[list[str]]) -> None:
    """Downstream ports without ACS each make one group with what is below, although peers can talk."""
    port = node("00:01.0", PORT, acs=port_acs)
    up = node("01:00.0", UP, port)
    first, second = (node(f"02:0{device}.0", DOWN, up, acs=down_acs) for device in (0, 1))
    groups = grouped(port, up, first, second, node("03:00.0", above=first), node("04:00.0", above=second))
    assert list(groups.values()) == expected and list(groups) == list(range(len(expected)))


@pytest.mark.parametrize("acs", [True, False])
@pytest.mark.parametrize("express", [True, False])
def test_what_is_below_a_bridge_to_conventional_pci_is_one_group(acs: bool, express: bool) -> None:
    port = node("00:1c.0", PORT, acs=acs)
    bridge = node("01:00.0", PCI, port, acs=True, express=express)
    below = [
        node("02:01.0", above=bridge, express=False),
        node("02:02.0", above=bridge, multi=True, express=False, acs=True),
        node("02:02.1", above=bridge, multi=True, express=False),
    ]
    assert list(grouped(port, bridge, *below).values()) == (
        [["00:1c.0"], names([bridge, *below])] if acs else [names([port, bridge, *below])]
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((False, False), [["00:01.0"], ["01:00.0", "01:00.1"]]),
        ((True, True), [["00:01.0"], ["01:00.0"], ["01:00.1"]]),
        ((True, False), [["00:01.0"], ["01:00.0"], ["01:00.1"]]),
    ],
)
def test_functions_of_one_device(flags: tuple[bool, bool], expected: list[list[str]]) -> None:
    port = node("00:01.0", PORT, acs=True)
    functions = (node(f"01:00.{n}", above=port, acs=acs, multi=True) for n, acs in enumerate(flags))
    assert list(grouped(port, *functions).values()) == expected


def test_functions_of_the_root_complex() -> None:
    groups = grouped(
        node("00:00.0"),
        node("00:02.0"),
        node("00:1f.0", multi=True, express=False),
        node("00:1f.3", multi=True),
        node("00:1f.6", multi=True, acs=True),
    )
    assert groups == {0: ["00:00.0"], 1: ["00:02.0"], 2: ["00:1f.0", "00:1f.3"], 3: ["00:1f.6"]}


@pytest.mark.parametrize("acs", [True, False])
def test_virtual_functions(acs: bool) -> None:
    """Only the ports above decide: they do not join physical functions that share a group for want of ACS."""
    port = node("00:01.0", PORT, acs=acs)
    physical = [node(f"03:00.{function}", above=port, multi=True) for function in (0, 1)]
    virtual = [
        node(name, Kind.VIRTUAL, port, multi=True) for name in ("03:00.2", "03:10.0", "03:10.1", "04:00.0")
    ]
    expected = [["00:01.0"], names(physical), *(names([each]) for each in virtual)]
    everything = [names([port, *physical, *virtual])]
    assert list(grouped(port, *physical, *virtual).values()) == (expected if acs else everything)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (False, [["00:1c.0", "00:1c.4", "01:00.0", "02:00.0"]]),
        (True, [["00:1c.0"], ["00:1c.4", "02:00.0"], ["01:00.0"]]),
    ],
)
def test_root_ports_of_one_device(first: bool, expected: list[list[str]]) -> None:
    ports = [node("00:1c.0", PORT, acs=first, multi=True), node("00:1c.4", PORT, multi=True)]
    below = [node(f"0{bus}:00.0", above=port) for bus, port in enumerate(ports, 1)]
    assert list(grouped(*ports, *below).values()) == expected


def test_functions_of_devices_on_a_root_bus_are_apart() -> None:
    assert list(grouped(node("00:03.0", express=False), node("00:04.0", express=False)).values()) == [
        ["00:03.0"],
        ["00:04.0"],
    ]


def test_what_is_below_a_bridge_without_an_iommu_is_found_as_well() -> None:
    port = node("00:01.0", PORT)
    below = [node("01:00.0", above=port), node("01:01.0", above=port)]
    assert found_order([*below, node("00:02.0")]) == [node("00:02.0"), *below]
    assert [names(members) for _, members in iommu_groups(below)] == [["01:00.0"], ["01:01.0"]]


# ---- names ----


def test_a_name_takes_functions_out_of_their_group_and_together() -> None:
    port = node("00:01.0", PORT, acs=True)
    gpu = node("01:00.0", above=port, multi=True, named="gpus")
    audio = node("01:00.1", above=port, multi=True, named="sound")
    other = node("00:03.0", named="gpus")
    assert grouped(port, gpu, audio, other) == {
        0: ["00:01.0"],
        1: ["00:03.0", "01:00.0"],
        2: ["01:00.1"],
    }


def test_a_number_is_the_groups() -> None:
    nodes = [node("00:01.0", named=1), node("00:02.0"), node("00:03.0"), node("00:04.0", named=1)]
    assert grouped(*nodes) == {0: ["00:02.0"], 1: ["00:01.0", "00:04.0"], 2: ["00:03.0"]}


def test_numbers_follow_the_order_that_is_given() -> None:
    """Whoever numbers functions in another order than they are found has the same groups."""
    port = node("00:01.0", PORT)
    nodes = [node("01:00.0", above=port), node("00:02.0"), port]
    groups = {number: names(members) for number, members in iommu_groups(nodes)}
    assert groups == {0: ["01:00.0", "00:01.0"], 1: ["00:02.0"]}


def test_what_follows_a_named_function_is_in_its_group() -> None:
    port = node("00:01.0", PORT, named=7)
    functions = [node(f"01:00.{function}", above=port, multi=True) for function in (0, 1)]
    assert grouped(port, *functions) == {7: names([port, *functions])}


# ---- functions that come and go ----


def test_a_group_is_found_by_what_is_left_of_it() -> None:
    grouping = Grouping[str]()
    gpu, audio, third = (node(f"00:05.{function}", multi=True) for function in range(3))
    assert grouping.joins(gpu) is None
    grouping.enter(gpu, "a")
    assert grouping.joins(audio) == "a"
    grouping.enter(audio, "a")
    grouping.leave(gpu.address)
    assert grouping.joins(gpu) == grouping.joins(third) == "a"
    grouping.leave(audio.address)
    assert grouping.joins(gpu) is None


def test_a_bridge_that_has_gone_takes_its_group_along() -> None:
    grouping = Grouping[str]()
    port = node("00:01.0", PORT)
    grouping.enter(port, "a")
    below = node("01:00.0", above=port)
    assert grouping.joins(below) == "a"
    grouping.leave(port.address)
    assert grouping.joins(below) is None, "a port that is not behind the IOMMU has no group to join"


def test_a_name_is_known_until_its_last_function_has_gone() -> None:
    grouping = Grouping[str]()
    first, second = node("00:05.0", named="x"), node("00:06.0", named="x")
    grouping.enter(first, "a")
    grouping.enter(second, "a")
    grouping.leave(first.address)
    assert grouping.joins(first) == "a"
    grouping.leave(second.address)
    assert grouping.joins(first) is None


# ---- every machine ----


@st.composite
def machines(draw: st.DrawFn) -> list[Node]:
    """The functions of a machine with up to 12 buses, in no order."""
    nodes: list[Node] = []
    buses: list[Node | None] = [None]
    for number in range(draw(st.integers(1, 12))):
        above = None if number == 0 else buses[number]
        conventional = above is not None and (above.kind is PCI or not above.express)
        for device in draw(st.lists(st.integers(0, 31), min_size=1, max_size=3, unique=True)):
            functions = draw(st.lists(st.integers(1, 7), max_size=2, unique=True))
            for function in (0, *functions):
                kind = PCI if conventional else draw(st.sampled_from((PORT, UP, DOWN, PCI)))
                bridge = len(buses) < 12 and draw(st.booleans())
                made = Node(
                    PciAddress(0, number, device << 3 | function),
                    kind if bridge else Kind.ENDPOINT,
                    above,
                    draw(st.booleans()),
                    bool(functions),
                    not conventional and draw(st.booleans()),
                )
                nodes.append(made)
                if bridge:
                    buses.append(made)
        if len(buses) <= number + 1:
            break
    return nodes


def by_rules(nodes: Sequence[Node]) -> set[frozenset[Node]]:
    """The groups, by what the rules come to: a set that each function is put into with others."""
    leader: dict[Node, Node] = {each: each for each in nodes}

    def find(one: Node) -> Node:
        while leader[one] is not one:
            one = leader[one]
        return one

    for each in nodes:
        above = each.above
        requester = next((b for b in bridges_above(each) if b.kind is PCI or not b.express), None)
        if requester is not None:
            leader[find(each)] = find(requester)
        elif above is not None and not above.path_isolated:
            leader[find(each)] = find(above)
        else:
            for other in nodes:
                if other.device == each.device and not other.isolated and not each.isolated:
                    leader[find(each)] = find(other)
    groups: dict[Node, set[Node]] = {}
    for each in nodes:
        groups.setdefault(find(each), set()).add(each)
    return {frozenset(members) for members in groups.values()}


@given(machines())
def test_groups_are_what_the_rules_say(nodes: list[Node]) -> None:
    found = iommu_groups(found_order(nodes))
    assert {frozenset(members) for _, members in found} == by_rules(nodes)
    assert [number for number, _ in found] == list(range(len(found)))
    firsts = [members[0] for _, members in found]
    assert firsts == [each for each in found_order(nodes) if each in firsts], "numbered as they are found"


@given(machines())
def test_a_machine_that_keeps_everything_apart_has_a_group_for_each_function(nodes: list[Node]) -> None:
    apart: dict[Node, Node] = {}
    for each in found_order(nodes):
        above = None if each.above is None else apart[each.above]
        kind = DOWN if each.kind is PCI else each.kind
        apart[each] = each._replace(kind=kind, above=above, acs=True, express=True)
    assert len(iommu_groups(list(apart.values()))) == len(nodes)


@given(machines())
def test_a_function_that_is_found_again_is_in_the_same_group(nodes: list[Node]) -> None:
    """A function without others below it goes and comes back: it joins those that it was with."""
    grouping = Grouping[int]()
    order = found_order(nodes)
    numbers: dict[Node, int] = {}
    for number, each in enumerate(order):
        joined = grouping.joins(each)
        numbers[each] = number if joined is None else joined
        grouping.enter(each, numbers[each])
    for each in order:
        if each.kind is Kind.ENDPOINT:
            grouping.leave(each.address)
            alone = list(numbers.values()).count(numbers[each]) == 1
            assert grouping.joins(each) == (None if alone else numbers[each])
            grouping.enter(each, numbers[each])


@given(machines())
def test_they_are_found_bus_by_bus(nodes: list[Node]) -> None:
    order = found_order(nodes)
    assert len(order) == len(nodes) and set(order) == set(nodes)
    place = {each: index for index, each in enumerate(order)}
    for each in nodes:
        assert each.above is None or place[each.above] < place[each]
        for other in nodes:
            same_bus = other.above == each.above
            if same_bus and other.address.bus == each.address.bus and other.address < each.address:
                assert place[other] < place[each]
