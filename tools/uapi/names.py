# SPDX-License-Identifier: Apache-2.0
"""What include/uapi/linux/vfio.h of Linux 7.0 names beside its ioctls (those are ioctl_shim.abi.ROWS): every
flag, capability, feature, index and constant, and what becomes of it here.  docs/vfio.md is generated from
both.

State: none, constant.
"""

from __future__ import annotations

from collections.abc import Mapping

from tools.uapi.device import DEVICE_TOPICS
from tools.uapi.states import NO_EXTENSION, NO_MDEV, POWER, WORKS, Topic, each

TOPICS: tuple[Topic, ...] = (
    Topic(
        "Numbers",
        each(WORKS, "VFIO_API_VERSION", "VFIO_TYPE", "VFIO_BASE"),
    ),
    Topic(
        "Extensions, for CHECK_EXTENSION and SET_IOMMU",
        {
            **each(WORKS, "VFIO_TYPE1_IOMMU", "VFIO_TYPE1v2_IOMMU", "VFIO_DMA_CC_IOMMU", "VFIO_UNMAP_ALL"),
            "VFIO_UPDATE_VADDR": NO_MDEV,
            "VFIO_NOIOMMU_IOMMU": f"{WORKS} while enable_unsafe_noiommu_mode is Y",
            **each(NO_EXTENSION, "VFIO_SPAPR_TCE_IOMMU", "VFIO_SPAPR_TCE_v2_IOMMU", "VFIO_EEH"),
            "__VFIO_RESERVED_TYPE1_NESTING_IOMMU": f"{NO_EXTENSION}, as in the kernel since 6.12",
        },
    ),
    Topic(
        "VFIO_GROUP_GET_STATUS",
        each(WORKS, "VFIO_GROUP_FLAGS_VIABLE", "VFIO_GROUP_FLAGS_CONTAINER_SET"),
    ),
    *DEVICE_TOPICS,
    Topic(
        "VFIO_IOMMU_GET_INFO",
        {
            **each(WORKS, "VFIO_IOMMU_INFO_PGSIZES", "VFIO_IOMMU_INFO_CAPS"),
            "VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE": f"{WORKS}; not for mediated devices alone",
            **each(WORKS, "VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION", "VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL"),
        },
    ),
    Topic(
        "VFIO_IOMMU_MAP_DMA and VFIO_IOMMU_UNMAP_DMA",
        {
            **each(WORKS, "VFIO_DMA_MAP_FLAG_READ", "VFIO_DMA_MAP_FLAG_WRITE"),
            "VFIO_DMA_MAP_FLAG_VADDR": NO_MDEV,
            **each(WORKS, "VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP", "VFIO_DMA_UNMAP_FLAG_ALL"),
            "VFIO_DMA_UNMAP_FLAG_VADDR": NO_MDEV,
        },
    ),
    Topic(
        "VFIO_IOMMU_DIRTY_PAGES",
        each(
            WORKS,
            *("VFIO_IOMMU_DIRTY_PAGES_FLAG_START", "VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP"),
            "VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP",
        ),
    ),
    Topic(
        "sPAPR TCE and EEH",
        each(
            POWER,
            *(
                "VFIO_IOMMU_SPAPR_INFO_DDW",
                "VFIO_EEH_PE_DISABLE",
                "VFIO_EEH_PE_ENABLE",
                "VFIO_EEH_PE_UNFREEZE_IO",
            ),
            *("VFIO_EEH_PE_UNFREEZE_DMA", "VFIO_EEH_PE_GET_STATE", "VFIO_EEH_PE_STATE_NORMAL"),
            *("VFIO_EEH_PE_STATE_RESET", "VFIO_EEH_PE_STATE_STOPPED", "VFIO_EEH_PE_STATE_STOPPED_DMA"),
            *("VFIO_EEH_PE_STATE_UNAVAIL", "VFIO_EEH_PE_RESET_DEACTIVATE", "VFIO_EEH_PE_RESET_HOT"),
            *("VFIO_EEH_PE_RESET_FUNDAMENTAL", "VFIO_EEH_PE_CONFIGURE", "VFIO_EEH_PE_INJECT_ERR"),
        ),
    ),
)

FORMER_NAMES: Mapping[str, str] = {"VFIO_TYPE1_NESTING_IOMMU": "__VFIO_RESERVED_TYPE1_NESTING_IOMMU"}
"""Names of older headers, and what they became."""
