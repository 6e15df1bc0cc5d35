# SPDX-License-Identifier: Apache-2.0
"""Fault rules without a mount: when they hit, what they have happen to a call, and how they come and go."""

from __future__ import annotations

import errno
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from devmodel.calls.injection import Hold, Injection
from devmodel.lifecycle.lab import Lab
from tests.unit.faultcalls import (
    UUID,
    actions,
    dma,
    hit,
    ioctl,
    lab,
    lifecycle,
    region,
    rules,
    store,
)
from tests.waiting import wait_for
from vfsfuse.faults import commands
from vfsfuse.faults.commands import Unchanged, carry_out, listing
from vfsfuse.faults.counting import Counter, chosen
from vfsfuse.faults.effects import change_of
from vfsfuse.faults.rule import MOST_RULES, Rule, RuleError, parse_line
from vfsfuse.faults.rules import FaultRules

__all__ = ["actions", "lab", "rules"]


# ---- when ----


def hits_of(line: str, calls: int) -> list[int]:
    """The numbers of the calls that a rule hits."""
    counter = Counter(parse_line(f"name=a call=any errno=EIO {line}"))
    return [number for number in range(1, calls + 1) if counter.hit()]


def test_when_a_rule_hits() -> None:
    assert hits_of("", 3) == [1, 2, 3]
    assert hits_of("nth=2", 5) == [2]
    assert hits_of("every=2", 5) == [2, 4]
    assert hits_of("every=2 times=1", 5) == [2]
    assert hits_of("times=2", 5) == [1, 2]
    assert hits_of("probability=0", 50) == [] and hits_of("probability=1", 5) == [1, 2, 3, 4, 5]
    assert hits_of("after=3600", 5) == []
    half = hits_of("probability=0.5", 1000)
    assert 400 < len(half) < 600 and half == hits_of("probability=0.5 seed=0", 1000)
    assert half != hits_of("probability=0.5 seed=1", 1000)
    assert hits_of("probability=0.5 every=2", 1000) == [number for number in half if number % 2 == 0]
    assert half == [number for number in range(1, 1001) if chosen(0, "a", number, 0.5)]


def test_a_rule_that_is_spent_attends_to_nothing(rules: FaultRules) -> None:
    rules.add(parse_line("name=a call=any nth=2 errno=EIO"))
    call = ioctl("VFIO_DEVICE_RESET")
    assert [hit(rules, call) for _ in range(4)] == ["", "a", "", ""]
    assert not rules.attends(call) and listing(rules).endswith("  # 1 hit of 2 calls\n")


def test_after_counts_from_when_the_rule_is_added(rules: FaultRules) -> None:
    rules.add(parse_line("name=a call=any after=0.05 nth=1 errno=EIO"))
    call = ioctl("VFIO_DEVICE_RESET")
    begun = time.monotonic()
    wait_for(lambda: hit(rules, call) == "a")
    assert time.monotonic() >= begun + 0.04
    assert listing(rules).endswith("  # 1 hit of 1 call\n")


def test_threads_change_nothing_about_which_calls_are_hit(rules: FaultRules) -> None:
    rules.add(
        parse_line("name=a call=any probability=0.3 seed=5 errno=EIO"),
        parse_line("name=b ioctl=* every=7 delay=1"),
    )
    hits: list[str] = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(500):
            hits.append(hit(rules, ioctl("VFIO_IOMMU_MAP_DMA")))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = sum(chosen(5, "a", number, 0.3) for number in range(1, 4001))
    assert sum("a" in each.split(",") for each in hits) == expected
    assert sum("b" in each.split(",") for each in hits) == 4000 // 7
    assert [active.counter.calls for active in rules.listed()] == [4000, 4000]


# ---- what ----


@pytest.mark.parametrize(
    ("line", "register", "data", "changed"),
    [
        ("value=0x1122", None, "ffffffff", "22110000"),
        ("value=0x112233445566", None, "ffff", "6655"),
        ("flip=0x80", None, "00000001", "80000001"),
        ("flip=0x8000000000", None, "00000001", "00000001"),
        ("value=0xff flip=1", None, "0000", "fe00"),
        ("value=0x1122", (0, 2), "ffffffff", "2211ffff"),
        ("value=0x1122", (1, 2), "ffffffff", "ff2211ff"),
        ("value=0x1122", (3, 2), "ffffffff", "ffffff22"),
        ("value=0x1122", (-1, 2), "ffff", "11ff"),
        ("flip=0x0180", (-1, 2), "0000", "0100"),
        ("flip=0x0180", (1, 2), "00000000", "00800100"),
        ("value=1", None, "", ""),
        ("value=0x0807060504030201", (-4, 8), "ffffffffffff", "05060708ffff"),
    ],
)
def test_data(line: str, register: tuple[int, int] | None, data: str, changed: str) -> None:
    change = change_of(parse_line(f"register=A {line}"), register)
    assert change is not None
    assert change(bytes.fromhex(data)).hex() == changed


def test_several_rules_come_together(rules: FaultRules, actions: list[Any], lab: Lab) -> None:
    device = lab.drivers.functions["0000:86:00.0"].device
    lines = (
        "name=a region=BAR0 delay=0.5 flip=1",
        "name=b region=BAR0 access=write delay=0.25 flip=3 duplicate=true hang=true",
        "name=c region=BAR0 reset=true error=nonfatal",
        "name=d region=BAR1 errno=EIO",
    )
    rules.add(*map(parse_line, lines))
    made = rules.begin(region("write", 0, 0, 4, device))
    assert made is not None and made.rule == "a,b,c" and made.delay == 0.75 and made.times == 2
    assert made.error is None and not made.drop and made.hold is not None and not made.hold.released
    assert made.change is not None and made.change(bytes(2)) == b"\2\0"
    assert made.after is not None and actions == []
    made.after()
    assert actions == [("reset", True, device.name), ("error", "nonfatal", device.name)]
    read = rules.begin(region("read", 0, 0, 4, device))
    assert read is not None and read.rule == "a,c" and read.times == 1 and read.hold is None


def test_plausible_errnos(rules: FaultRules) -> None:
    rules.add(parse_line("call=any errno=plausible"))
    for call, number in ((ioctl("VFIO_IOMMU_MAP_DMA"), errno.ENOMEM), (region("read", 0, 0, 4), errno.EIO)):
        made = rules.begin(call)
        assert made is not None and made.error is not None and made.error.errno == number


def test_duplicates_are_of_writes_alone(rules: FaultRules) -> None:
    rules.add(parse_line("name=a region=BAR0 duplicate=true"), parse_line("name=b dma=any duplicate=true"))
    assert hit(rules, region("write", 0, 0, 4)) == "a" and hit(rules, region("read", 0, 0, 4)) == ""
    assert (
        hit(rules, dma("write", 0, 4)) == "b"
        and hit(rules, dma("read", 0, 4)) == hit(rules, dma("pin", 0, 4)) == ""
    )


def test_a_release_lets_go_and_the_rule_holds_again(rules: FaultRules) -> None:
    rules.add(parse_line("name=a call=any hang=true"))
    calls = [rules.begin(ioctl("VFIO_DEVICE_RESET")) for _ in range(2)]
    holds = [cast(Hold, cast(Injection, call).hold) for call in calls]
    assert holds[0] is holds[1]
    holds[0].when_released(lambda: None)
    assert listing(rules).endswith("  # 2 hits of 2 calls, 1 held\n")
    rules.release("a")
    again = rules.begin(ioctl("VFIO_DEVICE_RESET"))
    assert holds[0].released and again is not None and again.hold is not None and not again.hold.released
    assert listing(rules).endswith("  # 3 hits of 3 calls\n")
    rules.clear()
    assert again.hold.released


def test_a_rule_that_is_taken_away_at_its_hit_holds_nothing(rules: FaultRules) -> None:
    rules.add(parse_line("name=a call=any hang=true"), parse_line("name=b call=any hang=true"))
    one, other = rules.listed()
    rules.release("b")
    assert not other.hold.released
    carry_out(rules, b"clear a\nrelease b\n")
    assert one.hold.released and not other.hold.released
    rules.clear()
    assert other.hold.released


def test_virtual_functions_are_told_before_they_appear(rules: FaultRules, actions: list[Any]) -> None:
    rules.add(
        parse_line("name=a device=86:00.0 nth=2 late=1.5"),
        parse_line("name=b device=0000:86:00.6 driverless=true"),
    )
    assert hit(rules, lifecycle("appear", "0000:86:00.4", "0000:86:00.0", "0")) == ""
    assert hit(rules, lifecycle("appear", "0000:86:00.5", "0000:86:00.0", "1")) == "a"
    assert hit(rules, lifecycle("appear", "0000:86:00.6", "0000:86:00.0", "2")) == "b"
    assert actions == [("late", 1.5, "0000:86:00.5"), ("driverless", True, "0000:86:00.6")]


def test_an_action_is_of_the_device_that_the_rule_is_about(
    rules: FaultRules, actions: list[Any], lab: Lab
) -> None:
    """Not of another one on the way to an attribute, and by whichever name the rule knows it."""
    parent = next(iter(lab.parents.values()))
    mdev = lab.create(next(iter(parent.types.values())), uuid.UUID(UUID))
    for name in (mdev.name, f"vgpu{mdev.minor}"):
        rules.add(Rule.of({"name": "a", "device": name, "store": "remove", "reset": True}))
        made = rules.begin(store(f"sys/devices/pci0000:80/0000:86:00.0/{mdev.name}/remove"))
        assert made is not None and made.after is not None
        made.after()
        rules.clear()
    assert actions == [("reset", True, mdev.name)] * 2


def test_an_action_can_be_at_a_call_that_is_on_no_device(rules: FaultRules, actions: list[Any]) -> None:
    """The device says only what the action happens to.  A call that is on one needs no device."""
    rules.add(parse_line("name=b ioctl=VFIO_DEVICE_RESET nth=2 remove=true"))
    for where in ("ioctl=VFIO_IOMMU_MAP_DMA", "ioctl=VFIO_IOMMU_* every=1"):
        rules.add(parse_line(f"name=a {where} device=86:00.0 remove=true"))
        made = rules.begin(ioctl("VFIO_IOMMU_MAP_DMA"))
        assert made is not None and made.after is not None
        made.after()
        rules.clear()
    assert actions == [("remove", True, "0000:86:00.0")] * 2


def test_an_action_can_be_at_the_creation_of_its_device(
    rules: FaultRules, actions: list[Any], lab: Lab
) -> None:
    type_ = next(iter(next(iter(lab.parents.values())).types.values()))
    rules.add(Rule.of({"device": UUID, "create": type_.name, "remove": True}))
    made = rules.begin(lifecycle("create", type_.name, UUID))
    assert made is not None and made.after is not None
    made.after()
    assert actions == []  # it was not created
    mdev = lab.create(type_, uuid.UUID(UUID))
    made.after()
    assert actions == [("remove", True, mdev.name)]


def test_a_rule_about_what_the_lab_does_not_have_is_refused(rules: FaultRules) -> None:
    for line, error in (
        ("create=vgpu-9 errno=ENOSPC", "create: the lab has no vgpu-9 (there are mbochs-large, "),
        ("bind=vfio-pcie errno=EBUSY", "bind: the lab has no vfio-pcie (there are "),
        ("probe=vfio-mdev errno=EIO", "probe: the lab has no vfio-mdev (there are "),
        ("probe=*mdevs errno=EIO", "probe: the lab has no *mdevs (there are "),
        ("device=vgpu-8 after=1 reset=true", "device: vgpu-8 is a type of vGPU (give the device that reset"),
        ("device=vgpu-8 ioctl=VFIO_IOMMU_* remove=true", "device: vgpu-8 is a type of vGPU (give the device"),
    ):
        with pytest.raises(RuleError) as caught:
            rules.add(parse_line(line))
        assert str(caught.value).startswith(error), caught.value
    right = ("create=vgpu-8 errno=EIO", "bind=vfio-pci errno=EIO", "probe=vfio_* delay=1")
    rules.add(*map(parse_line, right))
    rules.add(parse_line("device=vgpu-8 region=BAR0 reset=true"))  # of the device that is accessed


def test_a_rule_happens_by_itself_once(rules: FaultRules, actions: list[Any]) -> None:
    rules.add(
        parse_line("device=86:00.0 after=0.01 reset=true error=fatal"),
        parse_line("device=0000:86:00.0 after=3600 remove=true"),
        parse_line("device=0000:99:00.0 after=0 remove=true"),
    )
    wait_for(lambda: len(actions) == 2)
    assert actions == [("reset", True, "0000:86:00.0"), ("error", "fatal", "0000:86:00.0")]
    assert [active.counter.hits for active in rules.listed()] == [1, 0, 0]


def test_a_rule_that_is_cleared_does_not_happen(rules: FaultRules, actions: list[Any]) -> None:
    rules.add(
        parse_line("name=a device=86:00.0 after=0.05 reset=true"),
        parse_line("name=b device=86:00.0 after=0.1 reset=true"),
    )
    rules.clear("a")
    wait_for(lambda: actions)
    assert [active.rule.name for active in rules.listed()] == ["b"] and len(actions) == 1


# ---- the set of rules ----


def test_nobody_listens_without_a_rule(rules: FaultRules, lab: Lab) -> None:
    def listener() -> object:
        return lab.calls.listener

    assert listener() is None
    rules.add(parse_line("name=a call=any errno=EIO"), parse_line("name=b call=any errno=EIO"))
    rules.clear("a")
    assert listener() is rules
    rules.clear("b")
    assert listener() is None


def refused(rules: FaultRules, text: str) -> tuple[int | None, str | None]:
    before = listing(rules)
    with pytest.raises(Unchanged) as caught:
        carry_out(rules, text.encode())
    assert listing(rules) == before
    return caught.value.errno, caught.value.strerror


def test_lines_change_all_or_nothing(rules: FaultRules) -> None:
    said = carry_out(rules, b"add name=a call=any errno=EIO\n\n  # nothing\nadd call=any hang=true")
    assert said == "added a\nadded fault1\n"
    assert carry_out(rules, b"add name=fault2 call=any errno=EIO") == "added fault2\n"
    assert carry_out(rules, b"add call=any errno=EIO") == "added fault3\n"
    assert refused(rules, "add name=b call=any errno=EIO\nclear c") == (
        errno.ENOENT,
        "c: there is no such rule (there are a, fault1, fault2, fault3)",
    )
    assert refused(rules, "release b")[0] == errno.ENOENT
    assert (
        refused(rules, "clear a\nadd name=a call=any errno=EIO\nadd name=fault2 call=any errno=1")[0]
        == errno.EEXIST
    )
    assert (refused(rules, "clear\nadd foo=1")[1] or "").startswith("line 2: foo: there is no such key (")
    assert refused(rules, "ad name=a")[1] == "'ad' is no command (write add, clear, release or list)"
    assert refused(rules, "list a")[0] == errno.EINVAL
    assert carry_out(rules, b"clear a\nadd name=a call=any errno=EPERM\nrelease fault1\n") == (
        "cleared a\nreleased fault1\nadded a\n"
    )
    assert carry_out(rules, b"clear\nlist") == "cleared fault1\ncleared fault2\ncleared fault3\ncleared a\n"
    assert carry_out(rules, b"list\n") == ""


def test_threads_that_change_all_rules_leave_no_call_behind(rules: FaultRules) -> None:
    holds = set[Hold]()
    work = threading.Event()

    def hit_often() -> None:
        while not work.is_set():
            made = rules.begin(ioctl("VFIO_DEVICE_RESET"))
            if made is not None and made.hold is not None:
                holds.add(made.hold)

    def change_often() -> None:
        for _ in range(100):
            carry_out(rules, b"add call=any hang=true\nrelease\n")
            carry_out(rules, b"release\n")
            carry_out(rules, b"clear\n")

    hitters = [threading.Thread(target=hit_often) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in hitters:
            thread.start()
        with ThreadPoolExecutor(4) as changers:
            done = [changers.submit(change_often) for _ in range(4)]
            for each in done:
                each.result()
    finally:
        sys.setswitchinterval(interval)
        work.set()
        for thread in hitters:
            thread.join()
    rules.clear()
    assert holds and all(hold.released for hold in holds)


def test_default_names_are_those_that_are_free(rules: FaultRules) -> None:
    """The same commands give the same names, so that probabilities decide alike."""
    lines = b"add call=any delay=1\nadd name=fault2 call=any delay=1\nadd call=any delay=1\n"
    said = "added fault1\nadded fault2\nadded fault3\n"
    assert carry_out(rules, lines) == said
    refused(rules, "add call=any delay=1\nadd name=fault2 call=any delay=1")
    rules.clear()
    assert carry_out(rules, lines) == said
    rules.clear("fault1")
    assert carry_out(rules, b"add call=any delay=1") == "added fault1\n"


def test_a_write_that_cannot_be_lines(rules: FaultRules) -> None:
    assert carry_out(rules, b"") == carry_out(rules, b"\n\n") == ""
    with pytest.raises(Unchanged, match=r"not UTF-8 text \(byte 4\)"):
        carry_out(rules, b"add \xff=1")
    with pytest.raises(Unchanged, match=r"65537 bytes at once \(write 65536 at most, in whole lines\)"):
        carry_out(rules, b"\n" * (commands.MOST_BYTES + 1))
    assert refused(rules, "add name=" + "a" * 9000)[1] == "the line has 9009 characters (give 8192 at most)"
    assert "\x1b" not in str(refused(rules, "\x1b[31m"))


def test_ten_thousand_rules_are_the_most(rules: FaultRules) -> None:
    rule = parse_line("device=0000:86:00.0 region=BAR0 nth=1000 errno=EIO")
    rules.add(*[rule] * MOST_RULES)
    with pytest.raises(OSError, match="there can be 10000 rules") as caught:
        rules.add(rule)
    assert caught.value.errno == errno.ENOSPC and len(rules.listed()) == MOST_RULES
    assert hit(rules, region("read", 1, 0, 4)) == ""
