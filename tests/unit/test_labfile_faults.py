# SPDX-License-Identifier: Apache-2.0
"""[[faults]] of a lab file: each rule arrives as a line, and what cannot be is an error with its place."""

import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.commands import vfsfuse
from tests.unit.labtexts import Load, check_error
from tests.unit.test_labfile_schema import agree
from tools import lab_schema
from vfsfuse.faults.keys import KEYS
from vfsfuse.labfile.reader import load

NO_PARENTS = "\n[parents]\n"


SAMPLES: list[object] = [
    *(None, True, False, 0, 1, -1, 255, 256, 4095, 4096, 1 << 31, 0.5, -0.5, 1e9, [], {}),
    *("", "a", "a b", "a\nb", "é", "*", "0", "1", "08", "0x10", "0x", "1.5", "1e3", "-1", "true", "no"),
    *("EIO", "ENO", "plausible", "any", "open,ioctl", "open, store", "open,", "bar0", "BAR6", "config"),
    *("1-2", "0x10-0x1f", "1-", "READ", "pin", "msix", "fatal", "/a", "a/b", "x" * 300, "x" * 5000),
]


@pytest.fixture
def load_text(load_text: Load) -> Load:
    """Reads a text and an empty table of parents."""
    return lambda text: load_text(text + NO_PARENTS)


def test_rules_arrive_as_lines(load_text: Load, tmp_path: Path) -> None:
    lab = load_text(
        '[[faults]]\nname = "full"\nioctl = "VFIO_IOMMU_MAP_DMA"\nnth = 3\nerrno = "ENOMEM"\n'
        '[[faults]]\nregion = 0\nrange = 0x18\naccess = "READ"\nvalue = "0xffffffffffffffff"\n'
        '[[faults]]\ndevice = "0000:01:00.0"\nafter = 1.5\nremove = true\nreset = false\n'
        '[[faults]]\ncall = "any"\nprocess = 1\nprobability = 1\nhang = true\nwhile = "a b/off"\n'
    )
    assert lab.faults == (
        "name=full ioctl=VFIO_IOMMU_MAP_DMA nth=3 errno=ENOMEM",
        "region=BAR0 range=0x18 access=read value=0xffffffffffffffff",
        "device=0000:01:00.0 after=1.5 remove=true",
        f"process=1 call=any probability=1 while='{tmp_path}/a b/off' hang=true",
    )


def test_rules_of_an_included_file_hold_until_they_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    rule = '[[faults]]\ncall = "any"\nerrno = 5\nwhile = "off"\n'
    (folder / "base.toml").write_text(rule + NO_PARENTS)
    lab = tmp_path / "lab.toml"
    lab.write_text('include = "base/base.toml"\n')
    assert load(lab).faults == (f"call=any while={folder}/off errno=EIO",)
    lab.write_text(f'include = "base/base.toml"\n{rule}')
    assert load(lab).faults == (f"call=any while={tmp_path}/off errno=EIO",)


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("faults = 1", "faults", "1 is not an array of tables (write "),
        ("[[faults]]\nflavour = 1", "faults.0.flavour", "there is no such key (known are "),
        ('[[faults]]\ncall = "any"', "faults.0", "the rule says nothing of what is to happen (give one of "),
        ('[[faults]]\ncall = "any"\nerrno = "EBAD"', "faults.0.errno", "'EBAD' is no errno (give its name"),
        (
            '[[faults]]\nioctl = "VFIO_MAP"\nerrno = 5',
            "faults.0.ioctl",
            "there is no ioctl VFIO_MAP (did you mean VFIO_",
        ),
        (
            '[[faults]]\ncall = "any"\nerrno = 5\nnth = 1\nevery = 2',
            "faults.0.every",
            "stands beside nth (a call cannot be both: leave one of them out)",
        ),
        (
            '[[faults]]\nbind = "vfio-pcie"\nerrno = 5',
            "faults.0.bind",
            "the lab has no vfio-pcie (there are ",
        ),
        (
            2 * '[[faults]]\nname = "a"\ncall = "any"\nerrno = 5\n',
            "faults.1.name",
            "is that of faults.0 (give another name)",
        ),
    ],
)
def test_what_cannot_be_is_an_error(load_text: Load, text: str, place: str, why: str) -> None:
    check_error(load_text, text, place, why)


def test_ten_thousand_rules_are_the_most(load_text: Load) -> None:
    rule = '[[faults]]\ncall = "any"\nerrno = 5\n'
    assert len(load_text(rule * 10_000).faults) == 10_000
    check_error(load_text, rule * 10_001, "faults", "has 10001 rules (give 10000 at most)")


def test_check_shows_the_rules(tmp_path: Path) -> None:
    lab = tmp_path / "lab.toml"
    lab.write_text('[[faults]]\nioctl = "IOMMU_*"\nevery = 2\ndelay = 0.5\n' + NO_PARENTS)
    done = vfsfuse("check", lab)
    assert done.stdout.endswith("fault rules\n└── ioctl='IOMMU_*' every=2 delay=0.5\n"), done.stderr


def test_a_path_that_somebody_else_answers_for_is_refused_at_the_mount(tmp_path: Path) -> None:
    lab = tmp_path / "lab.toml"
    lab.write_text('[[faults]]\ncall = "any"\nerrno = 5\nwhile = "/proc/self/off"\n' + NO_PARENTS)
    done = vfsfuse("mount", "--config", lab, tmp_path / "mnt")
    said = "while: /proc/self/off is on a file system of type proc (give a path on a disk of this machine)"
    assert done.returncode == 1
    assert done.stderr == f"vfsfuse: mount: {lab}: faults: {said}\n"


@pytest.mark.parametrize("name", KEYS)
def test_the_schema_takes_what_the_reader_takes(name: str) -> None:
    needs.module("jsonschema")
    schemas: Any = import_module("jsonschema")
    kind = KEYS[name].kind
    schema = schemas.Draft7Validator({**kind.json})
    agree(kind.read, schema, SAMPLES)


def test_the_whole_schema_takes_a_lab_with_rules() -> None:
    needs.module("jsonschema")
    schemas: Any = import_module("jsonschema")
    schema = schemas.Draft7Validator(lab_schema.document())
    rule = '[[faults]]\nregion = "BAR0"\nrange = 16\nnth = "3"\nflip = 1\n'
    schema.validate(tomllib.loads(rule + NO_PARENTS))
    assert list(schema.iter_errors(tomllib.loads(rule.replace("nth", "nht") + NO_PARENTS)))
