# SPDX-License-Identifier: Apache-2.0
"""Campaign `servers`: SIGKILL, SIGTERM and SIGSTOP of the server under load.

No client hangs, `vfsfuse umount` works, and so does a new mount.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from tests.stress.campaign import Campaign, Run
from tests.stress.killed_clients import nurse
from tests.stress.lab import GPUS
from tests.stress.programs import Program, Report

DOCUMENTED_KILLS = 20
MANY = 10**9
"""Calls of a load, which never comes to its end."""
ANSWER_SECONDS = 5.0
"""How long a client may wait for an error when its server has ended."""
UMOUNT_SECONDS = 2.0
FUZZ_SECONDS = 8.0


def _load(run: Run, life: int) -> list[Program]:
    """Clients of each kind, at work."""
    vgpu, protected = run.lab.populate()[GPUS[0]][0], run.lab.vgpu(run.protected)
    seed = run.seed(f"load {life}")
    names = (protected.group, protected.cdev.rsplit("/", 1)[1], vgpu.group, vgpu.cdev.rsplit("/", 1)[1])
    return [
        run.program("fuzz_device", run.lab.path, "ioctl,region", seed, MANY, *names),
        run.program("fuzz_path", run.lab.path, seed, MANY, "apart", run.protected, vgpu.name, in_lab=False),
        run.program("kills", run.lab.path, vgpu.group, vgpu.name, vgpu.cdev, seed, "live"),
    ]


def _wait_for_calls(run: Run, programs: list[Program], what: str, seconds: float = 30.0) -> None:
    """Wait until each program has made another call (or has ended)."""
    before = [program.calls for program in programs]
    deadline = time.monotonic() + seconds
    while any(p.running and p.calls == calls for p, calls in zip(programs, before, strict=True)):
        if time.monotonic() > deadline:
            stuck = [p.doing for p, calls in zip(programs, before, strict=True) if p.calls == calls]
            run.fault(f"{what}: {'; '.join(stuck)}")
            return
        time.sleep(0.01)


def _end_load(run: Run, programs: list[Program], after: str) -> None:
    """Every program must answer a signal: none hangs in a call to a server that is no more."""
    for program in programs:
        doing = program.doing
        if not program.end(signal.SIGKILL, ANSWER_SECONDS):
            run.fault(f"after {after} a client cannot even be killed: {doing}")
        program.close()


# ---- ways to end a server; each returns when the process has ended ----


def _kill(run: Run) -> None:
    run.lab.server.kill()
    run.lab.server.wait()


def _stop_and_kill(run: Run) -> None:
    run.lab.server.send_signal(signal.SIGSTOP)
    time.sleep(run.random("stop").uniform(0.05, 0.5))
    _kill(run)


def _terminate(run: Run) -> None:
    run.lab.server.terminate()
    if run.lab.server.wait(30) != 0:
        run.fault(f"SIGTERM: the server ended with {run.lab.server.returncode}")


def _lazy(run: Run) -> None:
    """Unmount it lazily under its clients, and then end it, as its user would."""
    begun = time.monotonic()
    done = run.lab.umount("--lazy")
    if done.returncode:
        run.fault(f"umount --lazy: {done.stderr.strip()}")
    if (took := time.monotonic() - begun) > UMOUNT_SECONDS + 1:
        run.fault(f"umount --lazy took {took:.1f} s")
    _kill(run)


def _lazy_while_stopped(run: Run) -> None:
    """A server that is stopped answers nothing, and the command ends all the same."""
    run.lab.server.send_signal(signal.SIGSTOP)
    _lazy(run)


WAYS: tuple[tuple[str, Callable[[Run], None]], ...] = (
    ("SIGKILL", _kill),
    ("SIGTERM", _terminate),
    ("SIGSTOP and SIGKILL", _stop_and_kill),
    ("umount --lazy and SIGKILL", _lazy),
    ("SIGSTOP, umount --lazy and SIGKILL", _lazy_while_stopped),
)


def _pause(run: Run, programs: list[Program], seconds: float) -> None:
    """SIGSTOP and SIGCONT: clients wait, and then all of them go on without an error."""
    run.lab.server.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    run.lab.server.send_signal(signal.SIGCONT)
    _wait_for_calls(run, programs, "after SIGSTOP and SIGCONT a client does not go on")
    for program in programs:
        if not program.running:
            said = Report()
            program.report(said)
            run.fault(f"SIGSTOP and SIGCONT ended a client: {said.faults}")
    for text in run.lab.complaints():
        run.fault(text)


def _clean_up(run: Run, way: str) -> None:
    """Unmount what is left, in time, and find the mount point free."""
    begun = time.monotonic()
    done = run.lab.umount()
    if done.returncode and "no lab is mounted" not in done.stderr:
        run.fault(f"umount after {way}: {done.stderr.strip()}")
    if (took := time.monotonic() - begun) > UMOUNT_SECONDS + 1:
        run.fault(f"umount after {way} took {took:.1f} s")
    if os.path.ismount(run.lab.path) or os.listdir(run.lab.path):
        run.fault(f"after {way} and umount the mount point is not free")


def _life(run: Run, number: int) -> str:
    """One server: load, a pause for some, its end, and a new mount. Returns what ended it."""
    random = run.random(f"life {number}")
    way, end = WAYS[number % len(WAYS)]
    programs = _load(run, number)
    _wait_for_calls(run, programs, "the load did not start", 60)
    time.sleep(random.uniform(0, 0.3))
    run.bystander.stop(run.report)
    if paused := number % 2 == 1:
        _pause(run, programs, random.uniform(0.1, 0.8))
    end(run)
    _wait_for_calls(run, programs, f"after {way} a client waits", ANSWER_SECONDS)
    _end_load(run, programs, way)
    for text in run.lab.new_in_log():
        run.fault(text)
    _clean_up(run, way)
    run.lab.mount()
    run.start()
    return f"{way}{' after a pause' if paused else ''}"


def servers(run: Run) -> None:
    kills = run.setting.share(DOCUMENTED_KILLS, len(WAYS))
    for number in range(kills):
        _life(run, number)
    # the last one is as good as the first
    vgpus = run.lab.populate()[GPUS[0]]
    run.supervise(nurse(run, vgpus[:1], 3, "last "), 60)
    run.bystander.stop(run.report)
    ways = ", ".join(f"{name} {len(range(index, kills, len(WAYS)))}" for index, (name, _) in enumerate(WAYS))
    run.figures = f"{kills} servers ended under load ({ways}), each second one after SIGSTOP and SIGCONT"


CAMPAIGN = Campaign("servers", servers, "SIGKILL, SIGTERM, SIGSTOP of the server under load")
