# SPDX-License-Identifier: Apache-2.0
"""The keys of fault rules: values, lines, what goes together, and the reference."""

from __future__ import annotations

import errno
import random
import re

import pytest

from tests.commands import ROOT
from vfsfuse.faults import values
from vfsfuse.faults.keys import EFFECTS, KEYS, Part
from vfsfuse.faults.rule import Rule, RuleError, parse_line

DOCS = ROOT / "docs/faults.md"


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
    "errno": ["ENOMEM", 5, 511, "22"],
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
        rule = Rule.of({"store": "*", "errno": name})
        assert rule.keys["errno"] == number and rule.line == f"store='*' errno={name}"
    assert Rule.of({"call": "any", "errno": "EWOULDBLOCK"}).keys["errno"] == errno.EAGAIN
    assert Rule.of({"call": "any", "errno": 400}).line == "call=any errno=400"


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
        ("", "the rule says nothing of what is to happen (give one of errno, delay, "),
        ("errno", "'errno' is not KEY=VALUE (write such as errno=ENOMEM)"),
        ("errno=EIO errno=EIO", "errno: is there twice (leave one of them out)"),
        ("ernno=EIO", "ernno: there is no such key (did you mean errno?)"),
        ("call='any", "no closing quotation (close the quotes)"),
        ("call=any", "the rule says nothing of what is to happen (give one of "),
        ("call=region,dma errno=EIO", "call: 'dma' is not known (give any, or some of open, ioctl, region,"),
        ("call=any errno=EBAD", "errno: 'EBAD' is no errno (give its name, such as ENOMEM, or its number)"),
        ("call=any errno=0", "errno: 0 is out of range (give the name of an errno, "),
        ("call=any errno=512", "errno: 512 is out of range (give the name of an errno, "),
        ("open=* errno=ENOSYS", "errno: ENOSYS is no errno of an open or an ioctl (give another, such as "),
        ("device=a errno=ENOSYS", "errno: ENOSYS is no errno of an open or an ioctl (give another, such as "),
        ("call=ioctl errno=38", "errno: ENOSYS is no errno of an open or an ioctl (give another, such as "),
        ("ioctl=0x03B71 errno=EIO", "ioctl: 0x3b71 is VFIO_DEVICE_PCI_HOT_RESET or VFIO_IOMMU_MAP_DMA (g"),
        ("ioctl=0xzz errno=EIO", "ioctl: there is no ioctl 0xzz (give its name as in the header)"),
        ("process=sh dma=read errno=EIO", "process: stands beside dma, which no process makes (give dev"),
        ("process=1 interrupt=any drop=true", "process: stands beside interrupt, which no process make"),
        ("interrupt=INTX vector=1 drop=true", "vector: 1 is out of range (the vectors of INTX are 0 to 0"),
        ("interrupt=MSI vector=32 drop=true", "vector: 32 is out of range (the vectors of MSI are 0 to 3"),
        ("interrupt=MSIX vector=2048 drop=true", "vector: 2048 is out of range (the vectors of MSIX are "),
        ("device=/dev/vfio/0 errno=EIO", "device: /dev/vfio/0 is a path (give a name, or open for the f"),
        ("create=a device=vgpu0 errno=EIO", "device: vgpu0 has its number only when it is created (give"),
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
        ("region=BAR6 errno=EIO", "region: 'BAR6' is no region (give BAR0 to BAR5, "),
        ("region=BAR0 range=9-1 errno=EIO", "range: 9-1 ends before it begins (write the lower number first"),
        ("call=any nth=0 errno=EIO", "nth: 0 is out of range (give 1 or more)"),
        ("call=any nth=1 every=1 errno=EIO", "every: stands beside nth (a call cannot be both: leave one of"),
        ("call=any seed=1 errno=EIO", "seed: has no probability that it is for (give that, or leave it out)"),
        ("call=any probability=1.5 errno=EIO", "probability: 1.5 is out of range (give 0 to 1, such as 0.1)"),
        ("call=any after=1e9 errno=EIO", "after: '1e9' is not a number (give seconds, 0 to 86400)"),
        ("call=any delay=-1", "delay: -1 is out of range (give seconds, 0 to 86400)"),
        ("call=any nth=-1 errno=EIO", "nth: -1 is out of range (give 1 or more)"),
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
        ("device=a ioctl=VFIO_IOMMU_* errno=EIO", "device: VFIO_IOMMU_* is on no device (give process, or"),
        ("device=a open=dev/iommu errno=EIO", "device: an open of dev/iommu is on no device (give process,"),
        ("call=any error=bad", "error: 'bad' is not known (give one of fatal, nonfatal, corrected)"),
        ("late=1", "late: has no device (give the address of a function)"),
        ("device=a late=1 nth=2 store=b", "late: stands beside store (it is about virtual functions: leave"),
        ("device=a late=0", "late: is 0 (give more, or leave it out)"),
        ("device=vgpu0 late=1", "device: vgpu0 is no virtual function (give the address of one)"),
        ("device=6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01 driverless=true", "device: 6a9c2f52-8d0e-4a3f-9d0c-2"),
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


def test_all_what_keys_are_in_the_table() -> None:
    assert {key for key, row in KEYS.items() if row.part is Part.WHAT} == set(EFFECTS)
    assert values.errno_name(9999) == "9999"


def test_the_number_of_an_ioctl_is_as_in_a_trace() -> None:
    assert parse_line("ioctl=0X03BFF errno=EIO").keys["ioctl"] == "0x3bff"
    assert parse_line("ioctl=VFIO_DEVICE_RESET errno=ENOTTY").keys["errno"] == errno.ENOTTY
    assert parse_line("store=* errno=ENOSYS").keys["errno"] == errno.ENOSYS
