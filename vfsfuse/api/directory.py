# SPDX-License-Identifier: Apache-2.0
"""The base of the API's objects: a directory of a lab with attributes, and mappings of such objects by name.

They keep no state of the lab: every property asks it.  Any thread, as far as the lab itself stays mounted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from vfsfuse.api.files import Files

T = TypeVar("T")


class Directory:
    """A device of a lab, by its directory in sysfs."""

    def __init__(self, files: Files, path: Path) -> None:
        self._files = files
        self.path = path
        """The directory in the mount, without links in it."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.path.name

    def attribute(self, name: str) -> str:
        """The text of an attribute, without the newline at its end.  `name` may lead into a directory, as
        "power/control".  Raises OSError: ENOENT if there is none, and what its show() gives."""
        return self._files.text(self.path / name)

    def set(self, name: str, value: str | int) -> None:
        """Write to an attribute.  Raises OSError as the store does, with the errno and the path."""
        self._files.store(self.path / name, str(value))


class Named(Mapping[str, T]):
    """What a lab has now, by name.  Each use looks again."""

    def __init__(self, names: Callable[[], list[str]], find: Callable[[str], T | None], what: str) -> None:
        self._names, self._find, self._what = names, find, what

    def __getitem__(self, name: str) -> T:
        found = self._find(name)
        if found is None:
            there_is = ", ".join(self._names()) or "none"
            raise KeyError(f"there is no {self._what} {name} (there is {there_is})")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __repr__(self) -> str:
        return f"<{self._what}s {', '.join(self._names())}>"
