# SPDX-License-Identifier: Apache-2.0
"""What all views share: directories that others point at, and entries that can be taken back."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from vfsfuse.kernfs.bundle import Bundle
from vfsfuse.kernfs.kobject import Entry, Kobject
from vfsfuse.kernfs.tree import Tree

K = TypeVar("K", bound=Entry)


@dataclass(slots=True)
class Places:
    """Directories that others point at."""

    mdev_bus: Kobject
    vfio_mdev: Kobject
    pci_bus: Kobject
    pci_drivers: dict[str, Kobject] = field(default_factory=dict)
    classes: dict[str, Kobject] = field(default_factory=dict)


@dataclass(slots=True)
class Putter:
    """Adds entries to the tree, and to `undo` what takes them away again, last first."""

    tree: Tree
    undo: ExitStack

    def __call__(self, parent: Kobject, child: K) -> K:
        self.tree.add(parent, child)
        self.undo.callback(self.tree.remove, child)
        return child

    def show(self, bundle: Bundle) -> None:
        """Let all of a device be seen."""
        self.tree.show(bundle)
        self.undo.callback(self.tree.withdraw, bundle)
