# SPDX-License-Identifier: Apache-2.0
"""What include/uapi/linux/iommufd.h of Linux 7.3 names, and what becomes of it here.  docs/iommufd.md is
generated from this and from the rows of ioctl_shim.abi.

To say what becomes of an ioctl: its line in IOCTLS or CONTAINER.  Of a flag or a constant: its line in the
topic of its ioctl.  Then `python -m tools.iommufd_table`.

State: none, constant.
"""

from __future__ import annotations

from collections.abc import Mapping

from tools.uapi.states import WORKS, Topic, each

EINVAL, ENOENT, EOPNOTSUPP = (f"refuses with {name}" for name in ("EINVAL", "ENOENT", "EOPNOTSUPP"))
NO_VIOMMU = f"{ENOENT}: no IOMMU here has a virtual one, so there is no object to name"
NO_NESTING = f"{EOPNOTSUPP}: the IOMMU of a lab has no page tables of a guest"
UNDER_RUN = f"works under `vfsfuse run`; on the bare mount {EOPNOTSUPP}"
OTHER_IOMMU = "never: of another IOMMU than a lab's"
MAPPINGS = "more than 262,144 mappings of one open are ENOMEM"

IOCTLS: Mapping[str, str] = {
    "IOMMU_DESTROY": WORKS,
    "IOMMU_IOAS_ALLOC": f"{WORKS}; more than 4,096 objects of one open are ENOMEM",
    "IOMMU_IOAS_ALLOW_IOVAS": f"{WORKS}; more than 4096 ranges are ENOMEM",
    "IOMMU_IOAS_COPY": f"{WORKS}; {MAPPINGS}",
    "IOMMU_IOAS_IOVA_RANGES": WORKS,
    "IOMMU_IOAS_MAP": f"{WORKS}; {MAPPINGS}; pins of private memory are as for VFIO_IOMMU_MAP_DMA in "
    "[vfio.md](vfio.md)",
    "IOMMU_IOAS_UNMAP": WORKS,
    "IOMMU_OPTION": WORKS,
    "IOMMU_VFIO_IOAS": WORKS,
    "IOMMU_HWPT_ALLOC": f"{WORKS} on an IOAS; on an HWPT {EOPNOTSUPP}, or EINVAL if it comes with data: the "
    "IOMMU of a lab has no page tables of a guest",
    "IOMMU_GET_HW_INFO": WORKS,
    "IOMMU_HWPT_SET_DIRTY_TRACKING": f"{WORKS} on an HWPT with DIRTY_TRACKING; on others {EOPNOTSUPP}",
    "IOMMU_HWPT_GET_DIRTY_BITMAP": f"{WORKS} on an HWPT with DIRTY_TRACKING; on others {EOPNOTSUPP}",
    "IOMMU_HWPT_INVALIDATE": f"{EINVAL}: no HWPT is a guest's",
    "IOMMU_FAULT_QUEUE_ALLOC": UNDER_RUN,
    "IOMMU_IOAS_MAP_FILE": f"{WORKS}; {MAPPINGS}; so are more than 256 files. Writes to a file that is "
    "sealed against them, or not open for them, are EPERM",
    "IOMMU_VIOMMU_ALLOC": f"{EOPNOTSUPP}: no IOMMU of a lab has a virtual one",
    "IOMMU_VDEVICE_ALLOC": NO_VIOMMU,
    "IOMMU_IOAS_CHANGE_PROCESS": WORKS,
    "IOMMU_VEVENTQ_ALLOC": NO_VIOMMU,
    "IOMMU_HW_QUEUE_ALLOC": NO_VIOMMU,
    "IOMMU_IOAS_NOIOMMU_GET_PA": f"{WORKS} where a function without an IOMMU is attached. The address "
    "is the iova, because such a function of a lab finds the page there. Without one the ioctl "
    f"{EOPNOTSUPP}",
}

CONTAINER: Mapping[str, str] = {
    "VFIO_GET_API_VERSION": WORKS,
    "VFIO_CHECK_EXTENSION": f"{WORKS}: TYPE1, TYPE1v2, NOIOMMU, UNMAP_ALL, DMA_CC; others are 0",
    "VFIO_SET_IOMMU": f"{WORKS}; TYPE1 turns huge pages off",
    "VFIO_IOMMU_GET_INFO": f"{WORKS}, with the capabilities DMA_AVAIL and IOVA_RANGE",
    "VFIO_IOMMU_MAP_DMA": f"{WORKS}; the flag VADDR is EINVAL",
    "VFIO_IOMMU_UNMAP_DMA": f"{WORKS}; the flags GET_DIRTY_BITMAP and VADDR are EINVAL",
}
"""Of the ioctls of containers that dev/iommu answers.  All others are ENOTTY."""

_COMMANDS = (
    *("BASE", "DESTROY", "IOAS_ALLOC", "IOAS_ALLOW_IOVAS", "IOAS_COPY", "IOAS_IOVA_RANGES", "IOAS_MAP"),
    *("IOAS_UNMAP", "OPTION", "VFIO_IOAS", "HWPT_ALLOC", "GET_HW_INFO", "HWPT_SET_DIRTY_TRACKING"),
    *("HWPT_GET_DIRTY_BITMAP", "HWPT_INVALIDATE", "FAULT_QUEUE_ALLOC", "IOAS_MAP_FILE", "VIOMMU_ALLOC"),
    *("VDEVICE_ALLOC", "IOAS_CHANGE_PROCESS", "VEVENTQ_ALLOC", "HW_QUEUE_ALLOC", "IOAS_NOIOMMU_GET_PA"),
)

TOPICS: tuple[Topic, ...] = (
    Topic("Numbers", each(WORKS, "IOMMUFD_TYPE", *(f"IOMMUFD_CMD_{name}" for name in _COMMANDS))),
    Topic(
        "IOMMU_IOAS_MAP, IOMMU_IOAS_MAP_FILE and IOMMU_IOAS_COPY",
        each(WORKS, "IOMMU_IOAS_MAP_FIXED_IOVA", "IOMMU_IOAS_MAP_WRITEABLE", "IOMMU_IOAS_MAP_READABLE"),
    ),
    Topic(
        "IOMMU_OPTION",
        {
            "IOMMU_OPTION_RLIMIT_MODE": f"{WORKS}: 0 charges users for pinned pages, 1 processes",
            "IOMMU_OPTION_HUGE_PAGES": f"{WORKS}: iovas are of whole pages while it is 0",
            **each(WORKS, "IOMMU_OPTION_OP_SET", "IOMMU_OPTION_OP_GET"),
        },
    ),
    Topic(
        "IOMMU_VFIO_IOAS",
        each(WORKS, "IOMMU_VFIO_IOAS_GET", "IOMMU_VFIO_IOAS_SET", "IOMMU_VFIO_IOAS_CLEAR"),
    ),
    Topic(
        "IOMMU_HWPT_ALLOC",
        {
            "IOMMU_HWPT_ALLOC_NEST_PARENT": NO_NESTING,
            "IOMMU_HWPT_ALLOC_DIRTY_TRACKING": f"{WORKS}, unless the lab file switches it off",
            "IOMMU_HWPT_FAULT_ID_VALID": f"{WORKS}; functions that cannot ask for pages attach with ENODEV, "
            "virtual functions of one that can with EINVAL",
            "IOMMU_HWPT_ALLOC_PASID": f"{WORKS}, and changes nothing: no device of a lab has PASIDs",
            "IOMMU_HWPT_DATA_NONE": WORKS,
            **each(
                NO_NESTING,
                *("IOMMU_HWPT_DATA_VTD_S1", "IOMMU_HWPT_DATA_ARM_SMMUV3", "IOMMU_HWPT_DATA_AMD_GUEST"),
                *("IOMMU_VTD_S1_SRE", "IOMMU_VTD_S1_EAFE", "IOMMU_VTD_S1_WPE"),
            ),
        },
    ),
    Topic(
        "IOMMU_GET_HW_INFO",
        {
            **each(WORKS, "IOMMU_HW_INFO_FLAG_INPUT_TYPE"),
            **each(WORKS, "IOMMU_HW_INFO_TYPE_NONE", "IOMMU_HW_INFO_TYPE_DEFAULT"),
            "IOMMU_HW_INFO_TYPE_INTEL_VTD": f"{WORKS} where the lab file says so ([lab.md](lab.md))",
            "IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17": "never: the unit has no errata",
            **each(
                OTHER_IOMMU,
                *("IOMMU_HW_INFO_TYPE_ARM_SMMUV3", "IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI"),
                *("IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV", "IOMMU_HW_INFO_TYPE_AMD"),
            ),
            "IOMMU_HW_CAP_DIRTY_TRACKING": f"{WORKS}, unless the lab file switches it off",
            **each(
                "never: no device of a lab has PASIDs",
                *("IOMMU_HW_CAP_PCI_PASID_EXEC", "IOMMU_HW_CAP_PCI_PASID_PRIV"),
            ),
            "IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED": f"{WORKS}: set unless the lab file switches page requests "
            "on and the function has ATS",
        },
    ),
    Topic(
        "IOMMU_HWPT_SET_DIRTY_TRACKING and IOMMU_HWPT_GET_DIRTY_BITMAP",
        each(WORKS, "IOMMU_HWPT_DIRTY_TRACKING_ENABLE", "IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR"),
    ),
    Topic(
        "IOMMU_HWPT_INVALIDATE",
        each(
            f"{EINVAL}: no HWPT is a guest's",
            *("IOMMU_HWPT_INVALIDATE_DATA_VTD_S1", "IOMMU_VTD_INV_FLAGS_LEAF"),
            "IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3",
        ),
    ),
    Topic(
        "IOMMU_FAULT_QUEUE_ALLOC",
        {
            **each(
                WORKS,
                *("IOMMU_PGFAULT_FLAGS_LAST_PAGE", "IOMMU_PGFAULT_PERM_READ", "IOMMU_PGFAULT_PERM_WRITE"),
                *("IOMMUFD_PAGE_RESP_SUCCESS", "IOMMUFD_PAGE_RESP_INVALID"),
            ),
            **each(
                "never: no device of a lab has PASIDs",
                *("IOMMU_PGFAULT_FLAGS_PASID_VALID", "IOMMU_PGFAULT_PERM_EXEC", "IOMMU_PGFAULT_PERM_PRIV"),
            ),
        },
    ),
    Topic(
        "IOMMU_VIOMMU_ALLOC, IOMMU_VEVENTQ_ALLOC and IOMMU_HW_QUEUE_ALLOC",
        {
            **each(
                f"{EOPNOTSUPP}: no IOMMU of a lab has a virtual one",
                *("IOMMU_VIOMMU_TYPE_DEFAULT", "IOMMU_VIOMMU_TYPE_ARM_SMMUV3"),
                "IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV",
            ),
            **each(EOPNOTSUPP, "IOMMU_VEVENTQ_TYPE_DEFAULT", "IOMMU_HW_QUEUE_TYPE_DEFAULT"),
            **each(
                NO_VIOMMU,
                *("IOMMU_VEVENTQ_TYPE_ARM_SMMUV3", "IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV"),
                *("IOMMU_VEVENTQ_FLAG_LOST_EVENTS", "IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV"),
            ),
        },
    ),
)
