# SPDX-License-Identifier: Apache-2.0
"""The device models, by the name a lab file gives them.

State: the two tables, constant.
"""

from collections.abc import Mapping
from types import MappingProxyType

from devmodel.device.pci import PciDevice
from devmodel.models.gpu import PhysicalGpu, Vgpu
from devmodel.models.mbochs import Mbochs
from devmodel.models.mdpy import Mdpy
from devmodel.models.mtty import Mtty

# To add a model: CONTRIBUTING.md, "Adding a device model".
MODELS: Mapping[str, type[PciDevice]] = MappingProxyType(
    {"vgpu": Vgpu, "mtty": Mtty, "mdpy": Mdpy, "mbochs": Mbochs}
)
"""Models for types of vGPU."""

PHYSICAL: Mapping[str, type[PciDevice]] = MappingProxyType({"gpu": PhysicalGpu})
"""Models for physical functions, the parents of kind "gpu"."""
