# SPDX-License-Identifier: Apache-2.0
"""Offsets and bits of PCI configuration space, under their names in <linux/pci_regs.h> without the prefix.

State: none. Source: the PCI Local Bus Specification 3.0 chapter 6, <linux/pci_regs.h>, and for resource flags
Documentation/filesystems/sysfs-pci.rst.
"""

from enum import IntEnum, IntFlag

CFG_SPACE_SIZE = 256
CFG_SPACE_EXP_SIZE = 4096
STD_HEADER_SIZEOF = 64
STD_NUM_BARS = 6
ROM_BAR = 6
"""Index of the expansion ROM among the BARs, as VFIO numbers regions."""

ROM_ADDRESS_MASK = 0xFFFFF800
ROM_ADDRESS_ENABLE = 0x1
STATUS_INTERRUPT, STATUS_CAP_LIST = 0x08, 0x10
MSIX_ENTRY_SIZE = 16
EXP_FLAGS_VERS_2, EXP_TYPE_ENDPOINT, EXP_TYPE_RC_END, EXP_TYPE_RC_EC = 0x2, 0x0, 0x9, 0xA
EXP_TYPE_ROOT_PORT, EXP_TYPE_UPSTREAM, EXP_TYPE_DOWNSTREAM, EXP_TYPE_PCI_BRIDGE = 0x4, 0x5, 0x6, 0x7
EXP_DEVCAP, EXP_DEVCTL, EXP_LNKCAP, EXP_LNKSTA = 0x04, 0x08, 0x0C, 0x12
EXP_DEVCTL2, EXP_LNKCAP2 = 0x28, 0x2C
EXP_PAYLOAD_256B, EXP_DEVCAP_EXT_TAG, EXP_DEVCAP_RBER, EXP_DEVCAP_FLR = 0x1, 0x20, 0x8000, 0x1000_0000
EXP_DEVCTL_PAYLOAD, EXP_DEVCTL_PHANTOM, EXP_DEVCTL_READRQ = 0x00E0, 0x0200, 0x7000
EXP_DEVCTL_BCR_FLR, EXP_DEVCTL2_ARI = 0x8000, 0x0020
EXP_DEVCTL_WRITABLE = 0x79FF
"""All but the reset, phantom functions and auxiliary power, which no model has."""
EXP_DEVCTL_AS_LEFT = 0x2910
"""As firmware and the kernel leave it: relaxed ordering, extended tags, no snoop, reads of 512 bytes."""
EXP_LNKCAP_SLS, EXP_LNKCAP_MLW, EXP_LNKCAP2_SLS = 0x000F, 0x03F0, 0x00FE
EXP_LNKSTA_CLS, EXP_LNKSTA_NLW = 0x000F, 0x03F0
EXP_LNKCAP_ASPM_OPT, EXP_LNKSTA_SLC = 0x40_0000, 0x1000
EXP_LNKCTL_CCC, EXP_LNKCTL_WRITABLE = 0x0040, 0x00CB
EXP_DEVCAP2_COMP_TMOUT, EXP_DEVCAP2_10BIT_TAG, EXP_DEVCTL2_COMP_TMOUT = 0x1F, 0x1_0000, 0x001F
EXP_LNKCTL2_TLS, EXP_LNKSTA2_EQUALIZED = 0x000F, 0x001E
SRIOV_CTRL, SRIOV_INITIAL_VF, SRIOV_TOTAL_VF, SRIOV_NUM_VF = 0x08, 0x0C, 0x0E, 0x10
SRIOV_VF_OFFSET, SRIOV_VF_STRIDE, SRIOV_VF_DID, SRIOV_BAR = 0x14, 0x16, 0x1A, 0x24
ATS_CAP_PAGE_ALIGNED, ATS_CTRL_STU, ATS_CTRL_ENABLE = 0x20, 0x1F, 0x8000
PRI_CTRL_ENABLE, PRI_STATUS_STOPPED = 0x01, 0x100
SRIOV_CTRL_VFE, SRIOV_CTRL_MSE, SRIOV_CTRL_ARI = 0x01, 0x08, 0x10
MSI_FLAGS = 0x02
"""Of MSI and of MSI-X: where the control register is."""
MSI_ADDRESS_LO, MSI_DATA_64, MSI_MASK_64 = 0x04, 0x0C, 0x10
MSI_ENABLE, MSI_QSIZE, MSI_64BIT, MSI_MASKBIT = 0x0001, 0x0070, 0x0080, 0x0100
MSIX_QSIZE, MSIX_MASKALL, MSIX_ENABLE = 0x07FF, 0x4000, 0x8000
PM_PMC, PM_CAP_VER, PM_CAP_PME_MASK = 0x02, 0x0003, 0xF800
PM_CTRL, PM_CTRL_STATE_MASK, PM_CTRL_NO_SOFT_RESET = 0x04, 0x0003, 0x0008
PM_CTRL_STATE_D0, PM_CTRL_STATE_D3HOT, PM_CTRL_PME = 0x0000, 0x0003, 0x8100
AER_SEVERITY, AER_COR_MASK, AER_SIZE = 0x0046_2030, 0x2000, 0x48
AER_UNCOR_BITS, AER_COR_BITS = 0x07FF_F030, 0xF1C1
VPD_ADDR, VPD_DATA, VPD_ADDR_F, VPD_ADDR_MASK = 0x02, 0x04, 0x8000, 0x7FFF
HEADER_TYPE_MASK, HEADER_TYPE_MULTIFUNCTION = 0x7F, 0x80


class Reg(IntEnum):
    """Offsets in the type 0 header; those up to the header type and of the capabilities are in every one."""

    VENDOR_ID = 0x00
    DEVICE_ID = 0x02
    COMMAND = 0x04
    STATUS = 0x06
    CLASS_REVISION = 0x08
    CACHE_LINE_SIZE = 0x0C
    LATENCY_TIMER = 0x0D
    HEADER_TYPE = 0x0E
    BASE_ADDRESS_0 = 0x10
    SUBSYSTEM_VENDOR_ID = 0x2C
    SUBSYSTEM_ID = 0x2E
    ROM_ADDRESS = 0x30
    CAPABILITY_LIST = 0x34
    INTERRUPT_LINE = 0x3C
    INTERRUPT_PIN = 0x3D


class Command(IntFlag):
    """Bits of the command register."""

    IO = 0x1
    MEMORY = 0x2
    MASTER = 0x4
    PARITY = 0x40
    SERR = 0x100
    INTX_DISABLE = 0x400


class BaseAddress(IntFlag):
    """Low bits of a base address register."""

    SPACE_IO = 0x1
    MEM_TYPE_64 = 0x4
    MEM_PREFETCH = 0x8


class CapId(IntEnum):
    """Capability ids."""

    PM = 0x01
    VPD = 0x03
    MSI = 0x05
    VNDR = 0x09
    SSVID = 0x0D
    EXP = 0x10
    MSIX = 0x11


class ExtCapId(IntEnum):
    """Extended capability ids."""

    AER = 0x01
    DSN = 0x03
    VNDR = 0x0B
    ACS = 0x0D
    ARI = 0x0E
    ATS = 0x0F
    SRIOV = 0x10
    PRI = 0x13
    DVSEC = 0x23


class IoResource(IntFlag):
    """IORESOURCE_* flags of the kernel, which sysfs prints in ``resource``."""

    IO = 0x100
    MEM = 0x200
    PREFETCH = 0x2000
    READONLY = 0x4000
    SIZEALIGN = 0x40000
    MEM_64 = 0x100000
    UNSET = 0x20000000
