# SPDX-License-Identifier: Apache-2.0
"""The lifecycle core: creating and removing keeps every table, number and byte in step, whatever fails."""

import errno
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from devmodel.device.pci import PciRegion
from devmodel.lifecycle.binding import function_of
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.initial import populate
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev, Parent
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import LabSpec, ParentSpec, TypeSpec, VgpuSpec
from devmodel.models.gpu import Vgpu
from devmodel.models.mtty import Mtty
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.group import Assignable
from devmodel.vfio.groupfile import open_group
from tests.unit.fakes import fails, gpu_parent

MIB = 1 << 20
BDF = "0000:86:00.0"
U = [UUID(int=number) for number in range(1, 9)]

SPEC = LabSpec(
    parents=(
        ParentSpec(
            "mtty",
            "virtual",
            "mtty",
            (
                TypeSpec("mtty-1", "one port", Mtty, options={"ports": 1}),
                TypeSpec("mtty-2", "two ports", Mtty, slots=2, options={"ports": 2}),
            ),
            slots=5,
        ),
        gpu_parent(
            BDF,
            (
                TypeSpec("vgpu-2", "half", Vgpu, memory=8 * MIB, pretty_name="Half"),
                TypeSpec("vgpu-8", "an eighth", Vgpu, memory=2 * MIB, instances=3),
            ),
            16 * MIB,
        ),
    )
)


class Recorder:
    """An observer that checks that the lab is complete when it is told, and fails when asked to."""

    def __init__(self) -> None:
        self.lab: Lab | None = None
        self.seen: list[tuple[str, str]] = []
        self.fail = False

    def added(self, mdev: Mdev) -> None:
        assert self.lab is not None and self.lab.mdevs[mdev.uuid, mdev.instance] is mdev
        assert mdev.group.devices == ((mdev,) if mdev.bound else ())
        if self.fail:
            raise RuntimeError("the tree has no room")
        self.seen.append(("added", mdev.name))

    def removed(self, mdev: Mdev) -> None:
        assert self.lab is not None and (mdev.uuid, mdev.instance) not in self.lab.mdevs
        assert mdev.gone
        self.seen.append(("removed", mdev.name))

    def changed(self, mdev: Mdev) -> None:
        self.seen.append(("online" if mdev.online else "offline", mdev.name))

    def bound(self, function: PciFunction) -> None:
        self.seen.append(("bound", function.name))

    def unbound(self, function: PciFunction) -> None:
        self.seen.append(("unbound", function.name))

    def function_added(self, function: PciFunction) -> None:
        assert self.lab is not None and self.lab.drivers.functions[function.name] is function
        if self.fail:
            raise RuntimeError("the tree has no room")
        self.seen.append(("added", function.name))

    def function_removed(self, function: PciFunction) -> None:
        assert self.lab is not None and function.name not in self.lab.drivers.functions
        self.seen.append(("removed", function.name))

    def vfs_enabled(self, function: PhysicalFunction) -> None:
        assert function.vfs

    def recovering(self, function: PciFunction, event: str) -> None:
        self.seen.append((event, function.name))

    def renewed(self, device: Assignable, change: Callable[[], None]) -> None:
        change()

    def mdev_bound(self, mdev: Mdev) -> None:
        assert not mdev.gone
        if self.fail:
            raise RuntimeError("the tree has no room")
        self.seen.append(("bound", mdev.name))

    def mdev_unbound(self, mdev: Mdev) -> None:
        assert mdev.gone
        self.seen.append(("unbound", mdev.name))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def lab(recorder: Recorder) -> Iterator[Lab]:
    recorder.lab = made = Lab(SPEC, recorder)
    yield made
    made.close()


@pytest.fixture
def gpu(lab: Lab) -> Parent:
    return lab.parents[BDF]


@pytest.fixture
def mtty(lab: Lab) -> Parent:
    return lab.parents["mtty"]


def snapshot(lab: Lab) -> object:
    """Everything about a lab that a failed creation must leave alone."""
    return (
        dict(lab.mdevs),
        dict(lab.by_name),
        dict(lab.groups),
        [
            (
                (parent.memory_free, parent.slots_free, dict(parent.mdevs)),
                [(dict(type_.mdevs), type_.available_instances) for type_ in parent.types.values()],
            )
            for parent in lab.parents.values()
        ],
    )


def test_group_0_is_the_physical_gpu_wherever_it_stands_in_the_spec(
    lab: Lab, gpu: Parent, mtty: Parent
) -> None:
    group = function_of(gpu).group
    assert gpu.device is not None
    assert group.number == 0 and lab.groups == {0: group, 1: lab.ports["0000:86"].group}
    fails(errno.ENODEV, open_group, group)
    assert gpu.device.read(PciRegion.CONFIG, 0, 4).hex() == "3412f086"
    assert mtty.device is None
    fails(errno.ENODEV, function_of, mtty)


def test_a_created_vgpu_is_in_every_table_once(lab: Lab, gpu: Parent, recorder: Recorder) -> None:
    mdev = lab.create(gpu.types["vgpu-8"], U[0], 3, f"{U[0]}-3")
    assert lab.find(U[0], 3) is mdev and lab.by_name[f"{U[0]}-3"] is mdev
    assert gpu.mdevs == gpu.types["vgpu-8"].mdevs == {mdev.name: mdev}
    assert lab.groups[2] is mdev.group and mdev.group.viable
    assert (mdev.minor, mdev.vfio_minor, mdev.online, mdev.gone) == (0, 0, False, False)
    assert gpu.memory_free == 14 * MIB
    assert recorder.seen == [("added", mdev.name)]


def test_type_attributes(gpu: Parent) -> None:
    half, eighth = gpu.types["vgpu-2"], gpu.types["vgpu-8"]
    assert (half.name, half.pretty_name, half.description, half.device_api) == (
        "vgpu-2",
        "Half",
        "half",
        "vfio-pci",
    )
    assert eighth.pretty_name == "vgpu-8"


def test_available_instances_is_the_tightest_of_memory_slots_and_instances(
    lab: Lab, gpu: Parent, mtty: Parent
) -> None:
    def available(parent: Parent) -> list[int]:
        return [type_.available_instances for type_ in parent.types.values()]

    assert available(gpu) == [2, 3] and available(mtty) == [5, 2]
    lab.create(gpu.types["vgpu-8"], U[0])
    lab.create(mtty.types["mtty-2"], U[1])
    assert available(gpu) == [1, 2] and available(mtty) == [3, 1]
    lab.create(gpu.types["vgpu-2"], U[2])
    lab.create(mtty.types["mtty-2"], U[3])
    assert available(gpu) == [0, 2] and available(mtty) == [1, 0]
    fails(errno.ENOSPC, lab.create, gpu.types["vgpu-2"], U[4])
    fails(errno.ENOSPC, lab.create, mtty.types["mtty-2"], U[4])


def test_uuid_and_instance_and_name_are_unique_in_the_whole_lab(lab: Lab, gpu: Parent, mtty: Parent) -> None:
    lab.create(gpu.types["vgpu-8"], U[0])
    before = snapshot(lab)
    fails(errno.EEXIST, lab.create, mtty.types["mtty-1"], U[0])
    fails(errno.EEXIST, lab.create, mtty.types["mtty-1"], U[0], 0, "other")
    fails(errno.EEXIST, lab.create, mtty.types["mtty-1"], U[1], 0, str(U[0]))
    assert snapshot(lab) == before
    lab.create(mtty.types["mtty-1"], U[0], 1, f"{U[0]}-1")


def test_an_existing_name_is_eexist_even_when_nothing_is_left(lab: Lab, gpu: Parent) -> None:
    for number in range(2):
        lab.create(gpu.types["vgpu-2"], U[number])
    fails(errno.EEXIST, lab.create, gpu.types["vgpu-2"], U[0])


def test_a_creation_that_the_observer_refuses_leaves_nothing(
    lab: Lab, gpu: Parent, recorder: Recorder
) -> None:
    kept = lab.create(gpu.types["vgpu-8"], U[0])
    before = snapshot(lab)
    recorder.fail = True
    with pytest.raises(RuntimeError, match="no room"):
        lab.create(gpu.types["vgpu-8"], U[1])
    assert snapshot(lab) == before
    fails(errno.ENODEV, lab.find, U[1])
    fails(errno.ENODEV, lab.start, U[1])
    recorder.fail = False
    again = lab.create(gpu.types["vgpu-8"], U[1])
    assert (again.group.number, again.minor, again.vfio_minor) == (
        kept.group.number + 1,
        kept.minor + 1,
        kept.vfio_minor + 1,
    )


def test_a_refused_device_is_gone_for_whoever_saw_it(
    lab: Lab, gpu: Parent, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Mdev] = []

    def touch_and_refuse(mdev: Mdev) -> None:
        seen.append(mdev)
        mdev.device.write(0, 0, b"x")
        raise OSError(errno.ENOMEM, "full")

    monkeypatch.setattr(recorder, "added", touch_and_refuse)
    fails(errno.ENOMEM, lab.create, gpu.types["vgpu-8"], U[0])
    fails(errno.ENODEV, seen[0].hold)
    fails(errno.ENODEV, open_group, seen[0].group)
    fails(errno.ENODEV, seen[0].device.read, 0, 0, 1)


def test_remove_takes_it_from_every_table_and_gives_everything_back(
    lab: Lab, gpu: Parent, recorder: Recorder
) -> None:
    before = snapshot(lab)
    mdev = lab.create(gpu.types["vgpu-2"], U[0])
    device = mdev.device
    device.write(0, 0, b"x")
    lab.remove(mdev)
    assert snapshot(lab) == before
    assert recorder.seen[-1] == ("removed", mdev.name)
    fails(errno.ENODEV, lab.remove, mdev)
    fails(errno.ENODEV, lab.find, U[0])
    fails(errno.ENODEV, device.read, 0, 0, 1)


def test_a_removed_device_that_was_never_used_is_never_made(lab: Lab, gpu: Parent) -> None:
    mdev = lab.create(gpu.types["vgpu-2"], U[0])
    lab.remove(mdev)
    fails(errno.ENODEV, lambda: mdev.device)


def test_removing_what_is_held_is_ebusy_and_changes_nothing(
    lab: Lab, gpu: Parent, recorder: Recorder
) -> None:
    mdev = lab.create(gpu.types["vgpu-8"], U[0])
    before = snapshot(lab)
    held = DeviceFile(mdev)
    fails(errno.EBUSY, lab.remove, mdev)
    assert snapshot(lab) == before and not mdev.gone
    assert ("removed", mdev.name) not in recorder.seen
    held.close()
    lab.remove(mdev)


def test_numbers_are_reused_lowest_first(lab: Lab, mtty: Parent) -> None:
    made = [lab.create(mtty.types["mtty-1"], uuid) for uuid in U[:4]]
    for index in (2, 0):
        lab.remove(made[index])
    again = [lab.create(mtty.types["mtty-1"], uuid) for uuid in U[4:6]]
    assert [(m.group.number, m.minor, m.vfio_minor) for m in again] == [(2, 0, 0), (4, 2, 2)]


def test_a_failing_removed_still_gives_the_numbers_back(
    lab: Lab, mtty: Parent, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mdev = lab.create(mtty.types["mtty-1"], U[0])

    def fail(mdev: Mdev) -> None:
        raise RuntimeError("the tree is odd")

    monkeypatch.setattr(recorder, "removed", fail)
    with pytest.raises(RuntimeError, match="odd"):
        lab.remove(mdev)
    assert lab.create(mtty.types["mtty-1"], U[0]).group.number == 2


def test_start_and_shutdown_act_on_all_of_a_uuid_and_tell_of_changes_only(
    lab: Lab, gpu: Parent, mtty: Parent, recorder: Recorder
) -> None:
    one = lab.create(gpu.types["vgpu-8"], U[0], 0, "one")
    two = lab.create(mtty.types["mtty-1"], U[0], 1, "two")
    other = lab.create(mtty.types["mtty-1"], U[1])
    recorder.seen.clear()
    lab.start(U[0])
    lab.start(U[0])
    assert (one.online, two.online, other.online) == (True, True, False)
    lab.shutdown(U[0])
    assert recorder.seen == [("online", "one"), ("online", "two"), ("offline", "one"), ("offline", "two")]
    fails(errno.ENODEV, lab.start, U[2])
    fails(errno.ENODEV, lab.shutdown, U[2])


def test_an_idle_vgpu_costs_less_than_4_kib() -> None:
    spec = LabSpec((ParentSpec("p", "virtual", "p", (TypeSpec("t", "t", Mtty, instances=5000),)),))
    recorder = Recorder()
    recorder.lab = lab = Lab(spec, recorder)
    type_ = lab.parents["p"].types["t"]
    lab.create(type_, uuid4())
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(500):
            lab.create(type_, uuid4())
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 500 < 4096


class Lifecycle(RuleBasedStateMachine):
    """Random creating, holding and removing, beside a dictionary of what should exist."""

    @initialize()
    def start(self) -> None:
        self.recorder = Recorder()
        self.recorder.lab = self.lab = Lab(SPEC, self.recorder)
        self.types = [type_ for parent in self.lab.parents.values() for type_ in parent.types.values()]
        self.expected: dict[tuple[UUID, int], Mdev] = {}
        self.held: list[tuple[Mdev, DeviceFile]] = []

    @rule(which=st.integers(0, 3), uuid=st.sampled_from(U), instance=st.integers(0, 1), fail=st.booleans())
    def create(self, which: int, uuid: UUID, instance: int, fail: bool) -> None:
        type_ = self.types[which]
        self.recorder.fail = fail
        before, room = snapshot(self.lab), type_.available_instances
        try:
            mdev = self.lab.create(type_, uuid, instance, f"{uuid}-{instance}")
        except OSError as error:
            exists = (uuid, instance) in self.expected
            assert error.errno == (errno.EEXIST if exists else errno.ENOSPC)
            assert exists or not room
        except RuntimeError:
            assert fail
        else:
            self.expected[uuid, instance] = mdev
            return
        assert snapshot(self.lab) == before

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.expected)))
        mdev = self.expected[key]
        if any(holder is mdev for holder, _ in self.held):
            fails(errno.EBUSY, self.lab.remove, mdev)
        else:
            self.lab.remove(mdev)
            del self.expected[key]

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        mdev = self.expected[data.draw(st.sampled_from(sorted(self.expected)))]
        self.held.append((mdev, DeviceFile(mdev)))

    @precondition(lambda self: self.held)
    @rule()
    def drop(self) -> None:
        self.held.pop()[1].close()

    @invariant()
    def everything_adds_up(self) -> None:
        if not hasattr(self, "lab"):
            return
        mdevs = list(self.expected.values())
        assert self.lab.mdevs == self.expected
        assert set(self.lab.by_name) == {mdev.name for mdev in mdevs}
        assert set(self.lab.groups) == {0, 1} | {mdev.group.number for mdev in mdevs}
        assert sorted(mdev.group.number - 2 for mdev in mdevs) == sorted(mdev.minor for mdev in mdevs)
        for parent in self.lab.parents.values():
            mine = [mdev for mdev in mdevs if mdev.parent is parent]
            assert set(parent.mdevs.values()) == set(mine)
            assert parent.memory_free == parent.spec.memory - sum(m.type.spec.memory for m in mine) >= 0
            if parent.spec.slots is not None:
                assert parent.slots_free == parent.spec.slots - sum(m.type.spec.slots for m in mine) >= 0

    def teardown(self) -> None:
        if hasattr(self, "lab"):
            self.lab.close()


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_a_vgpu_has_the_group_that_its_spec_gives_it(recorder: Recorder) -> None:
    """Nothing else gets the number, also while the vGPU is not there."""
    first, second = (VgpuSpec("tty", "one", uuid4(), group=group) for group in (0, None))
    named = [replace(each, name=str(each.uuid)) for each in (first, second)]
    parent = ParentSpec("tty", "virtual", "mtty", (TypeSpec("one", "one port", Mtty),), slots=4)
    recorder.lab = lab = Lab(LabSpec((parent,), vgpus=tuple(named)), recorder)
    populate(lab)
    one, two = (lab.named(each.name) for each in named)
    assert (one.group.number, two.group.number) == (0, 1)
    lab.remove(one)
    assert lab.create(two.type, uuid4()).group.number == 2
    assert first.uuid is not None
    assert lab.create(two.type, first.uuid, name=named[0].name).group.number == 0
    lab.close()
