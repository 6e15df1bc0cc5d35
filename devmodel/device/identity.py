# SPDX-License-Identifier: Apache-2.0
"""A model under other ids: a class that is the same device, and says that it is another one.

State: the classes that were made, each once (:mod:`devmodel.memo`). Reading a lab file makes them. Source:
PCI 3.0 chapter 6.2 (vendor and device id, class code, subsystem ids).
"""

from collections.abc import Mapping
from dataclasses import replace

from devmodel.device.pci import PciDevice
from devmodel.memo import memoized

IDS = ("vendor", "device", "subsystem_vendor", "subsystem_device", "class_code", "revision")
"""The fields of an identity that may be changed."""


def with_ids(model: type[PciDevice], ids: Mapping[str, int]) -> type[PciDevice]:
    """``model`` with other values for some of :data:`IDS`. The same class for the same ids."""
    return _made(model, tuple(sorted(ids.items()))) if ids else model


@memoized()
def _made(model: type[PciDevice], ids: tuple[tuple[str, int], ...]) -> type[PciDevice]:
    return type(model.__name__, (model,), {"__slots__": (), "identity": replace(model.identity, **dict(ids))})
