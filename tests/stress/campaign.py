# SPDX-License-Identifier: Apache-2.0
"""What a campaign is: a function of a `Run`, which has its lab, its bystander and its report."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.stress.bystander import Bystander
from tests.stress.lab import Lab
from tests.stress.programs import Program, Report
from tests.stress.setting import Setting

LOOK_SECONDS = 0.03
END_SECONDS = 5
"""Seconds in which a program ends whose parent was killed."""
SLOWEST_CALL = 0.005
"""Seconds a call may take on average before the campaign as a whole counts as hung."""
MOST_FAULTS = 40


@dataclass
class Run:
    """A campaign under way."""

    name: str
    setting: Setting
    lab: Lab
    bystander: Bystander
    protected: str = ""
    """The bystander's vGPU."""
    report: Report = field(default_factory=Report)
    figures: str = ""
    """What was done, for the table."""
    left_out: list[str] = field(default_factory=list)
    """What cannot run here, with the reason."""

    def random(self, part: str = "") -> Random:
        return self.setting.random(f"{self.name}/{part}")

    def seed(self, part: str) -> int:
        """The seed of a C program."""
        return self.random(part).getrandbits(63)

    def program(self, name: str, *arguments: object, ordinary: bool = False, in_lab: bool = True) -> Program:
        """Start a C program, as an ordinary user if asked for, under `vfsfuse run` unless told otherwise."""
        prefix = [*(self.setting.ordinary() if ordinary else [])]
        if in_lab:
            prefix += self.setting.run(self.lab.path)
        label = f"{name} {'as an ordinary user' if ordinary else ''}".strip()
        environment = self.setting.environment
        return Program(
            self.setting.folder, name, *arguments, prefix=prefix, environment=environment, label=label
        )

    def fault(self, text: str) -> None:
        if len(self.report.faults) < MOST_FAULTS:
            self.report.faults.append(text)

    def start(self) -> None:
        """Begin to measure stalls."""
        self.protected = self.bystander.start()

    def supervise(self, programs: list[Program], seconds: float, between: Callable[[], object] = int) -> None:
        """Wait for the programs; a hung call, a dead server or the time limit ends them and is a fault."""
        deadline = time.monotonic() + seconds
        while any(program.running for program in programs):
            between()
            faults = list(self.lab.complaints())
            faults += [f"a call hangs: {doing}" for program in programs if (doing := program.hang())]
            if time.monotonic() > deadline:
                faults.append(
                    f"no end after {seconds:.0f} s: {'; '.join(p.doing for p in programs if p.running)}"
                )
            for text in faults:
                self.fault(text)
            if faults:
                break
            time.sleep(LOOK_SECONDS)
        self.gather(programs)

    def gather(self, programs: Iterable[Program]) -> None:
        """Take the reports of programs, and end those that still run."""
        for program in programs:
            program.end(signal.SIGKILL, 5) if program.running else None
            program.report(self.report)
            program.close()
        del self.report.faults[MOST_FAULTS:]


@dataclass(frozen=True)
class Campaign:
    """A campaign: its name, its function, and what it tries in one line."""

    name: str
    body: Callable[[Run], None]
    tries: str


def execute(campaign: Campaign, setting: Setting) -> Run:
    """Run a campaign in a lab of its own."""
    lab = Lab(setting, campaign.name)
    with lab, Bystander(lab, setting.folder) as bystander:
        run = Run(campaign.name, setting, lab, bystander)
        try:
            run.start()
            campaign.body(run)
            if bystander.programs:
                bystander.stop(run.report)
        except (
            Exception
        ) as error:  # whatever a driver trips over is a finding, and the other campaigns follow
            run.fault(f"{type(error).__name__}: {error}")
        for text in lab.complaints():
            run.fault(text)
    for text in left_behind(setting.folder):
        run.fault(text)
    return run


def left_behind(folder: Path) -> list[str]:
    """Programs of `folder` that still run when all have been ended, after a moment; they are killed then."""
    deadline = time.monotonic() + END_SECONDS
    while (found := list(_programs(folder))) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    for pid, _ in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [f"process {pid} of {name} is left behind" for pid, name in found]


def _programs(folder: Path) -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            program = Path(os.fsdecode(entry.read_bytes().split(b"\0")[0]))
            if program.parent == folder:
                yield int(entry.parent.name), program.name
