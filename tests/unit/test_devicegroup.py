# SPDX-License-Identifier: Apache-2.0
"""Functions of one IOMMU group in one iommufd, without a mount: they share an HWPT, whichever attaches."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from devmodel.iommufd.context import Context
from devmodel.iommufd.hwpt import Hwpt, Wish, allocated
from devmodel.iommufd.ioas import Ioas
from devmodel.vfio.cdev import CdevFile
from devmodel.vfio.group import Group
from tests.unit.fakes import fails
from tests.unit.test_cdev import Function, bound, ioas, space_of


@pytest.fixture
def context() -> Iterator[Context]:
    made = Context()
    yield made
    made.put()


@pytest.fixture
def group() -> Group:
    return Group(1)


@pytest.fixture
def pair(context: Context, group: Group) -> tuple[CdevFile, CdevFile]:
    """Two bound functions."""
    one, two = (bound(Function(name, group), context) for name in ("one", "two"))
    return one, two


def spaces(*files: CdevFile) -> list[object]:
    return [space_of(function_of(file)) for file in files]


def function_of(file: CdevFile) -> Function:
    assert isinstance(file.assignable, Function)
    return file.assignable


def hwpt(context: Context, file: CdevFile, target: Ioas) -> Hwpt:
    assert file.bound is not None
    with allocated(context.objects, Wish(file.bound.id, target.id)) as made:
        pass
    return made


def test_both_attach_to_the_same(context: Context, pair: tuple[CdevFile, CdevFile]) -> None:
    one, two = pair
    target = ioas(context)
    assert one.attach(target.id) == two.attach(target.id) == one.attach(target.id)
    assert spaces(one, two) == [target.space] * 2


def test_the_second_cannot_attach_to_something_else(
    context: Context, pair: tuple[CdevFile, CdevFile]
) -> None:
    one, two = pair
    target, other = ioas(context), ioas(context)
    explicit = hwpt(context, one, target)
    one.attach(target.id)
    for refused in (other, explicit):
        fails(errno.EINVAL, two.attach, refused.id)
    two.attach(target.id)
    one.detach()
    two.detach()
    one.attach(explicit.id)
    for refused in (other, target):  # the automatic HWPT of the same IOAS is another domain
        fails(errno.EINVAL, two.attach, refused.id)
    assert two.attach(explicit.id) == explicit.id
    context.objects.destroy(other.id)


def test_one_that_is_attached_takes_the_other_along(
    context: Context, pair: tuple[CdevFile, CdevFile]
) -> None:
    one, two = pair
    first, second = ioas(context), ioas(context)
    for file in pair:
        file.attach(first.id)
    two.attach(second.id)
    assert spaces(one, two) == [second.space] * 2
    context.objects.destroy(first.id)
    two.close()
    assert spaces(one) == [second.space]
    fails(errno.EBUSY, context.objects.destroy, second.id)
    one.detach()
    context.objects.destroy(second.id)


def test_one_that_is_not_attached_does_dma_where_the_other_does(context: Context, group: Group) -> None:
    one, target = bound(Function("one", group), context), ioas(context)
    one.attach(target.id)
    two = bound(Function("two", group), context)
    assert spaces(two) == [target.space]
    two.attach(target.id)
    one.detach()
    assert spaces(one, two) == [target.space] * 2
    two.detach()
    assert spaces(one, two) == [None] * 2
    one.attach(target.id)
    assert spaces(one, two) == [target.space] * 2
    one.close()
    assert spaces(two) == [None]
    context.objects.destroy(target.id)


def test_functions_of_other_groups_go_their_own_ways(context: Context) -> None:
    one, two = (bound(Function("function", Group(number)), context) for number in (1, 2))
    first, second = ioas(context), ioas(context)
    one.attach(first.id)
    two.attach(second.id)
    assert spaces(one, two) == [first.space, second.space]


@pytest.mark.parametrize("busy", [0, 1])
def test_dma_of_either_that_does_not_end_leaves_both(
    context: Context, pair: tuple[CdevFile, CdevFile], busy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devmodel.device.dma.DRAIN_SECONDS", 0.02)
    one, two = pair
    first, second = ioas(context), ioas(context)
    for file in pair:
        file.attach(first.id)
    with function_of(pair[busy]).made.dma.under_way():
        fails(errno.EBUSY, one.attach, second.id)
        assert spaces(one, two) == [first.space] * 2
        context.objects.destroy(second.id)
        one.detach()
        fails(errno.EBUSY, two.detach)
        assert spaces(one, two) == [first.space] * 2
    two.detach()
    context.objects.destroy(first.id)


def test_one_that_ends_while_the_other_moves(
    context: Context, pair: tuple[CdevFile, CdevFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    first, second = ioas(context), ioas(context)
    for file in pair:
        file.attach(first.id)
    moved = threading.Event()

    def move() -> None:
        one.attach(second.id)
        moved.set()

    with function_of(one).made.dma.under_way():
        thread = threading.Thread(target=move)
        thread.start()
        while spaces(one) != [second.space]:
            assert not moved.wait(0.001)
        two.close()
    thread.join()
    assert spaces(one) == [second.space]
    context.objects.destroy(first.id)
    one.close()
    context.objects.destroy(second.id)
    assert len(context.objects) == 0


class DeviceGroups(RuleBasedStateMachine):
    """Three functions of one group, compared with what a group may be attached to."""

    @initialize()
    def start(self) -> None:
        self.context, self.group = Context(), Group(1)
        self.functions = [Function(f"function {index}", self.group) for index in range(3)]
        self.files: dict[int, CdevFile] = {}
        self.targets = [ioas(self.context) for _ in range(2)]
        self.attached: dict[int, int] = {}

    @rule(which=st.integers(0, 2))
    def open_or_close(self, which: int) -> None:
        file = self.files.pop(which, None)
        if file is None:
            self.files[which] = bound(self.functions[which], self.context)
        else:
            file.close()
            self.attached.pop(which, None)

    @rule(which=st.integers(0, 2), to=st.integers(0, 1))
    def attach(self, which: int, to: int) -> None:
        if which not in self.files:
            return
        elsewhere = set(self.attached.values()) - {to}
        if which not in self.attached and elsewhere:
            fails(errno.EINVAL, self.files[which].attach, self.targets[to].id)
        else:
            self.files[which].attach(self.targets[to].id)
            self.attached = dict.fromkeys((*self.attached, which), to)

    @rule(which=st.integers(0, 2))
    def detach(self, which: int) -> None:
        if which in self.files:
            self.files[which].detach()
            self.attached.pop(which, None)

    @invariant()
    def all_do_dma_through_one_space(self) -> None:
        used = set(self.attached.values())
        space = self.targets[used.pop()].space if used else None
        assert not used
        for which, function in enumerate(self.functions):
            assert space_of(function) is (space if which in self.files else None)

    @invariant()
    def nothing_is_left_over(self) -> None:
        automatic = 1 if self.attached else 0
        assert len(self.context.objects) == len(self.targets) + len(self.files) + automatic
        users = [target.users for target in self.targets]
        assert sum(users) == automatic

    def teardown(self) -> None:
        for file in self.files.values():
            file.close()
        for target in self.targets:
            self.context.objects.destroy(target.id)
        self.context.put()


TestDeviceGroups = DeviceGroups.TestCase
TestDeviceGroups.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
