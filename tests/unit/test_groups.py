# SPDX-License-Identifier: Apache-2.0
"""Directories that classes declare: attribute groups, their numbers, and what the kernel is told of them."""

from __future__ import annotations

import errno
import os
import stat
import sys

import pytest

from ioctl_shim.lanefile import InodeAttr
from tests.unit.fakes import fails
from vfsfuse.kernfs.bundle import Bundle, Part, Plan
from vfsfuse.kernfs.groups import AttributeGroup, Below, Group
from vfsfuse.kernfs.inodes import Inodes
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.kernfs.members import Attribute, attribute
from vfsfuse.kernfs.root import set_for, settings_of
from vfsfuse.kernfs.tree import Tree


class Gears(AttributeGroup):
    """A group."""

    __slots__ = ()

    @attribute(0o644)
    def gear(self) -> str:
        return settings_of(self).get("gear", "neutral")

    @gear.store
    def _store_gear(self, text: str) -> None:
        set_for(self, "gear", text)

    @attribute(when=lambda self: self.owner.turbo)
    def boost(self) -> str:
        return str(self.owner.name)


class Engine(Kobject):
    """A directory with two groups of the same class, and a member with a name that is in them too."""

    __slots__ = ("turbo",)

    def __init__(self, name: str = "engine", turbo: bool = True) -> None:
        super().__init__(name)
        self.turbo = turbo

    front = Group("front", Gears)

    @attribute()
    def gear(self) -> str:
        return "none"

    rear = Group("rear", Gears, when=lambda self: self.turbo)


class Truck(Engine):
    """Numbers everything anew, with a directory that is an entry of its own."""

    __slots__ = ("load",)

    stat_ns = 0

    def __init__(self) -> None:
        super().__init__("truck")
        self.load: Kobject | None = None

    @attribute()
    def beds(self) -> int:
        return 2

    trailer = Below("trailer", lambda self: self.load)


@pytest.fixture
def inodes() -> Inodes:
    return Inodes(Tree(), 60, 0, 0, waits=False)


def find(inodes: Inodes, directory: int, *names: str) -> InodeAttr:
    for name in names:
        found = inodes.lookup(directory, name.encode())
        directory = found[0]
    return found


def everything(inodes: Inodes, inode: int) -> dict[str, int]:
    """The inode number of each path below a directory, as listings and lookups show them."""
    seen: dict[str, int] = {}
    directory = inodes.tree.directory(inode)
    for each in directory.entries():
        listed = inodes.listed(directory, each)
        assert listed is not None
        name, attr = listed
        assert inodes.lookup(inode, os.fsencode(name))[0] == attr[0]
        seen[name] = attr[0]
        if stat.S_ISDIR(attr[1]):
            seen |= {f"{name}/{below}": number for below, number in everything(inodes, attr[0]).items()}
    return seen


def test_a_group_is_a_directory_with_its_members(inodes: Inodes) -> None:
    engine = inodes.tree.add(inodes.tree.root, Engine())
    seen = everything(inodes, engine.inode)
    assert sorted(seen) == sorted(
        ["front", "front/boost", "front/gear", "gear", "rear", "rear/boost", "rear/gear"]
    )
    assert len({*seen.values(), engine.inode}) == 8
    for path, inode in seen.items():
        where, member = inodes.tree.locate(inode)
        assert where.path == (f"engine/{path}" if member is None else os.path.dirname(f"engine/{path}"))
        assert member is None or member.name == os.path.basename(path)
        assert stat.S_ISDIR(inodes.stat(inode)[1]) is (member is None)
    assert everything(inodes, seen["front"]) == {"gear": seen["front/gear"], "boost": seen["front/boost"]}


def test_the_directory_above_counts_the_groups_that_are_there(inodes: Inodes) -> None:
    engine = inodes.tree.add(inodes.tree.root, Engine(turbo=False))
    assert inodes.stat(engine.inode)[2] == 3 and "rear" not in everything(inodes, engine.inode)
    fails(errno.ENOENT, inodes.lookup, engine.inode, b"rear")
    engine.turbo = True
    assert inodes.stat(engine.inode)[2] == 4
    rear = find(inodes, engine.inode, "rear")
    boost = find(inodes, rear[0], "boost")[0]
    engine.turbo = False
    fails(errno.ENOENT, inodes.stat, rear[0])
    fails(errno.ENODEV, inodes.tree.locate, boost)


def test_members_of_a_group_know_where_they_are(inodes: Inodes) -> None:
    engine = inodes.tree.add(inodes.tree.root, Engine())
    where, boost = inodes.tree.locate(find(inodes, engine.inode, "rear", "boost")[0])
    assert isinstance(boost, Attribute) and boost.read(where) == b"engine\n"
    assert inodes.tree.directory(where.inode).path == "engine/rear"
    fails(errno.ENOTDIR, inodes.tree.directory, find(inodes, engine.inode, "rear", "gear")[0])


def test_settings_stay_until_the_directory_goes(inodes: Inodes) -> None:
    tree = inodes.tree
    engine, other = tree.add(tree.root, Engine()), tree.add(tree.root, Engine("other"))
    where, gear = tree.locate(find(inodes, engine.inode, "front", "gear")[0])
    assert isinstance(gear, Attribute)
    gear.write(where, b"first\n")
    elsewhere, _ = tree.locate(find(inodes, other.inode, "front", "gear")[0])
    assert (gear.read(where), gear.read(elsewhere)) == (b"first\n", b"neutral\n")
    gear.write(elsewhere, b"second\n")
    tree.remove(engine)
    assert tree.root.settings == {other.number: {"gear": "second"}}
    fails(errno.ENOENT, tree.directory, where.inode)


def test_an_entry_of_its_own_comes_and_goes_unasked(inodes: Inodes) -> None:
    truck, load = inodes.tree.add(inodes.tree.root, Truck()), Engine("trailer")
    assert "trailer" not in everything(inodes, truck.inode)
    inodes.tree.adopt(load)
    load.parent, truck.load = truck, load
    seen = everything(inodes, truck.inode)
    assert seen["trailer"] == load.inode and seen["trailer/front/gear"] != seen["front/gear"]
    assert len(set(seen.values())) == len(seen)
    assert inodes.stat(truck.inode)[2] == 5
    *_, kept, named = find(inodes, truck.inode, "trailer")
    assert (kept, named) == (60 * 10**9, 0)
    assert inodes.stat(truck.inode)[-2] == 0  # its stat changes unasked, too


def test_groups_of_a_bundles_directory_are_made_when_somebody_looks(inodes: Inodes) -> None:
    tree = inodes.tree
    own = Part(tree.root, lambda device: "truck", lambda bundle: Engine("truck"), directory=True)
    bundle = Bundle("truck", Plan(own))
    tree.show(bundle)
    before = sys.getsizeof(bundle)
    top = find(inodes, tree.root.inode, "truck")[0]
    seen = everything(inodes, top)
    assert seen == everything(inodes, top) and inodes.stat(top)[2] == 4
    front = tree.directory(seen["front"])
    assert not tree.directory(top).children and tree.directory(front.inode).path == "truck/front"
    assert sys.getsizeof(bundle) == before
    tree.withdraw(bundle)
    for path, inode in seen.items():
        fails(errno.ENOENT if path in ("front", "rear") else errno.ENODEV, tree.locate, inode)
    assert not tree.knows(front)


class Gearbox(AttributeGroup):
    """A group with groups in it, the second of which comes and goes."""

    __slots__ = ()
    first = Group("first", Gears)

    @attribute()
    def oil(self) -> str:
        return str(self.path)

    second = Group("second", Gears, when=lambda self: self.owner.turbo)


class Chassis(AttributeGroup):
    __slots__ = ()
    gearbox = Group("gearbox", Gearbox)


class Van(Kobject):
    """A directory with groups three deep, before and behind other members."""

    __slots__ = ("turbo",)

    def __init__(self, turbo: bool) -> None:
        super().__init__("van")
        self.turbo = turbo

    @attribute()
    def seats(self) -> int:
        return 3

    chassis = Group("chassis", Chassis)

    @attribute()
    def wheels(self) -> int:
        return 4


SECOND = ["second", "second/boost", "second/gear"]
BOX = ["first", "first/boost", "first/gear", "oil", *SECOND]


def test_groups_are_in_one_another(inodes: Inodes) -> None:
    van = inodes.tree.add(inodes.tree.root, Van(turbo=True))
    seen = everything(inodes, van.inode)
    inside = ["chassis", "chassis/gearbox", *(f"chassis/gearbox/{name}" for name in BOX)]
    assert sorted(seen) == sorted([*inside, "seats", "wheels"])
    assert len({*seen.values(), van.inode}) == len(seen) + 1
    for path, inode in seen.items():
        where, member = inodes.tree.locate(inode)
        assert where.path == (f"van/{path}" if member is None else os.path.dirname(f"van/{path}"))
        assert (inodes.stat(inode)[0], where.holder) == (inode, van)
    links = {path: inodes.stat(seen[path])[2] for path in seen if stat.S_ISDIR(inodes.stat(seen[path])[1])}
    assert links == {
        "chassis": 3,
        "chassis/gearbox": 4,
        "chassis/gearbox/first": 2,
        "chassis/gearbox/second": 2,
    }
    for path, count in links.items():  # a lookup says the same as a stat
        above = seen.get(os.path.dirname(path), van.inode)
        assert find(inodes, above, os.path.basename(path))[2] == count


def test_a_group_in_a_group_comes_and_goes(inodes: Inodes) -> None:
    van = inodes.tree.add(inodes.tree.root, Van(turbo=True))
    box = find(inodes, van.inode, "chassis", "gearbox")[0]
    second, gear = (find(inodes, box, *names)[0] for names in (["second"], ["second", "gear"]))
    van.turbo = False
    assert "second" not in everything(inodes, box) and inodes.stat(box)[2] == 3
    fails(errno.ENOENT, inodes.lookup, box, b"second")
    fails(errno.ENOENT, inodes.stat, second)
    fails(errno.ENODEV, inodes.tree.locate, gear)


def test_groups_a_hundred_deep_cost_a_hundred_numbers() -> None:
    kind: type[AttributeGroup] = Gears
    for depth in range(100):
        kind = type(f"Deep{depth}", (AttributeGroup,), {"__slots__": (), "inner": Group("inner", kind)})
    deep: type[Kobject] = type("Deep", (Kobject,), {"__slots__": (), "inner": Group("inner", kind)})
    assert len(deep.numbered) == 103


def test_a_group_has_no_entries_in_it() -> None:
    class Deep(AttributeGroup):
        __slots__ = ()
        trailer = Below("trailer", lambda self: None)

    with pytest.raises(TypeError, match="no groups"):
        Group("deep", Deep)
