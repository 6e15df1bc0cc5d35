# SPDX-License-Identifier: Apache-2.0
"""Fault queues without a mount: requests of functions, what a read takes of them, who gets which answer."""

from __future__ import annotations

import errno

import pytest

from devmodel.iommu.api import PAGE_SIZE, PageRequest, PageResponse, Prot
from devmodel.iommufd.context import Context
from devmodel.iommufd.faultqueue import FAULT, MAX_GROUPS, RESPONSE, FaultQueue
from devmodel.iommufd.hwinfo import IommuDevice
from devmodel.iommufd.hwpt import Hwpt, HwptFlag, Wish, allocated
from devmodel.iommufd.ioas import Ioas
from devmodel.iommufd.objects import IommufdObject
from devmodel.lifecycle.iommuunit import IommuUnit
from tests.vfio.client import fails

IOVA = 0x7000


class Function(IommuDevice):
    """A function that can ask for pages."""

    __slots__ = ("answers", "context")

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.answers: list[PageResponse] = []
        context.objects.add(self)

    @property
    def unit(self) -> IommuUnit:
        return IommuUnit(0)

    def check_page_requests(self) -> None:
        return

    def ask(self, queue: FaultQueue, hwpt: IommufdObject, iova: int = IOVA, pages: int = 1) -> None:
        queue.ask(self, hwpt, PageRequest(iova, pages, Prot.READ), self.answers.append)


@pytest.fixture
def context() -> Context:
    return Context()


@pytest.fixture
def queue(context: Context) -> FaultQueue:
    made = FaultQueue(context)
    made.publish()
    return made


@pytest.fixture
def function(context: Context) -> Function:
    return Function(context)


def read(queue: FaultQueue, groups: int = 1) -> list[tuple[int, ...]]:
    return list(FAULT.iter_unpack(queue.read(groups * FAULT.size)))


def respond(queue: FaultQueue, *responses: tuple[int, int]) -> int:
    return queue.write(b"".join(RESPONSE.pack(*each) for each in responses))


def test_the_structs_are_those_of_the_header() -> None:
    assert (FAULT.size, RESPONSE.size) == (40, 8)


def test_a_request_is_of_whole_pages_and_has_the_lowest_free_numbers(
    queue: FaultQueue, function: Function
) -> None:
    for _ in range(3):
        function.ask(queue, queue, IOVA + 5)
    first, second = read(queue, 2)
    assert (first[1], first[4], first[6]) == (function.id, Prot.READ, IOVA)
    assert [(each[3], each[8]) for each in (first, second)] == [(0, 1), (1, 2)]
    assert respond(queue, (1, 0)) == 8 and function.answers == [PageResponse.SUCCESS]
    function.ask(queue, queue)
    assert [(each[3], each[8]) for each in read(queue, 2)] == [(2, 1), (0, 3)]


def test_responses_are_taken_up_to_the_first_bad_one(queue: FaultQueue, function: Function) -> None:
    for _ in range(2):
        function.ask(queue, queue)
    read(queue, 2)
    fails(errno.EINVAL, respond, queue, (3, 0), (1, 0))
    fails(errno.EINVAL, respond, queue, (1, 2))
    fails(errno.EINVAL, respond, queue, (1, PageResponse.FAILURE))
    assert respond(queue, (2, 1), (1, 7)) == RESPONSE.size
    assert respond(queue, (1, 0)) == RESPONSE.size
    assert function.answers == [PageResponse.INVALID, PageResponse.SUCCESS]


def test_a_function_that_asks_too_much_is_refused(queue: FaultQueue, context: Context) -> None:
    greedy, other = Function(context), Function(context)
    for _ in range(MAX_GROUPS + 1):
        greedy.ask(queue, queue)
    assert greedy.answers == [PageResponse.FAILURE]
    other.ask(queue, queue)
    assert not other.answers
    queue.leave(greedy, queue)
    assert greedy.answers == [PageResponse.FAILURE] + [PageResponse.INVALID] * MAX_GROUPS
    assert [each[1] for each in read(queue, 2)] == [other.id]


def test_a_detached_function_is_answered_for_that_hwpt_alone(queue: FaultQueue, function: Function) -> None:
    one, two = IommufdObject(), IommufdObject()
    for hwpt in (one, two, one):
        function.ask(queue, hwpt)
    read(queue, 2)
    queue.leave(function, one)
    assert function.answers == [PageResponse.INVALID] * 2 and not queue.ready
    assert respond(queue, (2, 0)) == RESPONSE.size and function.answers[-1] is PageResponse.SUCCESS


def test_the_end_of_the_context_answers_all(context: Context, queue: FaultQueue, function: Function) -> None:
    function.ask(queue, queue)
    function.ask(queue, queue)
    read(queue)
    context.put()
    assert not function.answers, "the file keeps the context"
    queue.close()
    assert function.answers == [PageResponse.INVALID] * 2 and not context.objects.all()


def test_one_that_no_client_got_leaves_nothing(context: Context) -> None:
    made = FaultQueue(context)
    fails(errno.ENOENT, context.objects.find, made.id, FaultQueue)
    made.close()
    assert context.objects.add(Ioas()) == made.id
    context.put()
    fails(errno.EBADFD, FaultQueue, context)


def test_an_hwpt_keeps_its_queue(context: Context, queue: FaultQueue, function: Function) -> None:
    ioas = Ioas()
    context.objects.add(ioas)
    wish = Wish(function.id, ioas.id, HwptFlag.FAULT_ID_VALID, fault=queue.id)
    with allocated(context.objects, wish) as hwpt:
        assert hwpt.faults is queue
    fails(errno.ENOENT, _alloc, context, wish._replace(fault=ioas.id))
    queue.close()
    fails(errno.EBUSY, context.objects.destroy, queue.id)
    hwpt.join(function)
    function.ask(queue, hwpt, pages=2)
    hwpt.leave(function)
    assert function.answers == [PageResponse.INVALID] and context.objects.find(hwpt.id, Hwpt) is hwpt
    context.objects.destroy(hwpt.id)
    context.objects.destroy(queue.id)


def _alloc(context: Context, wish: Wish) -> None:
    with allocated(context.objects, wish):
        pass


def test_pages_are_whole_groups(queue: FaultQueue, function: Function) -> None:
    function.ask(queue, queue, IOVA, 3)
    assert not read(queue, 2) and queue.ready
    found = read(queue, 3)
    assert [each[6] for each in found] == [IOVA, IOVA + PAGE_SIZE, IOVA + 2 * PAGE_SIZE]
    assert [each[0] for each in found] == [0, 0, 2] and {each[8] for each in found} == {1}
