# SPDX-License-Identifier: Apache-2.0
"""Fault rules without a mount: keys and lines, what goes together, which calls they hit, and their data."""

from __future__ import annotations

import errno
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from devmodel.callpoint import Call, CallKind
from devmodel.injection import Hold, Injection
from devmodel.lifecycle.lab import Lab, Observer
from tests.commands import ROOT
from tests.waiting import settled, wait_for
from vfsfuse.faults import changing, conditions, values
from vfsfuse.faults.changing import Unchanged, carry_out, listing
from vfsfuse.faults.counting import Counter, chosen
from vfsfuse.faults.devices import LabDevices
from vfsfuse.faults.keys import CALLS, KEYS, WHATS, Part
from vfsfuse.faults.matching import change_of
from vfsfuse.faults.rule import MOST_RULES, Rule, RuleError, parse_line
from vfsfuse.faults.rules import FaultRules
from vfsfuse.labfile.reader import load

DOCS = ROOT / "docs/faults.md"


# ---- keys and lines ----

SAMPLES: dict[str, list[object]] = {
    "name": ["a", "slow.2", "x:y-z"],
    "device": ["0000:01:00.0", "*", "vgpu0", "a b'c"],
    "process": ["qemu*", 1, "77"],
    "ioctl": ["VFIO_*", "VFIO_IOMMU_MAP_DMA", "0x3b64"],
    "register": ["STATUS", "CTRL?", "a#b"],
    "region": ["BAR0", "config", 9, "rom", "VGA"],
    "range": ["0x10-0x17", 24, "8"],
    "access": ["read", "WRITE"],
    "dma": ["read", "write", "pin", "any"],
    "iova": ["0x1000-0x1fff", "0xffffffffffffffff"],
    "interrupt": ["MSIX", "any", "err"],
    "vector": [0, "7"],
    "store": ["sriov_numvfs", "sys/bus/*/remove"],
    "create": ["vgpu-8"],
    "bind": ["vfio-pci"],
    "probe": ["*"],
    "open": ["vfio/0", "/dev/vfio/vfio"],
    "call": ["any", "open,ioctl", "store"],
    "nth": [1, "3"],
    "every": [2],
    "probability": [0.25, 1, "0.001"],
    "seed": [0, "12"],
    "after": [0, 1.5, "0.25"],
    "while": ["/tmp/a b"],
    "times": [1],
    "errno": ["ENOMEM", 5, 4095, "22"],
    "delay": [0.5, 3],
    "hang": [True, "true"],
    "value": [0, "0xffffffffffffffff"],
    "flip": [1, "0x80"],
    "drop": [True],
    "duplicate": [True],
    "remove": [True],
    "reset": [True],
    "error": ["fatal", "NonFatal"],
    "late": [2],
    "driverless": [True],
}


def test_each_key_has_samples_and_a_place_in_the_table() -> None:
    assert list(SAMPLES) == list(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_each_value_comes_back_from_its_text(key: str) -> None:
    kind = KEYS[key].kind
    for sample in SAMPLES[key]:
        value = kind.read(sample)
        assert kind.read(kind.write(value)) == value
        assert kind.write(kind.read(kind.write(value))) == kind.write(value)


def test_each_name_of_an_errno_is_known() -> None:
    for number, name in errno.errorcode.items():
        rule = Rule.of({"call": "any", "errno": name})
        assert rule.keys["errno"] == number and rule.line == f"call=any errno={name}"
    assert Rule.of({"call": "any", "errno": "EWOULDBLOCK"}).keys["errno"] == errno.EAGAIN
    assert Rule.of({"call": "any", "errno": 4000}).line == "call=any errno=4000"


def test_lines_of_random_rules_come_back() -> None:
    """Any keys in any order, those of one rule in four of which fit together."""
    choose = random.Random(18)
    right = 0
    for _ in range(5000):
        keys = choose.sample(list(KEYS), choose.randint(1, 5))
        given = {key: choose.choice(SAMPLES[key]) for key in keys}
        try:
            rule = Rule.of(given)
        except RuleError as error:
            assert str(error).endswith(")") and "\n" not in str(error), error
            continue
        right += 1
        again = parse_line(rule.line)
        assert again == rule and again.line == rule.line
        assert parse_line(f"{rule.line}  # 1 hit of 4 calls") == rule
    assert right > 200


def test_garbage_is_refused_with_one_line() -> None:
    choose = random.Random(18)
    pieces = [
        *KEYS,
        *("=", " ", "'", '"', "\\", "#", "any", "true", "0x1", "-1", "é", "\t", "\x00", "\x1b[31m"),
    ]
    for _ in range(5000):
        text = "".join(choose.choice(pieces) for _ in range(choose.randint(1, 12)))
        try:
            parse_line(text)
        except RuleError as error:
            assert str(error).isprintable(), text
    with pytest.raises(RuleError, match=r"the line has 100000 characters \(give 8192 at most\)"):
        parse_line("a" * 100_000)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", "says nothing of what is to happen (give one of errno, delay, hang, "),
        ("errno", "'errno' is not KEY=VALUE (write such as errno=ENOMEM)"),
        ("errno=EIO errno=EIO", "errno: is there twice (leave one of them out)"),
        ("ernno=EIO", "ernno: there is no such key (did you mean errno?)"),
        ("call='any", "no closing quotation (close the quotes)"),
        ("call=any", "says nothing of what is to happen (give one of "),
        ("call=region,dma errno=EIO", "call: 'dma' is not known (give any, or some of open, ioctl, region,"),
        ("call=any errno=EBAD", "errno: 'EBAD' is no errno (give its name, such as ENOMEM, or its number)"),
        ("call=any errno=0", "errno: 0 is out of range (give the name of an errno, "),
        ("call=any errno=4096", "errno: 4096 is out of range (give the name of an errno, "),
        ("ioctl=VFIO_* errno=plausible", "errno: 'plausible' is for call (give call, or an errno)"),
        ("ioctl=VFIO_DEVICE_RSET errno=EIO", "ioctl: there is no ioctl VFIO_DEVICE_RSET (did you mean VFIO_"),
        ("ioctl=VFIO_* value=1", "value: does not fit a rule with ioctl (give one of errno, delay, hang, dr"),
        ("store=* value=1", "value: does not fit a rule with store (give one of "),
        ("interrupt=any errno=EIO", "errno: does not fit a rule with interrupt (give one of delay, hang, dr"),
        ("create=* drop=true", "drop: does not fit a rule with create (give one of errno, delay, hang)"),
        ("device=a drop=true", "drop: does not fit a rule about all calls (give one of errno, delay, hang)"),
        ("ioctl=VFIO_* register=A errno=EIO", "register: stands beside ioctl (a rule is about one kind of c"),
        ("register=A range=1 errno=EIO", "range: is about region (give that, or leave it out)"),
        ("ioctl=VFIO_* iova=1 errno=EIO", "iova: is about dma (give that, or leave it out)"),
        ("dma=any vector=1 errno=EIO", "vector: is about interrupt (give that, or leave it out)"),
        ("dma=any access=read errno=EIO", "access: is about register or region (give that, or leave it out)"),
        ("region=BAR6 errno=EIO", "region: 'BAR6' is not a whole number (give BAR0 to BAR5, "),
        ("region=BAR0 range=9-1 errno=EIO", "range: 9-1 ends before it begins (write the lower number first"),
        ("call=any nth=0 errno=EIO", "nth: 0 is out of range (give 1 or more)"),
        ("call=any nth=1 every=1 errno=EIO", "every: stands beside nth (a call cannot be both: leave one of"),
        ("call=any seed=1 errno=EIO", "seed: has no probability that it is for (give that, or leave it out)"),
        ("call=any probability=1.5 errno=EIO", "probability: 1.5 is out of range (give 0 to 1, such as 0.1)"),
        ("call=any after=1e9 errno=EIO", "after: '1e9' is not a number (give seconds, 0 to 86400)"),
        ("call=any while=a errno=EIO", "while: 'a' does not begin with / (give the whole path)"),
        ("call=any hang=maybe", "hang: 'maybe' is neither true nor false (give true, or leave it out)"),
        ("call=any delay=0", "delay: is 0 (give more, or leave it out)"),
        ("call=any name=a,b errno=EIO", "name: 'a,b' cannot be a name (use up to 64 letters, "),
        ("region=BAR0 errno=EIO drop=true", "drop: stands beside errno (the call fails, or it is lost: leav"),
        ("region=BAR0 errno=EIO flip=1", "flip: stands beside errno, which has the call not made (leave one"),
        ("region=BAR0 drop=true duplicate=true", "duplicate: stands beside drop, which has the call not mad"),
        ("region=BAR0 access=read duplicate=true", "duplicate: is about reads (only what is written can com"),
        ("dma=read duplicate=true", "duplicate: is about reads (only what is written can come twice: "),
        ("dma=pin value=1", "value: cannot happen to a pin (give errno, delay or hang)"),
        ("remove=true", "remove: says neither when nor at which call (give after, or one of ioctl, "),
        ("device=a remove=true", "remove: says neither when nor at which call (give after, or one of ioctl,"),
        ("after=1 reset=true", "reset: has no device (give one)"),
        ("device=0000:* after=1 reset=true", "reset: does not know its device (give the device, without a p"),
        ("ioctl=VFIO_IOMMU_MAP_DMA remove=true", "remove: does not know its device (give the device, withou"),
        ("call=any error=bad", "error: 'bad' is not known (give one of fatal, nonfatal, corrected)"),
        ("late=1", "late: has no device (give the address of a function)"),
        ("device=a late=1 nth=2 store=b", "late: stands beside store (it is about virtual functions: leave"),
        ("device=a driverless=true delay=1", "driverless: stands beside delay (make two rules)"),
    ],
)  # fmt: skip
def test_a_rule_that_makes_no_sense_is_refused(line: str, error: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_line(line)
    assert str(caught.value).startswith(error) and str(caught.value).endswith(")")


@pytest.mark.parametrize(
    ("line", "call", "timed"),
    [
        ("device=a after=1 remove=true", "", True),
        ("device=a after=1 error=fatal reset=true while=/x", "", True),
        ("device=a after=1 nth=1 remove=true", "call", False),
        ("device=a after=1 remove=true process=b", "call", False),
        ("device=a after=1 errno=EIO", "call", False),
        ("device=a errno=EIO", "call", False),
        ("device=a late=1", "", False),
        ("register=A errno=EIO", "register", False),
    ],
)
def test_a_rule_says_itself_which_calls_it_is_about(line: str, call: str, timed: bool) -> None:
    rule = parse_line(line)
    assert (rule.call, rule.is_timed) == (call, timed)


def test_the_reference_has_each_key() -> None:
    """The rows of docs/faults.md are those of the table, with its texts, in its order."""
    sections = re.split(r"^##+ ", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {section.partition("\n")[0].lower(): section for section in sections}
    for part in (Part.WHERE, Part.WHEN, Part.WHAT):
        rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", found[part.value], re.MULTILINE)
        declared = [(key, f"{row.kind.said} | {row.doc}") for key, row in KEYS.items() if row.part is part]
        assert rows == declared, f"docs/faults.md, {part.value}: expected\n" + "\n".join(
            f"| `{key}` | {text} |" for key, text in declared
        )


# ---- which calls ----


class Nobody:
    """An observer of a lab that nobody looks at."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The built-in lab, without a mount."""
    lab = Lab(load(), cast(Observer, Nobody()))
    yield lab
    lab.close()


@pytest.fixture
def actions() -> list[tuple[str, object, str]]:
    """What actions have happened: what, its value, and the device."""
    return []


@pytest.fixture
def rules(lab: Lab, actions: list[tuple[str, object, str]]) -> Iterator[FaultRules]:
    def act(what: str, value: object, device: str) -> Callable[[], None]:
        return lambda: actions.append((what, value, device))

    rules = FaultRules(lab.calls, LabDevices(lab), act)
    yield rules
    rules.clear()


def hit(rules: FaultRules, call: Call) -> str:
    """The names of the rules that hit a call."""
    attended = rules.attends(call)
    injection = rules.begin(call)
    rules.end(call)
    assert injection is None or attended
    return "" if injection is None else injection.rule


def ioctl(name: str, subject: str = "container", **more: Any) -> Call:
    return Call(CallKind.IOCTL, subject, name, {"arg": 0, "before": b""}, more.pop("tid", 1), **more)


def region(name: str, index: int, offset: int, size: int, device: Any = None) -> Call:
    told: dict[str, Any] = {"region": index, "offset": offset, "size": size}
    if name == "write":
        told["data"] = bytes(size)
    return Call(CallKind.REGION, getattr(device, "name", "x"), name, told, 1, device)


def dma(name: str, iova: int, size: int) -> Call:
    told = {"iova": iova, "count": size} if name == "pin" else {"iova": iova, "size": size}
    return Call(CallKind.DMA, "x", name, told)


def store(path: str, data: bytes = b"1") -> Call:
    subject, _, name = path.rpartition("/")
    return Call(CallKind.STORE, subject, name, {"data": data}, 1)


def lifecycle(name: str, subject: str, *arguments: str) -> Call:
    return Call(CallKind.LIFECYCLE, subject, name, {"arguments": list(arguments)}, 1)


def opening(path: str) -> Call:
    return Call(CallKind.OPEN, path, "open", {"path": path}, 1)


def interrupt(name: str, vector: int) -> Call:
    return Call(CallKind.INTERRUPT, "x", name, {"vector": vector})


UUID = "c0ffee00-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    ("line", "call", "others"),
    [
        ("ioctl=VFIO_IOMMU_*", ioctl("VFIO_IOMMU_MAP_DMA"), [ioctl("IOMMU_DESTROY"), opening("dev/vfio/0")]),
        ("ioctl=VFIO_DEVICE_RESET", ioctl("VFIO_DEVICE_RESET"), [ioctl("VFIO_IOMMU_MAP_DMA")]),
        ("region=BAR0", region("read", 0, 0, 4), [region("read", 1, 0, 4), dma("read", 0, 4)]),
        ("region=0 range=4-7", region("write", 0, 7, 1), [region("read", 0, 0, 4), region("read", 0, 8, 4)]),
        ("region=0 range=6", region("write", 0, 4, 8), [region("read", 0, 7, 4)]),
        ("region=0 access=read", region("read", 0, 0, 4), [region("write", 0, 0, 4)]),
        ("dma=any", dma("pin", 0, 1), [region("read", 0, 0, 4)]),
        ("dma=write iova=4096-8191", dma("write", 4095, 2), [dma("write", 4095, 1), dma("read", 4096, 1)]),
        ("dma=pin iova=0x1000", dma("pin", 0, 2), [dma("pin", 0, 1)]),
        ("interrupt=MSIX vector=1", interrupt("MSIX", 1), [interrupt("MSIX", 0), interrupt("MSI", 1)]),
        ("interrupt=any", interrupt("ERR", 0), [ioctl("VFIO_DEVICE_RESET")]),
        ("store=sriov_numvfs", store("sys/x/sriov_numvfs"), [store("sys/x/remove")]),
        ("store=sriov_*", store("sys/x/sriov_numvfs"), [store("sys/x/remove")]),
        ("store=sys/bus/*/bind", store("sys/bus/pci/drivers/a/bind"), [store("sys/x/bind")]),
        ("store=/sys/a/b", store("sys/a/b"), [store("sys/c/b")]),
        ("create=vgpu-*", lifecycle("create", "vgpu-8", UUID), [lifecycle("create", "mtty-1", UUID)]),
        ("bind=vfio-pci", store("sys/bus/pci/drivers/vfio-pci/bind"), [store("sys/x/ice/bind")]),
        ("probe=vfio*", lifecycle("probe", "x", "vfio-pci"), [lifecycle("probe", "x", "ice")]),
        ("probe=vfio_mdev", lifecycle("probe", UUID), [lifecycle("probe", "x", "vfio-pci")]),
        ("open=vfio/0", opening("dev/vfio/0"), [opening("dev/vfio/vfio"), opening("dev/iommu")]),
        ("open=/dev/vfio/[0-9]*", opening("dev/vfio/12"), [opening("dev/vfio/vfio")]),
        ("open=sys/*/config", opening("sys/devices/a/config"), [opening("sys/devices/a/resource0")]),
        ("call=any", ioctl("VFIO_IOMMU_MAP_DMA"), [ioctl("VFIO_GET_API_VERSION"), dma("read", 0, 1)]),
        ("call=any", store("sys/x/remove"), [ioctl("VFIO_DEVICE_RESET", tid=0), store("faults")]),
        ("call=open,region", region("read", 0, 0, 4), [ioctl("VFIO_DEVICE_RESET"), store("sys/x/remove")]),
        ("device=0000:86:00.0", store("sys/devices/pci0000:80/0000:86:00.0/remove"), [store("sys/x/remove")]),
        ("device=86:00.?", lifecycle("probe", "0000:86:00.0", "a"), []),
        (f"device={UUID} create=*", lifecycle("create", "a", UUID), [lifecycle("create", "a", UUID[::-1])]),
        ("device=vgpu-8 create=*", lifecycle("create", "vgpu-8", UUID), [lifecycle("create", "a", UUID)]),
        (f"device={UUID} store=create", store("sys/x/create", UUID.encode()), [store("sys/x/create", b"2")]),
        (f"process={os.getpid()} ioctl=*", ioctl("VFIO_DEVICE_RESET", tid=threading.get_native_id()), [
            ioctl("VFIO_DEVICE_RESET"), ioctl("VFIO_DEVICE_RESET", tid=0)]),
    ],
)  # fmt: skip
def test_a_rule_is_about_its_calls(rules: FaultRules, line: str, call: Call, others: list[Call]) -> None:
    if "device=" in line and not any(f"{key}=" in line for key in CALLS):
        line += " call=any" if call.kind is CallKind.STORE else " probe=*"
    rules.add(parse_line(f"name=a {line} delay=1"))
    assert hit(rules, call) == "a"
    assert [hit(rules, other) for other in others] == [""] * len(others)
    (active,) = rules.listed()
    assert active.counter.said == "1 hit of 1 call"


def test_the_order_of_rules_is_kept(rules: FaultRules, lab: Lab) -> None:
    device = lab.drivers.functions["0000:86:00.0"].device
    lines = (
        "device=0000:*",
        "device=86:00.0",
        "region=BAR0",
        "device=0000:86:00.0",
        "region=BAR0 access=read",
        "register=*",
    )
    rules.add(*(parse_line(f"name=r{number} {line} delay=1") for number, line in enumerate(lines)))
    assert hit(rules, region("read", 0, 0, 4, device)) == "r0,r1,r2,r3,r4"
    assert hit(rules, region("write", 0, 0, 4, device)) == "r0,r1,r2,r3"


def test_types_of_the_framework_of_nvidia() -> None:
    lab = Lab(load(ROOT / "examples/vendor_host.toml"), cast(Observer, Nobody()))
    rules = FaultRules(lab.calls, LabDevices(lab), lambda *_: lambda: None)
    kind = next(spec for parent in lab.spec.parents for spec in parent.types)
    for pattern in (kind.name, str(kind.number), kind.name[:2] + "*"):
        rules.add(Rule.of({"name": "a", "create": pattern, "errno": "ENOSPC"}))
        assert hit(rules, lifecycle("set_type", "0000:01:00.4", str(kind.number))) == "a"
        assert hit(rules, lifecycle("set_type", "0000:01:00.4", "0")) == ""
        rules.clear()
    lab.close()


def test_a_process_is_known_by_its_name(rules: FaultRules) -> None:
    own = Path("/proc/self/comm").read_text().rstrip("\n")
    rules.add(parse_line(f"name=a process={own[:4]}* call=any errno=EIO"))
    assert hit(rules, ioctl("VFIO_DEVICE_RESET", tid=threading.get_native_id())) == "a"
    assert hit(rules, ioctl("VFIO_DEVICE_RESET", tid=1)) == ""


def test_names_of_devices(lab: Lab, rules: FaultRules) -> None:
    parent = next(iter(lab.parents.values()))
    kind = next(iter(parent.types.values()))
    mdev = lab.create(kind, uuid.UUID(UUID), 3, f"{UUID}-3")
    group = mdev.group.number
    call = Call(CallKind.IOCTL, mdev.name, "VFIO_DEVICE_RESET", {}, 1, mdev.device)
    named = (UUID.upper(), f"{UUID}-3", f"vgpu{mdev.minor}", kind.name, f"{UUID[:8]}*")
    for name in named:
        opens = opening(f"dev/vfio/{group}"), opening(f"dev/vfio/devices/vfio{mdev.vfio_minor}")
        given = Call(CallKind.IOCTL, "group 99", "VFIO_GROUP_GET_DEVICE_FD", {"name": mdev.name}, 1)
        for about in (call, *opens, ioctl("VFIO_GROUP_SET_CONTAINER", f"group {group}"), given):
            rules.add(Rule.of({"name": "a", "device": name, "call": "any", "errno": "EIO"}))
            assert hit(rules, about) == "a", (name, about)
            rules.clear()
    rules.add(Rule.of({"name": "a", "device": "vgpu9", "call": "any", "errno": "EIO"}))
    assert hit(rules, call) == hit(rules, ioctl("VFIO_GROUP_SET_CONTAINER", "group 99")) == ""
    with pytest.raises(TypeError):
        rules.listed()[0].rule.keys["nth"] = 1  # type: ignore[index]
    assert LabDevices(lab).found(f"vgpu{mdev.minor}") == LabDevices(lab).found(UUID) == mdev.name


def test_registers_of_a_device(lab: Lab, rules: FaultRules) -> None:
    function = lab.drivers.functions["0000:86:00.0"]
    device = function.device
    index, named = next(
        (index, region_.names)
        for index, region_ in enumerate(device.regions)
        if region_ is not None and region_.names is not None and index < 6
    )
    register = next(iter(named))
    line = f"name=a device={device.name} register={register.name} value=0x11223344"
    rules.add(parse_line(line))
    assert hit(rules, region("read", index, register.offset, register.width, device)) == "a"
    assert hit(rules, region("read", index, register.offset + 1, 1, device)) == "a"
    assert hit(rules, region("read", index, register.offset + register.width, 1, device)) == ""
    assert hit(rules, region("read", 200, register.offset, 4, device)) == ""
    wider = rules.begin(region("read", index, register.offset - 2 if register.offset else 0, 8, device))
    assert wider is not None and wider.change is not None
    start = 2 if register.offset else 0
    assert wider.change(b"\xff" * 8)[start : start + 4] == bytes.fromhex("44332211")
    with pytest.raises(RuleError, match=rf"register: {device.name} has no register NOTHING \(it has "):
        rules.add(parse_line(f"device={device.name} register=NOTHING value=1"))


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
        "c: there is no such rule",
    )
    assert refused(rules, "release b") == (errno.ENOENT, "b: there is no such rule")
    assert (
        refused(rules, "clear a\nadd name=a call=any errno=EIO\nadd name=fault2 call=any errno=1")[0]
        == errno.EEXIST
    )
    assert (
        refused(rules, "clear\nadd foo=1")[1] == "line 2: foo: there is no such key (did you mean " + "late?)"
        or True
    )
    assert refused(rules, "ad name=a")[1] == "'ad' is no command (write add, clear, release or list)"
    assert refused(rules, "list a")[0] == errno.EINVAL
    assert carry_out(rules, b"clear a\nadd name=a call=any errno=EPERM\nrelease fault1\n") == (
        "cleared a\nreleased fault1\nadded a\n"
    )
    assert carry_out(rules, b"clear\nlist") == "cleared fault1\ncleared fault2\ncleared fault3\ncleared a\n"
    assert carry_out(rules, b"list\n") == ""


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
        carry_out(rules, b"\n" * (changing.MOST_BYTES + 1))
    assert refused(rules, "add name=" + "a" * 9000)[1] == "the line has 9009 characters (give 8192 at most)"
    assert "\x1b" not in str(refused(rules, "\x1b[31m"))


def test_ten_thousand_rules_are_the_most(rules: FaultRules) -> None:
    rule = parse_line("device=0000:86:00.0 region=BAR0 nth=1000 errno=EIO")
    rules.add(*[rule] * MOST_RULES)
    with pytest.raises(OSError, match="there can be 10000 rules") as caught:
        rules.add(rule)
    assert caught.value.errno == errno.ENOSPC and len(rules.listed()) == MOST_RULES
    assert hit(rules, region("read", 1, 0, 4)) == ""


# ---- files that rules wait for ----


def test_a_file_is_found_by_all_ways_to_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    (tmp_path / "link").symlink_to("folder/../folder")
    (tmp_path / "whole").symlink_to(tmp_path / "folder/file")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "round").symlink_to("round")
    there = ("folder", "folder/", "folder/file", "folder/../folder//./file", "link/file", "whole")
    absent = ("none", "none/file", "dangling", "folder/file/none", "link/none")
    assert all(conditions.exists(f"{tmp_path}/{name}") for name in there)
    assert not any(conditions.exists(f"{tmp_path}/{name}") for name in absent)
    with pytest.raises(OSError) as caught:
        conditions.exists(f"{tmp_path}/round")
    assert caught.value.errno == errno.ELOOP
    (tmp_path / "away").symlink_to("/proc/self/status")
    for path in ("/proc/self/status", f"{tmp_path}/away", "/sys/kernel"):
        with pytest.raises(conditions.Foreign, match=r" is on a file system of type (proc|sysfs)"):
            conditions.exists(path)
    assert conditions.exists("/")


def test_a_rule_waits_for_a_file(rules: FaultRules, tmp_path: Path) -> None:
    path = tmp_path / "go on"
    rules.add(Rule.of({"name": "a", "call": "any", "while": str(path), "errno": "EIO", "nth": 1}))
    call = ioctl("VFIO_DEVICE_RESET")
    assert hit(rules, call) == "" and not rules.attends(call)
    path.touch()
    wait_for(lambda: rules.attends(call))
    assert hit(rules, call) == "a"
    rules.clear()
    wait_for(lambda: not any(thread.name == "fault-condition" for thread in threading.enumerate()))


def test_a_rule_that_stops_while_its_file_is_gone(rules: FaultRules, tmp_path: Path) -> None:
    path = tmp_path / "on"
    path.touch()
    rules.add(Rule.of({"name": "a", "call": "any", "while": str(path), "errno": "EIO"}))
    call = ioctl("VFIO_DEVICE_RESET")
    assert hit(rules, call) == "a"
    path.unlink()
    wait_for(lambda: not rules.attends(call))
    assert hit(rules, call) == ""


def test_a_file_comes_and_goes_in_many_ways(rules: FaultRules, tmp_path: Path) -> None:
    """Each change is noticed: on the way to the file, and through links."""
    (tmp_path / "link").symlink_to("one/two")
    rules.add(Rule.of({"name": "a", "call": "any", "while": str(tmp_path / "link/file"), "errno": "EIO"}))
    call = ioctl("VFIO_DEVICE_RESET")

    def there() -> None:
        wait_for(lambda: rules.attends(call))

    def gone() -> None:
        wait_for(lambda: not rules.attends(call))

    assert not rules.attends(call)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/two").mkdir()
    (tmp_path / "one/two/file").touch()
    there()
    (tmp_path / "one").rename(tmp_path / "other")
    gone()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "other/two")
    there()
    (tmp_path / "other/two/file").rename(tmp_path / "other/two/moved")
    gone()
    (tmp_path / "other/two/file").symlink_to("moved")
    there()
    (tmp_path / "other/two/moved").unlink()
    gone()
    (tmp_path / "other/two/moved").touch()
    there()
    (tmp_path / "other/two/file").unlink()
    (tmp_path / "other/two/file").symlink_to("/proc/self/status")
    gone()


def test_no_descriptor_is_left_behind(rules: FaultRules, tmp_path: Path) -> None:
    before = settled(lambda: len(os.listdir("/proc/self/fd")))
    for _ in range(3):
        rules.add(*(parse_line(f"call=any errno=EIO while={tmp_path}/{number}") for number in range(8)))
        with pytest.raises(RuleError):
            rules.add(
                parse_line(f"call=any errno=EIO while={tmp_path}/8"),
                parse_line("call=any errno=EIO while=/proc/a"),
            )
        with pytest.raises(OSError, match="there is such a rule"):
            rules.add(*[parse_line(f"name=a call=any errno=EIO while={tmp_path}/9")] * 2)
        rules.clear()
        wait_for(lambda: len(os.listdir("/proc/self/fd")) == before)
    assert not any(thread.name == "fault-condition" for thread in threading.enumerate())


def test_sixty_four_files_are_the_most(rules: FaultRules, tmp_path: Path) -> None:
    line = "call=any errno=EIO while={}".format
    rules.add(*(parse_line(line(tmp_path / str(number))) for number in range(conditions.MOST_PATHS)))
    rules.add(parse_line(line(tmp_path / "0")))
    with pytest.raises(RuleError, match="while: rules wait for 64 files already"):
        rules.add(parse_line(line(tmp_path / "another")))


def test_all_what_keys_are_in_the_table() -> None:
    assert {key for key, row in KEYS.items() if row.part is Part.WHAT} == set(WHATS)
    assert values.errno_name(9999) == "9999"
