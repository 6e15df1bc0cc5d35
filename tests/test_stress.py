# SPDX-License-Identifier: Apache-2.0
"""The campaigns of tests/stress.sh: a short one passes, and faults that are planted are found."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.iommufd.bound import open_bound
from tests.stress import campaign
from tests.stress.bystander import Bystander
from tests.stress.campaign import Run
from tests.stress.churn import check_counts
from tests.stress.engines import start
from tests.stress.faults import Steering, random_rule
from tests.stress.killed_clients import compare
from tests.stress.lab import GPUS, Lab
from tests.stress.programs import Report, compile_programs
from tests.stress.setting import ROOT as TREE
from tests.stress.setting import Setting
from tests.stress.table import BEGIN, END, document, table
from tests.waiting import wait_for
from vfsfuse.faults.rule import parse_line

MEMORY, PAGES, PAGE = 0x110000000000, 1024, 4096
"""Where engine.c has its memory."""
STALL_SECONDS = 4.0
"""A stall of the lab, which is longer than one of the machine, and than Bystander allows beyond that."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("stress")
    compile_programs(made)
    return made


@pytest.fixture
def run(folder: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    """A campaign that has just begun."""
    setting = Setting(folder, 1, 1, TREE)
    lab = Lab(setting, request.node.name)
    with lab, Bystander(lab, folder) as bystander:
        made = Run("test", setting, lab, bystander)
        made.start()
        yield made


def test_a_short_campaign_passes_and_prints_its_row() -> None:
    command = [sys.executable, "-m", "tests.stress", "6", "--seed", "7", "--only", "engine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "`./tests/stress.sh 6 --seed 7`" in done.stdout
    assert "| engine | " in done.stdout and "| passed |" in done.stdout


def test_a_short_campaign_of_faults_passes() -> None:
    command = [sys.executable, "-m", "tests.stress", "6", "--seed", "7", "--only", "faults"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"\| faults \| 24 rules in 2 rounds hit (\d+) calls; .* \| passed \|", done.stdout)
    assert found and int(found[1]) > 10, done.stdout


def test_the_same_seed_gives_the_same_rules_and_each_makes_sense() -> None:
    def rules(seed: int) -> list[str]:
        random = Setting(Path(), seed, 1, TREE).random("faults/rules 0")
        return [random_rule(random, f"r{each}", ["victim"], ["worker"]) for each in range(500)]

    assert rules(1) == rules(1) != rules(2)
    for rule in rules(1):
        parse_line(rule)  # RuleError: the lab refuses it


def test_a_rule_that_hits_another_client_is_a_fault(run: Run) -> None:
    with Steering(run.lab, ["name=planted process=bystander ioctl=* errno=ENOMEM times=1"]).held():
        wait_for(lambda: " 1 hit " in (run.lab.path / "faults").read_text())
    run.bystander.stop(run.report)
    assert [text for text in run.report.faults if "Cannot allocate memory" in text]


def test_a_stall_is_a_fault(run: Run) -> None:
    lab, _ = run.bystander.programs
    run.lab.server.send_signal(signal.SIGSTOP)
    wait_for(lambda: lab.waiting > STALL_SECONDS)
    run.lab.server.send_signal(signal.SIGCONT)
    wait_for(lambda: lab.waiting < STALL_SECONDS)
    run.bystander.stop(run.report)
    assert len(run.report.faults) == 1 and "another client waited" in run.report.faults[0]
    assert run.bystander.longest_ms > 1000


def test_a_stall_that_goes_on_is_a_fault(run: Run) -> None:
    lab, _ = run.bystander.programs
    run.lab.server.send_signal(signal.SIGSTOP)
    wait_for(lambda: lab.waiting > STALL_SECONDS)
    run.lab.server.send_signal(signal.SIGCONT)


def test_a_changed_canary_is_a_fault(run: Run) -> None:
    (program,) = start(run, run.lab.populate()[GPUS[0]][:2], 4000)
    while not program.calls:
        assert program.running
        time.sleep(0.01)
    with open(f"/proc/{program.process.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(MEMORY + (PAGES - 1) * PAGE + 80)  # the last page is never mapped
        memory.write(b"X")
    run.supervise([program], 60)
    assert any(f"the canary of page {PAGES - 1}, byte 80" in text for text in run.report.faults)


def test_a_server_that_ends_is_a_fault(run: Run) -> None:
    run.lab.server.kill()
    run.lab.server.wait()
    assert [text for text in run.lab.complaints() if "the server ended with -9" in text]


def test_a_traceback_and_a_sanitizer_in_the_log_are_faults(run: Run) -> None:
    with run.lab.log_path.open("a") as log:
        log.write('Traceback (most recent call last):\n  File "x", line 1\nValueError: planted\n')
        log.write("==1==ERROR: AddressSanitizer: heap-use-after-free on address\n")
    faults = list(run.lab.complaints())
    assert len(faults) == 2 and "planted" in faults[0] and "heap-use-after-free" in faults[1]
    assert not list(run.lab.complaints()), "said once"


def test_a_descriptor_that_stays_is_a_fault(run: Run) -> None:
    before = run.lab.figures()
    name = run.lab.create(GPUS[0], "small")
    fds = [open_bound(run.lab.path / "dev/vfio" / run.lab.vgpu(name).cdev)]
    groups = [run.lab.vgpu(run.lab.create(GPUS[0], "small")) for _ in range(12)]
    fds += [open_bound(run.lab.path / "dev/vfio" / vgpu.cdev) for vgpu in groups]
    compare(run, before, run.lab.figures())
    for fd in fds:
        os.close(fd)
    assert "descriptors, before it had" in run.report.faults[0] and "memfd" in run.report.faults[0]


def test_a_process_that_stays_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "END_SECONDS", 0)
    program = folder / "sleep"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as left:
        wait_for(Path(f"/proc/{left.pid}/cmdline").read_bytes)  # set after Popen() returns
        assert campaign.left_behind(folder) == [f"process {left.pid} of sleep is left behind"]
        assert left.wait(60) == -signal.SIGKILL
    assert campaign.left_behind(folder) == []


def test_a_wrong_count_is_a_fault(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.lab.populate()
    check_counts(run)
    assert run.report.faults == []
    monkeypatch.setattr("tests.stress.churn.VFS", 2)
    (run.lab.path / "sys/bus/pci/devices" / GPUS[0] / "sriov_numvfs").write_text("1")
    check_counts(run)
    assert len(run.report.faults) == 1 and "bytes free" in run.report.faults[0]


def test_lines_of_programs_add_up() -> None:
    report = Report()
    for line in (
        "count good 3",
        "count good 4",
        "most own 7",
        "most own 5",
        "fault it is wrong",
        "what is this",
    ):
        report.read(line)
    assert report.counts == {"good": 7} and report.most == {"own": 7}
    assert report.faults == ["it is wrong", "unexpected output: what is this"]


def test_the_table_goes_between_its_marks(run: Run, tmp_path: Path) -> None:
    run.fault("planted")
    run.left_out.append("nothing of importance")
    lines = table(run.setting, [(run, 3.4)])
    assert "| test | ended early |" in "\n".join(lines) and "**1 fault**" in "\n".join(lines)
    page = tmp_path / "robustness.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    document(page, lines)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\n`./tests") and text.endswith(f"{END}\nafter\n")
    assert "- test: nothing of importance" in text and "old" not in text
