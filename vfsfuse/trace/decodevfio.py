# SPDX-License-Identifier: Apache-2.0
"""The ioctls of VFIO, one row each: the members of their structs, what follows them, what a number means.

To add one: its row in `VFIO`.  The structs and numbers are those of native/vfio.cdef; <linux/vfio.h> is the
source of what they mean.  State: none, constant.
"""

from __future__ import annotations

from collections.abc import Mapping

from ioctl_shim._native import lib
from vfsfuse.trace.chains import Capability, chain
from vfsfuse.trace.explained import Explainer, Nothing, Number, PointedInteger, PointedText, Struct
from vfsfuse.trace.features import feature_flags, feature_given, feature_returned
from vfsfuse.trace.flagnames import value_names
from vfsfuse.trace.forms import (
    Shown,
    array,
    choice,
    choice_of,
    decimal,
    fields,
    flags,
    fourcc,
    hexadecimal,
    pointer,
)
from vfsfuse.trace.structs import Layout, both, integers, out

EXTENSION = choice_of(
    {
        **value_names("VFIO_TYPE1", "VFIO_SPAPR_TCE", "VFIO_DMA_CC", "VFIO_NOIOMMU", suffix="_IOMMU"),
        **value_names("VFIO_EEH", "VFIO_UNMAP_ALL", "VFIO_UPDATE_VADDR"),
    },
    "VFIO_???",
)
REGION_INDEX = choice_of(value_names("VFIO_PCI_", suffix="_REGION_INDEX"))
IRQ_INDEX = choice_of(value_names("VFIO_PCI_", suffix="_IRQ_INDEX"))
_BITMAP = Layout("vfio_bitmap", pgsize=hexadecimal, size=decimal, data=pointer)


def _region_type(value: int) -> Shown:
    """The type of a region: a number, or a flag with the vendor of the PCI device."""
    if not value & _VENDOR_TYPE:
        return _REGION_TYPE(value)
    text = f"VFIO_REGION_TYPE_PCI_VENDOR_TYPE|{value & ~_VENDOR_TYPE:#x}"
    return Shown(text, text)


_VENDOR_TYPE: int = lib.VFIO_REGION_TYPE_PCI_VENDOR_TYPE & 2**32 - 1  # 1 << 31 is negative in the header
_REGION_TYPE = choice("VFIO_REGION_TYPE_", without=("VFIO_REGION_TYPE_PCI_VENDOR_TYPE",))
_REGION_CAPABILITIES = {
    lib.VFIO_REGION_INFO_CAP_SPARSE_MMAP: Capability(
        Layout("vfio_region_info_cap_sparse_mmap", nr_areas=decimal),
        *("areas", "nr_areas"),
        Layout("vfio_region_sparse_mmap_area", offset=hexadecimal, size=hexadecimal),
    ),
    lib.VFIO_REGION_INFO_CAP_TYPE: Capability(
        Layout("vfio_region_info_cap_type", type=_region_type, subtype=decimal)
    ),
    lib.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE: Capability(None),
}
_TYPE1_CAPABILITIES = {
    lib.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: Capability(
        Layout("vfio_iommu_type1_info_cap_iova_range", nr_iovas=decimal),
        *("iova_ranges", "nr_iovas"),
        Layout("vfio_iova_range", start=hexadecimal, end=hexadecimal),
    ),
    lib.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION: Capability(
        Layout(
            "vfio_iommu_type1_info_cap_migration",
            flags=hexadecimal,
            pgsize_bitmap=hexadecimal,
            max_dirty_bitmap_size=decimal,
        )
    ),
    lib.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: Capability(Layout("vfio_iommu_type1_info_dma_avail", avail=decimal)),
}


_IRQ_SET = Layout(
    "vfio_irq_set",
    argsz=decimal,
    flags=flags("VFIO_IRQ_SET_"),
    index=IRQ_INDEX,
    start=decimal,
    count=decimal,
)


def _irq_data(data: bytes, values: Mapping[str, int]) -> Mapping[str, Shown]:
    """What SET_IRQS is given for each interrupt: a descriptor or a byte."""
    kind, count, at = values.get("flags", 0), values.get("count", 0), _IRQ_SET.size
    if kind & lib.VFIO_IRQ_SET_DATA_EVENTFD:
        return {"data": integers(data, at, count, 4, decimal)}
    if kind & lib.VFIO_IRQ_SET_DATA_BOOL:
        return {"data": integers(data, at, count, 1, decimal)}
    return {}


def _dependents(data: bytes, values: Mapping[str, int]) -> Mapping[str, Shown]:
    """The devices that a hot reset resets, each with its group, or with its id in an iommufd."""
    by_id = bool(values.get("flags", 0) & lib.VFIO_PCI_HOT_RESET_FLAG_DEV_ID)
    start, size, count = _HOT_RESET_INFO.size, _DEPENDENT.size, values.get("count", 0)
    there = min(count, max(0, len(data) - start) // size)
    found = (_DEPENDENT.values(data, start + size * i) for i in range(there))
    return {"devices": array([_dependent(each, by_id) for each in found], count)}


def _dependent(values: Mapping[str, int], by_id: bool) -> Shown:
    number, devfn = values["group_id"], values["devfn"]
    address = f"{values['segment']:04x}:{values['bus']:02x}:{devfn >> 3:02x}.{devfn & 7}"
    owner = {"devid": _DEVID(number)} if by_id else {"group_id": decimal(number)}
    return fields({**owner, "address": Shown(address, address)})


_DEVID = choice_of({lib.VFIO_PCI_DEVID_OWNED: "VFIO_PCI_DEVID_OWNED", 2**32 - 1: "VFIO_PCI_DEVID_NOT_OWNED"})
_HOT_RESET_INFO = Layout(
    "vfio_pci_hot_reset_info",
    argsz=decimal,
    flags=out(flags("VFIO_PCI_HOT_RESET_FLAG_")),
    count=out(decimal),
)
_HOT_RESET = Layout("vfio_pci_hot_reset", argsz=decimal, flags=hexadecimal, count=decimal)
_DEPENDENT = Layout(
    "vfio_pci_dependent_device",
    group_id=decimal,
    segment=hexadecimal,
    bus=hexadecimal,
    devfn=hexadecimal,
)


def _groups(data: bytes, values: Mapping[str, int]) -> Mapping[str, Shown]:
    """The descriptors of groups that a client gives to HOT_RESET."""
    return {"group_fds": integers(data, _HOT_RESET.size, values.get("count", 0), 4, decimal)}


def _unmap_bitmap(data: bytes, values: Mapping[str, int]) -> Mapping[str, Shown]:
    wanted = values.get("flags", 0) & lib.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
    return {"bitmap": _BITMAP.show(data, _UNMAP.size)} if wanted else {}


_UNMAP = Layout(
    "vfio_iommu_type1_dma_unmap",
    argsz=decimal,
    flags=flags("VFIO_DMA_UNMAP_FLAG_"),
    iova=hexadecimal,
    size=both(hexadecimal),
)
_DIRTY = Layout("vfio_iommu_type1_dirty_bitmap", argsz=decimal, flags=flags("VFIO_IOMMU_DIRTY_PAGES_FLAG_"))
_DIRTY_GET = Layout("vfio_iommu_type1_dirty_bitmap_get", iova=hexadecimal, size=hexadecimal, bitmap=_BITMAP)


def _dirty_range(data: bytes, values: Mapping[str, int]) -> Mapping[str, Shown]:
    wanted = values.get("flags", 0) & lib.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP
    return {"data": _DIRTY_GET.show(data, _DIRTY.size)} if wanted else {}


def _plane_asked(values: Mapping[str, int]) -> bool:
    """A probe of QUERY_GFX_PLANE returns nothing in the struct."""
    return not values.get("flags", 0) & lib.VFIO_GFX_PLANE_TYPE_PROBE


_ADDRESS = Number("arg", pointer)
VFIO: Mapping[str, Explainer] = {
    "VFIO_GET_API_VERSION": Nothing(),
    "VFIO_CHECK_EXTENSION": Number("extension", EXTENSION),
    "VFIO_SET_IOMMU": Number("iommu", EXTENSION),
    "VFIO_IOMMU_GET_INFO": Struct(
        Layout(
            "vfio_iommu_type1_info",
            argsz=decimal,
            flags=out(flags("VFIO_IOMMU_INFO_")),
            iova_pgsizes=out(hexadecimal),
            cap_offset=out(decimal),
        ),
        returned=chain(choice("VFIO_IOMMU_TYPE1_INFO_"), _TYPE1_CAPABILITIES),
    ),
    "VFIO_IOMMU_MAP_DMA": Struct(
        Layout(
            "vfio_iommu_type1_dma_map",
            argsz=decimal,
            flags=flags("VFIO_DMA_MAP_FLAG_"),
            vaddr=pointer,
            iova=hexadecimal,
            size=hexadecimal,
        )
    ),
    "VFIO_IOMMU_UNMAP_DMA": Struct(_UNMAP, given=_unmap_bitmap),
    "VFIO_IOMMU_DIRTY_PAGES": Struct(_DIRTY, given=_dirty_range),
    "VFIO_IOMMU_ENABLE": Nothing(),
    "VFIO_IOMMU_DISABLE": Nothing(),
    "VFIO_GROUP_GET_STATUS": Struct(
        Layout("vfio_group_status", argsz=decimal, flags=out(flags("VFIO_GROUP_FLAGS_")))
    ),
    "VFIO_GROUP_SET_CONTAINER": PointedInteger("container"),
    "VFIO_GROUP_UNSET_CONTAINER": Nothing(),
    "VFIO_GROUP_GET_DEVICE_FD": PointedText("device"),
    "VFIO_DEVICE_GET_INFO": Struct(
        Layout(
            "vfio_device_info",
            argsz=decimal,
            flags=out(flags("VFIO_DEVICE_FLAGS_")),
            num_regions=out(decimal),
            num_irqs=out(decimal),
            cap_offset=out(decimal),
        ),
        returned=chain(choice("VFIO_DEVICE_INFO_CAP_"), {}),
    ),
    "VFIO_DEVICE_GET_REGION_INFO": Struct(
        Layout(
            "vfio_region_info",
            argsz=decimal,
            flags=out(flags("VFIO_REGION_INFO_FLAG_")),
            index=REGION_INDEX,
            cap_offset=out(decimal),
            size=out(hexadecimal),
            offset=out(hexadecimal),
        ),
        returned=chain(choice("VFIO_REGION_INFO_CAP_"), _REGION_CAPABILITIES),
    ),
    "VFIO_DEVICE_GET_IRQ_INFO": Struct(
        Layout(
            "vfio_irq_info",
            argsz=decimal,
            flags=out(flags("VFIO_IRQ_INFO_")),
            index=IRQ_INDEX,
            count=out(decimal),
        )
    ),
    "VFIO_DEVICE_SET_IRQS": Struct(_IRQ_SET, given=_irq_data),
    "VFIO_DEVICE_RESET": Nothing(),
    "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO": Struct(_HOT_RESET_INFO, returned=_dependents),
    "VFIO_DEVICE_PCI_HOT_RESET": Struct(_HOT_RESET, given=_groups),
    "VFIO_DEVICE_QUERY_GFX_PLANE": Struct(
        Layout(
            "vfio_device_gfx_plane_info",
            argsz=decimal,
            flags=flags("VFIO_GFX_PLANE_TYPE_"),
            drm_plane_type=decimal,
            drm_format=out(fourcc),
            drm_format_mod=out(hexadecimal),
            **dict.fromkeys(("width", "height", "stride", "size"), out(decimal)),
            **dict.fromkeys(("x_pos", "y_pos", "x_hot", "y_hot", "region_index"), out(decimal)),
        ),
        answers=_plane_asked,
    ),
    "VFIO_DEVICE_GET_GFX_DMABUF": PointedInteger("dmabuf_id"),
    "VFIO_DEVICE_IOEVENTFD": Struct(
        Layout(
            "vfio_device_ioeventfd",
            argsz=decimal,
            flags=flags("VFIO_DEVICE_IOEVENTFD_"),
            offset=hexadecimal,
            data=hexadecimal,
            fd=decimal,
        )
    ),
    "VFIO_DEVICE_FEATURE": Struct(
        Layout("vfio_device_feature", argsz=decimal, flags=feature_flags),
        given=feature_given,
        returned=feature_returned,
    ),
    "VFIO_DEVICE_BIND_IOMMUFD": Struct(
        Layout(
            "vfio_device_bind_iommufd",
            argsz=decimal,
            flags=flags("VFIO_DEVICE_BIND_FLAG_"),
            iommufd=decimal,
            out_devid=out(decimal),
            token_uuid_ptr=pointer,
        )
    ),
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT": Struct(
        Layout(
            "vfio_device_attach_iommufd_pt",
            argsz=decimal,
            flags=flags("VFIO_DEVICE_ATTACH_"),
            pt_id=both(decimal),
            pasid=decimal,
        )
    ),
    "VFIO_DEVICE_DETACH_IOMMUFD_PT": Struct(
        Layout(
            "vfio_device_detach_iommufd_pt",
            argsz=decimal,
            flags=flags("VFIO_DEVICE_DETACH_"),
            pasid=decimal,
        )
    ),
    **dict.fromkeys(
        (
            *("VFIO_MIG_GET_PRECOPY_INFO", "VFIO_IOMMU_SPAPR_TCE_GET_INFO", "VFIO_EEH_PE_OP"),
            *("VFIO_IOMMU_SPAPR_REGISTER_MEMORY", "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY"),
            *("VFIO_IOMMU_SPAPR_TCE_CREATE", "VFIO_IOMMU_SPAPR_TCE_REMOVE"),
        ),
        _ADDRESS,  # of other machines, or of files that no lab has
    ),
}
"""By name: how the argument is explained."""
