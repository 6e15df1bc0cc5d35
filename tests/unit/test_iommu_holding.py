# SPDX-License-Identifier: Apache-2.0
"""Pins whose client does not answer: nobody else waits, and what is counted and used is right afterwards."""

import errno
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import pytest

from devmodel.device.base import Device
from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import PAGE_SIZE, DmaFault, MustWait, Prot
from devmodel.iommu.type1 import Type1
from devmodel.vfio.container import Container
from devmodel.vfio.group import Group as VfioGroup
from devmodel.vfio.groupfile import GroupFile, open_group
from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import Kind, row_of
from ioctl_shim.processes import Processes
from tests.unit.clients import Call, Unhurried
from tests.unit.fakes import FakeClient, FakePages, fails
from tests.unit.test_iommu import Bitmap, Driver, Group
from tests.unit.test_vfio import Toy
from vfsfuse.vfio.container import ContainerFops

RW = Prot.READ | Prot.WRITE
HERE, THERE = 0, 2**20
"""Where the slow client's memory is mapped, and somebody else's."""


@dataclass
class Scene:
    """A container with ``client``, which can be slow, and another one that shares the account."""

    iommu: Type1
    client: Unhurried
    locked: LockedMemory
    driver: Driver

    def count(self) -> int:
        return self.locked.of(self.client)


@pytest.fixture
def scene() -> Scene:
    locked = LockedMemory()
    iommu = Type1(locked=locked)
    return Scene(iommu, Unhurried(memlock=8 * PAGE_SIZE), locked, Driver(iommu))


def map_it(scene: Scene) -> Callable[[], object]:
    scene.iommu.attach(Group())
    return lambda: scene.iommu.map(scene.client, HERE, 0x8000, 4 * PAGE_SIZE, RW)


def attach_it(scene: Scene) -> Callable[[], object]:
    scene.iommu.map(scene.client, HERE, 0x8000, 4 * PAGE_SIZE, RW)
    return lambda: scene.iommu.attach(Group())


def pin_it(scene: Scene) -> Callable[[], object]:
    scene.iommu.map(scene.client, HERE, 0x8000, 4 * PAGE_SIZE, RW)
    return lambda: scene.iommu.space.pin_pages(HERE, 4, RW)


def move_it(scene: Scene) -> Callable[[], object]:
    scene.iommu.space.unregister(scene.driver)
    scene.iommu.detach(Group(9))
    scene.iommu.attach(Group())
    scene.iommu.map(FakeClient(7), HERE, 0x8000, 4 * PAGE_SIZE, RW)
    scene.iommu.invalidate_vaddr(HERE, 4 * PAGE_SIZE)
    return lambda: scene.iommu.update_vaddr(scene.client, HERE, 0x8000, 4 * PAGE_SIZE)


CALLS = {"map": map_it, "attach": attach_it, "pin": pin_it, "update_vaddr": move_it}
QUESTIONS = ("pin", "memlock_limit", "locked", "may_lock_any")


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("call", CALLS)
def test_a_client_that_does_not_answer_holds_nobody_else_up(scene: Scene, call: str, question: str) -> None:
    begin = CALLS[call](scene)
    if question == "may_lock_any":
        scene.client.memlock, scene.client.privileged = PAGE_SIZE, True
    scene.client.hold(question)
    held = Call(begin)
    assert scene.client.begun.wait(60)
    other, neighbour = FakeClient(2), Type1(locked=scene.locked)
    neighbour.attach(Group(2))
    for iommu in (scene.iommu, neighbour):
        iommu.map(other, THERE, 0x4000, PAGE_SIZE, RW)
        iommu.space.dma_write(THERE, b"goes on")
        assert iommu.space.dma_read(THERE, 7) == b"goes on"
        iommu.start_tracking()
        iommu.report_dirty(THERE, PAGE_SIZE, Bitmap())
        iommu.stop_tracking()
        assert iommu.unmap(THERE, PAGE_SIZE, may_wait=False) == PAGE_SIZE
    assert scene.locked.of(other) == 0 and held.waits
    scene.client.answer()
    held.result()
    assert scene.count() == 4
    assert scene.iommu.space.dma_read(HERE, 4) == bytes(4)
    scene.iommu.unmap(0, 0, all=True)
    assert scene.count() == 0


@pytest.mark.parametrize("fails_then", [False, True], ids=["answers", "EFAULT"])
@pytest.mark.parametrize("call", CALLS)
def test_what_is_unmapped_while_its_client_is_asked_stays_unmapped(
    scene: Scene, call: str, fails_then: bool
) -> None:
    begin = CALLS[call](scene)
    scene.client.hold("pin")
    held = Call(begin)
    assert scene.client.begun.wait(60)
    assert scene.iommu.unmap(HERE, 4 * PAGE_SIZE, may_wait=False) == 4 * PAGE_SIZE
    scene.client.answer(fails_then)
    outcome = {"pin": errno.EINVAL, "update_vaddr": errno.ENOENT}.get(call)
    if outcome is None:
        held.result()  # made, or attached, and then unmapped
    else:
        fails(outcome, held.result)
    assert scene.count() == 0 and scene.iommu.dma_avail == 65535
    fails(errno.EFAULT, scene.iommu.space.dma_read, HERE, 4)
    scene.iommu.map(scene.client, HERE, 0x8000, PAGE_SIZE, RW)


@pytest.mark.parametrize("call", CALLS)
def test_memory_that_is_not_there_is_efault_and_counts_nothing(scene: Scene, call: str) -> None:
    begin = CALLS[call](scene)
    scene.client.hold("pin")
    held = Call(begin)
    assert scene.client.begun.wait(60)
    scene.client.answer(fails=True)
    if call == "update_vaddr":
        held.result()  # the kernel does not look: the old pages stay
        assert scene.count() == 4
    else:
        fails(errno.EFAULT, held.result)
        assert scene.count() == 0
    scene.iommu.unmap(0, 0, all=True)
    assert scene.count() == 0 and scene.iommu.dma_avail == 65535


def test_a_mapping_that_is_being_made_is_taken_but_cannot_be_used(scene: Scene) -> None:
    begin = map_it(scene)
    scene.client.hold("pin")
    held = Call(begin)
    assert scene.client.begun.wait(60)
    fails(errno.EEXIST, scene.iommu.map, FakeClient(2), HERE + PAGE_SIZE, 0, PAGE_SIZE, RW)
    fails(errno.EEXIST, scene.iommu.map, scene.client, HERE, 0x8000, 4 * PAGE_SIZE, RW, may_wait=False)
    with pytest.raises(DmaFault, match="not mapped"):
        scene.iommu.space.dma_read(HERE, 4)
    with pytest.raises(DmaFault, match="not mapped"):
        scene.iommu.space.dma_write(HERE, b"x")
    with pytest.raises(DmaFault, match="not mapped"):
        scene.iommu.space.mapping_at(HERE, write=False)
    fails(errno.EINVAL, scene.iommu.space.pin_pages, HERE, 1, Prot.READ)
    fails(errno.EINVAL, scene.iommu.unmap, HERE, PAGE_SIZE)  # v2 splits none
    assert scene.iommu.dma_avail == 65534 and scene.count() == 4
    scene.client.answer()
    held.result()
    scene.iommu.space.dma_write(HERE, b"now")


def test_a_mapping_that_is_being_made_keeps_its_vaddr(scene: Scene) -> None:
    scene.iommu.space.unregister(scene.driver)
    scene.iommu.detach(Group(9))
    begin = map_it(scene)
    scene.client.hold("pin")
    held = Call(begin)
    assert scene.client.begun.wait(60)
    fails(errno.EBUSY, scene.iommu.invalidate_vaddr, HERE, 4 * PAGE_SIZE)
    fails(errno.EINVAL, scene.iommu.update_vaddr, scene.client, HERE, 0, 4 * PAGE_SIZE)
    scene.client.answer()
    held.result()
    assert scene.iommu.invalidate_vaddr(HERE, 4 * PAGE_SIZE) == 4 * PAGE_SIZE


def test_a_physical_function_that_leaves_while_memory_is_pinned_leaves_none_pinned(scene: Scene) -> None:
    begin = map_it(scene)
    scene.client.hold("pin")
    held = Call(begin)
    assert scene.client.begun.wait(60)
    scene.iommu.detach(Group())
    scene.client.answer()
    held.result()
    assert scene.count() == 0
    scene.iommu.space.dma_write(HERE, b"by the mediated device")
    scene.iommu.attach(Group())
    assert scene.count() == 4


def test_a_mapping_that_moves_while_it_is_pinned_is_pinned_where_it_is(scene: Scene) -> None:
    scene.iommu.space.unregister(scene.driver)
    scene.iommu.detach(Group(9))
    begin = attach_it(scene)
    scene.client.hold("pin")
    held, new = Call(begin), FakeClient(2)
    assert scene.client.begun.wait(60)
    scene.iommu.invalidate_vaddr(HERE, 4 * PAGE_SIZE)
    scene.iommu.update_vaddr(new, HERE, 0x70000, 4 * PAGE_SIZE)
    scene.client.answer()
    held.result()
    assert (scene.count(), scene.locked.of(new)) == (0, 4)
    scene.iommu.space.dma_write(HERE, b"new")
    assert new.read(0x70000, 3) == b"new"


def test_a_second_physical_function_is_attached_only_when_all_is_pinned(scene: Scene) -> None:
    begin = attach_it(scene)
    scene.client.hold("pin")
    first = Call(begin)
    assert scene.client.begun.wait(60)
    scene.iommu.attach(Group(2))
    assert scene.count() >= 4 and all(mapping.pages for mapping in scene.iommu.space.mappings)
    scene.client.answer(fails=True)
    first.result()  # it was pinned by the other one
    scene.iommu.detach(Group())
    assert scene.count() == 4
    scene.iommu.detach(Group(2))
    assert scene.count() == 0


def test_over_the_limit_because_of_a_pin_under_way_is_enomem_and_costs_nothing(scene: Scene) -> None:
    begin = map_it(scene)
    scene.client.hold("pin")
    held = Call(begin)
    assert scene.client.begun.wait(60)
    fails(errno.ENOMEM, scene.iommu.map, scene.client, THERE, 0, 5 * PAGE_SIZE, RW)
    scene.iommu.map(scene.client, THERE, 0, 4 * PAGE_SIZE, RW)
    scene.client.answer()
    held.result()
    assert scene.count() == 8 and scene.iommu.dma_avail == 65533


def test_a_map_that_must_not_wait_says_so_after_its_checks_and_changes_nothing(scene: Scene) -> None:
    scene.iommu.attach(Group())
    with pytest.raises(MustWait):
        scene.iommu.map(scene.client, HERE, 0, PAGE_SIZE, RW, may_wait=False)
    assert scene.iommu.dma_avail == 65535 and scene.count() == 0
    fails(errno.EINVAL, scene.iommu.map, scene.client, 0xFEE00000, 0, PAGE_SIZE, RW, may_wait=False)
    scene.iommu.detach(Group())
    scene.iommu.map(scene.client, HERE, 0, PAGE_SIZE, RW, may_wait=False)
    assert scene.iommu.dma_avail == 65534


def test_a_vaddr_that_must_not_wait_says_so_and_changes_nothing(scene: Scene) -> None:
    move_it(scene)
    args = (scene.client, HERE, 0x8000, 4 * PAGE_SIZE)
    with pytest.raises(MustWait):
        scene.iommu.update_vaddr(*args, may_wait=False)
    fails(errno.ENOENT, scene.iommu.update_vaddr, scene.client, THERE, 0, PAGE_SIZE, may_wait=False)
    assert scene.count() == 0 and scene.iommu.space.invalid_vaddrs == 1
    scene.iommu.update_vaddr(*args)
    assert scene.count() == 4 and scene.iommu.space.invalid_vaddrs == 0


def test_the_pump_leaves_a_map_that_pins_to_a_thread_that_may_wait(scene: Scene) -> None:
    container = Container(locked=scene.locked)
    container.iommu = scene.iommu
    file = ContainerFops(container, Processes(lambda: -1))
    row = row_of(Kind.CONTAINER, "VFIO_IOMMU_MAP_DMA")
    asked = ffi.new("struct vfio_iommu_type1_dma_map *", (32, 3, 0x10000, HERE, PAGE_SIZE))
    address = int(ffi.cast("uintptr_t", asked))

    def ioctl(on_pump: int) -> int | None:
        ffi.memmove(lib.lane_argument(1).data, asked, 32)
        return file.ioctl(row.cmd, address, os.getpid(), on_pump)

    assert ioctl(on_pump=1) == 0
    assert scene.iommu.unmap(HERE, PAGE_SIZE) == PAGE_SIZE
    scene.iommu.attach(Group())
    assert ioctl(on_pump=1) is None
    assert scene.iommu.dma_avail == 65535
    buffer = ffi.from_buffer(memory := bytearray(2 * PAGE_SIZE))
    asked.vaddr = int(ffi.cast("uintptr_t", buffer)) + PAGE_SIZE - 1 & -PAGE_SIZE
    assert ioctl(on_pump=0) == 0
    assert scene.iommu.dma_avail == 65534 and len(memory) == 2 * PAGE_SIZE


class Physical(Toy):
    """A toy that does DMA of its own."""

    __slots__ = ()
    emulated_iommu = False


@pytest.fixture
def joining(scene: Scene) -> tuple[Container, GroupFile, GroupFile]:
    """A container with a group of a mediated device, and an open group of a physical function."""
    mediated, physical = VfioGroup(1), VfioGroup(2)
    Toy("vgpu", mediated)
    Physical("pf", physical)
    container, first = Container(locked=scene.locked), open_group(mediated)
    first.set_container(container)
    container.set_iommu(3)
    container.type1.map(scene.client, HERE, 0x8000, 4 * PAGE_SIZE, RW)
    return container, first, open_group(physical)


def test_a_group_that_joins_holds_up_nobody(
    scene: Scene, joining: tuple[Container, GroupFile, GroupFile]
) -> None:
    container, first, second = joining
    scene.client.hold("pin")
    join = Call(lambda: second.set_container(container))
    assert scene.client.begun.wait(60)
    assert second.status() == (True, False) and first.status() == (True, True)
    fails(errno.EINVAL, second.set_container, container)
    fails(errno.EBUSY, second.unset_container)
    fails(errno.EINVAL, second.get_device, "pf")
    fails(errno.EBUSY, open_group, second.group)
    fails(errno.EBUSY, second.group.devices[0].retire)
    assert isinstance(first.get_device("vgpu").device, Device)
    first.unset_container()
    assert join.waits and scene.count() == 4
    scene.client.answer()
    join.result()
    assert second.status() == (True, True) and scene.count() == 4
    second.unset_container()
    assert scene.count() == 0 and container.iommu is None


@pytest.mark.parametrize("fails_then", [False, True], ids=["joins", "EFAULT"])
def test_a_group_that_is_closed_while_it_joins_is_free_again(
    scene: Scene, joining: tuple[Container, GroupFile, GroupFile], fails_then: bool
) -> None:
    container, _, second = joining
    scene.client.hold("pin")
    join = Call(lambda: second.set_container(container))
    assert scene.client.begun.wait(60)
    second.close()
    fails(errno.EBUSY, open_group, second.group)
    scene.client.answer(fails_then)
    if fails_then:
        fails(errno.EFAULT, join.result)
    else:
        join.result()
    assert scene.count() == 0 and list(container.groups) == [1]
    open_group(second.group).close()


STEPS = ("map", "map", "map", "unmap", "all", "pin", "pin", "unpin", "attach", "detach", "dma")


class Restless(FakeClient):
    """Answers after a moment, and sometimes not as wished."""

    def pin(self, vaddr: int, size: int, write: bool):  # type: ignore[no-untyped-def]
        time.sleep(random.choice((0, 0, 0.0005)))
        if random.random() < 0.1:
            raise OSError(errno.EFAULT, "no such memory")
        return super().pin(vaddr, size, write)

    def memlock_limit(self) -> int:
        time.sleep(random.choice((0, 0, 0.0003)))
        return super().memlock_limit()


def test_whatever_threads_do_at_once_what_is_counted_is_right_in_the_end() -> None:
    locked = LockedMemory()
    iommu = Type1(locked=locked)
    Driver(iommu)
    clients = [Restless(number, memlock=12 * PAGE_SIZE) for number in range(2)]
    end = time.monotonic() + 2
    worked: set[str] = set()

    def step(name: str, group: Group, client: FakeClient, iova: int, count: int) -> None:
        if name == "map":
            iommu.map(client, iova, iova, count * PAGE_SIZE, 3)
        elif name == "unmap":
            iommu.unmap(iova, count * PAGE_SIZE)
        elif name == "all":
            iommu.unmap(0, 0, all=True)
        elif name == "pin":
            iommu.space.pin_pages(iova, count, Prot.READ)
        elif name == "unpin":
            iommu.space.unpin_pages(iova, count)
        elif name == "attach":
            iommu.attach(group)
        elif name == "detach":
            iommu.detach(group)
        else:
            iommu.space.dma_write(iova, b"data")

    def work(seed: int) -> None:
        chosen = random.Random(seed)
        while time.monotonic() < end or worked != set(STEPS):
            name, client = chosen.choice(STEPS), chosen.choice(clients)
            with suppress(OSError):
                step(name, Group(seed), client, chosen.randrange(8) * PAGE_SIZE, chosen.randrange(1, 5))
                worked.add(name)

    workers = [Call(partial(work, seed)) for seed in range(4)]
    for worker in workers:
        worker.result()
    expected = {client.identity: 0 for client in clients}
    strict = bool(iommu.space.attachments.strict)
    for mapping in iommu.space.mappings:
        assert (mapping.pages is not None) is strict and mapping.allows
        expected[mapping.client.identity] += mapping.page_count if strict else len(mapping.pins or ())
    assert [locked.of(client) for client in clients] == list(expected.values())
    iommu.unmap(0, 0, all=True)
    for seed in range(4):
        iommu.detach(Group(seed))
    assert [locked.of(client) for client in clients] == [0, 0]


class Raising(Unhurried):
    """A client whose memory raises something that is no errno, as when the server has no memory left."""

    raises = False

    def pin(self, vaddr: int, size: int, write: bool) -> FakePages:
        if self.raises:
            raise MemoryError
        return super().pin(vaddr, size, write)


@pytest.mark.parametrize("call", CALLS)
def test_a_pin_that_raises_leaves_nothing_charged(scene: Scene, call: str) -> None:
    """Nobody is charged for it, and the call can be made again."""
    client = Raising(9)
    start = CALLS[call](Scene(scene.iommu, client, scene.locked, scene.driver))
    client.raises = True
    with pytest.raises(MemoryError):
        start()
    assert scene.locked.of(client) == 0
    client.raises = False
    start()
    assert scene.locked.of(client) == 4
