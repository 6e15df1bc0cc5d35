# SPDX-License-Identifier: Apache-2.0
"""All that a device model needs, in one place: docs/models.md explains it, examples/copier.py uses it."""

from devmodel.device.attribute import DeviceAttribute
from devmodel.device.migration import Migrates
from devmodel.device.options import Option, TextOption
from devmodel.device.pci import DeviceRegion, PciDevice
from devmodel.iommu.api import DmaFault, PageResponse, Prot
from devmodel.iommu.dmaspace import Pin
from devmodel.pci.capability import (
    Capability,
    ExtendedCapability,
    address_translation,
    msi,
    msix,
    page_requests,
    power_management,
    vendor,
)
from devmodel.pci.express import LinkSpeed, express
from devmodel.pci.fields import Bar, Identity
from devmodel.pci.msix import MsixBar
from devmodel.region.region import Memory, Region, Rom
from devmodel.region.registers import Layout, Register, Registers

__all__ = [
    "Bar",
    "Capability",
    "DeviceAttribute",
    "DeviceRegion",
    "DmaFault",
    "ExtendedCapability",
    "Identity",
    "Layout",
    "LinkSpeed",
    "Memory",
    "Migrates",
    "MsixBar",
    "Option",
    "PageResponse",
    "PciDevice",
    "Pin",
    "Prot",
    "Region",
    "Register",
    "Registers",
    "Rom",
    "TextOption",
    "address_translation",
    "express",
    "msi",
    "msix",
    "page_requests",
    "power_management",
    "vendor",
]
