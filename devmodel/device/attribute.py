# SPDX-License-Identifier: Apache-2.0
"""Attributes that a device model adds to the directory of its device in sysfs.

State: none, they are declarations. Source: Documentation/filesystems/sysfs.rst.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAME_MAX = 255
"""The most bytes that a name has (limits.h)."""
MOST_NAMES = 128
"""How many attributes a model may have, with the directories that they are in."""


@dataclass(frozen=True, slots=True)
class DeviceAttribute:
    """A file ``name`` below the device's directory. It can be read, and written if there is a ``store``.

    A ``name`` with slashes is a file in a directory: "stats/engine/busy" makes ``stats`` and ``engine``. A
    directory is there while one of its files is.
    ``show`` and ``store`` are called with the device, on the trio thread, without the device's lock. ``show``
    returns the value, and a newline is added. ``store`` gets the text that was written, without its newline,
    and raises ValueError for an invalid one (EINVAL). An ``OSError`` of either is the client's errno.
    ``when`` tells from the device's options whether the file is there; without it the file always is.
    ``doc`` says what reading gives, ``store_doc`` what writing does: docs/sysfs.md shows those of the models
    that ship with vfsfuse.
    """

    name: str
    show: Callable[[Any], object]
    store: Callable[[Any, str], object] | None = None
    when: Callable[[Mapping[str, int]], bool] | None = None
    doc: str = ""
    store_doc: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        """The directories that it is in, and the name of the file."""
        return tuple(self.name.split("/"))


def check_attributes(attributes: Sequence[DeviceAttribute]) -> None:
    """Raise ValueError, with a remedy, unless these can be the files of one directory. Any thread."""
    files: set[tuple[str, ...]] = set()
    directories: dict[tuple[str, ...], str] = {}
    for each in attributes:
        if not isinstance(each, DeviceAttribute):
            raise ValueError(f"a {type(each).__name__} is among the attributes (use DeviceAttribute)")
        if wrong := "; ".join(_faults(each.name)):
            raise ValueError(f"the attribute {each.name!r} cannot be a file: {wrong}")
        if each.path in files:
            raise ValueError(f"there are two attributes {each.name!r} (rename one)")
        files.add(each.path)
        directories |= {each.path[:depth]: each.name for depth in range(1, len(each.path))}
    for path in files & directories.keys():
        raise ValueError(
            f"the attribute {'/'.join(path)!r} is a file, and the directory of {directories[path]!r} "
            "(rename one)"
        )
    if len(files) + len(directories) > MOST_NAMES:
        raise ValueError(
            f"{len(files)} attributes in {len(directories)} directories are more than {MOST_NAMES} names "
            "(declare fewer)"
        )


def _faults(name: object) -> Iterator[str]:
    """What is wrong with the name of an attribute, each with a remedy."""
    if not isinstance(name, str) or not name:
        yield "its name is no text (give it a name)"
        return
    if name.startswith("/"):
        yield "a name begins at the device's directory (leave out the slash before it)"
    for part in name.removeprefix("/").split("/"):
        if not part:
            yield "a directory or a file has no name (write one slash between two names)"
        elif part in (".", ".."):
            yield f"{part!r} is no name (name the directories below the device's)"
        elif "\0" in part or not part.isprintable():
            yield f"{part!r} has characters that cannot be shown (use letters, digits, '_' and '-')"
        elif len(part.encode(errors="replace")) > NAME_MAX:
            yield f"a name has more than {NAME_MAX} bytes (choose a shorter one)"
