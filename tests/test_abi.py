# SPDX-License-Identifier: Apache-2.0
"""Our declarations of the VFIO ABI against the machine's own <linux/vfio.h>, through the C compiler."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from collections.abc import Container, Sequence
from pathlib import Path

import pytest

from devmodel.vfio import flags
from ioctl_shim import abi
from ioctl_shim._native import ffi, lib
from tools.uapi.names import TOPICS

HEADER = Path("/usr/include/linux/vfio.h")
CDEF = Path(abi.__file__).parent / "native" / "vfio.cdef"

pytestmark = pytest.mark.skipif(
    not HEADER.exists() or shutil.which("gcc") is None,
    reason="needs gcc and <linux/vfio.h> (apt-get install gcc linux-libc-dev)",
)


def evaluate(expressions: list[str], folder: Path) -> dict[str, int]:
    """The value of each C expression with <linux/vfio.h> included."""
    lines = "".join(f'printf("%llu\\n", (unsigned long long)({each}));\n' for each in expressions)
    source = folder / "probe.c"
    source.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n#include <linux/vfio.h>\nint main(void) {{\n{lines}}}\n"
    )
    subprocess.run(["gcc", "-o", folder / "probe", source], check=True)
    printed = subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout
    return dict(zip(expressions, map(int, printed.split()), strict=True))


def in_header(names: Sequence[str], newer: Container[str]) -> list[str]:
    """Those of our names that this machine's header has; an older header lacks some of the `newer` ones."""
    header = HEADER.read_text()
    known = [name for name in names if re.search(rf"\b{name}\b", header)]
    assert [name for name in names if name not in known and name not in newer] == []
    return known


def named() -> set[str]:
    """Every name of Linux 7.0's header that docs/vfio.md has."""
    return {name for topic in TOPICS for name in topic.names} | {row.name for row in abi.ROWS}


def test_every_constant_has_the_headers_value(tmp_path: Path) -> None:
    names = in_header(re.findall(r"#define (VFIO_\w+)", CDEF.read_text()), named())
    assert len(names) > 30
    # -1, for one, is printed as the unsigned number of 64 bits that it converts to.
    ours = {name: getattr(lib, name) & 2**64 - 1 for name in names}
    assert evaluate(names, tmp_path) == ours


def test_every_struct_has_the_headers_layout(tmp_path: Path) -> None:
    newer = {row.struct.removeprefix("struct ") for row in abi.ROWS if row.struct and row.since}
    names = in_header(re.findall(r"struct (vfio_\w+) \{", CDEF.read_text()), newer)
    assert len(names) > 8
    header = HEADER.read_text()
    ours = {}
    for name in names:
        body = re.search(rf"struct {name} \{{(.*?)\n\}}", header, re.DOTALL)
        assert body is not None
        for member, field in ffi.typeof(f"struct {name}").fields:
            if re.search(rf"\b{member}\b", body.group(1)):  # older headers lack the newest members
                ours[f"offsetof(struct {name}, {member})"] = field.offset
                ours[f"sizeof(((struct {name} *)0)->{member})"] = ffi.sizeof(field.type)
    assert len(ours) > 40
    assert evaluate(list(ours), tmp_path) == ours


def test_every_row_has_the_headers_request_number(tmp_path: Path) -> None:
    rows = {row.name: row.cmd for row in abi.ROWS if re.search(rf"\b{row.name}\b", HEADER.read_text())}
    assert not [row.name for row in abi.ROWS if row.name not in rows and not row.since]
    assert evaluate(list(rows), tmp_path) == rows


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


def constants() -> dict[str, int]:
    """The numbers that devmodel.vfio.flags declares, by their names in the header."""
    found: dict[str, int] = {}
    for name, declared in vars(flags).items():
        if inspect.isclass(declared) and declared.__module__ == flags.__name__:
            prefix = "VFIO_" + re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
            numbers = {key: value for key, value in vars(declared).items() if key.isupper()}
            found |= {f"{prefix}_{key}": value for key, value in numbers.items()}
    return found


def test_flags_of_the_rules_are_the_headers(tmp_path: Path) -> None:
    declared = constants()
    names = in_header(list(declared), named())
    assert len(names) > 20
    assert evaluate(names, tmp_path) == {name: declared[name] for name in names}
