# SPDX-License-Identifier: Apache-2.0
"""What include/uapi/linux/vfio.h of Linux 7.0 names for the ioctls of devices; part of tools.uapi.names.

State: none, constant.
"""

from __future__ import annotations

from tools.uapi.states import (
    DISPLAY,
    EINVAL,
    ENOTTY,
    MIGRATES,
    NEVER,
    NO_PRECOPY,
    OTHER_BUS,
    OTHER_MACHINE,
    WORKS,
    Topic,
    each,
)

_PASID = "refuses with EOPNOTSUPP: no device has PASIDs"

DEVICE_TOPICS: tuple[Topic, ...] = (
    Topic(
        "VFIO_DEVICE_GET_INFO",
        {
            **each(WORKS, "VFIO_DEVICE_FLAGS_RESET", "VFIO_DEVICE_FLAGS_PCI"),
            **each(
                OTHER_BUS,
                *("VFIO_DEVICE_FLAGS_PLATFORM", "VFIO_DEVICE_FLAGS_AMBA", "VFIO_DEVICE_FLAGS_CCW"),
                *("VFIO_DEVICE_FLAGS_AP", "VFIO_DEVICE_FLAGS_FSL_MC", "VFIO_DEVICE_FLAGS_CDX"),
            ),
            "VFIO_DEVICE_FLAGS_CAPS": f"{NEVER}: there is no capability to report",
            **each(
                OTHER_MACHINE,
                *("VFIO_DEVICE_INFO_CAP_ZPCI_BASE", "VFIO_DEVICE_INFO_CAP_ZPCI_GROUP"),
                *("VFIO_DEVICE_INFO_CAP_ZPCI_UTIL", "VFIO_DEVICE_INFO_CAP_ZPCI_PFIP"),
            ),
            **each(
                f"{NEVER}: no root port completes AtomicOps",
                *("VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP", "VFIO_PCI_ATOMIC_COMP32"),
                *("VFIO_PCI_ATOMIC_COMP64", "VFIO_PCI_ATOMIC_COMP128"),
            ),
            "VFIO_DEVICE_API_PCI_STRING": WORKS,
            **each(
                OTHER_BUS,
                *("VFIO_DEVICE_API_PLATFORM_STRING", "VFIO_DEVICE_API_AMBA_STRING"),
                *("VFIO_DEVICE_API_CCW_STRING", "VFIO_DEVICE_API_AP_STRING"),
            ),
        },
    ),
    Topic(
        "VFIO_DEVICE_GET_REGION_INFO",
        {
            **each(WORKS, "VFIO_REGION_INFO_FLAG_READ", "VFIO_REGION_INFO_FLAG_WRITE"),
            "VFIO_REGION_INFO_FLAG_MMAP": f"{WORKS} where the kernel lets memory be mapped (root,"
            " Linux 6.9); not for a BAR above 0 whose `resource<N>` was in use when the device was opened",
            **each(
                WORKS,
                *("VFIO_REGION_INFO_FLAG_CAPS", "VFIO_REGION_INFO_CAP_SPARSE_MMAP"),
                *("VFIO_REGION_INFO_CAP_TYPE", "VFIO_REGION_INFO_CAP_MSIX_MAPPABLE"),
            ),
            **each(
                OTHER_MACHINE,
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
            **each(
                f"{NEVER}: a model may declare such a region, and none does for now",
                *("VFIO_REGION_TYPE_PCI_VENDOR_TYPE", "VFIO_REGION_TYPE_PCI_VENDOR_MASK"),
            ),
            **each(
                f"{WORKS}; mbochs has such a region",
                *("VFIO_REGION_TYPE_GFX", "VFIO_REGION_SUBTYPE_GFX_EDID"),
                *("VFIO_DEVICE_GFX_LINK_STATE_UP", "VFIO_DEVICE_GFX_LINK_STATE_DOWN"),
            ),
            **each(
                WORKS,
                *(f"VFIO_PCI_BAR{bar}_REGION_INDEX" for bar in range(6)),
                *("VFIO_PCI_ROM_REGION_INDEX", "VFIO_PCI_CONFIG_REGION_INDEX", "VFIO_PCI_NUM_REGIONS"),
            ),
            "VFIO_PCI_VGA_REGION_INDEX": f"{EINVAL}: no model has legacy VGA ranges",
            **each(OTHER_BUS, "VFIO_CCW_CONFIG_REGION_INDEX", "VFIO_CCW_NUM_REGIONS"),
        },
    ),
    Topic(
        "VFIO_DEVICE_GET_IRQ_INFO",
        {
            **each(
                WORKS,
                *("VFIO_IRQ_INFO_EVENTFD", "VFIO_IRQ_INFO_MASKABLE", "VFIO_IRQ_INFO_AUTOMASKED"),
                *("VFIO_IRQ_INFO_NORESIZE", "VFIO_PCI_INTX_IRQ_INDEX", "VFIO_PCI_MSI_IRQ_INDEX"),
                *("VFIO_PCI_MSIX_IRQ_INDEX", "VFIO_PCI_REQ_IRQ_INDEX", "VFIO_PCI_NUM_IRQS"),
            ),
            "VFIO_PCI_ERR_IRQ_INDEX": f"{WORKS} on PCI Express functions, else {EINVAL}, as vfio-pci's",
            **each(
                OTHER_BUS,
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
        each(
            WORKS,
            *("VFIO_IRQ_SET_DATA_NONE", "VFIO_IRQ_SET_DATA_BOOL", "VFIO_IRQ_SET_DATA_EVENTFD"),
            *("VFIO_IRQ_SET_ACTION_MASK", "VFIO_IRQ_SET_ACTION_UNMASK", "VFIO_IRQ_SET_ACTION_TRIGGER"),
            *("VFIO_IRQ_SET_DATA_TYPE_MASK", "VFIO_IRQ_SET_ACTION_TYPE_MASK"),
        ),
    ),
    Topic(
        "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
        each(
            WORKS,
            *("VFIO_PCI_DEVID_OWNED", "VFIO_PCI_DEVID_NOT_OWNED", "VFIO_PCI_HOT_RESET_FLAG_DEV_ID"),
            "VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED",
        ),
    ),
    Topic(
        "VFIO_DEVICE_QUERY_GFX_PLANE",
        {
            "VFIO_GFX_PLANE_TYPE_PROBE": DISPLAY,
            "VFIO_GFX_PLANE_TYPE_REGION": f"{DISPLAY}; the probe says so where memory can be mapped",
            "VFIO_GFX_PLANE_TYPE_DMABUF": f"{EINVAL}: a dma-buf is the kernel's to make",
        },
    ),
    Topic(
        "VFIO_DEVICE_IOEVENTFD",
        each(
            f"{WORKS} on physical functions",
            *("VFIO_DEVICE_IOEVENTFD_8", "VFIO_DEVICE_IOEVENTFD_16", "VFIO_DEVICE_IOEVENTFD_32"),
            *("VFIO_DEVICE_IOEVENTFD_64", "VFIO_DEVICE_IOEVENTFD_SIZE_MASK"),
        ),
    ),
    Topic(
        "VFIO_DEVICE_FEATURE",
        {
            **each(
                WORKS,
                *("VFIO_DEVICE_FEATURE_MASK", "VFIO_DEVICE_FEATURE_GET", "VFIO_DEVICE_FEATURE_SET"),
                "VFIO_DEVICE_FEATURE_PROBE",
            ),
            "VFIO_DEVICE_FEATURE_PCI_VF_TOKEN": f"{WORKS} on physical functions with SR-IOV",
            **each(
                f"{WORKS} on physical functions",
                *("VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY", "VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP"),
                "VFIO_DEVICE_FEATURE_LOW_POWER_EXIT",
            ),
            **each(
                MIGRATES,
                *("VFIO_DEVICE_FEATURE_MIGRATION", "VFIO_MIGRATION_STOP_COPY", "VFIO_DEVICE_STATE_ERROR"),
                *("VFIO_DEVICE_STATE_STOP", "VFIO_DEVICE_STATE_RUNNING"),
            ),
            **each(
                f"{MIGRATES}. A change to STOP_COPY or RESUMING gives a descriptor, so it works under "
                "`vfsfuse run`; on the bare mount it is EOPNOTSUPP",
                *("VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE", "VFIO_DEVICE_STATE_STOP_COPY"),
                "VFIO_DEVICE_STATE_RESUMING",
            ),
            **each(
                f"{EINVAL}: no model has this state",
                *("VFIO_DEVICE_STATE_RUNNING_P2P", "VFIO_DEVICE_STATE_PRE_COPY"),
                *("VFIO_DEVICE_STATE_PRE_COPY_P2P", "VFIO_DEVICE_STATE_NR"),
            ),
            **each(
                NO_PRECOPY,
                *("VFIO_MIGRATION_P2P", "VFIO_MIGRATION_PRE_COPY", "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE"),
                *("VFIO_DEVICE_FEATURE_DMA_LOGGING_START", "VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP"),
                *("VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT", "VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2"),
            ),
            **each(
                f"{ENOTTY}: not of PCI devices",
                *("VFIO_DEVICE_FEATURE_BUS_MASTER", "VFIO_DEVICE_FEATURE_CLEAR_MASTER"),
                "VFIO_DEVICE_FEATURE_SET_MASTER",
            ),
            "VFIO_DEVICE_FEATURE_DMA_BUF": f"{ENOTTY}: a dma-buf is the kernel's to make",
            "VFIO_DEVICE_FEATURE_ZPCI_ERROR": f"{ENOTTY}: of another machine",
        },
    ),
    Topic(
        "The iommufd interface of devices",
        {
            "VFIO_DEVICE_BIND_FLAG_TOKEN": f"{WORKS} on functions; a mediated device refuses with EINVAL",
            **each(_PASID, "VFIO_DEVICE_ATTACH_PASID", "VFIO_DEVICE_DETACH_PASID"),
        },
    ),
)
