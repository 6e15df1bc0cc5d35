# SPDX-License-Identifier: Apache-2.0
"""Who gets the engine: exact shares by a clock of our own, and threads that hang, end and are sent away."""

import itertools
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.gpu.faults import EngineStopped
from devmodel.gpu.scheduler import Scheduler, Turn, TurnState
from devmodel.gpu.shares import EngineShare, FairQueue
from tests.waiting import wait_for

SECOND = 10**9
SECONDS = 60


def simulate(weights: list[int], slices: list[int], total: int) -> list[EngineShare]:
    """All always have work, of slices of these sizes; until ``total`` is used."""
    shares = [EngineShare(weight) for weight in weights]
    queue: FairQueue[int] = FairQueue()
    sizes = itertools.cycle(slices)
    for number, share in enumerate(shares):
        queue.push(share, number)
    while sum(share.used for share in shares) < total:
        chosen = queue.pop()
        assert chosen is not None
        shares[chosen].charge(next(sizes))
        queue.push(shares[chosen], chosen)
    return shares


def test_one_to_three_is_exact() -> None:
    light, heavy = simulate([16, 48], [100], 400_000)
    assert (light.used, heavy.used) == (100_000, 300_000)


@given(
    st.lists(st.integers(1, 1000), min_size=2, max_size=6),
    st.lists(st.integers(1, 10_000), min_size=1, max_size=5),
)
def test_nobody_is_off_by_more_than_a_slice(weights: list[int], slices: list[int]) -> None:
    """What is used by weight differs by a longest slice of each at most: the bound of fair queueing."""
    shares = simulate(weights, slices, 500 * max(slices))
    longest = max(slices)
    for one, other in itertools.combinations(shares, 2):
        bound = longest / one.weight + longest / other.weight
        assert abs(one.used / one.weight - other.used / other.weight) <= bound + 1e-6


def test_who_was_idle_has_saved_nothing_up() -> None:
    busy, sleeper = EngineShare(1), EngineShare(1)
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push(busy, "busy")
        assert queue.pop() == "busy"
        busy.charge(SECOND)
    order = []
    for share, name in ((sleeper, "sleeper"), (busy, "busy")):
        queue.push(share, name)
    for _ in range(10):
        chosen = queue.pop()
        assert chosen is not None
        order.append(chosen)
        share = {"busy": busy, "sleeper": sleeper}[chosen]
        share.charge(SECOND)
        queue.push(share, chosen)
    assert order.count("sleeper") <= 6


def test_who_leaves_the_queue_is_passed_over() -> None:
    queue: FairQueue[str] = FairQueue()
    first, second = EngineShare(1), EngineShare(1)
    queue.push(first, "first")
    queue.push(second, "second")
    queue.remove("first")
    queue.remove("nobody")
    assert len(queue) == 1 and queue.pop() == "second" and queue.pop() is None
    queue.push(first, "first")
    queue.remove("first")
    queue.push(first, "first")
    assert queue.pop() == "first" and queue.pop() is None


# ---- threads ----


def never() -> None:
    raise AssertionError("no slice took too long")


def in_thread(call: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=call, args=arguments, daemon=True)
    thread.start()
    return thread


def test_one_slice_at_a_time_and_the_next_by_weight() -> None:
    """Three threads that count by a clock that only slices move."""
    now = [0]
    scheduler = Scheduler(lambda: now[0])
    shares = [EngineShare(weight) for weight in (10, 20, 70)]
    inside, overlaps = [0], [0]
    everybody = threading.Barrier(3)

    def work(share: EngineShare) -> None:
        turn = scheduler.turn(share, 10**15, never)
        everybody.wait()
        while scheduler.used < 1_000_000:
            scheduler.enter(turn)
            inside[0] += 1
            overlaps[0] += inside[0] != 1
            time.sleep(0)
            now[0] += 100
            inside[0] -= 1
            scheduler.leave(turn, more=True)
        scheduler.give_up(turn, over=True)

    threads = [in_thread(work, share) for share in shares]
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert not overlaps[0]
    assert scheduler.used == sum(share.used for share in shares)
    total = sum(share.used for share in shares)
    for share in shares:
        assert share.used / total == pytest.approx(share.weight / 100, rel=0.02)


def test_a_share_pays_by_the_clock_of_its_worker() -> None:
    """Real time only where the worker does not come back: then it has had the engine."""
    now, used = [0], [0]
    scheduler = Scheduler(lambda: now[0])
    share = EngineShare(1)
    turn = scheduler.turn(share, 10**15, never, lambda: used[0])
    paid = []
    for real, own in [(100, 100), (1000, 100), (50, 0)]:
        used[0] += 7  # between two slices
        scheduler.enter(turn)
        now[0], used[0] = now[0] + real, used[0] + own
        scheduler.leave(turn, more=False)
        paid.append(share.used)
    assert paid == [100, 200, 200]
    scheduler.enter(turn)
    now[0] += 1000
    scheduler.give_up(turn, over=True)
    assert scheduler.used == share.used == 1200


def test_a_slice_that_does_not_come_back_loses_the_engine() -> None:
    scheduler, expired = Scheduler(), []
    stuck = scheduler.turn(EngineShare(16), SECOND // 50, lambda: expired.append("stuck"))
    other = scheduler.turn(EngineShare(16), SECOND * 60, never)
    scheduler.enter(stuck)
    scheduler.enter(other)  # waits until the engine is taken away
    wait_for(lambda: expired)
    assert expired == ["stuck"] and stuck.state is TurnState.OVER
    assert stuck.share.used >= SECOND // 50
    with pytest.raises(EngineStopped):
        scheduler.leave(stuck, more=True)
    with pytest.raises(EngineStopped):
        scheduler.enter(stuck)
    scheduler.leave(other, more=False)
    assert other.state is TurnState.AWAY and expired == ["stuck"]


def test_a_slice_alone_loses_it_too() -> None:
    scheduler, expired = Scheduler(), threading.Event()
    turn = scheduler.turn(EngineShare(1), SECOND // 100, expired.set)
    scheduler.enter(turn)
    assert expired.wait(SECONDS)
    again = scheduler.turn(EngineShare(1), SECOND * 60, never)
    scheduler.enter(again)
    scheduler.leave(again, more=False)


def test_a_shorter_timeout_is_seen_while_a_longer_one_is_watched() -> None:
    scheduler, expired = Scheduler(), threading.Event()
    patient = scheduler.turn(EngineShare(1), SECOND * 3600, never)
    scheduler.enter(patient)
    scheduler.leave(patient, more=False)
    hasty = scheduler.turn(EngineShare(1), SECOND // 100, expired.set)
    scheduler.enter(hasty)
    assert expired.wait(SECONDS)


def test_who_waits_can_be_sent_away() -> None:
    scheduler, ended = Scheduler(), []
    first, second = (scheduler.turn(EngineShare(1), SECOND * 60, never) for _ in range(2))

    def wait(turn: Turn) -> None:
        try:
            scheduler.enter(turn)
        except EngineStopped:
            ended.append(turn)

    scheduler.enter(first)
    thread = in_thread(wait, second)
    wait_for(lambda: second.state is TurnState.WAITING)
    scheduler.give_up(second, over=True)
    thread.join(SECONDS)
    assert ended == [second]
    scheduler.leave(first, more=True)
    scheduler.enter(first)
    scheduler.leave(first, more=False)


def test_who_has_the_engine_can_be_sent_away_and_the_next_comes() -> None:
    scheduler = Scheduler()
    first, second = (scheduler.turn(EngineShare(1), SECOND * 60, never) for _ in range(2))
    scheduler.enter(first)
    thread = in_thread(scheduler.enter, second)
    wait_for(lambda: second.state is TurnState.WAITING)
    scheduler.give_up(first, over=True)
    thread.join(SECONDS)
    assert second.state is TurnState.RUNNING
    with pytest.raises(EngineStopped):
        scheduler.leave(first, more=False)
    assert second.state is TurnState.RUNNING  # what came late took nothing from it


def test_a_place_that_is_kept_can_be_given_up() -> None:
    """Who says that there is more, and then has none, does not keep the engine."""
    scheduler = Scheduler()
    first, second = (scheduler.turn(EngineShare(1), SECOND * 60, never) for _ in range(2))
    scheduler.enter(first)
    scheduler.leave(first, more=True)
    assert first.state is TurnState.RUNNING  # nobody else waits
    scheduler.give_up(first)
    scheduler.enter(second)
    scheduler.leave(second, more=False)
    scheduler.enter(first)
    scheduler.leave(first, more=False)


def test_the_watchdog_ends_when_there_is_nothing_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devmodel.gpu.scheduler.WATCHDOG_IDLE_SECONDS", 0.05)
    scheduler = Scheduler()
    turn = scheduler.turn(EngineShare(1), SECOND // 20, never)
    for _ in range(3):
        before = set(threading.enumerate())
        scheduler.enter(turn)
        (watching,) = set(threading.enumerate()) - before
        scheduler.leave(turn, more=False)
        watching.join(SECONDS)
        assert not watching.is_alive()
