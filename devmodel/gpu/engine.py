# SPDX-License-Identifier: Apache-2.0
"""The command engine of one vGPU: its registers, its ring, and the worker thread that executes the ring.

State: under the device's lock, which the worker takes for a moment between two slices. A reset stops the
worker, and a stopped worker changes nothing: no command from before a reset has an effect after it.
Source: docs/vgpu.md, "The engine".
"""

import logging
import threading

from devmodel.device.pci import PciDevice
from devmodel.gpu.commands import GpuCommand
from devmodel.gpu.faults import EngineFault, EngineStopped, ErrorCode
from devmodel.gpu.gtt import Gtt
from devmodel.gpu.memory import GraphicsMemory
from devmodel.gpu.registers import Control, Status
from devmodel.gpu.ring import Ring, impossible_value
from devmodel.gpu.scheduler import Scheduler
from devmodel.gpu.shadow import Shadow
from devmodel.gpu.shares import EngineShare
from devmodel.gpu.worker import Worker
from devmodel.region.registers import Registers

log = logging.getLogger(__name__)

FENCE_VECTOR, ERROR_VECTOR = 0, 1
WORKER_IDLE_SECONDS = 2.0
"""A worker that had nothing to do for so long ends."""
MOST_LATE = 4
"""Most stopped workers whose threads have not ended, because a client's memory does not answer them. With so
many the engine hangs instead of starting another worker."""
DEFAULT_TIMEOUT_MS, LEAST_TIMEOUT_MS, MOST_TIMEOUT_MS = 2000, 1, 60_000
_MILLI = 10**6


class Engine:
    """The device makes it after its regions. Its scheduler may be replaced until a client opens the
    device."""

    __slots__ = (
        "_device",
        "_late",
        "_registers",
        "_ring",
        "_standing",
        "_vectors",
        "_work",
        "_worker",
        "faults",
        "name",
        "scheduler",
        "shadow",
        "share",
        "timeout",
    )

    def __init__(self, device: PciDevice, registers: Registers, gtt: Gtt, vectors: int, weight: int) -> None:
        """``vectors`` is the number of MSI-X vectors, ``weight`` the vGPU's weight on the physical engine."""
        self._device, self._registers, self._vectors = device, registers, vectors
        self.name = device.name
        self.shadow = Shadow(gtt)
        self.share = EngineShare(weight)
        self.scheduler = Scheduler()
        self.timeout = DEFAULT_TIMEOUT_MS * _MILLI
        self.faults = 0
        """Commands that failed."""
        self._work = threading.Condition(device.lock)
        self._worker: Worker | None = None
        self._ring: Ring | None = None
        self._late: list[tuple[threading.Thread, int]] = []  # threads only: a worker has video memory mapped
        self._standing: bool | None = None
        """None while the ring moves; after an error, whether it is the packet at the head that failed."""

    # ---- attributes: any thread, without the device's lock ----

    @property
    def queue_depth(self) -> int:
        """Packets that wait, and the one in execution."""
        ring = self._ring
        return 0 if ring is None else ring.depth

    @property
    def timeout_ms(self) -> int:
        """Milliseconds that a slice, or a wait, may take."""
        return self.timeout // _MILLI

    def set_timeout(self, text: str) -> None:
        """Set the timeout, in milliseconds, of slices and waits to come. Raises ValueError for a bad text."""
        value = int(text) if text.isascii() and text.isdigit() else 0
        if not LEAST_TIMEOUT_MS <= value <= MOST_TIMEOUT_MS:
            raise ValueError(f"{text!r} is not {LEAST_TIMEOUT_MS} to {MOST_TIMEOUT_MS} milliseconds")
        self.timeout = value * _MILLI

    # ---- registers: the device lane, under the device's lock ----

    def status(self) -> int:
        idle = self._ring is None or self._ring.head == self._ring.tail
        return self._registers["STATUS"] | (Status.IDLE if idle else 0)

    def control(self, value: int) -> None:
        if value & Control.RESET:
            self.reset()
        if not value & Control.ENABLE:
            self.stop()
        elif self._ring is None:
            self._begin()

    def acknowledged(self, status: int) -> None:
        if status & Status.ERROR:
            return
        self._registers["ERROR_CODE"] = self._registers["ERROR_ADDRESS"] = 0
        if self._standing is None or self._ring is None:
            return
        if self._standing:
            self._advance(self._ring)
        self._standing = None
        self._wake()

    def doorbell(self, tail: int) -> None:
        ring = self._ring
        if ring is None:
            self._registers["RING_TAIL"] = 0
        elif ring.accepts(tail):
            ring.tail = tail
            self._wake()
        else:
            self._registers["RING_TAIL"] = ring.tail
            self._report(ErrorCode.BAD_RING, tail, Status.ERROR)

    def reset(self) -> None:
        """Return to the state after power-on; the ring stays where it is. Under the device's lock, any
        thread."""
        self.stop()
        for name in ("STATUS", "ERROR_CODE", "ERROR_ADDRESS", "FENCE", "RING_HEAD", "RING_TAIL"):
            self._registers[name] = 0

    def stop(self) -> None:
        """Stop the worker at once, and disable the engine. Under the device's lock, any thread."""
        self._registers["CONTROL"] = 0
        self._ring = self._standing = None
        worker, self._worker = self._worker, None
        if worker is not None:
            self._late.append((worker.thread, worker.where))
            worker.stop()
            self._work.notify_all()

    def _begin(self) -> None:
        base, size = self._registers["RING_BASE"], self._registers["RING_SIZE"]
        refused = impossible_value(base, size, self._device.memory)
        if refused is None:
            self._ring = Ring(base, size)
            self._registers["CONTROL"] = Control.ENABLE
            self._registers["RING_HEAD"] = self._registers["RING_TAIL"] = 0
        else:
            self._registers["CONTROL"] = 0
            self._report(ErrorCode.BAD_RING, refused, Status.ERROR)

    def _wake(self) -> None:
        ring = self._ring
        if ring is None or self._standing is not None or ring.head == ring.tail:
            return
        if self._worker is not None:
            self._work.notify_all()
            return
        self._late = [late for late in self._late if late[0].is_alive()]
        if len(self._late) < MOST_LATE:
            device = self._device
            memory = GraphicsMemory(device.backing, device.memory, self.shadow, device.dma)
            self._worker = Worker(self, memory)
        else:
            self._hang(self._late[0][1])

    def _hang(self, address: int) -> None:
        self.stop()
        self._report(ErrorCode.HANG, address, Status.ERROR | Status.HANG)

    def _advance(self, ring: Ring) -> None:
        ring.advance()
        self._registers["RING_HEAD"] = ring.head

    def _report(self, code: ErrorCode, address: int, status: Status) -> None:
        self.faults += 1
        self._registers["ERROR_CODE"], self._registers["ERROR_ADDRESS"] = code, address
        self._registers["STATUS"] |= status
        self._device.interrupt(min(ERROR_VECTOR, max(self._vectors - 1, 0)))

    # ---- workers (worker.WorkSide, commands.Completion) ----

    def next_packets(self, worker: Worker, most: int) -> tuple[int, int]:
        with self._work:
            while True:
                ring = self._check(worker)
                if self._standing is None and ring.head != ring.tail:
                    return ring.next_packets(most)
                worker.idle()
                if not self._work.wait(WORKER_IDLE_SECONDS) and self._is_idle(worker):
                    self._worker = None
                    raise EngineStopped

    def has_work(self) -> bool:
        return self.queue_depth > 1

    def completed(self, worker: Worker, command: GpuCommand) -> None:
        with self._work:
            self._advance(self._check(worker))
            command.complete(self)

    def faulted(self, worker: Worker, fault: EngineFault, fetched: bool) -> None:
        with self._work:
            self._check(worker)
            self._standing = fetched
            self._report(fault.code, fault.address, Status.ERROR)

    def pause(self, worker: Worker, seconds: float) -> None:
        with self._work:
            self._check(worker)
            self._work.wait(seconds)
            self._check(worker)

    def hung(self, worker: Worker) -> None:
        with self._work:
            if worker is self._worker:
                log.warning("the engine of %s hangs at %#x", self.name, worker.where)
                self._hang(worker.where)

    def fence_reached(self, value: int, interrupt: bool) -> None:
        self._registers["FENCE"] = value
        if interrupt:
            self._registers["STATUS"] |= Status.DONE
            self._device.interrupt(FENCE_VECTOR)

    def _check(self, worker: Worker) -> Ring:
        if worker is not self._worker or self._ring is None:
            raise EngineStopped
        return self._ring

    def _is_idle(self, worker: Worker) -> bool:
        ring = self._check(worker)
        return self._standing is not None or ring.head == ring.tail
