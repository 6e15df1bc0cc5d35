# SPDX-License-Identifier: Apache-2.0
"""Models that are not this project's: those of a lab file's own, and of installed packages.

Their code can change while a lab runs (devmodel.lifecycle.renewal), so nothing may rely on it.
State: none.
"""

import sys

from devmodel.device.pci import PciDevice

_OTHERS = frozenset({"devmodel", "vfsfuse", *sys.stdlib_module_names})


def is_own(model: type[PciDevice] | None) -> bool:
    """Whether code of somebody else is in a model: its class, or one that it derives from. Any thread."""
    return model is not None and any(
        str(each.__module__).partition(".")[0] not in _OTHERS for each in type.mro(model)
    )
