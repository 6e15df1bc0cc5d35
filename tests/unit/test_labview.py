# SPDX-License-Identifier: Apache-2.0
"""The tree of a lab: what a vGPU is seen by, what of it is kept, and that a failure leaves nothing."""

import errno
import gc
import os
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast
from uuid import UUID

import pytest

from devmodel.calls.point import CallPoint
from devmodel.lifecycle.mdev import Mdev, MdevType
from devmodel.lifecycle.spec import LabSpec, ParentSpec, TypeSpec
from devmodel.models.gpu import Vgpu
from ioctl_shim.lane import Opened, OpenRequest
from ioctl_shim.lanefile import LaneFile
from tests.unit.fakes import fails
from vfsfuse.kernfs.bundle import Bundle, Part, Plan
from vfsfuse.kernfs.kobject import DeviceNode, Entry, Kobject, Member
from vfsfuse.kernfs.tree import Tree
from vfsfuse.sysfs.chardev import CharDir
from vfsfuse.views.labview import LabView

MIB = 1 << 20
COUNT = 2000
MOST = 4096
"""Bytes of Python's that an idle vGPU may take."""

SPEC = LabSpec(
    parents=(
        ParentSpec(
            "many",
            "virtual",
            "many",
            memory=COUNT * MIB,
            types=(TypeSpec("idle", "one of many", Vgpu, memory=MIB),),
        ),
    ),
)


@pytest.fixture
def view() -> Iterator[LabView]:
    made = LabView(SPEC, Tree(), CallPoint())
    yield made
    made.close()


def idle(view: LabView) -> MdevType:
    return view.lab.parents["many"].types["idle"]


def create(view: LabView, number: int) -> Mdev:
    """A vGPU, as the attribute `create` makes it: whoever has to be told has been."""
    mdev = view.lab.create(idle(view), UUID(int=number))
    view.tree.take_changes()
    view.tree.root.uevents.take()
    return mdev


def everything(tree: Tree, directory: Kobject) -> Iterator[Entry]:
    """All entries below a directory, but for members of a class: those would make each vGPU's model."""
    listed = directory.entries() if isinstance(directory, CharDir) else (directory.children or {}).values()
    for child in listed:
        assert not isinstance(child, Member)
        entry = child.seen_in(directory)
        yield entry
        if isinstance(entry, Kobject):
            yield from everything(tree, tree.directory(entry.inode))


def test_an_idle_vgpu_takes_little_also_when_all_were_listed(view: LabView) -> None:
    create(view, 1)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(2, COUNT):
            create(view, number)
        gc.collect()
        created, _ = tracemalloc.get_traced_memory()
        assert sum(1 for _ in everything(view.tree, view.tree.root)) > 17 * (COUNT - 1)
        gc.collect()
        listed, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert created / COUNT < MOST
    assert listed - created < 64 * COUNT


def test_a_vgpu_is_seen_under_seventeen_names_and_removed_under_none(view: LabView) -> None:
    create(view, 1)
    before = {entry.path for entry in everything(view.tree, view.tree.root)}
    mdev = create(view, 2)
    assert mdev.name == str(UUID(int=2))
    own = f"sys/devices/virtual/many/many/{mdev.name}"
    assert {entry.path for entry in everything(view.tree, view.tree.root)} - before == {
        own,
        f"{own}/vfio-dev",
        f"{own}/vfio-dev/vfio1",
        f"sys/devices/virtual/many/many/mdev_supported_types/idle/devices/{mdev.name}",
        f"sys/bus/mdev/devices/{mdev.name}",
        f"sys/bus/mdev/drivers/vfio_mdev/{mdev.name}",
        "sys/devices/virtual/vgpu/vfsfuse/vgpu1",
        "sys/kernel/iommu_groups/1",
        "sys/kernel/iommu_groups/1/devices",
        f"sys/kernel/iommu_groups/1/devices/{mdev.name}",
        "sys/class/vfio-dev/vfio1",
        "sys/devices/virtual/vfio/1",
        "sys/class/vfio/1",
        "sys/dev/char/510:1",
        "sys/dev/char/511:1",
        "dev/vfio/1",
        "dev/vfio/devices/vfio1",
    }
    view.lab.remove(mdev)
    assert {entry.path for entry in everything(view.tree, view.tree.root)} == before
    assert not view.tree.take_changes().lingers


def test_a_driver_takes_its_names_with_it_and_new_ones_have_new_numbers(view: LabView) -> None:
    mdev = create(view, 1)
    own = view.directory(mdev)
    first = {entry.path: entry.inode for entry in everything(view.tree, view.tree.root)}
    view.lab.mdev_driver.unbind(mdev)
    without = {entry.path: entry.inode for entry in everything(view.tree, view.tree.root)}
    assert len(first.keys() - without.keys()) == 13 and first.items() >= without.items()
    assert view.directory(mdev).inode == own.inode
    assert view.tree.directory(own.inode).stat().nlink == 3  # power/ stays
    view.lab.mdev_driver.bind(mdev)
    second = {entry.path: entry.inode for entry in everything(view.tree, view.tree.root)}
    assert second.keys() == first.keys() and second.items() >= without.items()
    assert not set(second.values()) & (set(first.values()) - set(without.values()))
    assert view.tree.directory(own.inode).stat().nlink == 4
    assert view.tree.directory(own.inode).child("vfio-dev") is not None


def test_the_links_of_a_driver_linger_for_a_moment_when_it_leaves(view: LabView) -> None:
    mdev = create(view, 1)
    assert not view.tree.take_changes().lingers
    view.lab.mdev_driver.unbind(mdev)
    assert view.tree.take_changes().lingers
    view.lab.mdev_driver.bind(mdev)
    assert not view.tree.take_changes().lingers


def test_a_name_that_is_taken_leaves_nothing_of_a_vgpu(view: LabView) -> None:
    view.tree.add(view.tree.make("dev/vfio/devices"), Kobject("vfio0"))
    view.tree.take_changes()
    before = {entry.path for entry in everything(view.tree, view.tree.root)}
    fails(errno.EEXIST, create, view, 1)
    assert {entry.path for entry in everything(view.tree, view.tree.root)} == before
    assert not view.lab.mdevs and not view.lab.groups


def test_who_opens_a_device_that_is_gone_finds_none(view: LabView) -> None:
    mdev = create(view, 1)
    assert view.nodes.port(mdev) is view.nodes.port(mdev)
    view.lab.surprise_remove(mdev)
    fails(errno.ENODEV, view.nodes.port, mdev)
    with pytest.raises(LookupError):
        view.directory(mdev)


def test_a_file_that_gets_another_number_while_it_is_opened_is_not_opened(view: LabView) -> None:
    mdev = create(view, 1)
    released: list[bool] = []
    file = SimpleNamespace(release=lambda: released.append(True))
    found = Bundle(mdev, Plan(Part(view.tree.make("dev"), lambda mdev: "another", lambda bundle: node)))

    def opener(request: OpenRequest) -> Opened:
        view.tree.renumber(found)
        return Opened(cast(LaneFile, file))

    node = DeviceNode("another", 0o600, opener)
    view.tree.show(found)
    inode = found.entry(0).inode
    fails(errno.ENODEV, view.openings.open, OpenRequest(inode, os.O_RDWR, 1, 0, 0, leads=True, on_pump=True))
    assert released == [True]
