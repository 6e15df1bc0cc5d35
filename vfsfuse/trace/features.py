# SPDX-License-Identifier: Apache-2.0
"""VFIO_DEVICE_FEATURE: its flags are a feature's number and what is done with it, and data follow.

Source: <linux/vfio.h>.  State: none, constant.
"""

from __future__ import annotations

from collections.abc import Mapping

from ioctl_shim._native import lib
from vfsfuse.trace.flagnames import split_bits, value_names
from vfsfuse.trace.forms import Shown, choice, decimal, flags, hexadecimal, hexdump, pointer, uuid_of
from vfsfuse.trace.structs import Layout

_STRUCT = 8
"""Bytes of struct vfio_device_feature, which the data follow."""
_PREFIX = "VFIO_DEVICE_FEATURE_"
_OPERATIONS = {getattr(lib, name): name for name in (f"{_PREFIX}{each}" for each in ("GET", "SET", "PROBE"))}
_NUMBERS = value_names(_PREFIX, without=(f"{_PREFIX}MASK", *_OPERATIONS.values()))
_DATA: Mapping[int, Layout] = {
    lib.VFIO_DEVICE_FEATURE_MIGRATION: Layout(
        "vfio_device_feature_migration", flags=flags("VFIO_MIGRATION_")
    ),
    lib.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: Layout(
        "vfio_device_feature_mig_state", device_state=choice("VFIO_DEVICE_STATE_"), data_fd=decimal
    ),
    lib.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: Layout(
        "vfio_device_low_power_entry_with_wakeup", wakeup_eventfd=decimal
    ),
    lib.VFIO_DEVICE_FEATURE_DMA_LOGGING_START: Layout(
        "vfio_device_feature_dma_logging_control",
        page_size=hexadecimal,
        num_ranges=decimal,
        ranges=pointer,
    ),
    lib.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: Layout(
        "vfio_device_feature_dma_logging_report",
        iova=hexadecimal,
        length=hexadecimal,
        page_size=hexadecimal,
        bitmap=pointer,
    ),
}
"""By feature: the struct that is its data."""
_ANSWERS = (lib.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,)
"""Features whose SET has an answer."""
_ASKS = (lib.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, lib.VFIO_DEVICE_FEATURE_DMA_BUF)
"""Features whose GET is told by its data what to get."""


def feature_flags(value: int) -> Shown:
    """The flags of VFIO_DEVICE_FEATURE: what is done, then the feature.  JSON has a list."""
    known, rest = split_bits(value & ~lib.VFIO_DEVICE_FEATURE_MASK, _OPERATIONS)
    number = value & lib.VFIO_DEVICE_FEATURE_MASK
    listed = [*known, *([f"{rest:#x}"] if rest else []), _NUMBERS.get(number, f"{number:#x}")]
    return Shown("|".join(listed), listed)


def _data(data: bytes, number: int) -> Mapping[str, Shown]:
    rest = data[_STRUCT:]
    if number in _DATA:
        return {"data": _DATA[number].show(data, _STRUCT)}
    if number == lib.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN and len(rest) >= 16:
        return {"data": uuid_of(rest[:16])}
    return {"data": Shown(hexdump(rest), rest.hex())} if rest else {}


def feature_given(data: bytes, values: Mapping[str, int]) -> Mapping[str, Shown]:
    """The data that a client gives to SET a feature."""
    asked = values.get("flags", 0)
    number = asked & lib.VFIO_DEVICE_FEATURE_MASK
    gives = asked & lib.VFIO_DEVICE_FEATURE_SET or number in _ASKS
    return _data(data, number) if gives and not asked & lib.VFIO_DEVICE_FEATURE_PROBE else {}


def feature_returned(data: bytes, values: Mapping[str, int]) -> Mapping[str, Shown]:
    """The data that a client gets of a feature."""
    asked = values.get("flags", 0)
    number = asked & lib.VFIO_DEVICE_FEATURE_MASK
    gets = asked & lib.VFIO_DEVICE_FEATURE_GET or number in _ANSWERS
    return _data(data, number) if gets and not asked & lib.VFIO_DEVICE_FEATURE_PROBE else {}
