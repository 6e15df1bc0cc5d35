# SPDX-License-Identifier: Apache-2.0
"""Members of kobject classes: how they are declared, inherited and numbered, and what the kernel hears."""

from __future__ import annotations

import errno
import stat

import pytest

from ioctl_shim.lane import Opened, OpenRequest
from tests.unit.fakes import fails
from vfsfuse.kernfs.kobject import LINGER_NS, Entry, Kobject
from vfsfuse.kernfs.members import (
    Attribute,
    BinaryMember,
    attribute,
    binary,
    link,
    snapshot,
    store_only,
    waiting_store,
)
from vfsfuse.kernfs.tree import Tree


class Weighed(Kobject):
    """An attribute group."""

    __slots__ = ()
    weight: int

    @attribute(optional=True)
    def grams(self) -> int:
        return self.weight

    @attribute()
    def unit(self) -> str:
        return "g"

    @binary(0o640, lambda self: self.weight or None)
    def raw(self, request: OpenRequest) -> Opened:
        raise OSError(errno.EIO, "nothing in it")


def _shape(number: int) -> Attribute:
    """A generated attribute."""
    return Attribute(f"shape{number}", 0o444, lambda self: number)


class Coloured(Kobject):
    """Another one."""

    __slots__ = ()

    @attribute(name="class", of_driver=True)
    def kind(self) -> str:
        return "toy"

    shape0, shape1 = _shape(0), _shape(1)


class Toy(Weighed, Coloured):
    """A directory with members of both groups and its own."""

    __slots__ = ("bound", "owner", "weight")

    def __init__(self, weight: int) -> None:
        super().__init__("toy")
        self.weight, self.owner, self.bound = weight, "", False

    @attribute(0o644)
    def name_of_owner(self) -> str:
        return self.owner

    @name_of_owner.store
    def _store_owner(self, text: str) -> None:
        if not text:
            raise ValueError("nobody")
        self.owner = text

    @attribute()
    def unit(self) -> str:
        return "kg"

    @store_only(when=lambda self: self.bound, of_driver=True)
    def throw(self, text: str) -> None:
        raise OSError(errno.EPERM, text)

    @waiting_store(when=lambda self: self.bound, of_driver=True)
    async def wait(self, text: str) -> None: ...

    @link(of_driver=True)
    def driver(self) -> Entry | None:
        return self if self.bound else None

    @snapshot("toy.png", when=lambda self: self.weight > 1)
    def picture(self) -> bytes:
        return b"png"


OF_DRIVER = ["class", "driver", "throw", "wait"]
ALWAYS = ["class", "name_of_owner", "shape0", "shape1", "unit"]


def present(toy: Toy) -> list[str]:
    return sorted(member.name for member in toy.members if member.present(toy))


@pytest.fixture
def tree() -> Tree:
    return Tree()


def test_a_class_has_its_members_and_those_of_its_bases() -> None:
    assert present(Toy(0)) == ALWAYS
    assert present(Toy(2)) == sorted([*ALWAYS, "grams", "raw", "toy.png"])
    bound = Toy(0)
    bound.bound = True
    assert present(bound) == sorted({*ALWAYS, *OF_DRIVER})


def test_a_member_replaces_one_of_its_name_in_a_base() -> None:
    unit = Toy.by_name["unit"]
    assert isinstance(unit, Attribute) and unit.read(Toy(1)) == b"kg\n"
    assert len(Toy.members) == len(Toy.by_name) == 11


def test_every_member_has_a_number_of_its_own(tree: Tree) -> None:
    toy = tree.add(tree.root, Toy(2))
    inodes = {member.inode(toy) for member in toy.members}
    assert len(inodes) == len(toy.members) and toy.inode not in inodes
    for member in toy.members:
        if member.present(toy):
            assert tree.locate(member.inode(toy)) == (toy, member)
        else:
            fails(errno.ENOENT if member.name == "driver" else errno.ENODEV, tree.locate, member.inode(toy))


def test_stat_shows_how_a_member_was_declared(tree: Tree) -> None:
    toy = tree.add(tree.root, Toy(7))
    toy.bound = True
    modes = {member.name: oct(member.stat(toy).mode) for member in toy.members}
    file, symlink = stat.S_IFREG, stat.S_IFLNK
    assert modes["name_of_owner"] == oct(file | 0o644) and modes["class"] == oct(file | 0o444)
    assert modes["throw"] == modes["wait"] == oct(file | 0o200)
    assert modes["driver"] == oct(symlink | 0o777) and modes["toy.png"] == oct(file | 0o444)
    raw = Toy.by_name["raw"]
    assert isinstance(raw, BinaryMember) and raw.stat(toy)[:2] == (file | 0o640, 7)


def test_an_attribute_shows_and_stores_text() -> None:
    toy, owner = Toy(1), Toy.by_name["name_of_owner"]
    assert isinstance(owner, Attribute) and owner.read(toy) == b""
    assert owner.write(toy, b"ann\n") == 4 and owner.read(toy) == b"ann\n"
    fails(errno.EINVAL, owner.write, toy, b"\n")
    throw, shape = Toy.by_name["throw"], Toy.by_name["shape1"]
    assert isinstance(throw, Attribute) and isinstance(shape, Attribute)
    fails(errno.EIO, throw.read, toy)
    fails(errno.EPERM, throw.write, toy, b"it")
    assert shape.read(toy) == b"1\n"
    fails(errno.EIO, shape.write, toy, b"2")


def test_the_kernel_caches_members_that_come_and_go_with_a_driver_for_a_short_time(tree: Tree) -> None:
    toy = tree.add(tree.root, Toy(1))
    assert sorted(name for name, member in Toy.by_name.items() if member.name_ns == LINGER_NS) == OF_DRIVER
    assert not tree.take_changes().lingers
    tree.driver_left(toy)
    assert tree.take_changes().lingers


def test_a_class_has_no_more_members_than_there_are_numbers() -> None:
    many = {f"a{n}": Attribute(f"a{n}", 0o444, str) for n in range(256)}
    with pytest.raises(TypeError, match="too many members"):
        type("Many", (Kobject,), many)
    del many["a0"]
    most: type[Kobject] = type("Most", (Kobject,), many)
    assert len(most.members) == 255
