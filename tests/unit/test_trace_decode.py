# SPDX-License-Identifier: Apache-2.0
"""Ioctls of a trace as named members and flags: every ioctl of ioctl_shim.abi with bytes that cffi has made
of its struct, and bytes that nobody should send."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ioctl_shim import abi
from ioctl_shim._native import ffi
from vfsfuse.trace.decode import EXPLAINERS, explain, ioctl_name
from vfsfuse.trace.explained import Struct
from vfsfuse.trace.record import Record

ARG = 0x7FFE_1000


def made(struct: str, **members: Any) -> bytes:
    """A struct of native/*.cdef in bytes."""
    return bytes(ffi.buffer(ffi.new(f"struct {struct} *", members)))


def record(name: str, before: bytes = b"", after: bytes | None = None, **fields: Any) -> Record:
    arguments = {"arg": fields.pop("arg", ARG), "before": before}
    arguments["after"] = before if after is None else after
    arguments |= fields.pop("arguments", {})
    return Record(7, 0.0, "ioctl", "vgpu0", name, arguments, **{"duration": 0.001, **fields})


@dataclass(frozen=True)
class Case:
    """An ioctl with the struct before and after a call, and what a line has of it."""

    name: str
    given: str
    before: bytes = b""
    after: bytes | None = None
    returned: str = ""
    arg: int = ARG
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> Record:
        return record(self.name, self.before, self.after, arg=self.arg, **self.fields)


def struct(name: str, struct: str, given: str, returned: str = "", **members: Any) -> Case:
    """A case whose members that begin with `out` or are in `after` come after the call."""
    after = members.pop("after", {})
    behind, then = members.pop("behind", b""), members.pop("then", None)
    before = made(struct, **members) + behind
    changed = made(struct, **{**members, **after}) + (behind if then is None else then)
    return Case(name, given, before, changed, returned)


def header(number: int, following: int = 0, version: int = 1) -> dict[str, int]:
    return {"id": number, "version": version, "next": following}


SPARSE = made("vfio_region_info_cap_sparse_mmap", header=header(1, 80), nr_areas=2) + b"".join(
    made("vfio_region_sparse_mmap_area", offset=offset, size=4096) for offset in (0, 8192)
)
TYPE = made("vfio_region_info_cap_type", header=header(2, 96), type=1 << 31 | 0x10DE, subtype=2)
MSIX = made("vfio_info_cap_header", **header(3))
IOVAS = made("vfio_iommu_type1_info_cap_iova_range", header=header(1, 56), nr_iovas=1) + made(
    "vfio_iova_range", start=0x1000, end=0xFFFF_FFFF
)
MIGRATION = made(
    "vfio_iommu_type1_info_cap_migration",
    header=header(2, 88),
    pgsize_bitmap=0x1000,
    max_dirty_bitmap_size=1 << 28,
)
AVAILABLE = made("vfio_iommu_type1_info_dma_avail", header=header(3), avail=65535)
DEPENDENTS = made("vfio_pci_dependent_device", group_id=5, segment=0, bus=0x86, devfn=0x00) + made(
    "vfio_pci_dependent_device", group_id=6, segment=1, bus=0x86, devfn=0x0A
)
TOKEN = bytes(range(16))
DIRTY_GET = made(
    "vfio_iommu_type1_dirty_bitmap_get",
    iova=0x1000,
    size=0x2000,
    bitmap={"pgsize": 4096, "size": 8, "data": 0x7000},
)

CASES = (
    Case("VFIO_GET_API_VERSION", "", arg=0),
    Case("VFIO_CHECK_EXTENSION", "VFIO_TYPE1v2_IOMMU", arg=3),
    Case("VFIO_CHECK_EXTENSION", "VFIO_UNMAP_ALL", arg=9),
    Case("VFIO_CHECK_EXTENSION", "0x4d /* VFIO_??? */", arg=77),
    Case("VFIO_SET_IOMMU", "VFIO_NOIOMMU_IOMMU", arg=8),
    Case("VFIO_IOMMU_ENABLE", "", arg=0),
    Case("VFIO_IOMMU_DISABLE", "", arg=0),
    Case("VFIO_GROUP_UNSET_CONTAINER", "", arg=0),
    Case("VFIO_DEVICE_RESET", "", arg=0),
    Case("VFIO_DEVICE_RESET", "", arg=0x64),
    Case("VFIO_GROUP_SET_CONTAINER", "[-1]", b"\xff\xff\xff\xff"),
    Case("VFIO_GROUP_SET_CONTAINER", "0x7ffe1000"),
    Case("VFIO_GROUP_GET_DEVICE_FD", '"0000:86:00.0"', b"0000:86:00.0\0\7\7"),
    Case("VFIO_GROUP_GET_DEVICE_FD", '"\\x1b[31m\\n"', b"\x1b[31m\n"),
    Case("VFIO_GROUP_GET_DEVICE_FD", '"vgpu0"', fields={"arguments": {"name": "vgpu0"}}),
    Case("VFIO_GROUP_GET_DEVICE_FD", "NULL", arg=0),
    Case("VFIO_DEVICE_GET_GFX_DMABUF", "[3]", b"\3\0\0\0"),
    *(
        Case(name, "0x7ffe1000")
        for name in (
            *("VFIO_MIG_GET_PRECOPY_INFO", "VFIO_IOMMU_SPAPR_TCE_GET_INFO", "VFIO_EEH_PE_OP"),
            *("VFIO_IOMMU_SPAPR_REGISTER_MEMORY", "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY"),
            *("VFIO_IOMMU_SPAPR_TCE_CREATE", "VFIO_IOMMU_SPAPR_TCE_REMOVE"),
        )
    ),
    struct(
        "VFIO_GROUP_GET_STATUS",
        "vfio_group_status",
        "{argsz=8}",
        "{flags=VFIO_GROUP_FLAGS_VIABLE|VFIO_GROUP_FLAGS_CONTAINER_SET}",
        argsz=8,
        flags=0xAA,  # whatever the client had there
        after={"flags": 3},
    ),
    struct(
        "VFIO_IOMMU_GET_INFO",
        "vfio_iommu_type1_info",
        "{argsz=24}",
        "{argsz=100, flags=VFIO_IOMMU_INFO_PGSIZES|VFIO_IOMMU_INFO_CAPS, iova_pgsizes=0xfffffffffffff000, "
        "cap_offset=0}",
        argsz=24,
        after={"argsz": 100, "flags": 3, "iova_pgsizes": 2**64 - 4096},
    ),
    struct(
        "VFIO_IOMMU_GET_INFO",
        "vfio_iommu_type1_info",
        "{argsz=104}",
        "{flags=VFIO_IOMMU_INFO_PGSIZES|VFIO_IOMMU_INFO_CAPS, iova_pgsizes=0x1000, cap_offset=24, "
        "capabilities=[{id=VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, version=1, nr_iovas=1, "
        "iova_ranges=[{start=0x1000, end=0xffffffff}]}, {id=VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, version=1, "
        "flags=0x0, pgsize_bitmap=0x1000, max_dirty_bitmap_size=268435456}, "
        "{id=VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, version=1, avail=65535}]}",
        argsz=104,
        after={"flags": 3, "iova_pgsizes": 4096, "cap_offset": 24},
        behind=bytes(len(IOVAS + MIGRATION + AVAILABLE)),
        then=IOVAS + MIGRATION + AVAILABLE,
    ),
    struct(
        "VFIO_IOMMU_MAP_DMA",
        "vfio_iommu_type1_dma_map",
        "{argsz=32, flags=VFIO_DMA_MAP_FLAG_READ|VFIO_DMA_MAP_FLAG_WRITE|0x80, vaddr=0x7f0000000000, "
        "iova=0x0, size=0x200000}",
        argsz=32,
        flags=0x83,
        vaddr=0x7F00_0000_0000,
        size=0x20_0000,
    ),
    struct(
        "VFIO_IOMMU_UNMAP_DMA",
        "vfio_iommu_type1_dma_unmap",
        "{argsz=24, flags=0, iova=0x1000, size=0x2000}",
        "{size=0x1000}",
        argsz=24,
        iova=0x1000,
        size=0x2000,
        after={"size": 0x1000},
    ),
    struct(
        "VFIO_IOMMU_UNMAP_DMA",
        "vfio_iommu_type1_dma_unmap",
        "{argsz=48, flags=VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, iova=0x0, size=0x1000, "
        "bitmap={pgsize=0x1000, size=8, data=0x7000}}",
        "{size=0x1000}",
        argsz=48,
        flags=1,
        size=0x1000,
        behind=made("vfio_bitmap", pgsize=4096, size=8, data=0x7000),
    ),
    struct(
        "VFIO_IOMMU_DIRTY_PAGES",
        "vfio_iommu_type1_dirty_bitmap",
        "{argsz=8, flags=VFIO_IOMMU_DIRTY_PAGES_FLAG_START}",
        argsz=8,
        flags=1,
    ),
    struct(
        "VFIO_IOMMU_DIRTY_PAGES",
        "vfio_iommu_type1_dirty_bitmap",
        "{argsz=48, flags=VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP, data={iova=0x1000, size=0x2000, "
        "bitmap={pgsize=0x1000, size=8, data=0x7000}}}",
        argsz=48,
        flags=4,
        behind=DIRTY_GET,
    ),
    struct(
        "VFIO_DEVICE_GET_INFO",
        "vfio_device_info",
        "{argsz=24}",
        "{flags=VFIO_DEVICE_FLAGS_RESET|VFIO_DEVICE_FLAGS_PCI, num_regions=9, num_irqs=5, cap_offset=0}",
        argsz=24,
        after={"flags": 3, "num_regions": 9, "num_irqs": 5},
    ),
    struct(
        "VFIO_DEVICE_GET_INFO",
        "vfio_device_info",
        "{argsz=40}",
        "{flags=VFIO_DEVICE_FLAGS_CAPS, num_regions=0, num_irqs=0, cap_offset=24, "
        "capabilities=[{id=VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP, version=1, data=01 00 00 00 00 00 00 00}]}",
        argsz=40,
        after={"flags": 128, "cap_offset": 24},
        behind=bytes(16),
        then=made("vfio_info_cap_header", **header(5)) + b"\1" + bytes(7),
    ),
    struct(
        "VFIO_DEVICE_GET_REGION_INFO",
        "vfio_region_info",
        "{argsz=32, index=VFIO_PCI_CONFIG_REGION_INDEX}",
        "{flags=VFIO_REGION_INFO_FLAG_READ|VFIO_REGION_INFO_FLAG_WRITE, cap_offset=0, size=0x1000, "
        "offset=0x70000000000}",
        argsz=32,
        index=7,
        after={"flags": 3, "size": 4096, "offset": 7 << 40},
    ),
    struct(
        "VFIO_DEVICE_GET_REGION_INFO",
        "vfio_region_info",
        "{argsz=256, index=9}",
        "{flags=VFIO_REGION_INFO_FLAG_MMAP|VFIO_REGION_INFO_FLAG_CAPS, cap_offset=32, size=0x4000, "
        "offset=0x0, capabilities=[{id=VFIO_REGION_INFO_CAP_SPARSE_MMAP, version=1, nr_areas=2, "
        "areas=[{offset=0x0, size=0x1000}, {offset=0x2000, size=0x1000}]}, {id=VFIO_REGION_INFO_CAP_TYPE, "
        "version=1, type=VFIO_REGION_TYPE_PCI_VENDOR_TYPE|0x10de, subtype=2}, "
        "{id=VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, version=1}]}",
        argsz=256,
        index=9,
        after={"flags": 12, "cap_offset": 32, "size": 0x4000},
        behind=bytes(len(SPARSE + TYPE + MSIX)),
        then=SPARSE + TYPE + MSIX,
    ),
    struct(
        "VFIO_DEVICE_GET_IRQ_INFO",
        "vfio_irq_info",
        "{argsz=16, index=VFIO_PCI_MSIX_IRQ_INDEX}",
        "{flags=VFIO_IRQ_INFO_EVENTFD|VFIO_IRQ_INFO_NORESIZE, count=4}",
        argsz=16,
        index=2,
        after={"flags": 9, "count": 4},
    ),
    struct(
        "VFIO_DEVICE_SET_IRQS",
        "vfio_irq_set",
        "{argsz=28, flags=VFIO_IRQ_SET_DATA_EVENTFD|VFIO_IRQ_SET_ACTION_TRIGGER, "
        "index=VFIO_PCI_MSIX_IRQ_INDEX, start=0, count=2, data=[5, -1]}",
        argsz=28,
        flags=36,
        index=2,
        count=2,
        behind=b"\5\0\0\0\xff\xff\xff\xff",
    ),
    struct(
        "VFIO_DEVICE_SET_IRQS",
        "vfio_irq_set",
        "{argsz=23, flags=VFIO_IRQ_SET_DATA_BOOL|VFIO_IRQ_SET_ACTION_MASK, index=VFIO_PCI_INTX_IRQ_INDEX, "
        "start=1, count=3, data=[1, 0, 255]}",
        argsz=23,
        flags=10,
        start=1,
        count=3,
        behind=b"\1\0\xff",
    ),
    struct(
        "VFIO_DEVICE_SET_IRQS",
        "vfio_irq_set",
        "{argsz=20, flags=VFIO_IRQ_SET_DATA_NONE|VFIO_IRQ_SET_ACTION_TRIGGER, index=17, start=0, count=0}",
        argsz=20,
        flags=33,
        index=17,
    ),
    struct(
        "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
        "vfio_pci_hot_reset_info",
        "{argsz=28}",
        "{flags=0, count=2, devices=[{group_id=5, address=0000:86:00.0}, {group_id=6, "
        "address=0001:86:01.2}]}",
        argsz=28,
        after={"count": 2},
        behind=bytes(16),
        then=DEPENDENTS,
    ),
    struct(
        "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
        "vfio_pci_hot_reset_info",
        "{argsz=20}",
        "{flags=VFIO_PCI_HOT_RESET_FLAG_DEV_ID, count=1, devices=[{devid=VFIO_PCI_DEVID_NOT_OWNED, "
        "address=0000:00:00.0}]}",
        argsz=20,
        after={"count": 1, "flags": 1},
        behind=bytes(8),
        then=b"\xff\xff\xff\xff" + bytes(4),
    ),
    struct(
        "VFIO_DEVICE_PCI_HOT_RESET",
        "vfio_pci_hot_reset",
        "{argsz=20, flags=0x0, count=2, group_fds=[7, 8]}",
        argsz=20,
        count=2,
        behind=b"\7\0\0\0\x08\0\0\0",
    ),
    struct(
        "VFIO_DEVICE_QUERY_GFX_PLANE",
        "vfio_device_gfx_plane_info",
        "{argsz=64, flags=VFIO_GFX_PLANE_TYPE_REGION, drm_plane_type=1}",
        '{drm_format=0x34325258 /* "XR24" */, drm_format_mod=0x0, width=1024, height=768, stride=4096, '
        "size=3145728, x_pos=0, y_pos=0, x_hot=0, y_hot=0, region_index=9}",
        argsz=64,
        flags=4,
        drm_plane_type=1,
        after={
            "drm_format": int.from_bytes(b"XR24", "little"),
            **{"width": 1024, "height": 768, "stride": 4096, "size": 3145728, "region_index": 9},
        },
    ),
    struct(
        "VFIO_DEVICE_QUERY_GFX_PLANE",
        "vfio_device_gfx_plane_info",
        "{argsz=64, flags=VFIO_GFX_PLANE_TYPE_PROBE|VFIO_GFX_PLANE_TYPE_REGION, drm_plane_type=0}",
        argsz=64,
        flags=5,
    ),
    struct(
        "VFIO_DEVICE_IOEVENTFD",
        "vfio_device_ioeventfd",
        "{argsz=32, flags=VFIO_DEVICE_IOEVENTFD_32, offset=0x18, data=0x1, fd=9}",
        argsz=32,
        flags=4,
        offset=0x18,
        data=1,
        fd=9,
    ),
    struct(
        "VFIO_DEVICE_FEATURE",
        "vfio_device_feature",
        "{argsz=24, flags=VFIO_DEVICE_FEATURE_SET|VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, "
        "data=00010203-0405-0607-0809-0a0b0c0d0e0f}",
        argsz=24,
        flags=0x20000,
        behind=TOKEN,
    ),
    struct(
        "VFIO_DEVICE_FEATURE",
        "vfio_device_feature",
        "{argsz=16, flags=VFIO_DEVICE_FEATURE_GET|VFIO_DEVICE_FEATURE_MIGRATION}",
        "{data={flags=VFIO_MIGRATION_STOP_COPY|VFIO_MIGRATION_P2P}}",
        argsz=16,
        flags=0x10001,
        behind=bytes(8),
        then=made("vfio_device_feature_migration", flags=3),
    ),
    struct(
        "VFIO_DEVICE_FEATURE",
        "vfio_device_feature",
        "{argsz=16, flags=VFIO_DEVICE_FEATURE_SET|VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, "
        "data={device_state=VFIO_DEVICE_STATE_RESUMING, data_fd=-1}}",
        "{data={device_state=VFIO_DEVICE_STATE_RESUMING, data_fd=9}}",
        argsz=16,
        flags=0x20002,
        behind=made("vfio_device_feature_mig_state", device_state=4, data_fd=-1),
        then=made("vfio_device_feature_mig_state", device_state=4, data_fd=9),
    ),
    struct(
        "VFIO_DEVICE_FEATURE",
        "vfio_device_feature",
        "{argsz=16, flags=VFIO_DEVICE_FEATURE_SET|VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP, "
        "data={wakeup_eventfd=5}}",
        argsz=16,
        flags=0x20004,
        behind=made("vfio_device_low_power_entry_with_wakeup", wakeup_eventfd=5),
    ),
    struct(
        "VFIO_DEVICE_FEATURE",
        "vfio_device_feature",
        "{argsz=32, flags=VFIO_DEVICE_FEATURE_SET|VFIO_DEVICE_FEATURE_DMA_LOGGING_START, "
        "data={page_size=0x1000, num_ranges=1, ranges=0x7000}}",
        argsz=32,
        flags=0x20006,
        behind=made("vfio_device_feature_dma_logging_control", page_size=4096, num_ranges=1, ranges=0x7000),
    ),
    struct(
        "VFIO_DEVICE_FEATURE",
        "vfio_device_feature",
        "{argsz=40, flags=VFIO_DEVICE_FEATURE_GET|VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, "
        "data={iova=0x1000, length=0x2000, page_size=0x1000, bitmap=NULL}}",
        "{data={iova=0x1000, length=0x2000, page_size=0x1000, bitmap=NULL}}",
        argsz=40,
        flags=0x10008,
        behind=made("vfio_device_feature_dma_logging_report", iova=4096, length=8192, page_size=4096),
    ),
    struct(
        "VFIO_DEVICE_FEATURE",
        "vfio_device_feature",
        "{argsz=8, flags=VFIO_DEVICE_FEATURE_GET|VFIO_DEVICE_FEATURE_PROBE|0x77}",
        argsz=8,
        flags=0x50077,
    ),
    struct(
        "VFIO_DEVICE_BIND_IOMMUFD",
        "vfio_device_bind_iommufd",
        "{argsz=24, flags=VFIO_DEVICE_BIND_FLAG_TOKEN, iommufd=4, token_uuid_ptr=0x7000}",
        "{out_devid=2}",
        argsz=24,
        flags=1,
        iommufd=4,
        token_uuid_ptr=0x7000,
        after={"out_devid": 2},
    ),
    struct(
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        "vfio_device_attach_iommufd_pt",
        "{argsz=12, flags=0, pt_id=1}",
        "{pt_id=3}",
        argsz=12,
        pt_id=1,
        after={"pt_id": 3},
    ),
    struct(
        "VFIO_DEVICE_DETACH_IOMMUFD_PT",
        "vfio_device_detach_iommufd_pt",
        "{argsz=12, flags=VFIO_DEVICE_DETACH_PASID, pasid=6}",
        argsz=12,
        flags=1,
        pasid=6,
    ),
    struct("IOMMU_DESTROY", "iommu_destroy", "{size=8, id=3}", size=8, id=3),
    struct(
        "IOMMU_IOAS_ALLOC",
        "iommu_ioas_alloc",
        "{size=12, flags=0x0}",
        "{out_ioas_id=1}",
        size=12,
        after={"out_ioas_id": 1},
    ),
    struct(
        "IOMMU_IOAS_ALLOW_IOVAS",
        "iommu_ioas_allow_iovas",
        "{size=24, ioas_id=1, num_iovas=2, __reserved=0x1, allowed_iovas=0x7000}",
        size=24,
        ioas_id=1,
        num_iovas=2,
        reserved=1,
        allowed_iovas=0x7000,
    ),
    struct(
        "IOMMU_IOAS_COPY",
        "iommu_ioas_copy",
        "{size=40, flags=IOMMU_IOAS_MAP_READABLE, dst_ioas_id=1, src_ioas_id=2, length=0x1000, "
        "dst_iova=0x0, src_iova=0x2000}",
        "{dst_iova=0x4000}",
        size=40,
        flags=4,
        dst_ioas_id=1,
        src_ioas_id=2,
        length=4096,
        src_iova=0x2000,
        after={"dst_iova": 0x4000},
    ),
    struct(
        "IOMMU_IOAS_IOVA_RANGES",
        "iommu_ioas_iova_ranges",
        "{size=32, ioas_id=1, num_iovas=0, allowed_iovas=NULL}",
        "{num_iovas=1, out_iova_alignment=0x1000}",
        size=32,
        ioas_id=1,
        after={"num_iovas": 1, "out_iova_alignment": 4096},
    ),
    struct(
        "IOMMU_IOAS_MAP",
        "iommu_ioas_map",
        "{size=40, flags=IOMMU_IOAS_MAP_FIXED_IOVA|IOMMU_IOAS_MAP_WRITEABLE|IOMMU_IOAS_MAP_READABLE, "
        "ioas_id=1, user_va=0x7f0000000000, length=0x1000, iova=0x8000}",
        "{iova=0x8000}",
        size=40,
        flags=7,
        ioas_id=1,
        user_va=0x7F00_0000_0000,
        length=4096,
        iova=0x8000,
    ),
    struct(
        "IOMMU_IOAS_UNMAP",
        "iommu_ioas_unmap",
        "{size=24, ioas_id=1, iova=0x0, length=0xffffffffffffffff}",
        "{length=0x1000}",
        size=24,
        ioas_id=1,
        length=2**64 - 1,
        after={"length": 4096},
    ),
    struct(
        "IOMMU_OPTION",
        "iommu_option",
        "{size=24, option_id=IOMMU_OPTION_HUGE_PAGES, op=IOMMU_OPTION_OP_GET, object_id=1, val64=0}",
        "{val64=1}",
        size=24,
        option_id=1,
        op=1,
        object_id=1,
        after={"val64": 1},
    ),
    struct(
        "IOMMU_VFIO_IOAS",
        "iommu_vfio_ioas",
        "{size=12, ioas_id=0, op=IOMMU_VFIO_IOAS_GET}",
        "{ioas_id=4}",
        size=12,
        after={"ioas_id": 4},
    ),
    struct(
        "IOMMU_HWPT_ALLOC",
        "iommu_hwpt_alloc",
        "{size=48, flags=IOMMU_HWPT_ALLOC_DIRTY_TRACKING|IOMMU_HWPT_FAULT_ID_VALID, dev_id=2, pt_id=1, "
        "data_type=IOMMU_HWPT_DATA_NONE, data_len=0, data_uptr=NULL, fault_id=0}",
        "{out_hwpt_id=3}",
        size=48,
        flags=6,
        dev_id=2,
        pt_id=1,
        after={"out_hwpt_id": 3},
    ),
    struct(
        "IOMMU_GET_HW_INFO",
        "iommu_hw_info",
        "{size=40, flags=0, dev_id=2, data_len=24, data_uptr=0x7000}",
        "{data_len=24, out_data_type=IOMMU_HW_INFO_TYPE_INTEL_VTD, out_max_pasid_log2=0, "
        "out_capabilities=IOMMU_HW_CAP_DIRTY_TRACKING}",
        size=40,
        dev_id=2,
        data_len=24,
        data_uptr=0x7000,
        after={"out_data_type": 1, "out_capabilities": 1},
    ),
    struct(
        "IOMMU_GET_HW_INFO",
        "iommu_hw_info",
        "{size=40, flags=IOMMU_HW_INFO_FLAG_INPUT_TYPE, dev_id=2, data_len=0, data_uptr=NULL, "
        "in_data_type=IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV}",
        "{data_len=0, out_data_type=IOMMU_HW_INFO_TYPE_NONE, out_max_pasid_log2=0, out_capabilities=0}",
        size=40,
        flags=1,
        dev_id=2,
        out_data_type=3,
        after={"out_data_type": 0},
    ),
    struct(
        "IOMMU_HWPT_SET_DIRTY_TRACKING",
        "iommu_hwpt_set_dirty_tracking",
        "{size=16, flags=IOMMU_HWPT_DIRTY_TRACKING_ENABLE, hwpt_id=3}",
        size=16,
        flags=1,
        hwpt_id=3,
    ),
    struct(
        "IOMMU_HWPT_GET_DIRTY_BITMAP",
        "iommu_hwpt_get_dirty_bitmap",
        "{size=48, hwpt_id=3, flags=IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR, iova=0x1000, length=0x2000, "
        "page_size=0x1000, data=0x7000}",
        size=48,
        hwpt_id=3,
        flags=1,
        iova=4096,
        length=8192,
        page_size=4096,
        data=0x7000,
    ),
    struct(
        "IOMMU_HWPT_INVALIDATE",
        "iommu_hwpt_invalidate",
        "{size=32, hwpt_id=3, data_uptr=NULL, data_type=IOMMU_HWPT_INVALIDATE_DATA_VTD_S1, entry_len=16, "
        "entry_num=2}",
        "{entry_num=0}",
        size=32,
        hwpt_id=3,
        entry_len=16,
        entry_num=2,
        after={"entry_num": 0},
    ),
    struct(
        "IOMMU_FAULT_QUEUE_ALLOC",
        "iommu_fault_alloc",
        "{size=16, flags=0x0}",
        "{out_fault_id=5, out_fault_fd=9}",
        size=16,
        after={"out_fault_id": 5, "out_fault_fd": 9},
    ),
    struct(
        "IOMMU_IOAS_MAP_FILE",
        "iommu_ioas_map_file",
        "{size=40, flags=IOMMU_IOAS_MAP_READABLE, ioas_id=1, fd=-1, start=0x0, length=0x1000, iova=0x0}",
        "{iova=0x0}",
        size=40,
        flags=4,
        ioas_id=1,
        fd=-1,
        length=4096,
    ),
    struct(
        "IOMMU_VIOMMU_ALLOC",
        "iommu_viommu_alloc",
        "{size=40, flags=0x0, type=IOMMU_VIOMMU_TYPE_ARM_SMMUV3, dev_id=2, hwpt_id=3, data_len=0, "
        "data_uptr=NULL}",
        "{out_viommu_id=4}",
        size=40,
        type=1,
        dev_id=2,
        hwpt_id=3,
        after={"out_viommu_id": 4},
    ),
    struct(
        "IOMMU_VDEVICE_ALLOC",
        "iommu_vdevice_alloc",
        "{size=24, viommu_id=4, dev_id=2, virt_id=0x8}",
        "{out_vdevice_id=5}",
        size=24,
        viommu_id=4,
        dev_id=2,
        virt_id=8,
        after={"out_vdevice_id": 5},
    ),
    struct("IOMMU_IOAS_CHANGE_PROCESS", "iommu_ioas_change_process", "{size=8}", size=8),
    struct(
        "IOMMU_VEVENTQ_ALLOC",
        "iommu_veventq_alloc",
        "{size=32, flags=0x0, viommu_id=4, type=0x63 /* IOMMU_VEVENTQ_TYPE_??? */, veventq_depth=64}",
        "{out_veventq_id=6, out_veventq_fd=7}",
        size=32,
        viommu_id=4,
        type=99,
        veventq_depth=64,
        after={"out_veventq_id": 6, "out_veventq_fd": 7},
    ),
    struct(
        "IOMMU_HW_QUEUE_ALLOC",
        "iommu_hw_queue_alloc",
        "{size=40, flags=0x0, viommu_id=4, type=IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV, index=0, "
        "nesting_parent_iova=0x1000, length=0x2000}",
        "{out_hw_queue_id=8}",
        size=40,
        viommu_id=4,
        type=1,
        nesting_parent_iova=4096,
        length=8192,
        after={"out_hw_queue_id": 8},
    ),
    struct(
        "IOMMU_IOAS_NOIOMMU_GET_PA",
        "iommu_ioas_noiommu_get_pa",
        "{size=48, flags=0x0, ioas_id=1, iova=0x1000, length=0x0}",
        "{length=0x2000, out_phys=0x1000}",
        size=48,
        ioas_id=1,
        iova=4096,
        after={"length": 8192, "out_phys": 4096},
    ),
)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.name}-{i}" for i, case in enumerate(CASES)])
def test_what_a_line_has_of_an_ioctl(case: Case) -> None:
    said = explain(case.record)
    assert (said.given, said.returned) == (case.given, case.returned)
    json.dumps([said.before, said.after])


def test_every_ioctl_is_explained_and_has_a_case() -> None:
    names = {row.name for row in abi.ROWS}
    assert EXPLAINERS.keys() == names
    assert {case.name for case in CASES} == names


def test_every_struct_is_the_one_of_its_row() -> None:
    declared = {row.name: row.struct for row in abi.ROWS if row.struct}
    ours = {
        name: f"struct {each.layout.struct}" for name, each in EXPLAINERS.items() if isinstance(each, Struct)
    }
    assert ours == declared


def test_a_call_that_fails_returns_what_has_changed() -> None:
    before = made("vfio_pci_hot_reset_info", argsz=12)
    after = made("vfio_pci_hot_reset_info", argsz=12, count=3)
    said = explain(record("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", before, after, errno=28))
    assert (said.given, said.returned) == ("{argsz=12}", "{count=3}")
    said = explain(record("VFIO_GROUP_GET_STATUS", made("vfio_group_status", argsz=8), errno=22))
    assert said.returned == ""


def test_a_call_that_is_under_way_returns_nothing() -> None:
    said = explain(record("VFIO_GROUP_GET_STATUS", made("vfio_group_status", argsz=8), b"", duration=None))
    assert (said.given, said.returned) == ("{argsz=8}", "")


def test_a_struct_is_as_long_as_its_client_says() -> None:
    """A client that is older than a member has something else behind its struct."""
    before = made("vfio_device_info", argsz=16, cap_offset=0x55)
    after = made("vfio_device_info", argsz=16, flags=2, num_regions=9, num_irqs=5, cap_offset=0x55)
    said = explain(record("VFIO_DEVICE_GET_INFO", before, after))
    assert said.returned == "{flags=VFIO_DEVICE_FLAGS_PCI, num_regions=9, num_irqs=5}"


def test_a_struct_that_could_not_be_read_is_its_address() -> None:
    assert explain(record("VFIO_IOMMU_MAP_DMA", errno=14)).given == "0x7ffe1000"
    assert explain(record("VFIO_IOMMU_MAP_DMA", arg=0, errno=14)).given == "NULL"
    assert explain(record("VFIO_IOMMU_MAP_DMA", b"\x20\0\0\0\1\0\0\0", b"", errno=14)).given == (
        "{argsz=32, flags=VFIO_DMA_MAP_FLAG_READ, ...}"
    )


def test_members_as_json() -> None:
    said = explain(
        record("VFIO_IOMMU_MAP_DMA", made("vfio_iommu_type1_dma_map", argsz=32, flags=0x83, size=4096))
    )
    assert said.before == {
        "argsz": 32,
        "flags": ["VFIO_DMA_MAP_FLAG_READ", "VFIO_DMA_MAP_FLAG_WRITE", "0x80"],
        **{"vaddr": 0, "iova": 0, "size": 4096},
    }
    said = explain(record("VFIO_DEVICE_GET_IRQ_INFO", made("vfio_irq_info", argsz=16, index=2, count=4)))
    assert (said.before["index"], said.after) == ("VFIO_PCI_MSIX_IRQ_INDEX", {"flags": [], "count": 4})
    assert explain(record("VFIO_CHECK_EXTENSION", arg=77)).before == {"extension": 77}
    assert explain(record("VFIO_GROUP_GET_DEVICE_FD", b"vgpu0\0")).before == {"device": "vgpu0"}


def test_arrays_are_as_long_as_what_is_there() -> None:
    irqs = made("vfio_irq_set", argsz=2**32 - 1, flags=36, index=2, count=2**32 - 1)
    assert explain(record("VFIO_DEVICE_SET_IRQS", irqs)).given.endswith("count=4294967295, data=[...]}")
    said = explain(record("VFIO_DEVICE_SET_IRQS", irqs + bytes(4 * 100)))
    assert said.given.endswith(f"data=[{'0, ' * 32}...]}}")
    assert said.before["data"] == [0] * 100
    groups = made("vfio_pci_hot_reset", argsz=20, count=9) + bytes(8)
    assert explain(record("VFIO_DEVICE_PCI_HOT_RESET", groups)).given.endswith("group_fds=[0, 0, ...]}")


@pytest.mark.parametrize("following", [32, 40, 8, 1, 2**32 - 1])
def test_a_chain_that_goes_in_a_circle_or_nowhere_has_an_end(following: int) -> None:
    struct = made("vfio_region_info", argsz=48, flags=8, cap_offset=32)
    caps = made("vfio_info_cap_header", **header(3, 40)) + made(
        "vfio_info_cap_header", **header(7, following)
    )
    said = explain(record("VFIO_DEVICE_GET_REGION_INFO", struct + caps))
    assert said.after["capabilities"][0] == {"id": "VFIO_REGION_INFO_CAP_MSIX_MAPPABLE", "version": 1}
    assert said.after["capabilities"][1]["id"] == 7
    assert len(said.after["capabilities"]) <= 4


def test_an_ioctl_without_a_name_is_taken_apart() -> None:
    assert ioctl_name("0x3b99") == "_IOC(_IOC_NONE, 0x3b, 0x99, 0x0)"
    assert ioctl_name("0xc1185640") == "_IOC(_IOC_READ|_IOC_WRITE, 0x56, 0x40, 0x118)"
    assert ioctl_name("VFIO_\x1b[2J") == "VFIO_\\x1b[2J"
    said = explain(record("0xc0045640", b"\1\2\3\4"))
    assert said.given == "0x7ffe1000 /* 01 02 03 04 */"


# ---- bytes and values that nobody should send ----

NAMES = st.sampled_from(sorted(EXPLAINERS)) | st.text(max_size=8)
SIZES = st.integers(0, 2**32 - 1) | st.integers(0, 64)
BYTES = st.binary(max_size=200)
STRUCTS = BYTES | st.builds(lambda size, rest: size.to_bytes(4, "little") + rest, SIZES, BYTES)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | STRUCTS


@given(NAMES, STRUCTS, STRUCTS, st.integers(-(2**70), 2**70), st.sampled_from([0, 22]))
def test_no_bytes_make_it_raise(name: str, before: bytes, after: bytes, arg: int, errno: int) -> None:
    said = explain(record(name, before, after, arg=arg, errno=errno))
    assert (said.given + said.returned).isprintable()
    json.dumps([said.before, said.after])


@given(NAMES, st.dictionaries(st.sampled_from(["arg", "before", "after", "name"]), VALUES))
def test_no_values_of_other_types_make_it_raise(name: str, arguments: dict[str, Any]) -> None:
    said = explain(Record(1, 0.0, "ioctl", "vgpu0", name, arguments, duration=0.0))
    assert (said.given + said.returned).isprintable()


@given(st.data())
def test_whatever_a_chain_says_it_has_an_end(data: st.DataObject) -> None:
    """Headers everywhere, with any offsets: each byte is the begin of one capability at most."""
    rest = b"".join(
        made("vfio_info_cap_header", **header(data.draw(st.integers(0, 6)), data.draw(st.integers(0, 120))))
        for _ in range(11)
    )
    struct = made("vfio_region_info", argsz=120, flags=8, cap_offset=data.draw(st.integers(0, 120)))
    said = explain(record("VFIO_DEVICE_GET_REGION_INFO", struct + rest))
    assert len(said.after.get("capabilities", [])) <= 120
