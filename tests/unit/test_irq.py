# SPDX-License-Identifier: Apache-2.0
"""Interrupts in the model: INTx levels and masks, messages, notices, eventfds and ioeventfds, from any
thread."""

import errno
import gc
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from uuid import UUID, uuid4

import pytest

from devmodel.device.pci import PciDevice
from devmodel.irq.eventfd import Eventfd, Watcher
from devmodel.irq.ioeventfd import IoEventfds, IoWrite
from devmodel.irq.irqs import Action, IrqIndex, Irqs
from devmodel.irq.kinds import ClientFds, PciIrq
from devmodel.pci.capability import Capability, msi
from devmodel.pci.express import express
from devmodel.pci.fields import Bar, Identity
from devmodel.pci.msix import MsixBar
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.group import Assignable, Group
from devmodel.vfio.vftoken import PciName, VfToken, parse_pci_name
from ioctl_shim._native import lib
from tests.unit.fakes import fails

EVERY = [
    IrqIndex(1, maskable=True, automasked=True),
    IrqIndex(32, noresize=True),
    IrqIndex(2048),
    *[IrqIndex(1)] * 2,
]


class Card(PciDevice):
    """A PCI Express function with everything that interrupts."""

    __slots__ = ()
    identity = Identity(0x1234, 1, 0, 0, class_code=0xFF0000, irq_pin=1)

    def bars(self) -> dict[int, Bar]:
        return {0: Bar(MsixBar(8, excluded=False))}

    def capabilities(self) -> list[Capability]:
        bar = self.bar_map[0].region
        assert isinstance(bar, MsixBar)
        return [msi(4), express(), bar.capability(0)]


class Client:
    """Eventfds of a client: numbers are their own descriptors, which stay the client's."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.fds: list[int] = []

    def eventfd(self, count: int = 0) -> int:
        self.fds.append(os.eventfd(count, os.EFD_NONBLOCK))
        return self.fds[-1]

    def data(self, numbers: Sequence[int]) -> ClientFds:
        return ClientFds(numbers, lambda number: Eventfd(os.dup(number), lib.shim_signal), self.watcher)

    def set(
        self, irqs: Irqs, index: int, *numbers: int, start: int = 0, action: Action = Action.TRIGGER
    ) -> None:
        irqs.set(index, action, start, len(numbers), self.data(numbers))


def count(fd: int) -> int:
    """The eventfd's counter, which is taken."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def masked(irqs: Irqs) -> bool:
    return irqs.intx.masked


def soon(check: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.001)
    return False


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    made = Watcher()
    yield made
    made.close()


@pytest.fixture
def client(watcher: Watcher) -> Iterator[Client]:
    made = Client(watcher)
    yield made
    for fd in made.fds:
        os.close(fd)


@pytest.fixture
def irqs() -> Iterator[Irqs]:
    made = Irqs(EVERY)
    yield made
    made.release()


def test_intx_fires_once_and_is_masked_until_unmasked(irqs: Irqs, client: Client) -> None:
    event = client.eventfd()
    client.set(irqs, PciIrq.INTX, event)
    irqs.set_level(True)
    irqs.set_level(True)
    assert count(event) == 1 and masked(irqs)
    irqs.set(PciIrq.INTX, Action.UNMASK, 0, 1, None)
    assert count(event) == 1, "a line that is still asserted fires again"
    irqs.set_level(False)
    irqs.set(PciIrq.INTX, Action.UNMASK, 0, 1, b"\1")
    assert count(event) == 0 and not masked(irqs)
    irqs.set_level(True)
    assert count(event) == 1


def test_intx_asserted_while_masked_fires_on_unmask(irqs: Irqs, client: Client) -> None:
    event = client.eventfd()
    client.set(irqs, PciIrq.INTX, event)
    irqs.set(PciIrq.INTX, Action.MASK, 0, 1, None)
    irqs.set_level(True)
    assert count(event) == 0
    irqs.set(PciIrq.INTX, Action.UNMASK, 0, 1, None)
    assert count(event) == 1


def test_intx_asserted_before_it_is_set_up_fires_then(irqs: Irqs, client: Client) -> None:
    event = client.eventfd()
    irqs.set_level(True)
    client.set(irqs, PciIrq.INTX, event)
    assert count(event) == 1


def test_intx_disable_keeps_it_silent_until_enabled(irqs: Irqs, client: Client) -> None:
    event = client.eventfd()
    client.set(irqs, PciIrq.INTX, event)
    irqs.disable_intx(True)
    irqs.set_level(True)
    irqs.set(PciIrq.INTX, Action.UNMASK, 0, 1, None)
    assert count(event) == 0
    irqs.disable_intx(False)
    assert count(event) == 1


def test_unmask_by_eventfd_is_on_a_thread_of_its_own(irqs: Irqs, client: Client) -> None:
    event, unmask = client.eventfd(), client.eventfd()
    client.set(irqs, PciIrq.INTX, event)
    client.set(irqs, PciIrq.INTX, unmask, action=Action.UNMASK)
    irqs.set_level(True)
    assert count(event) == 1
    irqs.set_level(False)
    os.eventfd_write(unmask, 1)
    assert soon(lambda: not masked(irqs))
    assert count(unmask) == 0 and count(event) == 0
    irqs.set_level(True)
    assert count(event) == 1
    os.eventfd_write(unmask, 1)
    assert soon(lambda: count(event) == 1)
    client.set(irqs, PciIrq.INTX, -1, action=Action.UNMASK)
    client.set(irqs, PciIrq.INTX, unmask, action=Action.UNMASK)


def test_intx_without_an_eventfd_is_set_up_all_the_same(irqs: Irqs, client: Client) -> None:
    client.set(irqs, PciIrq.INTX, -1)
    assert irqs.active is PciIrq.INTX
    irqs.set(PciIrq.INTX, Action.TRIGGER, 0, 1, None)
    irqs.set_level(True)
    irqs.set(PciIrq.INTX, Action.TRIGGER, 0, 0, None)
    assert irqs.active is None


@pytest.mark.parametrize(("index", "dynamic"), [(PciIrq.MSI, False), (PciIrq.MSIX, True)])
def test_messages_beyond_those_set_up_first(irqs: Irqs, client: Client, index: PciIrq, dynamic: bool) -> None:
    first, second = client.eventfd(), client.eventfd()
    client.set(irqs, index, first, -1)
    client.set(irqs, index, second, start=1)
    if dynamic:
        client.set(irqs, index, second, start=20)
    else:
        fails(errno.EINVAL, client.set, irqs, index, second, start=2)
    for vector in (0, 1, 5, 20):
        irqs.trigger(index, vector)
    assert (count(first), count(second)) == (1, 2 if dynamic else 1)
    assert irqs.raise_message(0) and count(first) == 1


def test_who_has_no_messages_uses_intx(irqs: Irqs, client: Client) -> None:
    assert not irqs.raise_message(0)
    client.set(irqs, PciIrq.INTX, client.eventfd())
    assert not irqs.raise_message(0)
    with pytest.raises(ValueError, match="level"):
        irqs.trigger(PciIrq.INTX)


def test_every_thread_may_trigger(irqs: Irqs, client: Client) -> None:
    event = client.eventfd()
    client.set(irqs, PciIrq.MSIX, *[event] * 8)

    def repeatedly(vector: int) -> None:
        for _ in range(200):
            irqs.trigger(PciIrq.MSIX, vector)

    threads = [threading.Thread(target=repeatedly, args=(vector,)) for vector in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(event) == 1600


def test_triggering_while_the_client_tears_down(irqs: Irqs, client: Client) -> None:
    event, stop = client.eventfd(), threading.Event()

    def device() -> None:
        while not stop.is_set():
            irqs.trigger(PciIrq.MSIX, 0)

    thread = threading.Thread(target=device)
    thread.start()
    for _ in range(200):
        client.set(irqs, PciIrq.MSIX, event)
        irqs.set(PciIrq.MSIX, Action.TRIGGER, 0, 0, None)
    stop.set()
    thread.join()


def test_release_lets_every_descriptor_go(irqs: Irqs, client: Client) -> None:
    event = client.eventfd()
    before = len(os.listdir("/proc/self/fd"))
    client.set(irqs, PciIrq.MSIX, *[event] * 100)
    for index in (PciIrq.ERR, PciIrq.REQ):
        client.set(irqs, index, event)
    assert len(os.listdir("/proc/self/fd")) == before + 102
    irqs.release()
    assert len(os.listdir("/proc/self/fd")) == before
    for index in (PciIrq.MSIX, PciIrq.ERR, PciIrq.REQ):
        irqs.trigger(index)
    assert count(event) == 0


def test_what_is_no_eventfd_is_closed_again() -> None:
    reader, writer = os.pipe()
    fails(errno.EINVAL, Eventfd, reader, lib.shim_signal)
    fails(errno.EBADF, os.fstat, reader)
    os.close(writer)


def test_a_full_counter_is_left_alone() -> None:
    event = Eventfd(os.eventfd(0), lib.shim_signal)
    os.eventfd_write(event.fd, 2**64 - 2)
    for _ in range(3):
        event.signal()
    assert event.take() == 2**64 - 1, "it overflows once, as with eventfd_signal()"
    assert event.take() == 0, "a blocking eventfd with nothing in it holds nobody"
    event.close()
    event.close()


def test_a_signal_needs_an_open_eventfd() -> None:
    client = os.eventfd(0)
    event = Eventfd(os.dup(client), lib.shim_signal)
    event.signal()
    assert os.eventfd_read(client) == 1
    number = event.fd
    event.close()
    os.dup2(client, number)
    event.signal()
    os.eventfd_write(client, 5)
    assert os.eventfd_read(client) == 5
    os.close(number)
    os.close(client)


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_a_watch_that_raises_ends_nothing(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: told.append(arguments.exc_type))

    def fail() -> None:
        raise error

    bad, good = (os.eventfd(1) for _ in range(2))
    seen = threading.Event()
    watcher.watch(Eventfd(bad, lib.shim_signal), fail)
    watcher.watch(Eventfd(good, lib.shim_signal), seen.set)
    assert seen.wait(60) and soon(lambda: told == [error])


def descriptors() -> list[str]:
    gc.collect()  # what earlier tests left
    return os.listdir("/proc/self/fd")


def test_the_first_watch_without_a_descriptor_left_keeps_nothing(watcher: Watcher) -> None:
    before = descriptors()
    event = Eventfd(os.eventfd(0), lib.shim_signal)
    limits, free = resource.getrlimit(resource.RLIMIT_NOFILE), [os.dup(event.fd) for _ in range(2)]
    for fd in free:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[1], limits[1]))
    try:  # there is one for the epoll, and none for the eventfd that ends the thread
        fails(errno.EMFILE, watcher.watch, event, lambda: None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert descriptors() == before
    assert_works(watcher)


def test_a_watch_that_the_kernel_refuses_keeps_nothing(watcher: Watcher) -> None:
    assert_works(watcher)
    before = descriptors()
    event = Eventfd(os.eventfd(0), lib.shim_signal)
    with open(os.devnull, "rb") as other:
        os.dup2(other.fileno(), event.fd)
    fails(errno.EPERM, watcher.watch, event, lambda: None)
    assert descriptors() == before
    assert_works(watcher)


def test_one_eventfd_is_watched_many_times(watcher: Watcher) -> None:
    assert_works(watcher)
    before = descriptors()
    event, seen = os.eventfd(0), threading.Event()
    watches = [watcher.watch(Eventfd(os.dup(event), lib.shim_signal), seen.set) for _ in range(50)]
    for watch in watches[1:]:
        watch.cancel()
    os.eventfd_write(event, 1)
    assert seen.wait(60)
    watches[0].cancel()
    os.close(event)
    assert descriptors() == before


def assert_works(watcher: Watcher) -> None:
    seen = threading.Event()
    watch = watcher.watch(Eventfd(os.eventfd(1), lib.shim_signal), seen.set)
    assert seen.wait(60)
    watch.cancel()


def test_ioeventfds(watcher: Watcher) -> None:
    written: list[tuple[int, int, bytes]] = []

    still = list[Callable[[], bool]]()

    def write(region: int, offset: int, data: bytes, wanted: Callable[[], bool]) -> int:
        still.append(wanted)
        written.append((region, offset, data))
        return len(data)

    ioeventfds = IoEventfds(write)
    event = os.eventfd(0)
    what = IoWrite(2, 8, 2, 0x11223344)
    ioeventfds.add(what, lambda: Eventfd(os.dup(event), lib.shim_signal), watcher)
    fails(errno.EEXIST, ioeventfds.add, what, lambda: Eventfd(os.dup(event), lib.shim_signal), watcher)
    os.eventfd_write(event, 1)
    assert soon(lambda: written == [(2, 8, b"\x44\x33")])
    assert still[0]()
    ioeventfds.remove(what)
    assert not still[0]()
    fails(errno.ENODEV, ioeventfds.remove, what)
    ioeventfds.release()
    os.close(event)


def test_who_removes_an_ioeventfd_waits_for_its_write(watcher: Watcher) -> None:
    begun, goes_on, order = threading.Event(), threading.Event(), list[str]()

    def write(region: int, offset: int, data: bytes, wanted: Callable[[], bool]) -> int:
        begun.set()
        assert goes_on.wait(60)
        order.append("written")
        return len(data)

    def remove() -> None:
        ioeventfds.remove(what)
        order.append("removed")

    ioeventfds, what = IoEventfds(write), IoWrite(2, 8, 4, 1)
    ioeventfds.add(what, lambda: Eventfd(os.eventfd(1), lib.shim_signal), watcher)
    assert begun.wait(60)
    removing = threading.Thread(target=remove)
    removing.start()
    removing.join(0.05)  # it would be over by now if it did not wait
    goes_on.set()
    removing.join(60)
    assert order == ["written", "removed"]


# ---- a PCI function ----


def test_the_status_register_shows_the_line_and_reset_lowers_it() -> None:
    card = Card("card")
    with card.lock:
        card.set_intx(True)
    assert card.read(7, 6, 2)[0] & 8
    card.reset()
    assert not card.read(7, 6, 2)[0] & 8
    card.close()


def test_the_command_register_disables_intx(client: Client) -> None:
    card, event = Card("card"), client.eventfd()
    client.set(card.irq, PciIrq.INTX, event)
    card.write(7, 4, b"\0\4")
    with card.lock:
        card.set_intx(True)
    assert count(event) == 0
    card.write(7, 4, b"\0\0")
    assert count(event) == 1
    card.close()


def test_a_card_says_what_it_has() -> None:
    card = Card("card")
    assert [card.irq.count(index) for index in range(-1, 6)] == [0, 1, 4, 8, 1, 1, 0]
    assert card.msix_table == (0, 0, 128)
    card.write(0, 126, b"abcd")
    assert card.read(0, 124, 8) == b"\xff" * 4 + b"cd" + bytes(2)
    card.close()


class Held(Assignable):
    """An assignable card."""

    __slots__ = ("card",)

    def __init__(self, group: Group) -> None:
        super().__init__("held", group)
        self.card = Card("held")

    @property
    def device(self) -> PciDevice:
        return self.card


def test_the_last_close_ends_the_interrupts_and_a_refused_removal_asks(client: Client) -> None:
    held, event = Held(Group(1)), client.eventfd()
    first, second = DeviceFile(held), DeviceFile(held)
    client.set(held.card.irq, PciIrq.REQ, event)
    first.close()
    fails(errno.EBUSY, held.retire)
    assert count(event) == 1
    second.close()
    held.card.irq.trigger(PciIrq.REQ)
    assert count(event) == 0


# ---- names with VF tokens ----

NAME, TOKEN = "0000:86:00.0", "83d8f4f2-509f-382f-3c1e-e6bfe0fa1001"


def test_names_with_tokens() -> None:
    assert parse_pci_name(NAME, "0000:86:00.1") is None
    assert parse_pci_name(NAME, NAME) == PciName(None)
    assert parse_pci_name(NAME, f"{NAME}  vf_token={TOKEN}  ") == PciName(UUID(TOKEN))


def test_the_token_of_a_physical_function() -> None:
    token = VfToken()
    fails(errno.EACCES, token.check_user, UUID(TOKEN))  # nobody knows the first one
    token.check(None)
    token.check(UUID(TOKEN))  # while no virtual function is open, who opens the physical one sets it
    token.check_user(UUID(TOKEN))
    token.count(1)
    token.check(UUID(TOKEN))
    for other in (None, uuid4()):
        fails(errno.EACCES, token.check, other)
        fails(errno.EACCES, token.check_user, other)
    chosen = uuid4()
    token.set(chosen)
    fails(errno.EACCES, token.check, UUID(TOKEN))
    token.check(chosen)
    token.count(-1)
    token.check(UUID(TOKEN))
    token.check_user(UUID(TOKEN))
