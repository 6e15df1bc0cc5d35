# SPDX-License-Identifier: Apache-2.0
"""Campaign `faults`: random fault rules hit random clients; the lab and every other client stay well.

The clients are those of the campaigns `fuzz`, `hostile` and `clients`.  The devices of the last ones do the
DMA; their own calls are left alone, because they judge how soon a device is free again.  No rule is about the
bystander.  EIO is no errno of a rule, because the clients take it for the server's own trouble.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.stress import fuzz, hostile
from tests.stress.campaign import Campaign, Run
from tests.stress.killed_clients import compare, nurse, settled
from tests.stress.lab import APART, GPUS, Lab, store

DOCUMENTED_ROUNDS = 20
WARM_UP = 1
RULES = 12
"""Rules of a round."""
CALLS = 20_000
"""Calls of the fuzz in a round."""
PAIRS = 3
"""Hostile clients of a round."""
WORKERS, KILLS = 2, 30
"""Devices that do DMA for clients, and how many of these clients are killed in a round."""
ROUND_SECONDS = 90.0
RELEASE_SECONDS = 0.3
"""How long a call hangs at most."""

ERRNOS = ("ENOMEM", "EBUSY", "EPERM", "EINTR", "EAGAIN", "ENODEV", "ENOSPC", "EINVAL", "EFAULT")
WAITS = ("delay=0.02", "delay=0.2", "hang=true")
MOVED = ("drop=true", "duplicate=true", "flip=0x1", "flip=0xff00ff")
ACTIONS = ("reset=true", "remove=true", "error=nonfatal", "error=fatal", "error=corrected")
CALLS_OF = {
    "fuzz_device": (
        *("ioctl=*", "ioctl=VFIO_*", "ioctl=VFIO_DEVICE_*", "ioctl=IOMMU_*", "ioctl=VFIO_IOMMU_*"),
        *("region=config", "region=BAR0", "open=vfio/*", "open=iommu", "call=any", "call=open,ioctl"),
    ),
    "fuzz_path": (
        *("store=*", "store=remove", "store=create", "store=driver_override", "store=sriov_numvfs"),
        *("create=*", "bind=*", "probe=*", "open=*", "call=any", "call=open,store"),
    ),
    "hostile_fuse": ("ioctl=*", "ioctl=VFIO_DEVICE_*", "open=*", "call=any"),
}
"""By client: the calls that rules are about."""
OF_DEVICES = ("dma=any", "dma=read", "dma=write", "dma=pin", "interrupt=any", "interrupt=MSIX")
"""Calls that no program waits for."""


def random_rule(random: Random, name: str, victims: list[str], workers: list[str]) -> str:
    """The keys of a rule about the calls of a client, or about what one of the devices `workers` does by
    itself.  What is to happen to a device happens to one of `victims`."""
    client = random.choice([*sorted(CALLS_OF), ""])
    calls = random.choice(CALLS_OF[client] if client else OF_DEVICES)
    what = list(_what(random, calls))
    words = [f"name={name}", f"process={client}" if client else f"device={random.choice(workers)}"]
    if client and any(word in ACTIONS for word in what):
        words.append(f"device={random.choice(victims)}")
    return " ".join([*words, calls, *_when(random), *what])


def _when(random: Random) -> Iterator[str]:
    match random.randrange(4):
        case 0:
            yield f"nth={random.choice([1, 2, 5, 20])}"
        case 1:
            yield f"every={random.choice([3, 10])}"
        case _:
            yield f"probability={random.choice([0.02, 0.1, 0.5])}"
            yield f"seed={random.getrandbits(16)}"
    if random.random() < 0.1:
        yield "after=0.1"


def _what(random: Random, calls: str) -> Iterator[str]:
    """One or two things that may happen to such calls."""
    key, _, kind = calls.partition("=")
    if random.random() < 0.3:
        yield random.choice(WAITS)
        yield f"times={random.choice([1, 20])}"  # each holds up its client
        if random.random() < 0.5:
            return
    if key == "interrupt":
        yield random.choice(["drop=true", "duplicate=true"])
        return
    choices = [f"errno={random.choice(ERRNOS)}"]
    if key in ("ioctl", "region") and not kind.startswith("IOMMU"):
        choices.append(random.choice(ACTIONS))
    if key == "region" or kind == "write":
        choices += random.sample(MOVED, 2)
    yield random.choice(choices)


class Steering:
    """The rules of a round in a lab, and a thread that lets go of what hangs.  ``hits`` is how many calls the
    rules have hit, once it has ended."""

    def __init__(self, lab: Lab, rules: list[str]) -> None:
        self._file, self._rules = lab.path / "faults", rules
        self.hits = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        self._file.write_text("".join(f"add {rule}\n" for rule in self._rules))
        end = threading.Event()
        thread = threading.Thread(target=self._release, args=(end,))
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            self.hits = sum(int(hits) for hits in re.findall(r"# (\d+) hits? of", self._file.read_text()))
            self._file.write_text("clear\n")

    def _release(self, end: threading.Event) -> None:
        while not end.wait(RELEASE_SECONDS):
            self._file.write_text("release\n")


def _round(run: Run, attackers: tuple[Path, hostile.Words], number: int, rules: int) -> int:
    """One round.  Returns how many calls were hit."""
    victims = [run.lab.vgpu(run.lab.create(GPUS[0], "small")) for _ in range(2 * PAIRS)]
    workers = [run.lab.vgpu(run.lab.create(APART, "own")) for _ in range(WORKERS)]
    pairs = list(zip(victims[:PAIRS], victims[PAIRS:], strict=True))
    random, names = (
        run.random(f"rules {number}"),
        [[each.name for each in them] for them in (victims, workers)],
    )
    said = [random_rule(random, f"r{each}", *names) for each in range(rules)]
    steering = Steering(run.lab, said)
    with steering.held():
        spared = [fuzz.Spared(APART, worker) for worker in workers]
        programs = nurse(run, workers, KILLS, f"{number} ")
        programs += fuzz.start(run, CALLS, f"{number} ", spared)
        hostile.attack(run, attackers[0], pairs, attackers[1], number)
        run.supervise(programs, ROUND_SECONDS, run.lab.keep_populated)
    if left := (run.lab.path / "faults").read_text():
        run.fault(f"rules stay when all are cleared: {left}")
    for worker in workers:
        if not store(run.lab.path / "sys/bus/mdev/devices" / worker.name / "remove", "1"):
            run.fault("a vGPU that nobody has cannot be removed")
    run.lab.clear()
    return steering.hits


def faults(run: Run) -> None:
    rounds = run.setting.share(DOCUMENTED_ROUNDS, 2)
    attackers = hostile.compile_client(run.setting.folder), hostile.known_words()
    run.lab.populate()
    for number in range(WARM_UP):
        _round(run, attackers, -1 - number, 0)
    before = settled(run)
    hits = 0
    for number in range(rounds):
        hits += _round(run, attackers, number, RULES)
        if not run.lab.alive or run.report.faults:
            break
    run.bystander.stop(run.report)
    compare(run, before, settled(run, before))
    made = sum(run.report.counts.values())
    run.figures = f"{rounds * RULES:,} rules in {rounds} rounds hit {hits:,} calls; the fuzz made {made:,}"
    for text in run.lab.left():
        run.fault(text)


CAMPAIGN = Campaign("faults", faults, "random fault rules for random clients, while others work")
