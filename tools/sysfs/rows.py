# SPDX-License-Identifier: Apache-2.0
"""The rows of docs/sysfs.md, from the classes of directories, the skeleton, the models and `places`.

A class whose docstring begins with a path is documented: its rows are its members, without those of bases
that are documented themselves.  State: none, constant.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from devmodel.models.registry import MODELS, PHYSICAL
from tools.sysfs.places import DIRECTORY, LINK, MACHINES, OF_A_LAB_WITH_INTERFACES, PLACES, WORDS
from vfsfuse.kernfs.kobject import Kobject, Member
from vfsfuse.kernfs.members import Attribute, BinaryMember, LinkMember, SnapshotMember, WaitingStore
from vfsfuse.sysfs.skeleton import SKELETON, Skeleton
from vfsfuse.views import labview

PATH = re.compile(r"(?P<path>(?:sys|<\w+>)(?:/\S+)?): (?P<what>.+)")
"""The first sentence of a documented class."""
ROOTS = (labview,)
"""Modules whose import brings all classes of directories."""


@dataclass(frozen=True, slots=True)
class Row:
    """A file, link or directory: `kind` is as a Place's, `model` the model that has it, `place` whether
    `tools.sysfs.places` declares it."""

    path: str
    kind: str
    reading: str
    writing: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A directory: its path, what it is, the path of the directory whose files it has as well, and rows."""

    path: str
    what: str
    besides: str
    rows: tuple[Row, ...]


def classes(base: type[Kobject] = Kobject) -> Iterator[type[Kobject]]:
    """The classes of directories, without those that tests and models make."""
    for each in base.__subclasses__():
        if each.__module__.startswith("vfsfuse.") and each.__doc__ is not None:
            yield each
        yield from classes(each)


def path_of(cls: type) -> re.Match[str] | None:
    """The path and the sentence that the docstring of a documented class begins with."""
    return PATH.match(" ".join((cls.__doc__ or "").split("\n\n", 1)[0].split()))


def kind_of(member: Member) -> str:
    """LINK, or the mode."""
    if isinstance(member, LinkMember):
        return LINK
    if isinstance(member, Attribute | BinaryMember | WaitingStore):
        return f"{member.mode:04o}"
    if isinstance(member, SnapshotMember):
        return "0444"
    raise TypeError(f"{type(member).__name__} is a kind of member that docs/sysfs.md does not know")


def members_of(cls: type[Kobject]) -> Iterator[Member]:
    """Its members, without those of documented bases."""
    above = {
        id(member) for base in cls.__mro__[1:] if path_of(base) for member in getattr(base, "members", ())
    }
    return (member for member in cls.members if id(member) not in above)


def section(cls: type[Kobject], found: re.Match[str]) -> Section:
    """The section of a documented class."""
    bases = (path_of(base) for base in cls.__mro__[1:])
    besides = next((base for base in bases if base is not None), None)
    path = found["path"]
    rows = numbered(
        [
            Row(f"{path}/{member.name}", kind_of(member), member.doc, member.store_doc)
            for member in members_of(cls)
            if not member.directory  # it is documented by a class of its own
        ]
    )
    what = found["what"].split(". ")[0].rstrip(".")
    return Section(path, what, f"{besides['path']}: {besides['what']}" if besides else "", rows)


def numbered(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows, with one for all that differ in a digit of their name alone: `resource<N>`."""
    general = [replace(row, path=re.sub(r"\d(?=[^/]*$)", "<N>", row.path)) for row in rows]
    return tuple(
        dict.fromkeys(
            each if general.count(each) > 1 else row for row, each in zip(rows, general, strict=True)
        )
    )


@cache
def sections() -> tuple[Section, ...]:
    """The sections of documented classes, without empty ones."""
    assert ROOTS
    found = ((cls, path_of(cls)) for cls in dict.fromkeys(classes()))
    made = (section(cls, path) for cls, path in found if path is not None)
    return tuple(sorted((each for each in made if each.rows), key=lambda each: each.path))


def of_models() -> Iterator[Row]:
    """The attributes that models declare."""
    for name, model in {**PHYSICAL, **MODELS}.items():
        yield from numbered(
            [
                Row(
                    f"<device>/{each.name}",
                    "0644" if each.store else "0444",
                    each.doc,
                    each.store_doc,
                    name,
                )
                for each in model.ATTRIBUTES
            ]
        )


def of_the_machine(skeleton: Skeleton = SKELETON, above: str = "") -> Iterator[Row]:
    """The directories that `vfsfuse run` fills."""
    for name, what in skeleton.items():
        if what is ...:
            path = f"{above}{name}"
            yield Row(path, DIRECTORY, OF_A_LAB_WITH_INTERFACES.get(path, MACHINES))
        elif isinstance(what, Mapping):
            yield from of_the_machine(what, f"{above}{name}/")


def of_places() -> Iterator[Row]:
    """The entries that no class declares."""
    yield from (Row(each.path, each.kind, each.reading, each.writing) for each in PLACES)


def all_rows() -> tuple[Row, ...]:
    """Every row of the document."""
    return (
        *of_places(),
        *of_the_machine(),
        *(row for each in sections() for row in each.rows),
        *of_models(),
    )


@cache
def pattern(path: str) -> re.Pattern[str]:
    """What the paths of a row look like in a mount."""
    return re.compile(_expanded(path))


def _expanded(path: str) -> str:
    parts = re.split(r"<(\w+)>", path)
    literal = [re.escape(part) if index % 2 == 0 else _meaning(part) for index, part in enumerate(parts)]
    return "".join(literal)


def _meaning(word: str) -> str:
    return re.sub(r"<(\w+)>", lambda inner: _meaning(inner[1]), WORDS[word].pattern)


def above(path: str) -> Iterator[str]:
    """The paths of the directories that a row is in."""
    while "/" in path:
        path = path.rsplit("/", 1)[0]
        yield path


def kind_of_file(mode: int) -> str:
    """The kind of an entry of a mount, from its st_mode."""
    if stat.S_ISDIR(mode):
        return DIRECTORY
    return LINK if stat.S_ISLNK(mode) else f"{stat.S_IMODE(mode):04o}"
