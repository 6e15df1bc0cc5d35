# SPDX-License-Identifier: Apache-2.0
"""Campaign `engine`: random packets for two vGPUs of one GPU, with canaries in all other memory."""

from __future__ import annotations

from tests.stress.campaign import Campaign, Run
from tests.stress.lab import GPUS, VIDEO, Vgpu, store
from tests.stress.programs import Program

DOCUMENTED_PACKETS = 100_000
TIMEOUT_MS = 50
"""engine_timeout_ms: what a WAIT for a value that never comes costs."""


def start(run: Run, vgpus: list[Vgpu], packets: int, part: str = "") -> list[Program]:
    """Start a program for each pair of vGPUs: one that draws, and its neighbour. Together they execute
    `packets` packets."""
    programs = []
    pairs = list(zip(vgpus[::2], vgpus[1::2], strict=True))
    for number, (vgpu, neighbour) in enumerate(pairs):
        store(run.lab.path / "sys/bus/mdev/devices" / vgpu.name / "engine_timeout_ms", str(TIMEOUT_MS))
        arguments = (run.lab.path, vgpu.group, vgpu.name, VIDEO, neighbour.cdev)
        each = packets // len(pairs) + 1
        programs.append(run.program("engine", *arguments, run.seed(f"{part}{number}"), each))
    return programs


def engine(run: Run) -> None:
    packets = run.setting.share(DOCUMENTED_PACKETS)
    programs = start(run, run.lab.populate()[GPUS[0]], packets)
    run.supervise(programs, 60 + packets * 0.02)
    counts = run.report.counts
    made = sum(counts[name] for name in ("nop", "fill", "copy", "blit", "fence", "other"))
    run.figures = (
        f"{made:,} packets, {counts['errors']:,} of them refused, {counts['unmaps']:,} unmaps, "
        f"all canaries looked at {counts['checks']:,} times"
    )


CAMPAIGN = Campaign("engine", engine, "random engine packets, canaries in all memory that is not mapped")
