# SPDX-License-Identifier: Apache-2.0
"""A model under other ids: a class that is the same device, and says that it is another one.

State: the classes that were made, each once. Reading a lab file makes them. Source: PCI 3.0 chapter 6.2
(vendor and device id, class code, subsystem ids).
"""

from collections.abc import Mapping
from dataclasses import replace

from devmodel.device.pci import PciDevice

IDS = ("vendor", "device", "subsystem_vendor", "subsystem_device", "class_code", "revision")
"""The fields of an identity that may be changed."""


_made: dict[tuple[type[PciDevice], tuple[tuple[str, int], ...]], type[PciDevice]] = {}


def with_ids(model: type[PciDevice], ids: Mapping[str, int]) -> type[PciDevice]:
    """``model`` with other values for some of :data:`IDS`. The same class for the same ids."""
    if not ids:
        return model
    key = model, tuple(sorted(ids.items()))
    if key not in _made:
        members = {"__slots__": (), "identity": replace(model.identity, **ids)}
        _made[key] = type(model.__name__, (model,), members)
    return _made[key]
