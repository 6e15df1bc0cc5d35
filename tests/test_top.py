# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse top`: what the devices of a lab do, as text, as JSON and as a live view on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, one_write, vfsfuse
from tests.iommufd.bound import open_bound
from tests.labs import MountedLab, Vgpu, described
from tests.schemas import checked
from tests.waiting import SECONDS as WAIT_SECONDS
from tests.waiting import wait_for
from vfsfuse.asking import SECONDS
from vfsfuse.monitor.rates import rates
from vfsfuse.monitor.sampling import COUNTED, MOST_IDLE, Device, Gpu, Sample

DRAW = ROOT / "examples/draw.py"
BUSY = """
import contextlib, os, runpy, sys
print(flush=True)
while True:
    with contextlib.suppress(SystemExit):
        runpy.run_path(sys.argv[0], run_name="__main__")
    os.closerange(3, 64)
"""
"""It draws again and again, and opens the vGPU for each picture."""
ENTER, LEAVE, SHOW_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


@contextlib.contextmanager
def drawing(lab: MountedLab, vgpu: Vgpu) -> Iterator[int]:
    """A process that keeps the engine of a vGPU busy: its pid."""
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.argv = sys.argv[1:]\n{BUSY}",
        DRAW,
        vgpu.name,
        lab.path,
    ]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None and client.stdout.readline() == b"\n"
        try:
            wait_for(lambda: (vgpu.path / "engine_time_us").read_text() != "0\n")
            yield client.pid
        finally:
            client.kill()


def top(lab: MountedLab, *arguments: str) -> str:
    done = vfsfuse("top", "--mount", lab.path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def objects(lab: MountedLab, *arguments: str) -> list[dict[str, Any]]:
    return [checked(line, "top") for line in top(lab, "--json", *arguments).splitlines()]


def of_busy_times(lab: MountedLab) -> list[dict[str, Any]]:
    """Two looks in whose time a vGPU was used.  On a busy machine, a picture may take longer than one."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = objects(lab, "-n", "2", "-d", "0.5")
        rows = [max(each["devices"], key=lambda row: row["engine"] or 0) for each in found]
        return all(row["engine"] and row["ioctls"] and row["dma_read_bytes"] for row in rows)

    wait_for(look)
    return found


def test_a_busy_vgpu_is_first_with_its_rates_and_its_client(lab: MountedLab) -> None:
    with lab.create("vgpu-8") as idle, lab.create("vgpu-8") as busy, drawing(lab, busy) as pid:
        text = top(lab, "-n", "2", "-d", "0.5")
        first, second = of_busy_times(lab)
        assert second["time"] > first["time"] and 0 < second["seconds"] < WAIT_SECONDS
        for each in (first, second):
            assert [row["device"] for row in each["devices"]] == [busy.name, idle.name]
            row, still = each["devices"]
            assert (row["type"], row["parent"]) == ("vgpu-8", "0000:86:00.0")
            assert row["engine"] > 0 and row["memory_used"] > 640 * 480 * 4 - 4096
            assert row["memory"] == 32 << 20
            assert still["engine"] == 0 and still["clients"] == []
            assert {client["pid"] for client in row["clients"]} <= {pid}
            gpu = next(gpu for gpu in each["gpus"] if gpu["name"] == "0000:86:00.0")
            assert gpu["engine"] > 0 and (gpu["memory_used"], gpu["vgpus"]) == (64 << 20, 2)
            assert (each["vgpus"], each["lab"]) == (2, str(lab.path))
        assert text.count(f"{lab.path}: 2 vGPUs, ") == 2
        assert len(re.findall(r"(?m)^GPU +ENGINE +MEMORY +VGPUS$", text)) == 2
        assert re.search(r"(?m)^vgpu\d+ +0000:86:00\.0 +vgpu-8 +\d+\.\d% ", text)


def test_a_client_is_shown_while_it_has_the_device_open(lab: MountedLab) -> None:
    with lab.create("vgpu-8") as vgpu:
        fd = vgpu.open()
        try:
            (shown,) = objects(lab, "-n", "1", "-d", "0.1")
            (row,) = shown["devices"]
            comm = Path("/proc/self/comm").read_text().strip("\n")
            assert row["clients"] == [{"pid": os.getpid(), "comm": comm}] and shown["clients"] == 1
            assert f"{comm} ({os.getpid()})" in top(lab, "-n", "1", "-d", "0.1")
        finally:
            os.close(fd)


def test_two_at_once(lab: MountedLab) -> None:
    with lab.create("vgpu-8") as vgpu, drawing(lab, vgpu), ThreadPoolExecutor(2) as pool:
        for each in pool.map(lambda _: of_busy_times(lab), range(2)):
            assert len(each) == 2
            for shown in each:
                (row,) = shown["devices"]
                assert row["engine"] > 0 and row["ioctls"] > 0 and row["dma_read_bytes"] > 0


def test_vgpus_come_and_go_meanwhile(lab: MountedLab) -> None:
    command = [*VFSFUSE, "top", "--json", "-d", "0.1", "--mount", str(lab.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as watching:
        assert watching.stdout is not None
        try:
            for _ in range(3):
                with lab.create("vgpu-8") as vgpu:
                    wait_for_line(
                        watching.stdout, lambda each: [row["device"] for row in each["devices"]], [vgpu.name]
                    )
                wait_for_line(watching.stdout, lambda each: each["devices"], [])
        finally:
            watching.send_signal(signal.SIGINT)
    assert watching.returncode == 0


def wait_for_line(lines: Any, value: Any, wanted: object) -> None:
    """Read lines until one has the value."""
    for line in lines:
        each = checked(line, "top")
        if value(each) == wanted:
            return
    raise AssertionError(f"it ended without {wanted}")


MANY = 130
CARDS = f"""\
[parents.cards]
kind = "virtual"
driver = "mtty"
slots = {MANY}
types.card = {{ description = "a serial card" }}
"""


def test_of_many_the_busy_ones_are_shown_whichever_they_are(tmp_path: Path) -> None:
    with described(tmp_path, CARDS) as lab:
        cards = [lab.create("card", "cards") for _ in range(MANY)]
        last = cards[-1]
        fd = last.open()
        try:
            shown = objects(lab, "-n", "1", "-d", "0.1")[0]
            text = top(lab, "-n", "1", "-d", "0.1")
        finally:
            os.close(fd)
        first, *rest = shown["devices"]
        assert (first["device"], len(first["clients"]), shown["vgpus"]) == (last.name, 1, MANY)
        assert len(rest) == MOST_IDLE < MANY - 1 and not any(row["clients"] for row in rest)
        assert re.search(rf"(?m)^{MANY - 1 - MOST_IDLE} more vGPUs not shown$", text)
        listed = json.loads(vfsfuse("list", "--json", "--mount", lab.path).stdout)
        assert {each["device"] for each in listed["vgpus"]} == {card.name for card in cards}


def test_vgpus_of_nvidias_framework(tmp_path: Path) -> None:
    with MountedLab(tmp_path, "--config", str(ROOT / "examples/vendor_host.toml")) as lab:
        one_write(lab.gpu / "sriov_numvfs", "4")
        for number in (0, 1):
            one_write(lab.gpu / f"virtfn{number}/nvidia/current_vgpu_type", "1304")
        idle, held = (os.path.basename(os.readlink(lab.gpu / f"virtfn{number}")) for number in (0, 1))
        cdev = os.listdir(lab.gpu / "virtfn1/vfio-dev")[0]
        fd = open_bound(lab.path / "dev/vfio/devices" / cdev)
        try:
            (shown,) = objects(lab, "-n", "1", "-d", "0.1")
        finally:
            os.close(fd)
        assert [row["name"] for row in shown["devices"]] == [held, idle]
        assert {(row["type"], row["parent"]) for row in shown["devices"]} == {("1304", "0000:86:00.0")}
        size = int((lab.gpu / "virtfn0/vgpu/vram_size").read_text())
        assert [row["memory"] for row in shown["devices"]] == [size] * 2 and shown["vgpus"] == 2
        gpu = next(gpu for gpu in shown["gpus"] if gpu["name"] == "0000:86:00.0")
        assert (gpu["vgpus"], gpu["memory_used"]) == (2, 2 * size)


@pytest.mark.parametrize("how", ["killed", "stopped", "unmounted"])
def test_the_server_ends_while_it_runs(tmp_path: Path, how: str) -> None:
    lab = MountedLab(tmp_path, umount=False)
    lab.__enter__()
    assert lab.server is not None
    command = [*VFSFUSE, "top", "-b", "-d", "0.1", "--mount", str(lab.path)]
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        ) as watching:
            assert watching.stdout is not None and watching.stderr is not None
            assert watching.stdout.readline().startswith(f"{lab.path}: 0 vGPUs")
            if how == "unmounted":
                assert vfsfuse("umount", "--lazy", lab.path).returncode == 0
            else:
                lab.server.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            watching.stdout.read()
            line = watching.stderr.read()
        assert watching.returncode == 1 and line.count("\n") == 1
        if how == "stopped":
            assert f"the server (pid {lab.pid}) is stopped" in line
        else:
            assert f"{lab.path}: no lab is mounted there" in line
    finally:
        lab.server.kill()
        lab.server.wait()
        lab.api.kill()


@pytest.mark.parametrize(
    "arguments",
    [["-d", "0"], ["-d", "nan"], ["-d", "inf"], ["-d", "-1"], ["-n", "0"], ["-n", "x"], ["-b", "--json"]],
)
def test_wrong_usage(arguments: list[str]) -> None:
    done = vfsfuse("top", *arguments)
    assert (done.returncode, done.stdout) == (2, "") and "usage: vfsfuse top" in done.stderr


def test_a_reader_that_closes_the_pipe_ends_it(lab: MountedLab) -> None:
    command = f"{' '.join(VFSFUSE)} top -d 0.1 --mount {lab.path} | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


# ---- the live view ----


class Terminal:
    """A terminal with `vfsfuse top` on it."""

    def __init__(self, lab: MountedLab, *arguments: str, command: Sequence[str] = ()) -> None:
        self.master, slave = pty.openpty()
        self.slave = slave
        self.resize(24, 110)
        self.before = termios.tcgetattr(slave)
        self.printed = bytearray()
        top = [*VFSFUSE, "top", "-d", "0.2", "--mount", str(lab.path)]
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *(command or [*top, *arguments])],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color"},
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read_until(self, wanted: bytes) -> bytes:
        """What is printed until `wanted` is; it is forgotten."""
        while wanted not in self.printed:
            ready, _, _ = select.select([self.master], [], [], WAIT_SECONDS)
            assert ready, f"{wanted!r} does not come: {bytes(self.printed)!r}"
            self.printed += os.read(self.master, 65536)
        found, _, rest = bytes(self.printed).partition(wanted)
        self.printed = bytearray(rest)
        return found + wanted

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """Wait for its end.  The terminal is as it was."""
        while True:  # a terminal that nobody reads stops its writer
            ready, _, _ = select.select([self.master], [], [], 0.05)
            if ready:
                self.printed += os.read(self.master, 65536)
            elif (status := self.process.poll()) is not None:
                assert termios.tcgetattr(self.slave) == self.before
                return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(lab: MountedLab) -> Iterator[Terminal]:
    needs.module("rich")
    made = Terminal(lab)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("key", [b"q", b"\x03", b"\x04"])
def test_keys_end_it_and_the_terminal_is_as_before(lab: MountedLab, terminal: Terminal, key: bytes) -> None:
    with lab.create("vgpu-8") as vgpu, drawing(lab, vgpu):
        terminal.read_until(ENTER)
        terminal.read_until(f"{lab.path}: 1 vGPU".encode())
        terminal.read_until(b"FAULTS/s")
        terminal.read_until(b"%")
        assert termios.tcgetattr(terminal.slave) != terminal.before  # keys come at once
        terminal.press(key)
        assert terminal.end() == 0
        assert LEAVE in terminal.printed and SHOW_CURSOR in terminal.printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_and_the_terminal_is_as_before(terminal: Terminal, number: signal.Signals) -> None:
    terminal.read_until(b" vGPUs")
    terminal.process.send_signal(number)
    assert terminal.end() == 128 + number
    assert LEAVE in terminal.printed and SHOW_CURSOR in terminal.printed


def test_it_fits_the_terminal_also_when_that_changes(lab: MountedLab, terminal: Terminal) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(lab.create("vgpu-8"))
        terminal.read_until(b" 8 vGPUs")
        terminal.read_until(b"CLIENTS")
        terminal.resize(12, 70)
        terminal.read_until(b"more vGPU")
        terminal.resize(40, 120)
        screen = terminal.read_until(b"q: quit")
        while b"vgpu7" not in screen:
            screen = terminal.read_until(b"q: quit")
        terminal.press(b"q")
        assert terminal.end() == 0


def test_it_can_be_stopped_and_continued(lab: MountedLab) -> None:
    """By a shell.  However long it is stopped, it does not take that for a silence of the server."""
    needs.module("rich")
    command = " ".join([*VFSFUSE, "top", "-d", "0.2", "--mount", str(lab.path)])
    terminal = Terminal(lab, command=["bash", "-mc", f"{command}; echo held; read line; fg; echo ended $?"])
    try:
        terminal.read_until(b" vGPUs")
        terminal.press(b"\x1a")
        terminal.read_until(LEAVE)
        terminal.read_until(b"held")
        assert termios.tcgetattr(terminal.slave) == terminal.before
        time.sleep(SECONDS + 0.5)
        terminal.press(b"\n")
        terminal.read_until(ENTER)
        terminal.read_until(b" vGPUs")
        terminal.press(b"q")
        terminal.read_until(b"ended 0")
        assert terminal.end() == 0
    finally:
        terminal.close()


def test_it_counts_its_looks(lab: MountedLab) -> None:
    needs.module("rich")
    terminal = Terminal(lab, "-n", "1")
    try:
        assert terminal.end() == 0
        assert ENTER in terminal.printed and LEAVE in terminal.printed and b" vGPU" in terminal.printed
    finally:
        terminal.close()


def test_the_server_dies_below_the_live_view(tmp_path: Path) -> None:
    needs.module("rich")
    lab = MountedLab(tmp_path, umount=False)
    lab.__enter__()
    assert lab.server is not None
    terminal = Terminal(lab)
    try:
        terminal.read_until(b" vGPUs")
        lab.server.kill()
        lab.server.wait()
        assert terminal.end() == 1
        after = bytes(terminal.printed).rpartition(LEAVE)[2]
        assert b"no lab is mounted there (its server is gone)" in after
    finally:
        terminal.close()
        lab.api.kill()


def test_without_rich_a_line_says_what_to_do(lab: MountedLab, tmp_path: Path) -> None:
    hidden = tmp_path / "rich.py"
    hidden.write_text("raise ModuleNotFoundError(\"No module named 'rich'\", name='rich')\n")
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            [*VFSFUSE, "top", "--mount", str(lab.path)],
            stdin=slave,
            stdout=slave,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "pip install 'vfsfuse[top]'" in done.stderr and "--batch" in done.stderr
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [*VFSFUSE, "top", "-b", "-n", "1", "-d", "0.1", "--mount", str(lab.path)]
    assert subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=False).returncode == 0


# ---- rates ----


def device(**values: Any) -> Device:
    empty = dict.fromkeys(Device._fields)
    return Device(**{**empty, "name": "vgpu0", "device": "one", "clients": (), **values})


def sample(seconds: float, *devices: Device, engine: int | None = None) -> Sample:
    return Sample(seconds, (Gpu("gpu", engine, 1, 2, 3),), devices, len(devices), 0, 0, None)


def test_rates_are_differences() -> None:
    counts = tuple(range(0, 10 * len(COUNTED), 10))
    before = sample(1.0, device(counts=(0,) * len(COUNTED), engine_us=0, dma_faults=5), engine=500_000)
    found = rates(
        "lab", before, sample(3.0, device(counts=counts, engine_us=1_000_000, dma_faults=9), engine=10**6)
    )
    (row,), (gpu,) = found.devices, found.gpus
    values = dict(zip(COUNTED, counts, strict=True))
    assert (row.engine, gpu.engine, found.seconds, row.dma_faults) == (0.5, 0.25, 2.0, 2.0)
    assert row.calls == (values["reads"] + values["writes"] + values["ioctls"]) / 2
    assert row.dma_bytes == (values["dma_read_bytes"] + values["dma_write_bytes"]) / 2
    assert (row.interrupts, row.resets) == (values["interrupts"] / 2, values["resets"] / 2)


def test_rates_of_devices_that_are_new_or_made_anew() -> None:
    zeros, ones = (0,) * len(COUNTED), (1,) * len(COUNTED)
    new = rates("lab", sample(0.0), sample(1.0, device(counts=ones, engine_us=7, dma_faults=3)))
    assert (new.devices[0].engine, new.devices[0].failed_commands) == (None, None)
    assert (new.devices[0].interrupts, new.devices[0].dma_faults) == (1.0, 1.0)
    before = sample(0.0, device(counts=zeros, engine_us=100, dma_faults=3))
    anew = rates("lab", before, sample(1.0, device(counts=zeros, engine_us=4, dma_faults=0)))
    assert (anew.devices[0].engine, anew.devices[0].faults) == (0, 0)
    uncounted = rates("lab", sample(0.0, device()), sample(1.0, device()))
    assert (uncounted.devices[0].calls, uncounted.devices[0].dma_bytes) == (None, None)


def test_the_busiest_are_first() -> None:
    zeros = dict.fromkeys(COUNTED, 0)

    def made(name: str, engine: int, clients: int = 0, **counts: int) -> Device:
        holding = tuple((pid, "c") for pid in range(1, clients + 1))
        told = tuple({**zeros, **counts}.values())
        return device(name=name, device=name, engine_us=engine, counts=told, clients=holding)

    now = [made("vgpu10", 0), made("vgpu2", 0), made("held", 0, clients=1), made("calls", 0, reads=5)]
    now += [made("dma", 0, dma_read_bytes=4096), made("engine", 100)]
    before = [each._replace(engine_us=0, counts=(0,) * len(COUNTED)) for each in now]
    found = rates("lab", sample(0.0, *before), sample(1.0, *now)).devices
    assert [row.name for row in found] == ["engine", "dma", "calls", "held", "vgpu2", "vgpu10"]
    assert [row.is_idle for row in found] == [False] * 4 + [True] * 2


@pytest.mark.parametrize(
    ("width", "height", "heading"),
    [
        (
            *(110, 24),
            "DEVICE  PARENT  TYPE    ENGINE     MEMORY  DMA/s  IRQ/s  CALLS/s  FAULTS/s  CLIENTS",
        ),
        (60, 12, "DEVICE  ENGINE  DMA/s  IRQ/s  CALLS/s  FAULTS/s  CLIENTS"),
        (40, 12, "DEVICE  ENGINE  DMA/s  CALLS/s  CLIENTS"),
    ],
)
def test_a_narrow_terminal_has_fewer_columns_and_a_low_one_fewer_devices(
    width: int, height: int, heading: str
) -> None:
    needs.module("rich")
    from rich.console import Console

    from vfsfuse.monitor.live import picture

    devices = [
        device(
            **{"name": f"vgpu{number}", "device": f"{number}", "type": "vgpu-8", "parent": "gpu"},
            **{"engine_us": 0, "used": 1 << 20, "memory": 32 << 20, "dma_faults": 0},
            counts=(0,) * len(COUNTED),
            clients=((number + 1, "a\x1b[2Jlong name" * 5),),
        )
        for number in range(40)
    ]
    shown = rates("/tmp/lab", sample(0.0, *devices, engine=0), sample(1.0, *devices, engine=500_000))
    console = Console(width=width, height=height, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(picture(shown, width, height))
    lines = capture.get().splitlines()
    assert len(lines) == height and max(map(len, lines)) <= width
    assert heading in [line.rstrip() for line in lines] and "\x1b" not in capture.get()
    rows = [line for line in lines if line.startswith("vgpu")]
    assert lines[-1] == f"{40 - len(rows)} more vGPUs not shown" and all("..." in row for row in rows)
    assert rows[0].startswith("vgpu0 ")
