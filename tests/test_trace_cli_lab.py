# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse trace` on a mounted lab: programs that run already, filters, the summary, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, vfsfuse
from tests.labs import MountedLab, Vgpu
from tests.tracers import CREATE, UUID, Line, courier_of, lines_of, names, started
from tests.waiting import stop, wait_for

SECONDS = 60
UNTRACED = """
import argparse, socket, sys
from vfsfuse.run import traced
from vfsfuse.run.command import add_arguments, main
traced.ATTACH_SECONDS = 3.0
tracer, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
parser = argparse.ArgumentParser()
add_arguments(parser)
sys.exit(main(parser.parse_args(["--mount", sys.argv[1], "--", "echo", "done"]), link))
"""
"""A traced run in the lab argv[1], whose tracer does not say a word."""
AS_NOBODY = (sys.executable, "-m", "tests.ordinary_user")
DOORBELL = 0x2000


@pytest.fixture(scope="module")
def vgpu(lab: MountedLab) -> Iterator[Vgpu]:
    with lab.create() as made:
        yield made


class Following:
    """A tracer that follows a lab.  `out` and `err` are what it has printed in all, once it has ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.out = self.err = ""


@contextmanager
def following(lab: MountedLab, *arguments: str | Path) -> Iterator[Following]:
    """Trace a block.  The tracer is ended by SIGINT, and has to succeed."""
    with started("trace", "--mount", lab.path, *arguments) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line == f"vfsfuse: trace: following {lab.path} (Ctrl-C ends it)\n"
            tracer = Following(process)
            yield tracer
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            tracer.out, tracer.err = process.communicate(timeout=SECONDS)
            assert process.returncode == 0
        finally:
            process.kill()


@contextmanager
def records(lab: MountedLab, out: Path, *arguments: str) -> Iterator[list[Line]]:
    """Trace a block.  The list has the records afterwards."""
    found: list[Line] = []
    with following(lab, "--json", "-o", out, *arguments):
        yield found
    found += lines_of(out)


def read_config(vgpu: Vgpu, count: int = 1) -> None:
    """Read the vendor id of a vGPU, by its file config in sysfs."""
    with open(vgpu.path / "config", "rb", buffering=0) as config:
        for _ in range(count):
            assert os.pread(config.fileno(), 2, 0) == b"\x34\x12"


def test_a_file_that_is_open_already_is_traced(lab: MountedLab, vgpu: Vgpu, tmp_path: Path) -> None:
    with open(vgpu.path / "config", "rb", buffering=0) as config:
        with records(lab, tmp_path / "trace") as found:
            os.pread(config.fileno(), 2, 0)
        assert [(line["kind"], line["name"], line["pid"]) for line in found] == [
            ("region", "read", os.getpid())
        ]
        assert found[0]["arguments"]["register"] == "VENDOR_ID"


def test_lines_come_while_it_runs_and_ctrl_c_ends_it(lab: MountedLab, vgpu: Vgpu) -> None:
    with following(lab) as tracer:
        read_config(vgpu)
        assert tracer.process.stdout is not None
        while "VENDOR_ID" not in tracer.process.stdout.readline():
            assert tracer.process.poll() is None
    assert tracer.err == ""


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        ((), {"store", "lifecycle", "open", "region"}),
        (("-k", "region"), {"region"}),
        (("-k", "store,lifecycle"), {"store", "lifecycle"}),
        (("-k", "store", "-k", "region"), {"store", "region"}),
        (("--register", "VENDOR*"), {"region"}),
        (("--register", "DEVICE_ID"), set()),
        (("--errno", "any"), {"store"}),
        (("--errno", "EINVAL,ENOSPC"), {"store"}),
        (("--errno", "ENOSPC"), set()),
        (("--pid", "1"), set()),
        (("--pid", str(os.getpid())), {"store", "lifecycle", "open", "region"}),
        (("--pid", f"{os.getpid()},0"), {"store", "lifecycle", "open", "region"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_filters(
    lab: MountedLab, vgpu: Vgpu, tmp_path: Path, arguments: tuple[str, ...], kinds: set[str]
) -> None:
    with records(lab, tmp_path / "trace", *arguments) as found:
        read_config(vgpu)
        with lab.create():
            pass
        with pytest.raises(OSError, match="Invalid argument"):
            (vgpu.path / "remove").write_text("nonsense")
    assert {line["kind"] for line in found} == kinds


def test_devices_are_named_in_every_way(lab: MountedLab, vgpu: Vgpu, tmp_path: Path) -> None:
    number = next(path.name for path in (lab.path / "sys/class/vgpu/vfsfuse").iterdir())
    with lab.create() as other:
        for name in (vgpu.name, vgpu.name.upper(), number):
            with records(lab, tmp_path / "trace", name, "-k", "region") as found:
                read_config(vgpu)
                read_config(other)
            assert [line["subject"] for line in found] == [vgpu.name], name
        with records(lab, tmp_path / "trace", vgpu.name, other.name, "-k", "region") as found:
            read_config(vgpu)
            read_config(other)
        assert [line["subject"] for line in found] == [vgpu.name, other.name]


@pytest.mark.parametrize("name", ["vgpu77", "0000:99:00.0", "77", "..", "a/b"])
def test_a_device_that_there_is_not(lab: MountedLab, name: str) -> None:
    done = vfsfuse("trace", "--mount", lab.path, name)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr.startswith(f"vfsfuse: trace: {name}: there is no such") and done.stderr.count("\n") == 1
    )


def test_a_summary_alone(lab: MountedLab, vgpu: Vgpu) -> None:
    with following(lab, "-c") as tracer:
        read_config(vgpu, 7)
    said = tracer.out
    assert re.search(r"(?m)^.*\b7\b.*\bVENDOR_ID\b|^.*\bVENDOR_ID\b.*\b7\b", said), said
    assert str(os.getpid()) not in said


def test_a_summary_as_json(lab: MountedLab, vgpu: Vgpu) -> None:
    with following(lab, "-c", "--json") as tracer:
        read_config(vgpu, 7)
    said = json.loads(tracer.out)
    assert [call["calls"] for call in said["calls"] if call["name"] == "config read"] == [7], said


def test_lines_and_a_summary(lab: MountedLab, vgpu: Vgpu, tmp_path: Path) -> None:
    with following(lab, "-C", "-o", tmp_path / "trace", "-k", "region"):
        read_config(vgpu, 3)
    lines = (tmp_path / "trace").read_text().splitlines()
    assert sum(f"[{os.getpid()}]" in line for line in lines) == 3
    assert len(lines) > 6


def test_colours(lab: MountedLab, vgpu: Vgpu) -> None:
    choices = (
        ("colour", "always", True),
        ("color", "always", True),
        ("colour", "auto", False),
        ("color", "never", False),
    )
    for option, choice, coloured in choices:
        with following(lab, f"--{option}", choice, "-k", "region") as tracer:
            read_config(vgpu)
        assert ("\x1b[" in tracer.out) is coloured


def test_a_reader_that_has_enough_ends_it_quietly(lab: MountedLab, vgpu: Vgpu) -> None:
    with following(lab, "-k", "region") as tracer:
        assert tracer.process.stdout is not None
        tracer.process.stdout.close()
        while tracer.process.poll() is None:
            read_config(vgpu)
    assert tracer.err == ""


def test_a_slow_reader_is_told_what_it_has_lost(lab: MountedLab, vgpu: Vgpu, tmp_path: Path) -> None:
    out = tmp_path / "trace"
    with following(lab, "--json", "-o", out, "--keep", "100", "-k", "region") as tracer:
        courier = courier_of(tracer.process)
        stop(courier)
        read_config(vgpu, 1000)
        os.kill(courier, signal.SIGCONT)
        wait_for(lambda: "lost" in out.read_text())
    lost = sum(line["arguments"]["count"] for line in lines_of(out) if line["kind"] == "lost")
    assert lost + names(lines_of(out), "region").count("read") == 1000
    assert tracer.err.startswith(f"vfsfuse: trace: {lost} records are missing")


@pytest.mark.parametrize("how", ["unmounted", "ended", "killed"])
def test_it_ends_with_the_lab(tmp_path: Path, how: str) -> None:
    lab = MountedLab(tmp_path)
    lab.__enter__()
    try:
        with following(lab, "-o", tmp_path / "trace") as tracer:
            with lab.create():
                pass
            wait_for(lambda: "remove" in (tmp_path / "trace").read_text())
            if how == "unmounted":
                assert "busy" in vfsfuse("umount", lab.path).stderr.lower()
                assert vfsfuse("umount", "--lazy", lab.path).returncode == 0
            else:
                os.kill(lab.pid, signal.SIGTERM if how == "ended" else signal.SIGKILL)
            assert tracer.process.wait(SECONDS) == 0
        assert lab.server is not None
        assert lab.server.wait(SECONDS) == (-signal.SIGKILL if how == "killed" else 0)
    finally:
        vfsfuse("umount", "--lazy", lab.path)
        lab.api.kill()
    assert tracer.err == ""


def test_a_program_in_a_mounted_lab(lab: MountedLab, tmp_path: Path) -> None:
    out = tmp_path / "trace"
    script = f"{CREATE}; echo 1 > /sys/bus/mdev/devices/{UUID}/remove; exit 9"
    done = vfsfuse("trace", "--json", "-o", out, "--mount", lab.path, "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (9, "", "")
    assert names(lines_of(out), "lifecycle") == ["probe", "create", "remove"]


def test_where_no_lab_is(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        done = vfsfuse("trace", "--mount", path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"vfsfuse: trace: {path}: no lab is mounted there (vfsfuse mount {path})\n"


def test_a_device_that_is_not_there(lab: MountedLab) -> None:
    done = vfsfuse("trace", "--mount", lab.path, "0000:99:00.0")
    assert (done.returncode, done.stdout) == (1, "")
    what = f"0000:99:00.0: there is no such device in {lab.path}"
    assert done.stderr == f"vfsfuse: trace: {what} (vfsfuse tree {lab.path} shows what there is)\n"


def test_a_file_that_cannot_be_written(lab: MountedLab) -> None:
    done = vfsfuse("trace", "--mount", lab.path, "-o", "/nowhere/trace")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "vfsfuse: trace: /nowhere/trace: No such file or directory\n"


@needs.root("acting as two users takes root")
def test_the_trace_is_its_users_own(lab: MountedLab, tmp_path: Path) -> None:
    os.chmod(lab.path.parent, 0o755)
    command = [*AS_NOBODY, *VFSFUSE, "trace", "--mount", str(lab.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vfsfuse: trace: ") and done.stderr.count("\n") == 1, done.stderr


@needs.root("another user is acted as by root")
@needs.open_fuse
def test_an_ordinary_user_traces_a_program_of_theirs() -> None:
    command = [*AS_NOBODY, *VFSFUSE, "trace", "--json", "--", "sh", "-c", f"{CREATE}; exit 3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=SECONDS)
    assert done.returncode == 3, done.stderr
    assert '"name":"create"' in done.stderr


def test_a_lab_that_is_stopped_and_goes_on(fresh_lab: MountedLab, tmp_path: Path) -> None:
    """What was called meanwhile is told afterwards; a trace that is ended meanwhile ends in time."""
    with fresh_lab.create() as made, following(fresh_lab, "-k", "region") as tracer:
        stop(fresh_lab.pid)
        reader = subprocess.Popen(["xxd", "-l", "4", made.path / "config"], stdout=subprocess.DEVNULL)
        assert "does not answer" in vfsfuse("trace", "--mount", fresh_lab.path).stderr
        os.kill(fresh_lab.pid, signal.SIGCONT)
        assert reader.wait(SECONDS) == 0
    assert "VENDOR_ID" in tracer.out
    with started("trace", "--mount", fresh_lab.path) as process:
        assert process.stderr is not None
        assert process.stderr.readline()
        stop(fresh_lab.pid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
        os.kill(fresh_lab.pid, signal.SIGCONT)
    assert process.returncode == 1
    assert err == f"vfsfuse: trace: {fresh_lab.path}: the lab's server does not answer\n"


def test_a_program_starts_although_its_tracer_is_stopped(lab: MountedLab) -> None:
    command = [sys.executable, "-c", UNTRACED, str(lab.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=SECONDS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
