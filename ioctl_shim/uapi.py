# SPDX-License-Identifier: Apache-2.0
"""What include/uapi/linux/vfio.h of Linux 7.0 names beside its ioctls (those are ioctl_shim.abi.ROWS): every
flag, capability, feature, index and constant, and what becomes of it here.  docs/vfio.md is generated from
both.

State: none, constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WORKS = "works"
NEVER = "never set"
"""A flag of an answer that no device here has reason to set."""
_EINVAL, _ENOTTY = "refuses with EINVAL", "refuses with ENOTTY"
_NO_EXTENSION = "refuses: CHECK_EXTENSION says 0, SET_IOMMU is ENODEV"
_NO_MDEV = f"{WORKS} without mediated devices in the container, as in the kernel"
_ONLY = "not of this file"
_POWER = f"{_ONLY}: a POWER IOMMU's, which SET_IOMMU never makes"
_OTHER_BUS = f"{NEVER}: all devices are PCI functions"
_OTHER_MACHINE = f"{NEVER}: of another machine, or deprecated"
_MIGRATION = f"{_ENOTTY}: no model migrates for now"
_IOMMUFD = f"{_ENOTTY}: devices are opened without iommufd for now"
_DISPLAY = f"{_ENOTTY}: no model offers its display for now"


@dataclass(frozen=True, slots=True)
class Topic:
    """Names that belong together, each with what becomes of it."""

    title: str
    names: Mapping[str, str]


def _all(state: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, state)


TOPICS: tuple[Topic, ...] = (
    Topic(
        "Numbers",
        _all(WORKS, "VFIO_API_VERSION", "VFIO_TYPE", "VFIO_BASE"),
    ),
    Topic(
        "Extensions, for CHECK_EXTENSION and SET_IOMMU",
        {
            **_all(WORKS, "VFIO_TYPE1_IOMMU", "VFIO_TYPE1v2_IOMMU", "VFIO_DMA_CC_IOMMU", "VFIO_UNMAP_ALL"),
            "VFIO_UPDATE_VADDR": _NO_MDEV,
            "VFIO_NOIOMMU_IOMMU": f"{WORKS} while enable_unsafe_noiommu_mode is Y",
            **_all(_NO_EXTENSION, "VFIO_SPAPR_TCE_IOMMU", "VFIO_SPAPR_TCE_v2_IOMMU", "VFIO_EEH"),
            "__VFIO_RESERVED_TYPE1_NESTING_IOMMU": f"{_NO_EXTENSION}, as in the kernel since 6.12",
        },
    ),
    Topic(
        "VFIO_GROUP_GET_STATUS",
        _all(WORKS, "VFIO_GROUP_FLAGS_VIABLE", "VFIO_GROUP_FLAGS_CONTAINER_SET"),
    ),
    Topic(
        "VFIO_DEVICE_GET_INFO",
        {
            **_all(WORKS, "VFIO_DEVICE_FLAGS_RESET", "VFIO_DEVICE_FLAGS_PCI"),
            **_all(
                _OTHER_BUS,
                *("VFIO_DEVICE_FLAGS_PLATFORM", "VFIO_DEVICE_FLAGS_AMBA", "VFIO_DEVICE_FLAGS_CCW"),
                *("VFIO_DEVICE_FLAGS_AP", "VFIO_DEVICE_FLAGS_FSL_MC", "VFIO_DEVICE_FLAGS_CDX"),
            ),
            "VFIO_DEVICE_FLAGS_CAPS": f"{NEVER}: there is no capability to report",
            **_all(
                _OTHER_MACHINE,
                *("VFIO_DEVICE_INFO_CAP_ZPCI_BASE", "VFIO_DEVICE_INFO_CAP_ZPCI_GROUP"),
                *("VFIO_DEVICE_INFO_CAP_ZPCI_UTIL", "VFIO_DEVICE_INFO_CAP_ZPCI_PFIP"),
            ),
            **_all(
                f"{NEVER}: no root port completes AtomicOps",
                *("VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP", "VFIO_PCI_ATOMIC_COMP32"),
                *("VFIO_PCI_ATOMIC_COMP64", "VFIO_PCI_ATOMIC_COMP128"),
            ),
            "VFIO_DEVICE_API_PCI_STRING": WORKS,
            **_all(
                _OTHER_BUS,
                *("VFIO_DEVICE_API_PLATFORM_STRING", "VFIO_DEVICE_API_AMBA_STRING"),
                *("VFIO_DEVICE_API_CCW_STRING", "VFIO_DEVICE_API_AP_STRING"),
            ),
        },
    ),
    Topic(
        "VFIO_DEVICE_GET_REGION_INFO",
        {
            **_all(WORKS, "VFIO_REGION_INFO_FLAG_READ", "VFIO_REGION_INFO_FLAG_WRITE"),
            "VFIO_REGION_INFO_FLAG_MMAP": f"{WORKS} where the kernel lets memory be mapped (root, Linux 6.9)",
            **_all(
                WORKS,
                *("VFIO_REGION_INFO_FLAG_CAPS", "VFIO_REGION_INFO_CAP_SPARSE_MMAP"),
                *("VFIO_REGION_INFO_CAP_TYPE", "VFIO_REGION_INFO_CAP_MSIX_MAPPABLE"),
            ),
            **_all(
                _OTHER_MACHINE,
                *("VFIO_REGION_INFO_CAP_NVLINK2_SSATGT", "VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD"),
                *("VFIO_REGION_SUBTYPE_NVIDIA_NVLINK2_RAM", "VFIO_REGION_SUBTYPE_IBM_NVLINK2_ATSD"),
                *(
                    "VFIO_REGION_TYPE_CCW",
                    "VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD",
                    "VFIO_REGION_SUBTYPE_CCW_SCHIB",
                ),
                *("VFIO_REGION_SUBTYPE_CCW_CRW", "VFIO_REGION_TYPE_MIGRATION_DEPRECATED"),
                *("VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED", "VFIO_DEVICE_STATE_V1_STOP"),
                *(
                    "VFIO_DEVICE_STATE_V1_RUNNING",
                    "VFIO_DEVICE_STATE_V1_SAVING",
                    "VFIO_DEVICE_STATE_V1_RESUMING",
                ),
                *("VFIO_DEVICE_STATE_MASK", "VFIO_DEVICE_STATE_VALID", "VFIO_DEVICE_STATE_IS_ERROR"),
                *("VFIO_DEVICE_STATE_SET_ERROR", "VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION"),
                *("VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG", "VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG"),
            ),
            **_all(
                f"{NEVER}: a model may declare such a region, and none does for now",
                *("VFIO_REGION_TYPE_PCI_VENDOR_TYPE", "VFIO_REGION_TYPE_PCI_VENDOR_MASK"),
                *("VFIO_REGION_TYPE_GFX", "VFIO_REGION_SUBTYPE_GFX_EDID"),
                *("VFIO_DEVICE_GFX_LINK_STATE_UP", "VFIO_DEVICE_GFX_LINK_STATE_DOWN"),
            ),
            **_all(
                WORKS,
                *(f"VFIO_PCI_BAR{bar}_REGION_INDEX" for bar in range(6)),
                *("VFIO_PCI_ROM_REGION_INDEX", "VFIO_PCI_CONFIG_REGION_INDEX", "VFIO_PCI_NUM_REGIONS"),
            ),
            "VFIO_PCI_VGA_REGION_INDEX": f"{_EINVAL}: no model has legacy VGA ranges",
            **_all(_OTHER_BUS, "VFIO_CCW_CONFIG_REGION_INDEX", "VFIO_CCW_NUM_REGIONS"),
        },
    ),
    Topic(
        "VFIO_DEVICE_GET_IRQ_INFO",
        {
            **_all(
                WORKS,
                *("VFIO_IRQ_INFO_EVENTFD", "VFIO_IRQ_INFO_MASKABLE", "VFIO_IRQ_INFO_AUTOMASKED"),
                *("VFIO_IRQ_INFO_NORESIZE", "VFIO_PCI_INTX_IRQ_INDEX", "VFIO_PCI_MSI_IRQ_INDEX"),
                *("VFIO_PCI_MSIX_IRQ_INDEX", "VFIO_PCI_REQ_IRQ_INDEX", "VFIO_PCI_NUM_IRQS"),
            ),
            "VFIO_PCI_ERR_IRQ_INDEX": f"{WORKS} on PCI Express functions, else {_EINVAL}, as vfio-pci's",
            **_all(
                _OTHER_BUS,
                *("VFIO_CCW_IO_IRQ_INDEX", "VFIO_CCW_CRW_IRQ_INDEX", "VFIO_CCW_REQ_IRQ_INDEX"),
                *(
                    "VFIO_CCW_NUM_IRQS",
                    "VFIO_AP_REQ_IRQ_INDEX",
                    "VFIO_AP_CFG_CHG_IRQ_INDEX",
                    "VFIO_AP_NUM_IRQS",
                ),
            ),
        },
    ),
    Topic(
        "VFIO_DEVICE_SET_IRQS",
        _all(
            WORKS,
            *("VFIO_IRQ_SET_DATA_NONE", "VFIO_IRQ_SET_DATA_BOOL", "VFIO_IRQ_SET_DATA_EVENTFD"),
            *("VFIO_IRQ_SET_ACTION_MASK", "VFIO_IRQ_SET_ACTION_UNMASK", "VFIO_IRQ_SET_ACTION_TRIGGER"),
            *("VFIO_IRQ_SET_DATA_TYPE_MASK", "VFIO_IRQ_SET_ACTION_TYPE_MASK"),
        ),
    ),
    Topic(
        "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
        _all(
            WORKS,
            *("VFIO_PCI_DEVID_OWNED", "VFIO_PCI_DEVID_NOT_OWNED", "VFIO_PCI_HOT_RESET_FLAG_DEV_ID"),
            "VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED",
        ),
    ),
    Topic(
        "VFIO_DEVICE_QUERY_GFX_PLANE",
        _all(
            _DISPLAY,
            *("VFIO_GFX_PLANE_TYPE_PROBE", "VFIO_GFX_PLANE_TYPE_DMABUF", "VFIO_GFX_PLANE_TYPE_REGION"),
        ),
    ),
    Topic(
        "VFIO_DEVICE_IOEVENTFD",
        _all(
            f"{WORKS} on physical functions",
            *("VFIO_DEVICE_IOEVENTFD_8", "VFIO_DEVICE_IOEVENTFD_16", "VFIO_DEVICE_IOEVENTFD_32"),
            *("VFIO_DEVICE_IOEVENTFD_64", "VFIO_DEVICE_IOEVENTFD_SIZE_MASK"),
        ),
    ),
    Topic(
        "VFIO_DEVICE_FEATURE",
        {
            **_all(
                WORKS,
                *("VFIO_DEVICE_FEATURE_MASK", "VFIO_DEVICE_FEATURE_GET", "VFIO_DEVICE_FEATURE_SET"),
                "VFIO_DEVICE_FEATURE_PROBE",
            ),
            "VFIO_DEVICE_FEATURE_PCI_VF_TOKEN": f"{_ENOTTY}, as without SR-IOV in the kernel",
            **_all(
                f"{WORKS} on physical functions",
                *("VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY", "VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP"),
                "VFIO_DEVICE_FEATURE_LOW_POWER_EXIT",
            ),
            **_all(
                _MIGRATION,
                *("VFIO_DEVICE_FEATURE_MIGRATION", "VFIO_MIGRATION_STOP_COPY", "VFIO_MIGRATION_P2P"),
                *(
                    "VFIO_MIGRATION_PRE_COPY",
                    "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE",
                    "VFIO_DEVICE_STATE_ERROR",
                ),
                *("VFIO_DEVICE_STATE_STOP", "VFIO_DEVICE_STATE_RUNNING", "VFIO_DEVICE_STATE_STOP_COPY"),
                *(
                    "VFIO_DEVICE_STATE_RESUMING",
                    "VFIO_DEVICE_STATE_RUNNING_P2P",
                    "VFIO_DEVICE_STATE_PRE_COPY",
                ),
                *(
                    "VFIO_DEVICE_STATE_PRE_COPY_P2P",
                    "VFIO_DEVICE_STATE_NR",
                    "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE",
                ),
                *("VFIO_DEVICE_FEATURE_DMA_LOGGING_START", "VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP"),
                *("VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT", "VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2"),
            ),
            **_all(
                f"{_ENOTTY}: not of PCI devices",
                *("VFIO_DEVICE_FEATURE_BUS_MASTER", "VFIO_DEVICE_FEATURE_CLEAR_MASTER"),
                "VFIO_DEVICE_FEATURE_SET_MASTER",
            ),
            "VFIO_DEVICE_FEATURE_DMA_BUF": f"{_ENOTTY}: a dma-buf is the kernel's to make",
            "VFIO_DEVICE_FEATURE_ZPCI_ERROR": f"{_ENOTTY}: of another machine",
        },
    ),
    Topic(
        "The iommufd interface of devices",
        _all(_IOMMUFD, "VFIO_DEVICE_BIND_FLAG_TOKEN", "VFIO_DEVICE_ATTACH_PASID", "VFIO_DEVICE_DETACH_PASID"),
    ),
    Topic(
        "VFIO_IOMMU_GET_INFO",
        {
            **_all(WORKS, "VFIO_IOMMU_INFO_PGSIZES", "VFIO_IOMMU_INFO_CAPS"),
            "VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE": f"{WORKS}; not for mediated devices alone",
            **_all(WORKS, "VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION", "VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL"),
        },
    ),
    Topic(
        "VFIO_IOMMU_MAP_DMA and VFIO_IOMMU_UNMAP_DMA",
        {
            **_all(WORKS, "VFIO_DMA_MAP_FLAG_READ", "VFIO_DMA_MAP_FLAG_WRITE"),
            "VFIO_DMA_MAP_FLAG_VADDR": _NO_MDEV,
            **_all(WORKS, "VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP", "VFIO_DMA_UNMAP_FLAG_ALL"),
            "VFIO_DMA_UNMAP_FLAG_VADDR": _NO_MDEV,
        },
    ),
    Topic(
        "VFIO_IOMMU_DIRTY_PAGES",
        _all(
            WORKS,
            *("VFIO_IOMMU_DIRTY_PAGES_FLAG_START", "VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP"),
            "VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP",
        ),
    ),
    Topic(
        "sPAPR TCE and EEH",
        _all(
            _POWER,
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
