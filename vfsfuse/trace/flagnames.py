# SPDX-License-Identifier: Apache-2.0
"""Names of the numbers of <linux/vfio.h> and <linux/iommufd.h>: flags, enumerations, ids.

The names and numbers are those of native/vfio.cdef and native/iommufd.cdef, which tests/test_abi.py compares
with the headers.  So a constant that is declared there has its name in a trace.  State: none, constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ioctl_shim._native import lib

_NAMES = tuple(name for name in dir(lib) if name.startswith(("VFIO_", "IOMMU_")))


def _values(prefixes: tuple[str, ...], suffix: str) -> Iterator[tuple[str, int]]:
    for name in _NAMES:
        if name.startswith(prefixes) and name.endswith(suffix):
            value = getattr(lib, name)
            if isinstance(value, int):
                yield name, value


def flag_names(*prefixes: str) -> Mapping[int, str]:
    """Names by bit of all constants that begin so and are one bit.  Masks of several bits are none."""
    found = ((value, name) for name, value in _values(prefixes, "") if value.bit_count() == 1)
    return dict(sorted(found))


def value_names(*prefixes: str, suffix: str = "", without: tuple[str, ...] = ()) -> Mapping[int, str]:
    """Names by value of all constants that begin and end so, except those of `without`."""
    return {value: name for name, value in _values(prefixes, suffix) if name not in without}


def split_bits(value: int, names: Mapping[int, str]) -> tuple[list[str], int]:
    """The names of the bits of `value`, in the order of the bits, and the bits that have no name."""
    known, rest = [], value
    for bit, name in names.items():
        if value & bit:
            known.append(name)
            rest ^= bit
    return known, rest
