# SPDX-License-Identifier: Apache-2.0
"""What VFIO says of a device, told at the call point when a client begins to use it while somebody records.

A recording has it even if the client never asks.  The thread is the one that opens or binds the device, with
no lock held.  State: none.  Source: <linux/vfio.h> (GET_INFO, GET_REGION_INFO, GET_IRQ_INFO).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from devmodel.calls.call import Call, CallKind
from devmodel.calls.point import CallPoint
from devmodel.device.pci import PciRegion
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.info import device_info, irq_info, region_info
from ioctl_shim._native import ffi, lib
from vfsfuse.vfio.chain import build, irq_flags, region_facts

DESCRIBE = "describe"
_REGION_INFO = int(ffi.sizeof("struct vfio_region_info"))


def tell_device(calls: CallPoint, opened: DeviceFile, mappable: frozenset[int]) -> None:
    """Tell those who record what `opened` is.  `mappable` has the indexes of regions that can be mapped, as
    far as they are memory."""
    told = describe(opened, mappable)
    calls.tell(Call(CallKind.DEVICE, opened.device.name, DESCRIBE, told, device=opened.device), lambda: None)


def describe(opened: DeviceFile, mappable: frozenset[int]) -> dict[str, Any]:
    """The device in numbers, texts and lists; bytes are hexadecimal digits.

    "regions" are [index, size, flags, capabilities], "irqs" [index, count, flags], "registers" [region,
    offset, size, name] without those of configuration space.  "config" is that as the client finds it."""
    device, info = opened.device, device_info(opened)
    flags = lib.VFIO_DEVICE_FLAGS_PCI if info.is_pci else 0
    flags |= lib.VFIO_DEVICE_FLAGS_RESET if info.resettable else 0
    return {
        "flags": int(flags),
        "num_regions": info.regions,
        "num_irqs": info.irqs,
        "group": opened.assignable.group.number,
        "regions": list(_regions(opened, mappable)),
        "irqs": list(_irqs(opened)),
        "config": _config(opened).hex(),
        "registers": [
            [index, register.offset, register.width, register.name]
            for index, region in enumerate(device.regions)
            if region is not None and region.names is not None and index != PciRegion.CONFIG
            for register in region.names
        ],
    }


def _regions(opened: DeviceFile, mappable: frozenset[int]) -> Iterator[list[Any]]:
    for index in range(len(opened.device.regions)):
        try:
            found = region_info(opened.device, index, index in mappable)
        except OSError:  # the device has none of this index
            continue
        size, flags, capabilities = region_facts(found)
        flags |= lib.VFIO_REGION_INFO_FLAG_CAPS if capabilities else 0
        yield [index, size, int(flags), build(_REGION_INFO, capabilities).hex()]


def _irqs(opened: DeviceFile) -> Iterator[list[int]]:
    for index in range(len(opened.device.irqs)):
        try:
            found = irq_info(opened.device, index)
        except OSError:  # the device has none of this index
            continue
        yield [index, found.count, irq_flags(found)]


def _config(opened: DeviceFile) -> bytes:
    try:
        region = opened.device.region(PciRegion.CONFIG)
        return opened.assignable.access.read(PciRegion.CONFIG, 0, region.size)
    except OSError:  # it is gone by now
        return b""
