# SPDX-License-Identifier: Apache-2.0
"""Campaign `fuzz`: ioctls, regions, mmap and paths by several processes, while vGPUs come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.stress.campaign import SLOWEST_CALL, Campaign, Run
from tests.stress.lab import APART, Vgpu
from tests.stress.programs import Program

DOCUMENTED_CALLS = 1_000_000


@dataclass(frozen=True)
class Part:
    """One process: the share of all calls that it makes, and what of the files of the lab it uses."""

    percent: int
    kinds: str
    """Of the VFIO files; empty for the tree."""
    ordinary: bool = False


class Spared(NamedTuple):
    """A vGPU that is left alone, with its parent."""

    parent: str
    vgpu: Vgpu


PARTS = (
    Part(25, "ioctl,region"),
    Part(15, "ioctl"),
    Part(20, "ioctl,region", ordinary=True),
    Part(10, "ioctl,mmap"),
    Part(20, ""),
    Part(10, "", ordinary=True),
)


def _start(run: Run, name: str, part: Part, calls: int, spared: Sequence[Spared]) -> Program:
    seed = run.seed(name)
    spared = [Spared(APART, run.lab.vgpu(run.protected)), *spared]
    if not part.kinds:
        names = [name for each in spared for name in (each.parent, each.vgpu.name)]
        arguments = (run.lab.path, seed, calls, *names)
        return run.program("fuzz_path", *arguments, ordinary=part.ordinary, in_lab=False)
    vgpus = [each.vgpu for each in spared]
    protected = [name for vgpu in vgpus for name in (vgpu.group, vgpu.cdev.rsplit("/", 1)[1])]
    return run.program(
        "fuzz_device", run.lab.path, part.kinds, seed, calls, *protected, ordinary=part.ordinary
    )


def parts(run: Run) -> list[Part]:
    """Those that can run here. The lab of an ordinary user has no mmap, and no other user."""
    if run.setting.root:
        return list(PARTS)
    return [Part(part.percent, part.kinds.replace(",mmap", "")) for part in PARTS]


def start(run: Run, calls: int, name: str = "", spared: Sequence[Spared] = ()) -> list[Program]:
    """Start all parts, which make `calls` calls together, on other devices than those of `spared`."""
    return [
        _start(run, f"{name}{number}", part, calls * part.percent // 100, spared)
        for number, part in enumerate(parts(run))
    ]


def fuzz(run: Run) -> None:
    if not run.setting.root:
        run.left_out += ["calls by a second user (needs root)", "mmap of device memory (needs root)"]
    calls = run.setting.share(DOCUMENTED_CALLS)
    run.lab.populate()
    programs = start(run, calls)
    run.supervise(programs, 60 + calls * SLOWEST_CALL, run.lab.keep_populated)
    made = sum(run.report.counts.values())
    run.figures = f"{made:,} calls, {run.report.counts['good']:,} of them good"
    run.lab.clear()
    for text in run.lab.left():
        run.fault(text)


CAMPAIGN = Campaign("fuzz", fuzz, "ioctls, regions, mmap and paths, nearly right, by several processes")
