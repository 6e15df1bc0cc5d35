# SPDX-License-Identifier: Apache-2.0
"""Bundles: entries of a device that are made for each look, and yet are always the same to whoever looks."""

import errno
import stat
from dataclasses import dataclass

import pytest

from tests.unit.fakes import fails
from vfsfuse.kernfs.bundle import COLD_LOOKS, Bundle, Part, Plan, symlink_part
from vfsfuse.kernfs.inodes import Inodes
from vfsfuse.kernfs.kobject import LINGER_NS, Entry, Kobject, Symlink, relative
from vfsfuse.kernfs.members import attribute
from vfsfuse.kernfs.tree import MOST_MADE, Changes, IAttrs, Tree


@dataclass
class Toy:
    name: str


class ToyDir(Kobject):
    """The directory of a toy."""

    __slots__ = ("toy",)

    def __init__(self, toy: Toy) -> None:
        super().__init__(toy.name)
        self.toy = toy

    @attribute()
    def colour(self) -> str:
        return "red"


class Box:
    """A tree with toys: box/<toy>/parts/first, and class/<toy>, a symlink_part at the toy's directory."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.box, self.cls = self.tree.make("box"), self.tree.make("class")
        self.own = Part(lambda toy: self.box, _name, lambda bundle: ToyDir(bundle.device), directory=True)
        parts = Part(self.own, lambda toy: "parts", lambda bundle: Kobject("parts"), directory=True)
        first = Part(parts, lambda toy: "first", lambda bundle: Kobject("first"), directory=True)
        self.plan = Plan(self.own, parts, first, symlink_part(self.cls, _name, self.own))
        self.tree.take_changes()

    def add(self, name: str) -> Bundle:
        bundle = Bundle(Toy(name), self.plan)
        self.tree.show(bundle)
        return bundle

    def at(self, path: str) -> Entry:
        """What a client finds, one lookup a name."""
        here: Entry = self.tree.root
        for name in path.split("/"):
            found = self.tree.directory(here.inode).find(name)
            assert isinstance(found, Entry)
            here = found
        return here


def _name(toy: Toy) -> str:
    return toy.name


@pytest.fixture
def box() -> Box:
    return Box()


PATHS = ("box/bear", "box/bear/parts", "box/bear/parts/first", "class/bear")


@pytest.mark.parametrize("path", PATHS)
def test_an_entry_is_made_for_a_look_and_has_the_same_number_place_and_times(box: Box, path: str) -> None:
    bundle = box.add("bear")
    first, second = box.at(path), box.at(path)
    assert first is not second
    assert first.inode == second.inode and box.tree.locate(first.inode)[0].inode == first.inode
    assert first.path == second.path == path == box.tree.locate(first.inode)[0].path
    assert first.ctime_ns == second.ctime_ns == bundle.ctime_ns


def test_numbers_are_one_each(box: Box) -> None:
    for name in ("bear", "duck"):
        box.add(name)
    paths = [path.replace("bear", name) for name in ("bear", "duck") for path in PATHS]
    numbers = {box.at(path).inode for path in (*paths, "box", "class")}
    assert len(numbers) == len(paths) + 2


def test_members_of_an_entry_are_found_by_number(box: Box) -> None:
    box.add("bear")
    own = box.at("box/bear")
    assert isinstance(own, ToyDir)
    inode = ToyDir.by_name["colour"].inode(own)
    entry, member = box.tree.locate(inode)
    assert member is ToyDir.by_name["colour"] and entry.inode == own.inode
    assert stat.S_IMODE(box.tree.getattr(inode).stat.mode) == 0o444


def test_a_link_of_a_bundle_points_at_its_directory(box: Box) -> None:
    box.add("bear")
    found = box.at("class/bear")
    assert isinstance(found, Symlink)
    assert relative(found.parent, found.target) == "../box/bear"
    assert found.stat().size == 0


def test_directories_list_and_count_what_bundles_put_there(box: Box) -> None:
    bundles = [box.add(name) for name in ("bear", "duck")]
    assert [each.seen_in(box.box).name for each in (box.box.children or {}).values()] == ["bear", "duck"]
    assert (box.box.stat().nlink, box.cls.stat().nlink) == (4, 2)
    assert [box.at(path).stat().nlink for path in PATHS[:3]] == [3, 3, 2]
    box.tree.withdraw(bundles[0])
    assert (box.box.stat().nlink, list(box.box.children or {})) == (3, ["duck"])


def test_the_kernel_caches_no_name_of_a_bundle(box: Box) -> None:
    bundle = box.add("bear")
    shown = box.tree.take_changes()
    assert not shown.lingers and box.box.inode in shown.touched and box.cls.inode not in shown.touched
    assert [box.at(path).name_ns for path in PATHS] == [0] * len(PATHS)
    box.tree.withdraw(bundle)
    told = box.tree.take_changes()
    assert not told.lingers and box.box.inode in told.touched


def test_names_that_are_looked_up_again_and_again_are_cached_for_a_moment(box: Box) -> None:
    bundle = box.add("bear")
    inodes = Inodes(box.tree, 60.0, 0, 0, waits=False)
    looks = [inodes.lookup(box.box.inode, b"bear").name_ns for _ in range(COLD_LOOKS + 2)]
    assert looks == [0] * COLD_LOOKS + [LINGER_NS] * 2
    box.tree.withdraw(bundle)
    assert box.tree.take_changes().lingers


def test_names_of_devices_that_hardly_ever_go_are_cached_from_the_first_lookup_on(box: Box) -> None:
    box.plan.rare = True
    bundle = box.add("bear")
    inodes = Inodes(box.tree, 60.0, 0, 0, waits=False)
    assert not bundle.lingers
    assert inodes.lookup(box.box.inode, b"bear").name_ns == LINGER_NS
    box.tree.withdraw(bundle)
    assert box.tree.take_changes().lingers


def test_a_directory_that_is_looked_around_in_is_kept_until_something_changes(box: Box) -> None:
    bear, duck = box.add("bear"), box.add("duck")
    inode = box.at("box/bear").inode
    kept = box.tree.directory(inode)
    assert box.tree.directory(inode) is kept is box.tree.locate(inode)[0]
    box.tree.withdraw(duck)
    assert box.tree.directory(inode) is not kept
    box.tree.withdraw(bear)
    fails(errno.ENOENT, box.tree.directory, inode)


def test_few_directories_are_kept(box: Box) -> None:
    inodes = []
    for number in range(2 * MOST_MADE):
        box.add(str(number))
        inodes.append(box.at(f"box/{number}").inode)
    kept = [box.tree.directory(inode) for inode in inodes]
    again = [box.tree.directory(inode) for inode in inodes]
    assert not any(one is other for one, other in zip(kept, again, strict=True))
    assert [each.path for each in kept] == [each.path for each in again]


def test_what_was_withdrawn_is_gone_and_its_numbers_never_come_again(box: Box) -> None:
    first = box.add("bear")
    numbers = [box.at(path).inode for path in PATHS]
    box.tree.iattrs[numbers[0]] = IAttrs(0o700)
    box.tree.withdraw(first)
    box.tree.withdraw(first)
    assert not box.tree.knows(first) and not box.tree.iattrs
    for number in numbers:
        fails(errno.ENOENT, box.tree.locate, number)
    assert box.box.find("bear") is None and box.cls.find("bear") is None
    box.add("bear")
    assert not {box.at(path).inode for path in PATHS} & set(numbers)


def test_a_number_that_no_part_has_is_of_nothing(box: Box) -> None:
    bundle = box.add("bear")
    for part in range(len(PATHS), 16):
        fails(errno.ENOENT, box.tree.locate, ((bundle.block << 4 | part) << 8) + 1)


def test_a_device_that_goes_meanwhile_is_gone(box: Box) -> None:
    def lost(bundle: Bundle) -> Kobject:
        raise KeyError(bundle.device)

    bundle = Bundle(Toy("bear"), Plan(Part(box.box, _name, lost, directory=True)))
    box.tree.show(bundle)
    fails(errno.ENOENT, box.tree.locate, (bundle.block << 12) + 1)


def test_a_name_that_is_taken_leaves_nothing_of_a_bundle(box: Box) -> None:
    box.tree.add(box.cls, Kobject("bear"))
    box.tree.take_changes()
    fails(errno.EEXIST, box.add, "bear")
    assert box.box.find("bear") is None and box.box.stat().nlink == 2
    assert box.tree.take_changes() == Changes()


def test_a_directory_in_which_a_bundle_has_nothing(box: Box) -> None:
    bundle = box.add("bear")
    with pytest.raises(LookupError):
        bundle.seen_in(box.tree.root)
    with pytest.raises(LookupError):
        box.add("duck").seen_in(box.tree.directory(box.at("box/bear/parts/first").inode))


def test_a_plan_has_no_more_parts_than_numbers_and_one_in_a_directory(box: Box) -> None:
    parts = [symlink_part(Kobject(str(number)), _name, box.own) for number in range(17)]
    with pytest.raises(TypeError):
        Plan(*parts)
    with pytest.raises(TypeError):
        Plan(symlink_part(box.cls, _name, box.own), symlink_part(box.cls, lambda toy: "other", box.own))
