# SPDX-License-Identifier: Apache-2.0
"""Our declarations of the ABI of VFIO and iommufd against the machine's own <linux/vfio.h> and
<linux/iommufd.h>, through the C compiler."""

from __future__ import annotations

import ctypes
import inspect
import re
import shutil
import subprocess
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import pytest

from devmodel.iommufd.hwinfo import HwCapability, HwInfoFlag, HwInfoType
from devmodel.iommufd.mapflags import MapFlags
from devmodel.vfio import flags
from ioctl_shim import abi
from ioctl_shim._native import ffi, lib
from tests.iommufd.client import STRUCTS
from tools.uapi import iommufd, names
from tools.uapi.states import Topic

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc (apt-get install gcc)")


@dataclass(frozen=True)
class Abi:
    """A header, and what we declare of it. `names` are all names that docs/ has of the newest such header."""

    header: str
    names: frozenset[str]
    rows: tuple[abi.Row, ...]

    @property
    def text(self) -> str:
        return Path(f"/usr/include/linux/{self.header}.h").read_text()

    @property
    def cdef(self) -> str:
        return (Path(abi.__file__).parent / f"native/{self.header}.cdef").read_text()

    def evaluate(self, expressions: list[str], folder: Path) -> dict[str, int]:
        """The value of each C expression with the header included."""
        lines = "".join(f'printf("%llu\\n", (unsigned long long)({each}));\n' for each in expressions)
        includes = "".join(f"#include <{each}.h>\n" for each in ("stddef", "stdio", f"linux/{self.header}"))
        source = folder / "probe.c"
        source.write_text(f"{includes}int main(void) {{\n{lines}}}\n")
        subprocess.run(["gcc", "-o", folder / "probe", source], check=True)
        printed = subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout
        return dict(zip(expressions, map(int, printed.split()), strict=True))

    def in_header(self, names: Sequence[str], newer: Container[str]) -> list[str]:
        """Those of our names that this machine's header has; an older header lacks some of the `newer`
        ones."""
        header = self.text
        known = [name for name in names if re.search(rf"\b{name}\b", header)]
        assert [name for name in names if name not in known and name not in newer] == []
        return known


def named(topics: Iterable[Topic], rows: Iterable[abi.Row]) -> frozenset[str]:
    return frozenset({name for topic in topics for name in topic.names} | {row.name for row in rows})


VFIO_ROWS = tuple(row for row in abi.ROWS if row.name.startswith("VFIO_"))
IOMMUFD_ROWS = tuple(row for row in abi.ROWS if row.name.startswith("IOMMU_"))
VFIO = Abi("vfio", named(names.TOPICS, VFIO_ROWS), VFIO_ROWS)
IOMMUFD = Abi("iommufd", named(iommufd.TOPICS, IOMMUFD_ROWS), IOMMUFD_ROWS)


def there(ours: Abi, since: str) -> Any:
    """The header as a parameter; it is skipped where the machine does not have it."""
    missing = not Path(f"/usr/include/linux/{ours.header}.h").exists()
    reason = f"no <linux/{ours.header}.h>: it needs linux-libc-dev of Linux {since} or newer"
    return pytest.param(ours, marks=pytest.mark.skipif(missing, reason=reason), id=ours.header)


IOMMUFD_FLAGS: Mapping[type[IntFlag | IntEnum], str] = {
    MapFlags: "IOMMU_IOAS_MAP",
    HwInfoType: "IOMMU_HW_INFO_TYPE",
    HwInfoFlag: "IOMMU_HW_INFO_FLAG",
    HwCapability: "IOMMU_HW_CAP",
}
"""The numbers that devmodel.iommufd declares, and what their names in the header begin with."""
every_header = pytest.mark.parametrize("ours", [there(VFIO, "6.1"), there(IOMMUFD, "6.2")])


@every_header
def test_every_constant_has_the_headers_value(tmp_path: Path, ours: Abi) -> None:
    declared = ours.in_header(re.findall(r"#define ((?:VFIO|IOMMU)\w+)", ours.cdef), ours.names)
    assert len(declared) > 20
    # -1, for one, is printed as the unsigned number of 64 bits that it converts to.
    values = {name: getattr(lib, name) & 2**64 - 1 for name in declared}
    assert ours.evaluate(declared, tmp_path) == values


@every_header
def test_every_struct_has_the_headers_layout(tmp_path: Path, ours: Abi) -> None:
    newer = {row.struct.removeprefix("struct ") for row in ours.rows if row.struct and row.since}
    structs = ours.in_header(re.findall(r"struct ((?:vfio|iommu)_\w+) \{", ours.cdef), newer)
    assert len(structs) > 8
    header, layout = ours.text, {}
    for name in structs:
        body = re.search(rf"struct {name} \{{(.*?)\n\}}", header, re.DOTALL)
        assert body is not None
        for member, field in ffi.typeof(f"struct {name}").fields:
            its = f"__{member}" if re.search(rf"\b__{member}\b", body.group(1)) else member
            if re.search(rf"\b{its}\b", body.group(1)):  # older headers lack the newest members
                layout[f"offsetof(struct {name}, {its})"] = field.offset
                layout[f"sizeof(((struct {name} *)0)->{its})"] = ffi.sizeof(field.type)
    assert len(layout) > 40
    assert ours.evaluate(list(layout), tmp_path) == layout


@every_header
def test_every_row_has_the_headers_request_number(tmp_path: Path, ours: Abi) -> None:
    header = ours.text
    rows = {row.name: row.cmd for row in ours.rows if re.search(rf"\b{row.name}\b", header)}
    assert not [row.name for row in ours.rows if row.name not in rows and not row.since]
    assert ours.evaluate(list(rows), tmp_path) == rows


def test_rows_are_keyed_by_kind_and_number() -> None:
    keys = [(row.kind, row.nr) for row in abi.ROWS]
    assert len(set(keys)) == len(keys)


def test_minsz_is_what_the_kernel_asks_for() -> None:
    least = {(row.kind.value, row.name): row.minsz for row in abi.ROWS}
    assert least["device", "VFIO_DEVICE_GET_INFO"] == 16
    assert least["container", "VFIO_IOMMU_GET_INFO"] == 16
    assert least["device", "VFIO_DEVICE_GET_REGION_INFO"] == 32
    assert least["device", "VFIO_DEVICE_BIND_IOMMUFD"] == 16
    assert least["device", "VFIO_DEVICE_ATTACH_IOMMUFD_PT"] == 12
    assert least["device", "VFIO_DEVICE_DETACH_IOMMUFD_PT"] == 8


def test_sizes_of_iommufds_structs() -> None:
    """The client of the tests has them from the header, too, and independently."""
    ours = {row.cmd: (row.minsz, row.size) for row in IOMMUFD_ROWS}
    assert ours == {each.cmd(): (each.minimum(), ctypes.sizeof(each)) for each in STRUCTS}


def constants() -> dict[str, int]:
    """The numbers that devmodel.vfio.flags declares, by their names in the header."""
    found: dict[str, int] = {}
    for name, declared in vars(flags).items():
        if inspect.isclass(declared) and declared.__module__ == flags.__name__:
            prefix = "VFIO_" + re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
            numbers = {key: value for key, value in vars(declared).items() if key.isupper()}
            found |= {f"{prefix}_{key}": value for key, value in numbers.items()}
    return found


@pytest.mark.parametrize("ours", [there(VFIO, "6.1")])
def test_flags_of_the_rules_are_the_headers(tmp_path: Path, ours: Abi) -> None:
    declared = constants()
    known = ours.in_header(list(declared), ours.names)
    assert len(known) > 20
    assert ours.evaluate(known, tmp_path) == {name: declared[name] for name in known}


@pytest.mark.parametrize(
    ("flags", "prefix"), IOMMUFD_FLAGS.items(), ids=lambda each: getattr(each, "__name__", "")
)
def test_numbers_of_iommufds_rules_are_the_declared_ones(flags: type[IntFlag | IntEnum], prefix: str) -> None:
    assert {each.name: each.value for each in flags} == {
        each.name: getattr(lib, f"{prefix}_{each.name}") for each in flags
    }
