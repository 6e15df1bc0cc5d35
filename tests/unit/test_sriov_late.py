# SPDX-License-Identifier: Apache-2.0
"""Virtual functions without a mount that come late, are refused or go one by one, in any order."""

import errno
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from devmodel.calls.call import Call
from devmodel.calls.injection import Injection
from devmodel.device.tasks import TaskHost
from devmodel.lifecycle.binding import function_of
from devmodel.lifecycle.function import VFIO_PCI
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import LabSpec
from tests.unit.clocks import Clock
from tests.unit.fakes import fails, function_spec, parent_of
from tests.unit.test_lab import BDF, MIB, Recorder
from tests.unit.test_sriov import GPU, capability


def late_lab(recorder: Recorder | None = None) -> Lab:
    """A lab of one GPU, whose virtual functions come late."""
    recorder, function = recorder or Recorder(), function_spec(GPU)
    assert function.vf is not None
    spec = replace(GPU, hardware=replace(function, vf=replace(function.vf, delay=1)))
    recorder.lab = made = Lab(LabSpec((spec,)), recorder)
    return made


def test_late_ones_that_cannot_be_shown_are_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """All or none of them come, as when they come at once; what was kept for them is given back."""
    clock, recorder = Clock(), Recorder()
    monkeypatch.setattr(TaskHost, "begin", lambda host, task: clock.begin(task))
    monkeypatch.setattr(TaskHost, "end", lambda host, task: clock.end(task))
    lab = late_lab(recorder)
    gpu = function_of(lab.parents[BDF])
    lab.sriov.set_count(gpu, 3)
    assert (parent_of(gpu).memory_free, parent_of(gpu).slots_free) == (4 * MIB, 2)
    fails(errno.ENOSPC, lab.create, parent_of(gpu).types["vgpu-4"], UUID(int=1), overrides={"vram": "8M"})
    recorder.fail = True
    clock.strike()
    assert (gpu.vfs, lab.sriov.count_of(gpu), capability(gpu)[3]) == ([], 0, 0)
    assert (parent_of(gpu).memory_free, parent_of(gpu).slots_free) == (16 * MIB, 5)
    recorder.fail = False
    lab.sriov.set_count(gpu, 2)
    clock.strike()
    assert len(gpu.vfs) == 2
    lab.close()


def test_a_listener_hears_of_late_ones_and_may_refuse_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, listener = Clock(), Refusing()
    monkeypatch.setattr(TaskHost, "begin", lambda host, task: clock.begin(task))
    monkeypatch.setattr(TaskHost, "end", lambda host, task: clock.end(task))
    lab = late_lab()
    gpu = function_of(lab.parents[BDF])
    lab.calls.listen(listener)
    for refused, count in ((True, 0), (False, 2)):
        listener.refused = refused
        lab.sriov.set_count(gpu, 2)
        clock.strike()
        assert (len(gpu.vfs), lab.sriov.count_of(gpu), capability(gpu)[3]) == (count, count, count)
    first, second = (vf.name for vf in gpu.vfs)
    assert listener.heard == [
        *(("set_count", BDF), ("come", BDF), ("appear", first)),
        *(("set_count", BDF), ("come", BDF), ("appear", first), ("appear", second)),
    ]
    lab.close()


class Refusing:
    """A listener that may refuse virtual functions as they appear."""

    def __init__(self) -> None:
        self.refused = False
        self.heard: list[tuple[str, str]] = []

    def attends(self, call: Call) -> bool:
        return True

    def begin(self, call: Call) -> Injection | None:
        self.heard.append((call.name, call.subject))
        refused = self.refused and call.name == "appear"
        return Injection(error=OSError(errno.EIO, "refused")) if refused else None

    def end(self, call: Call) -> None:
        """Nothing is to be done."""


def test_a_lab_that_is_not_served_has_no_late_ones() -> None:
    lab = late_lab()
    gpu = function_of(lab.parents[BDF])
    fails(errno.ENODEV, lab.sriov.set_count, gpu, 1)
    assert (lab.sriov.count_of(gpu), parent_of(gpu).memory_free) == (0, 16 * MIB)
    lab.close()


# ---- any order ----


class Choosing:
    """A listener that has virtual functions of these indexes come late, or be offered to no driver."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.late: frozenset[int] = frozenset()
        self.driverless: frozenset[int] = frozenset()

    def attends(self, call: Call) -> bool:
        return call.name == "appear"

    def begin(self, call: Call) -> Injection | None:
        appearing = self._lab.sriov.appearing
        assert appearing is not None and appearing.name == call.subject
        assert call.arguments["arguments"] == [BDF, str(appearing.index)]
        appearing.late = 1.0 if appearing.index in self.late else 0.0
        appearing.driverless = appearing.index in self.driverless
        return None

    def end(self, call: Call) -> None:
        """Nothing is to be done."""


class Untold(Recorder):
    """An observer that is told of virtual functions all of which may be late."""

    def vfs_enabled(self, function: PhysicalFunction) -> None:
        return


INDEXES = st.frozensets(st.integers(0, 3))


class OneByOne(RuleBasedStateMachine):
    """Virtual functions that come late or go by surprise, one by one and in any order: shares, numbers and
    the capability are right at any time."""

    @initialize(driver=st.sampled_from([None, "vf"]))
    def start(self, driver: str | None) -> None:
        recorder, function = Untold(), function_spec(GPU)
        assert function.vf is not None
        spec = replace(GPU, hardware=replace(function, vf=replace(function.vf, driver=driver)))
        recorder.lab = self.lab = Lab(LabSpec((spec,)), recorder)
        self.gpu = function_of(self.lab.parents[BDF])
        self.listener = Choosing(self.lab)
        self.lab.calls.listen(self.listener)
        self.clock = Clock()
        self.late: list[int] = []
        self.lost = 0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(TaskHost, "begin", lambda host, task: self.clock.begin(task))
        self.patch.setattr(TaskHost, "end", lambda host, task: self.clock.end(task))

    @rule(count=st.integers(0, 4), late=INDEXES, driverless=INDEXES)
    def count(self, count: int, late: frozenset[int], driverless: frozenset[int]) -> None:
        before, there = self.lab.sriov.count_of(self.gpu), list(self.gpu.vfs)
        self.listener.late, self.listener.driverless = late, driverless
        try:
            self.lab.sriov.set_count(self.gpu, count)
        except OSError as error:
            assert error.errno in (errno.ENOENT, errno.EBUSY, errno.ENOSPC)
            assert (self.lab.sriov.count_of(self.gpu), self.gpu.vfs) == (before, there)
        else:
            if count != before:
                self.late, self.lost = [each for each in range(count) if each in late], 0
                driven = (vf.driver is not None for vf in self.gpu.vfs if vf.index in driverless)
                assert not any(driven)

    @rule()
    def time_passes(self) -> None:
        self.clock.strike()
        if self.late:
            index = self.late.pop(0)
            (vf,) = (each for each in self.gpu.vfs if each.index == index)
            offered = vf.host_driver is not None or vf.physical.driver == VFIO_PCI
            assert vf.driver is None or offered

    @rule(index=st.integers(0, 3))
    def surprise_remove(self, index: int) -> None:
        found = [vf for vf in self.gpu.vfs if vf.index == index]
        for vf in found * 2:  # the second time it is gone already
            self.lab.sriov.surprise_remove(vf)
        self.lost += len(found)

    @rule()
    def surprise_remove_all(self) -> None:
        self.lab.hotplug.surprise_remove(self.gpu)
        self.lab.hotplug.surprise_remove(self.gpu)
        assert not self.clock.tasks
        self.lab.hotplug.rescan("pci")
        self.gpu, self.late, self.lost = function_of(self.lab.parents[BDF]), [], 0

    @rule(driver=st.sampled_from(["vgpu", VFIO_PCI]))
    def rebind(self, driver: str) -> None:
        if self.gpu.driver is not None:
            self.lab.drivers.unbind(self.gpu, self.gpu.driver)
        assert not self.clock.tasks
        self.late, self.lost = [], 0
        self.gpu.driver_override = driver
        self.lab.drivers.attach(self.gpu)

    @rule(number=st.integers(1, 5))
    def create(self, number: int) -> None:
        try:
            self.lab.create(parent_of(self.gpu).types["vgpu-4"], UUID(int=number))
        except OSError as error:
            assert error.errno in (errno.EEXIST, errno.ENOSPC, errno.ENODEV)

    @invariant()
    def nothing_is_lost(self) -> None:
        parent, vfs = parent_of(self.gpu), self.gpu.vfs
        count = self.lab.sriov.count_of(self.gpu)
        assert len(vfs) + len(self.late) + self.lost == count == capability(self.gpu)[3]
        assert len(self.clock.tasks) == len(self.late)
        assert [vf.index for vf in vfs] == sorted({vf.index for vf in vfs})
        used = len(parent.mdevs) + len(vfs) + len(self.late)
        assert parent.memory_free == 16 * MIB - used * 4 * MIB >= 0
        assert parent.slots_free == 5 - used
        port = self.lab.ports["0000:86"]
        assert set(self.lab.drivers.functions.values()) == {self.gpu, port, *vfs}
        groups = [each.group for each in (self.gpu, *vfs, port, *parent.mdevs.values())]
        assert sorted(self.lab.groups) == sorted(group.number for group in groups)
        minors = [each.vfio_minor for each in (self.gpu, *vfs) if each.driver == VFIO_PCI]
        assert len(set(minors)) == len(minors) and None not in minors

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
            self.lab.close()


OneByOne.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOneByOne = OneByOne.TestCase
