# SPDX-License-Identifier: Apache-2.0
"""All that a device model needs, in one place: docs/models.md explains it, examples/copier.py uses it."""

from devmodel.attribute import DeviceAttribute
from devmodel.capability import Capability, express, msi, msix, power_management, vendor
from devmodel.device import DeviceRegion, Option, PciDevice
from devmodel.iommu import DmaFault, Pin, Prot
from devmodel.msix import MsixBar
from devmodel.pci import Bar, Identity
from devmodel.region import Memory, Region, Rom
from devmodel.registers import Layout, Register, Registers

__all__ = [
    "Bar",
    "Capability",
    "DeviceAttribute",
    "DeviceRegion",
    "DmaFault",
    "Identity",
    "Layout",
    "Memory",
    "MsixBar",
    "Option",
    "PciDevice",
    "Pin",
    "Prot",
    "Region",
    "Register",
    "Registers",
    "Rom",
    "express",
    "msi",
    "msix",
    "power_management",
    "vendor",
]
