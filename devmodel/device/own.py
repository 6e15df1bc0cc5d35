# SPDX-License-Identifier: Apache-2.0
"""Models that are not this project's: those of a lab file's own, and of installed packages.

Their code can change while a lab runs (devmodel.lifecycle.renewal), so nothing may rely on it.
State: none.
"""

from devmodel.device.pci import PciDevice

_PROJECT = frozenset({"devmodel", "vfsfuse", "builtins"})


def is_own(model: type[PciDevice] | None) -> bool:
    """Whether code of somebody else is in a model: its class, or one that it derives from. Any thread."""
    return model is not None and any(
        str(each.__module__).partition(".")[0] not in _PROJECT for each in type.mro(model)
    )
