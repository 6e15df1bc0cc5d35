# SPDX-License-Identifier: Apache-2.0
"""The bystander: a client that has nothing to do with a campaign. It measures how long others are held up.

Its control asks files of a tmpfs. Used on the main thread only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from pathlib import Path

from tests.stress.lab import APART, Lab
from tests.stress.programs import Program, Report
from tests.waiting import wait_for

NAMES = ("attribute", "device", "iommu")
"""What the program opens."""
STALL_MS = 1000
"""The longest stall that a campaign may cause, in milliseconds, beyond that of the control."""


class Bystander:
    """Two programs that ask every 5 ms. One asks the lab, one a tmpfs, which only the machine delays."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab, self._folder = lab, folder
        self.longest_ms = self.control_ms = 0.0
        """The longest answers of the lab and of the tmpfs so far."""
        self.asked = ""
        """The question that the lab took longest to answer: cat, ioctl, pread or open."""
        self.programs: list[Program] = []
        """The bystander and its control, while they run."""
        self._control = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="vfsfuse-control-"))
        for name in NAMES:
            (self._control / name).write_text("what a file of a tmpfs says\n")

    def start(self) -> str:
        """Create the bystander's vGPU in a new lab, and start both; returns the vGPU's UUID."""
        name = self._lab.create(APART, "own")
        attribute = self._lab.path / "sys/bus/mdev/devices" / name / "vgpu_uuid"
        cdev = self._lab.path / "dev/vfio" / self._lab.vgpu(name).cdev
        control = [self._control / name for name in NAMES]
        places = ((attribute, cdev, self._lab.path / "dev/iommu"), control)
        for label, files in zip(("bystander", "control"), places, strict=True):
            self.programs.append(Program(self._folder, "bystander", *files, label=label))
        for program in self.programs:  # before that a signal to end would kill it
            wait_for(lambda program=program: program.calls or not program.running)  # type: ignore[misc]
        return name

    def stop(self, report: Report) -> None:
        """End both, and judge."""
        lab, control = self.programs
        self.programs = []
        longest, asked = _end(lab, report)
        control_ms, _ = _end(control, report)
        if longest >= self.longest_ms:
            self.longest_ms, self.asked = longest, asked
        self.control_ms = max(self.control_ms, control_ms)
        if longest - control_ms > STALL_MS:
            report.faults.append(
                f"another client waited {longest:.0f} ms for its {asked} (on a tmpfs {control_ms:.0f} ms)"
            )

    def __enter__(self) -> Bystander:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.programs:
            program.close()
        for name in NAMES:
            with contextlib.suppress(FileNotFoundError):
                (self._control / name).unlink()
        os.rmdir(self._control)


def _end(program: Program, report: Report) -> tuple[float, str]:
    """End it; its longest answer in milliseconds, and to which question. A call under way counts."""
    found = Report()
    going_on, doing = program.waiting, program.progress.doing.decode()
    if not program.end(signal.SIGTERM):
        found.faults.append(f"a call does not return: {program.doing}")
        going_on = program.waiting
    program.report(found)
    program.close()
    report.faults += found.faults
    answers = {question: longest / 1000 for question, longest in found.most.items()}
    answers[doing] = max(answers.get(doing, 0.0), going_on * 1000)
    return max((longest, question) for question, longest in answers.items())
