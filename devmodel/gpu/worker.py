# SPDX-License-Identifier: Apache-2.0
"""The thread that executes the commands of one vGPU while it has any.

A doorbell starts it, and it ends when it had nothing to do for a while or is stopped. A stopped worker has no
turn, no video memory and no DMA any more, wherever in its work it is.
"""

import logging
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from devmodel.gpu.commands import PACKET_SIZE, GpuCommand, Step, decode
from devmodel.gpu.faults import EngineFault, EngineStopped
from devmodel.gpu.memory import GraphicsMemory
from devmodel.gpu.scheduler import Scheduler
from devmodel.gpu.shares import EngineShare

log = logging.getLogger(__name__)

BATCH = 32
"""Packets fetched at once."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 50e-6, 2e-3
"""Seconds from each look to the next at memory that a command waits for."""


class WorkSide(Protocol):
    """What a worker asks of its engine. All take the device's lock, and raise :class:`EngineStopped` for a
    worker that is not the engine's any more."""

    name: str
    share: EngineShare
    scheduler: Scheduler
    timeout: int

    def next_packets(self, worker: "Worker", most: int) -> tuple[int, int]:
        """Wait for work: graphics address and bytes of the next packets."""

    def has_work(self) -> bool:
        """Whether more packets wait than the one in execution; a guess, without the lock."""

    def completed(self, worker: "Worker", command: GpuCommand) -> None:
        """The packet at the head is done."""

    def faulted(self, worker: "Worker", fault: EngineFault, fetched: bool) -> None:
        """The packet at the head failed, or (not ``fetched``) could not be read."""

    def pause(self, worker: "Worker", seconds: float) -> None:
        """Wait, unless the worker is stopped."""

    def hung(self, worker: "Worker") -> None:
        """Nothing came back in time. Raises nothing."""


class Worker:
    """One thread. ``where`` is the graphics address that it is at."""

    __slots__ = ("_engine", "_memory", "_turn", "thread")

    def __init__(self, engine: WorkSide, memory: GraphicsMemory) -> None:
        self._engine, self._memory = engine, memory
        self._turn = engine.scheduler.turn(engine.share, engine.timeout, self._expired, self._used)
        self.thread = threading.Thread(target=self._run, name=f"engine-{engine.name}", daemon=True)
        """It may live long after the worker was stopped, in memory that its client has stopped."""
        self.thread.start()

    @property
    def where(self) -> int:
        """The graphics address of its newest access to system memory."""
        return self._memory.where

    def stop(self) -> None:
        """Take engine, video memory and DMA away from it. Any thread; does not wait for it to end."""
        self._engine.scheduler.give_up(self._turn, over=True)
        self._memory.stop()

    def idle(self) -> None:
        """Let go of the engine until there is work. Its own thread."""
        self._engine.scheduler.give_up(self._turn)

    def _run(self) -> None:
        try:
            while True:
                self._serve()
        except EngineStopped:
            return
        except Exception:
            log.exception("the engine of %s failed", self._engine.name)
            self._expired()
        finally:
            self._engine.scheduler.give_up(self._turn, over=True)
            # no cycles: its mapping of video memory goes with the thread
            self._turn.expired, self._turn.clock = _nothing, time.monotonic_ns

    def _serve(self) -> None:
        """Fetch some packets, and execute them."""
        address, size = self._engine.next_packets(self, BATCH)
        try:
            packets = self._fetch(address, size)
        except EngineFault as fault:
            self._engine.faulted(self, fault, fetched=False)
            return
        for offset in range(0, size, PACKET_SIZE):
            try:
                command = decode(packets[offset : offset + PACKET_SIZE], address + offset)
                self._execute(command)
            except EngineFault as fault:
                self._engine.faulted(self, fault, fetched=True)
                return
            self._engine.completed(self, command)

    def _fetch(self, address: int, size: int) -> bytes:
        found: list[bytes] = []

        def read() -> Iterator[Step]:
            found.append(self._memory.read(address, size))
            yield Step.MORE

        self._step(read())
        return found[0]

    def _execute(self, command: GpuCommand) -> None:
        work, pause, until = command.execute(self._memory), _SHORTEST_PAUSE, 0
        while (step := self._step(work)) is not None:
            if step is Step.WAITING:
                now = time.monotonic_ns()
                until = until or now + self._engine.timeout
                if now >= until:
                    self._engine.hung(self)
                    raise EngineStopped
                self._engine.pause(self, pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _step(self, work: Iterator[Step]) -> Step | None:
        """A slice of the engine's time for ``work``; None when that was its end."""
        scheduler, turn = self._engine.scheduler, self._turn
        turn.timeout = self._engine.timeout
        scheduler.enter(turn)
        try:
            step = next(work, None)
        except BaseException:
            scheduler.leave(turn, more=False)
            raise
        scheduler.leave(turn, more=self._engine.has_work() if step is None else step is Step.MORE)
        return step

    def _used(self) -> int:
        """Nanoseconds: the processor's, and those for which memory of the client made it wait. So whatever
        else keeps this thread from running, the host's other programs above all, is not its share's to pay.
        """
        return time.thread_time_ns() + self._memory.waited

    def _expired(self) -> None:
        self._engine.hung(self)


def _nothing() -> None:
    """What remains to be done for a worker that has ended."""
