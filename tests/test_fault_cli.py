# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse fault` on a mounted lab, and `--fault` of the commands that make a lab."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, run, vfsfuse
from tests.copydriver import compiled
from tests.labs import MountedLab
from tests.tool import need
from tests.waiting import wait_for

UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"
CREATE = f"echo {UUID} > /sys/class/mdev_bus/copiers/mdev_supported_types/copier-1/create"


@pytest.fixture(scope="module")
def copiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A mounted lab."""
    config = str(ROOT / "examples/copier.toml")
    with MountedLab(tmp_path_factory.mktemp("fault"), "--config", config) as mounted:
        yield mounted


@pytest.fixture
def lab(copiers: MountedLab) -> Iterator[MountedLab]:
    """The lab, without rules at first and at the end."""
    yield copiers
    done = fault(copiers, "clear")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver of the tutorial."""
    need("gcc")
    return compiled(tmp_path_factory.mktemp("driver"))


def fault(lab: MountedLab, action: str, *words: str) -> subprocess.CompletedProcess[str]:
    return vfsfuse("fault", action, "--mount", lab.path, *words)


def listed(lab: MountedLab) -> list[str]:
    done = fault(lab, "list")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def create(lab: MountedLab) -> subprocess.CompletedProcess[str]:
    """A vGPU is created and removed by a program."""
    type_ = lab.parent("copiers") / "mdev_supported_types/copier-1/create"
    return run(["sh", "-c", f"echo {UUID} | tee {type_} && echo 1 | tee {lab.mdevs}/{UUID}/remove"])


# ---- a mounted lab ----


def test_a_rule_is_added_listed_and_cleared(lab: MountedLab) -> None:
    assert listed(lab) == []
    done = fault(lab, "add", "store=create", "errno=ENOMEM", "name=full", "times=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "added full\n"
    (line,) = listed(lab)
    assert line == "name=full store=create times=2 errno=ENOMEM  # 0 hits of 0 calls"
    for _ in range(2):
        assert "Cannot allocate memory" in create(lab).stderr
    (line,) = listed(lab)
    assert line.startswith("name=full ") and line.endswith("# 2 hits of 2 calls")
    done = fault(lab, "clear", "full")
    assert (done.returncode, done.stdout, done.stderr) == (0, "cleared full\n", "") and listed(lab) == []
    assert create(lab).returncode == 0


def test_rules_without_a_name_get_one(lab: MountedLab) -> None:
    names = []
    for _ in range(2):
        done = fault(lab, "add", "store=create", "nth=1000", "errno=EIO")
        names += re.findall(r"^added (\S+)$", done.stdout, re.MULTILINE)
    assert len(set(names)) == 2 and all(name.startswith("fault") for name in names)
    assert fault(lab, "clear", names[0]).returncode == 0
    assert [line.split()[0] for line in listed(lab)] == [f"name={names[1]}"]


def test_a_value_with_spaces_comes_back(lab: MountedLab, tmp_path: Path) -> None:
    path = tmp_path / "a b"
    done = fault(lab, "add", "name=spaced", "store=create", "errno=EIO", f"while={path}")
    assert done.returncode == 0, done.stderr
    (line,) = listed(lab)
    assert str(path) in line
    assert create(lab).returncode == 0
    path.touch()
    wait_for(lambda: create(lab).returncode != 0)


def test_a_call_hangs_until_it_is_released(lab: MountedLab) -> None:
    assert fault(lab, "add", "name=stuck", "store=create", "hang=true").returncode == 0
    type_ = lab.parent("copiers") / "mdev_supported_types/copier-1/create"
    with subprocess.Popen(["sh", "-c", f"echo {UUID} > {type_}"]) as writer:
        wait_for(lambda: "# 1 hit of 1 call" in listed(lab)[0])
        assert create_other(lab, "copiers") and writer.poll() is None
        assert fault(lab, "release").stdout == "released stuck\n"
        assert writer.wait(60) == 0
    assert len(listed(lab)) == 1
    (lab.mdevs / UUID / "remove").write_text("1")


def create_other(lab: MountedLab, parent: str) -> bool:
    """Whether the lab answers meanwhile."""
    return bool((lab.parent(parent) / "mdev_supported_types/copier-1/available_instances").read_text())


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["store=create"], "errno"),
        (["stores=create", "errno=EIO"], "stores"),
        (["store=create", "errno=EWHAT"], "EWHAT"),
        (["create"], "create"),
        (["store=create", "errno=EIO", "nth=0"], "nth"),
    ],
)
def test_a_rule_that_makes_no_sense(lab: MountedLab, words: list[str], says: str) -> None:
    done = fault(lab, "add", *words)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("vfsfuse: fault: ") and says in line
    assert listed(lab) == []


def test_a_name_twice_and_a_name_that_there_is_not(lab: MountedLab) -> None:
    assert fault(lab, "add", "name=a", "store=create", "nth=1000", "errno=EIO").returncode == 0
    for words in (
        ["add", "name=a", "store=create", "errno=EIO"],
        ["clear", "a", "b"],
        ["release", "b"],
    ):
        done = fault(lab, *words)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, words
        assert words[-1].removeprefix("errno=EIO") in done.stderr
    assert len(listed(lab)) == 1


def test_no_lab_and_a_lab_that_does_not_answer(lab: MountedLab, tmp_path: Path) -> None:
    done = vfsfuse("fault", "list", "--mount", tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"vfsfuse: fault: {tmp_path}: no lab is mounted there (vfsfuse mount {tmp_path})\n"
    os.kill(lab.pid, signal.SIGSTOP)
    try:
        done = fault(lab, "list")
    finally:
        os.kill(lab.pid, signal.SIGCONT)
    assert done.returncode == 1 and f"(pid {lab.pid}) is stopped" in done.stderr


@needs.root("another user is needed")
def test_another_user_sees_no_rules(lab: MountedLab) -> None:
    command = [*VFSFUSE, "fault", "list", "--mount", str(lab.path)]
    done = run(["setpriv", "--reuid=65534", "--clear-groups", *command])
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_an_action_is_needed() -> None:
    done = vfsfuse("fault")
    assert done.returncode == 2 and "ACTION" in done.stderr


# ---- labs that commands make ----


def test_a_mount_has_rules_from_the_start(tmp_path: Path) -> None:
    rules = ("--fault=name=a store=create errno=EIO", "--fault", "name=b store=remove errno=EBUSY")
    with MountedLab(tmp_path, "--config", str(ROOT / "examples/copier.toml"), *rules) as mounted:
        assert [line.split()[0] for line in listed(mounted)] == ["name=a", "name=b"]
        assert "Input/output error" in create(mounted).stderr


def test_a_mount_with_wrong_rules_does_not_start(tmp_path: Path) -> None:
    rules = (
        "--fault",
        "store=create",
        "--fault",
        "name=ok store=create errno=EIO",
        "--fault",
        "x=1 errno=EIO",
    )
    done = vfsfuse("mount", "--log-file", tmp_path / "log", *rules, tmp_path / "mnt")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [
        ["vfsfuse", "mount", "--fault store=create"],
        ["vfsfuse", "mount", "--fault 'x=1 errno=EIO'"],
    ]
    assert not os.path.ismount(tmp_path / "mnt")


@needs.open_fuse
def test_the_private_lab_of_a_run_has_rules(driver: Path) -> None:
    def ran(*rules: str) -> subprocess.CompletedProcess[str]:
        options = ["--config", str(ROOT / "examples/copier.toml"), *(f"--fault={rule}" for rule in rules)]
        return vfsfuse("run", *options, "--", "sh", "-c", f"{CREATE}; {driver} 0 {UUID} 5")

    done = ran()
    assert (done.returncode, done.stdout, done.stderr) == (0, "*****\n", "")
    done = ran("store=remove errno=EIO", "ioctl=VFIO_IOMMU_MAP_DMA errno=ENOMEM")
    assert (done.returncode, done.stderr) == (1, "copy: MAP_DMA: Cannot allocate memory\n")
    done = ran("ioctl=VFIO_IOMMU_MAP_DMA")
    assert done.returncode == 125
    (line,) = done.stderr.splitlines()
    assert line.startswith("vfsfuse: run: --fault ioctl=VFIO_IOMMU_MAP_DMA: ")


def test_a_mounted_lab_gets_its_rules_by_fault_add(lab: MountedLab) -> None:
    done = vfsfuse("run", "--mount", lab.path, "--fault", "store=create errno=EIO", "--", "true")
    assert done.returncode == 2 and "`vfsfuse fault add`" in done.stderr
    done = vfsfuse("trace", "--mount", lab.path, "--fault", "store=create errno=EIO", "--", "true")
    assert done.returncode == 2 and "`vfsfuse fault add`" in done.stderr
    done = vfsfuse("trace", "--mount", lab.path, "--fault", "store=create errno=EIO")
    assert done.returncode == 2 and "--fault is for a program" in done.stderr


@needs.open_fuse
def test_a_trace_of_a_run_tells_the_hits_alone(driver: Path, tmp_path: Path) -> None:
    rules = (
        "--fault",
        "name=slow store=create delay=0.01",
        "--fault=name=full ioctl=*MAP_DMA nth=1 errno=ENOMEM",
    )
    out = tmp_path / "trace"
    options = ("--config", ROOT / "examples/copier.toml", *rules, "--injected", "f*,s*", "-C", "-o", out)
    done = vfsfuse("trace", *options, "--", "sh", "-c", f"{CREATE}; {driver} 0 {UUID} 5")
    assert (done.returncode, done.stderr) == (1, "copy: MAP_DMA: Cannot allocate memory\n")
    lines = out.read_text().splitlines()
    assert len([line for line in lines if re.match(r"\d\d:", line)]) == 2
    assert re.search(r"store create .* = 37 \(DELAYED slow\) <\d+\.\d+>$", lines[0])
    assert re.search(r"VFIO_IOMMU_MAP_DMA .* = -1 ENOMEM .* \(INJECTED full\) <\d+\.\d+>$", lines[1])
    assert lines[-4:] == ["  hits fault rule", "------ ----------", "     1 full", "     1 slow"]
