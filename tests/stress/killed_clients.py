# SPDX-License-Identifier: Apache-2.0
"""Campaign `clients`: SIGKILL of clients at random moments; nothing of theirs stays."""

from __future__ import annotations

import os
import signal
import time

from tests.stress.campaign import Campaign, Run
from tests.stress.lab import GPUS, Figures, Vgpu, store
from tests.stress.programs import Program

DOCUMENTED_KILLS = 1000
RUN_PERCENT = 5
"""How many of the kills end a whole `vfsfuse run`, from its start on, and not one client of it."""
WARM_UP = 20
IDLE_SECONDS = 6.0
"""The worker of an idle engine ends after two seconds, an idle thread for calls that wait after five."""
QUIET_SECONDS = 12.0
"""How long the server may take to let go of everything."""
SPARE_MAPPINGS = 24
"""malloc(3) and the interpreter may keep a few mappings."""
SPARE_DESCRIPTORS = 8
"""A device maps a region when Python first touches it, with a descriptor of its own (Region.map). Two
functions and the bystander's vGPU have eight such regions."""


def nurse(run: Run, vgpus: list[Vgpu], kills: int, part: str) -> list[Program]:
    """Start a program for each vGPU that starts and kills clients; `kills` of them together."""
    programs = []
    for vgpu in vgpus:
        arguments = (run.lab.path, vgpu.group, vgpu.name, vgpu.cdev, run.seed(part + vgpu.cdev))
        programs.append(run.program("kills", *arguments, -(-kills // len(vgpus))))
    return programs


def settled(run: Run, before: Figures | None = None) -> Figures:
    """The server's figures when it holds no more than `before`, or when it has had enough time to let go."""
    if before is None:
        time.sleep(IDLE_SECONDS)
        return run.lab.figures()
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        now = run.lab.figures()
        quiet = now.descriptors <= before.descriptors + SPARE_DESCRIPTORS and now.threads <= before.threads
        if quiet or time.monotonic() > deadline:
            return now
        time.sleep(0.2)


def compare(run: Run, before: Figures, after: Figures) -> None:
    """What stayed is a fault. The bystander has ended, because its calls keep idle threads alive."""
    more = dict(after.files - before.files)
    for what, was, now, spare in (
        ("descriptors", before.descriptors, after.descriptors, SPARE_DESCRIPTORS),
        ("threads", before.threads, after.threads, 0),
        ("mappings", before.mappings, after.mappings, SPARE_MAPPINGS),
    ):
        if now > was + spare:
            run.fault(f"the server has {now} {what}, before it had {was}; of files {more}")


def _kill_a_run(run: Run, vgpu: Vgpu, number: int) -> None:
    """Kill `vfsfuse run` and its client somewhere between their start and the client's work."""
    random = run.random(f"run {number}")
    arguments = (run.lab.path, vgpu.group, vgpu.name, vgpu.cdev, run.seed(str(number)))
    program = run.program("kills", *arguments, "live")
    time.sleep(random.uniform(0, 0.6))
    os.killpg(program.process.pid, signal.SIGKILL)
    program.process.wait()
    program.close()
    probe = run.program("kills", *arguments, "probe")
    run.supervise([probe], 60)


def _check_usage(run: Run, vgpus: list[Vgpu]) -> None:
    """A device that nobody has pins nothing and does nothing, and its driver can leave."""
    for vgpu in vgpus:
        directory = run.lab.path / "sys/bus/mdev/devices" / vgpu.name
        for name in ("pinned_pages", "queue_depth"):
            if (value := (directory / name).read_text().strip()) != "0":
                run.fault(f"{name} of a vGPU that nobody has is {value}")
        if not store(directory / "remove", "1"):
            run.fault("a vGPU that nobody has cannot be removed")
    if not store(run.lab.path / "sys/bus/pci/devices" / GPUS[0] / "sriov_numvfs", "0"):
        run.fault("a virtual function that nobody has cannot be removed")


def _virtual_function(run: Run) -> Vgpu:
    """A virtual function that vfio-pci has. Its DMA goes to pinned memory."""
    pci = run.lab.path / "sys/bus/pci"
    (pci / "devices" / GPUS[0] / "sriov_numvfs").write_text("1")
    path = (pci / "devices" / GPUS[0] / "virtfn0").resolve()
    (path / "driver_override").write_text("vfio-pci")
    (pci / "drivers_probe").write_text(path.name)
    group = os.readlink(path / "iommu_group").rsplit("/", 1)[1]
    return Vgpu(path.name, group, f"devices/{os.listdir(path / 'vfio-dev')[0]}")


def clients(run: Run) -> None:
    kills = run.setting.share(DOCUMENTED_KILLS, 20)
    made = run.lab.populate()
    vgpus = made[GPUS[0]][:2] + made[GPUS[1]]
    devices = [*vgpus, _virtual_function(run)]
    run.supervise(nurse(run, devices, WARM_UP, "warm up "), 120)
    before = settled(run)
    runs = max(kills * RUN_PERCENT // 100, 1)
    run.supervise(nurse(run, devices, kills - runs, ""), 60 + kills * 0.5)
    for number in range(runs):
        _kill_a_run(run, devices[number % len(devices)], number)
    run.bystander.stop(run.report)
    compare(run, before, settled(run, before))
    _check_usage(run, vgpus)
    done = -(-(kills - runs) // len(devices)) * len(devices)
    longest = run.report.most.get("free_ms", 0)
    kinds = f"{done + runs:,} kills, {runs} of them of `vfsfuse run`"
    run.figures = f"{kinds}; a device was free after {longest} ms at most"
    run.lab.clear()
    for text in run.lab.left():
        run.fault(text)


CAMPAIGN = Campaign("clients", clients, "SIGKILL of clients at random moments")
