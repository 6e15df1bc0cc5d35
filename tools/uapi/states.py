# SPDX-License-Identifier: Apache-2.0
"""What becomes here of a name of <linux/vfio.h>: the words of docs/vfio.md.  State: none, constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WORKS = "works"
NEVER = "never set"
"""A flag of an answer that no device here has reason to set."""
EINVAL, ENOTTY = "refuses with EINVAL", "refuses with ENOTTY"
NO_EXTENSION = "refuses: CHECK_EXTENSION says 0, SET_IOMMU is ENODEV"
NO_MDEV = f"{WORKS} without mediated devices in the container, as in the kernel"
ONLY = "not of this file"
POWER = f"{ONLY}: a POWER IOMMU's, which SET_IOMMU never makes"
OTHER_BUS = f"{NEVER}: all devices are PCI functions"
OTHER_MACHINE = f"{NEVER}: of another machine, or deprecated"
MIGRATES = f"{WORKS} on devices whose model migrates; other devices refuse with ENOTTY"
NO_PRECOPY = f"{ENOTTY}: no device copies its state while it runs, nor logs its DMA"
DISPLAY = f"{WORKS} on displays; other devices refuse with ENOTTY"


@dataclass(frozen=True, slots=True)
class Topic:
    """Names that belong together, each with what becomes of it."""

    title: str
    names: Mapping[str, str]


def each(state: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, state)
