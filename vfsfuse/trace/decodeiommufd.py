# SPDX-License-Identifier: Apache-2.0
"""The ioctls of iommufd, one row each: the members of their structs.

To add one: its row in `IOMMUFD`.  The structs and numbers are those of native/iommufd.cdef; <linux/iommufd.h>
is the source of what they mean.  State: none, constant.
"""

from __future__ import annotations

from collections.abc import Mapping

from ioctl_shim._native import lib
from vfsfuse.trace.explained import Explainer, Struct
from vfsfuse.trace.forms import Form, Shown, choice, choice_of, decimal, flags, hexadecimal, pointer
from vfsfuse.trace.structs import Field, Layout, both, out

_MAP_FLAGS = flags("IOMMU_IOAS_MAP_")
_OPTIONS = {
    lib.IOMMU_OPTION_RLIMIT_MODE: "IOMMU_OPTION_RLIMIT_MODE",
    lib.IOMMU_OPTION_HUGE_PAGES: "IOMMU_OPTION_HUGE_PAGES",
}
_HW_INFO_TYPE = choice("IOMMU_HW_INFO_TYPE_", without=("IOMMU_HW_INFO_TYPE_DEFAULT",))


def _asked_type(data: bytes, values: Mapping[str, int]) -> Mapping[str, Shown]:
    """The type that GET_HW_INFO is asked for shares its place with the type that is returned."""
    if not values.get("flags", 0) & lib.IOMMU_HW_INFO_FLAG_INPUT_TYPE or "out_data_type" not in values:
        return {}
    return {"in_data_type": _HW_INFO_TYPE(values["out_data_type"])}


def _struct(struct: str, **forms: Form | Field) -> Struct:
    """A row of a struct, whose first member is its size."""
    return Struct(Layout(struct, size=decimal, **forms))


IOMMUFD: Mapping[str, Explainer] = {
    "IOMMU_DESTROY": _struct("iommu_destroy", id=decimal),
    "IOMMU_IOAS_ALLOC": _struct("iommu_ioas_alloc", flags=hexadecimal, out_ioas_id=out(decimal)),
    "IOMMU_IOAS_ALLOW_IOVAS": _struct(
        "iommu_ioas_allow_iovas", ioas_id=decimal, num_iovas=decimal, allowed_iovas=pointer
    ),
    "IOMMU_IOAS_COPY": _struct(
        "iommu_ioas_copy",
        flags=_MAP_FLAGS,
        dst_ioas_id=decimal,
        src_ioas_id=decimal,
        length=hexadecimal,
        dst_iova=both(hexadecimal),
        src_iova=hexadecimal,
    ),
    "IOMMU_IOAS_IOVA_RANGES": _struct(
        "iommu_ioas_iova_ranges",
        ioas_id=decimal,
        num_iovas=both(decimal),
        allowed_iovas=pointer,
        out_iova_alignment=out(hexadecimal),
    ),
    "IOMMU_IOAS_MAP": _struct(
        "iommu_ioas_map",
        flags=_MAP_FLAGS,
        ioas_id=decimal,
        user_va=pointer,
        length=hexadecimal,
        iova=both(hexadecimal),
    ),
    "IOMMU_IOAS_UNMAP": _struct(
        "iommu_ioas_unmap", ioas_id=decimal, iova=hexadecimal, length=both(hexadecimal)
    ),
    "IOMMU_OPTION": _struct(
        "iommu_option",
        option_id=choice_of(_OPTIONS, "IOMMU_OPTION_???"),
        op=choice("IOMMU_OPTION_OP_"),
        object_id=decimal,
        val64=decimal,
    ),
    "IOMMU_VFIO_IOAS": _struct("iommu_vfio_ioas", ioas_id=decimal, op=choice("IOMMU_VFIO_IOAS_")),
    "IOMMU_HWPT_ALLOC": _struct(
        "iommu_hwpt_alloc",
        flags=flags("IOMMU_HWPT_ALLOC_", "IOMMU_HWPT_FAULT_ID_VALID"),
        dev_id=decimal,
        pt_id=decimal,
        out_hwpt_id=out(decimal),
        data_type=choice("IOMMU_HWPT_DATA_"),
        data_len=decimal,
        data_uptr=pointer,
        fault_id=decimal,
    ),
    "IOMMU_GET_HW_INFO": Struct(
        Layout(
            "iommu_hw_info",
            size=decimal,
            flags=flags("IOMMU_HW_INFO_FLAG_"),
            dev_id=decimal,
            data_len=both(decimal),
            data_uptr=pointer,
            out_data_type=out(_HW_INFO_TYPE),
            out_max_pasid_log2=out(decimal),
            out_capabilities=out(flags("IOMMU_HW_CAP_")),
        ),
        given=_asked_type,
    ),
    "IOMMU_HWPT_SET_DIRTY_TRACKING": _struct(
        "iommu_hwpt_set_dirty_tracking", flags=flags("IOMMU_HWPT_DIRTY_TRACKING_"), hwpt_id=decimal
    ),
    "IOMMU_HWPT_GET_DIRTY_BITMAP": _struct(
        "iommu_hwpt_get_dirty_bitmap",
        hwpt_id=decimal,
        flags=flags("IOMMU_HWPT_GET_DIRTY_BITMAP_"),
        iova=hexadecimal,
        length=hexadecimal,
        page_size=hexadecimal,
        data=pointer,
    ),
    "IOMMU_HWPT_INVALIDATE": _struct(
        "iommu_hwpt_invalidate",
        hwpt_id=decimal,
        data_uptr=pointer,
        data_type=choice("IOMMU_HWPT_INVALIDATE_DATA_", "IOMMU_VIOMMU_INVALIDATE_DATA_"),
        entry_len=decimal,
        entry_num=both(decimal),
    ),
    "IOMMU_FAULT_QUEUE_ALLOC": _struct(
        "iommu_fault_alloc", flags=hexadecimal, out_fault_id=out(decimal), out_fault_fd=out(decimal)
    ),
    "IOMMU_IOAS_MAP_FILE": _struct(
        "iommu_ioas_map_file",
        flags=_MAP_FLAGS,
        ioas_id=decimal,
        fd=decimal,
        start=hexadecimal,
        length=hexadecimal,
        iova=both(hexadecimal),
    ),
    "IOMMU_VIOMMU_ALLOC": _struct(
        "iommu_viommu_alloc",
        flags=hexadecimal,
        type=choice("IOMMU_VIOMMU_TYPE_"),
        dev_id=decimal,
        hwpt_id=decimal,
        out_viommu_id=out(decimal),
        data_len=decimal,
        data_uptr=pointer,
    ),
    "IOMMU_VDEVICE_ALLOC": _struct(
        "iommu_vdevice_alloc",
        viommu_id=decimal,
        dev_id=decimal,
        out_vdevice_id=out(decimal),
        virt_id=hexadecimal,
    ),
    "IOMMU_IOAS_CHANGE_PROCESS": _struct("iommu_ioas_change_process"),
    "IOMMU_VEVENTQ_ALLOC": _struct(
        "iommu_veventq_alloc",
        flags=hexadecimal,
        viommu_id=decimal,
        type=choice("IOMMU_VEVENTQ_TYPE_"),
        veventq_depth=decimal,
        out_veventq_id=out(decimal),
        out_veventq_fd=out(decimal),
    ),
    "IOMMU_HW_QUEUE_ALLOC": _struct(
        "iommu_hw_queue_alloc",
        flags=hexadecimal,
        viommu_id=decimal,
        type=choice("IOMMU_HW_QUEUE_TYPE_"),
        index=decimal,
        out_hw_queue_id=out(decimal),
        nesting_parent_iova=hexadecimal,
        length=hexadecimal,
    ),
    "IOMMU_IOAS_NOIOMMU_GET_PA": _struct(
        "iommu_ioas_noiommu_get_pa",
        flags=hexadecimal,
        ioas_id=decimal,
        iova=hexadecimal,
        length=both(hexadecimal),
        out_phys=out(hexadecimal),
    ),
}
"""By name: how the argument is explained."""
