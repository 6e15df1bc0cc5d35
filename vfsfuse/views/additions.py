# SPDX-License-Identifier: Apache-2.0
"""Entries that are added to the tree together, and taken away together.  Trio thread."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

from vfsfuse.kernfs.bundle import Bundle
from vfsfuse.kernfs.kobject import LINGER_NS, Entry, Kobject
from vfsfuse.kernfs.tree import Tree

E = TypeVar("E", bound=Entry)


@dataclass(slots=True)
class Additions:
    """Adds entries to `tree`; closing `undo` takes them away again, those that were added last first."""

    tree: Tree
    undo: ExitStack

    def add(self, parent: Kobject, child: E) -> E:
        """Put `child` into `parent` and return it.  Raises OSError(EEXIST)."""
        child.name_ns = LINGER_NS
        self.tree.add(parent, child)
        self.undo.callback(self.tree.remove, child)
        return child

    def show(self, bundle: Bundle) -> None:
        """Show all entries of a device.  Raises OSError(EEXIST)."""
        self.tree.show(bundle)
        self.undo.callback(self.tree.withdraw, bundle)
