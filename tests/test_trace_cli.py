# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse trace -- CMD` and `run --trace` as a way to start a program: what CMD is, and when it ends."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import ROOT, VFSFUSE, run, vfsfuse
from tests.test_run import ended, in_terminal, processes_with, server_pid
from tests.tracers import COPIERS, CREATE, REMOVE, UUID, courier_of, lines_of, names, programs, started
from tests.waiting import stop, wait_for

Compile = Callable[..., Path]
SECONDS = 60
FLAGS = ("--quiet", "--stat-paths", "--udev")


def traced(tmp_path: Path, script: str, *options: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """`script` traced in a lab of its own.  Returns how it ended, and the file of the trace."""
    out = tmp_path / "trace"
    return vfsfuse("trace", "--json", "-o", out, *options, "--", "sh", "-c", script), out


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", -15), ("kill -KILL $$", -9)]
)
def test_it_ends_as_the_program_does_and_nothing_is_missing(tmp_path: Path, script: str, status: int) -> None:
    done, out = traced(tmp_path, f"{CREATE}; {script}")
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    assert names(lines_of(out), "lifecycle") == ["probe", "create"]


def test_run_with_a_trace_is_the_same(tmp_path: Path) -> None:
    out = tmp_path / "trace"
    done = vfsfuse("run", "--trace", out, "--", "sh", "-c", f"{CREATE}; echo made; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "made\n", "")
    assert re.search(rf"create .*{UUID}|{UUID}.* create", out.read_text())


def test_without_a_file_the_lines_go_to_stderr() -> None:
    done = vfsfuse("trace", "--", "sh", "-c", f"{CREATE}; echo made")
    assert (done.returncode, done.stdout) == (0, "made\n")
    assert UUID in done.stderr and "\x1b" not in done.stderr


def test_a_whole_dialogue_from_the_first_call_to_the_last(tmp_path: Path, compile_client: Compile) -> None:
    client = compile_client("copier_client")
    script = f"echo {UUID} > {COPIERS}; exec {client} 0 {UUID}"
    done, out = traced(tmp_path, script, "--config", "examples/copier.toml")
    assert (done.returncode, done.stdout) == (0, "status 1\nok\n"), done.stderr
    lines = sorted(lines_of(out), key=lambda line: line["number"])  # as they began
    assert names(lines, "store", "lifecycle")[:3] == ["create", "create", "probe"]
    assert [name.removeprefix("VFIO_") for name in names(lines, "ioctl")] == [
        *("GET_API_VERSION", "GROUP_SET_CONTAINER", "SET_IOMMU", "IOMMU_MAP_DMA", "GROUP_GET_DEVICE_FD"),
        *("DEVICE_GET_INFO", "DEVICE_SET_IRQS", "DEVICE_RESET", "IOMMU_UNMAP_DMA"),
    ]
    assert names(lines, "region", "dma", "interrupt") == [
        *["write"] * 5,
        *("read", "write", "MSIX", "read", "write"),
    ]
    opens = [(line["subject"], line["name"]) for line in lines if line["kind"] == "open"]
    assert {(subject, "close") for subject, name in opens if name == "open"} <= set(opens)


def test_processes_in_the_background_are_traced_to_their_end(tmp_path: Path) -> None:
    script = f"{CREATE}; (read line; {REMOVE}) <&3 & exec 3<&-; exit 5"
    out = tmp_path / "trace"
    with started("trace", "--json", "-o", out, "--", "sh", "-c", f"exec 3<&0; {script}") as tracer:
        wait_for(lambda: out.exists() and "create" in out.read_text())
        wait_for(lambda: not programs(tracer))
        assert tracer.poll() is None
        assert tracer.communicate("\n", timeout=SECONDS) == ("", "")
    assert tracer.returncode == 5
    assert names(lines_of(out), "lifecycle") == ["probe", "create", "remove"]


def test_an_interrupt_leaves_the_background_untraced(tmp_path: Path) -> None:
    out = tmp_path / "trace"
    script = f"{CREATE}; (read line; {REMOVE}; echo done) <&3 & exec 3<&-; exit 5"
    with started("trace", "--json", "-o", out, "--", "sh", "-c", f"exec 3<&0; {script}") as tracer:
        wait_for(lambda: out.exists() and "create" in out.read_text())
        wait_for(lambda: not programs(tracer))
        wait_for(lambda: interrupted(tracer))
        assert tracer.communicate("\n", timeout=SECONDS)[0] == "done\n"
    assert tracer.returncode == 5
    assert names(lines_of(out), "lifecycle") == ["probe", "create"]


def interrupted(tracer: subprocess.Popen[str]) -> bool:
    """Send SIGINT, and tell whether the tracer ends.  It may not have noticed the program's end before."""
    tracer.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        tracer.wait(20)
    return tracer.returncode is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_asks_it_to_end_goes_to_the_program(tmp_path: Path, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo told; {CREATE}; exit 4' {name}; echo up; while :; do sleep 0.05; done"
    out = tmp_path / "trace"
    with started("trace", "--json", "-o", out, "--", "sh", "-c", script) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "up\n"
        tracer.send_signal(number)
        assert tracer.communicate(timeout=SECONDS) == ("told\n", "")
    assert tracer.returncode == 4
    assert names(lines_of(out), "lifecycle") == ["probe", "create"]


def test_a_program_goes_on_when_its_tracer_is_killed(tmp_path: Path) -> None:
    out, log = tmp_path / "trace", tmp_path / "log"
    script = f"echo up; read line; {CREATE}; ls /sys/bus/mdev/devices"
    with started("trace", "-o", out, "--log", log, "--", "sh", "-c", script) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "up\n"
        tracer.kill()
        tracer.wait()
        assert tracer.communicate("\n", timeout=SECONDS) == (f"{UUID}\n", "")
    assert ended(server_pid(log))
    assert "Traceback" not in log.read_text()


def test_a_program_goes_on_when_its_lab_dies(tmp_path: Path) -> None:
    out, log = tmp_path / "trace", tmp_path / "log"
    script = f"{CREATE}; echo up; read line; cat /sys/class/*/*/name; exit 3"
    with started("trace", "--json", "-o", out, "--log", log, "--", "sh", "-c", script) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "up\n"
        wait_for(lambda: "create" in out.read_text())
        os.kill(server_pid(log), signal.SIGKILL)
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        tracer.communicate("\n", timeout=SECONDS)
    assert line.startswith("vfsfuse: run: the server of the private lab has ended (killed by signal 9;")
    assert tracer.returncode == 3
    assert names(lines_of(out), "lifecycle") == ["probe", "create"]


def test_a_stopped_tracer_keeps_neither_program_nor_lab(tmp_path: Path) -> None:
    """The supervisor gives it its time, and then ends the lab."""
    log = tmp_path / "log"
    with started(
        "trace", "-o", tmp_path / "trace", "--log", log, "--", "sh", "-c", "echo up; read x"
    ) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "up\n"
        (program,) = programs(tracer)
        stop(tracer.pid)
        assert tracer.stdin is not None
        tracer.stdin.write("\n")
        tracer.stdin.flush()
        try:
            wait_for(lambda: state(program) == "Z")
            wait_for(lambda: not os.path.exists(f"/proc/{server_pid(log)}"))
        finally:
            tracer.send_signal(signal.SIGCONT)
        assert tracer.communicate(timeout=SECONDS)[0] == ""
    assert tracer.returncode == 0


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_terminal_and_its_signals_are_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the foreground process group, and a ^C reaches it.  The tracer tells the rest and dies too."""
    monkeypatch.chdir(ROOT)
    out = tmp_path / "trace"
    command = (
        f"trap '{CREATE}; trap - INT; kill -INT $$' INT; ps -o tpgid= $$; ps -o pgid= $PPID; echo waiting"
    )
    words = [
        *VFSFUSE,
        "trace",
        "--json",
        "-o",
        str(out),
        "--",
        "sh",
        "-c",
        f"{command}; while :; do sleep 0.1; done",
    ]
    shown, status = in_terminal(words, (b"waiting", b"\x03"))
    assert status == -signal.SIGINT
    assert re.search(r"^\s*(\d+)\r\n\s*\1\r\nwaiting", shown), shown
    assert names(lines_of(out), "lifecycle") == ["probe", "create"]


def test_a_suspended_program_suspends_its_tracer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a job of a shell: ^Z stops both, `fg` continues both."""
    monkeypatch.chdir(ROOT)
    words = " ".join(
        [*VFSFUSE, "trace", "-o", str(tmp_path / "trace"), "--", "sh", "-c", "'echo waiting; read x; exit 6'"]
    )
    script = f"set -m; {words}; echo suspended $?; fg >/dev/null; echo ended $?"
    shown, _ = in_terminal(["bash", "-c", script], (b"waiting", b"\x1a"), (b"suspended 148", b"\n"))
    assert "ended 6" in shown, shown


def test_lines_are_coloured_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    words = [*VFSFUSE, "trace", "--", "sh", "-c", CREATE]
    assert "\x1b[" in in_terminal(words)[0]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in in_terminal(words)[0]


def test_standard_input_is_the_programs(tmp_path: Path) -> None:
    done = run(["sh", "-c", f"cd {ROOT}; echo a line | {' '.join(VFSFUSE)} trace -o {tmp_path}/trace -- cat"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "a line\n", "")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_standard_descriptor(tmp_path: Path, number: int) -> None:
    """It stays closed for the program, and the file of the trace does not take its place."""
    words = [
        *VFSFUSE,
        "trace",
        "-o",
        str(tmp_path / "trace"),
        "--",
        "sh",
        "-c",
        f"[ ! -e /proc/self/fd/{number} ] || exit 3; exit 4",
    ]
    done = run(["sh", "-c", f"cd {ROOT}; exec {shlex.join(words)} {number}>&-"])
    assert (done.returncode, done.stdout) == (4, "")


def test_the_program_gets_no_descriptor_and_no_signal_of_ours(tmp_path: Path) -> None:
    script = "grep -E 'Sig(Ign|Blk|Cgt)' /proc/self/status; ls /proc/self/fd"
    plain = vfsfuse("run", "--", "sh", "-c", script)
    done, _ = traced(tmp_path, script)
    assert done.stdout == plain.stdout
    assert done.stdout.split()[-4:] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (["trace", "-o", "/nowhere/trace", "--", "touch", "{}"], 125, "trace: /nowhere/trace: No such file"),
        (["run", "--trace", "/nowhere/trace", "--", "touch", "{}"], 125, "run: /nowhere/trace: No such file"),
        (["trace", "--mount", "/nowhere", "--", "touch", "{}"], 125, "run: /nowhere: No such file"),
        (["trace", "--config", "/nowhere", "--", "touch", "{}"], 125, "run: /nowhere: cannot be read"),
        (["trace", "--", "no-such-program"], 127, "run: no-such-program: No such file"),
        (["trace", "--", "/etc/passwd"], 126, "run: /etc/passwd: Permission denied"),
    ],
)
def test_failures_are_one_line_and_come_before_the_program(
    tmp_path: Path, words: list[str], status: int, why: str
) -> None:
    mark = tmp_path / "started"
    done = vfsfuse(*(word.format(mark) for word in words))
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"vfsfuse: {why}") and done.stderr.count("\n") == 1, done.stderr
    assert not mark.exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-k", "ioctls"], "ioctls: there is no such kind"),
        (["--errno", "EFOO"], "EFOO: there is no such errno"),
        (["--pid", "self"], "'self' is no list of process numbers"),
        (["--keep", "0"], "'0' is no number above 0"),
        (["--colour", "green"], "invalid choice: 'green'"),
    ],
)
@pytest.mark.parametrize("program", [["--", "true"], []], ids=["program", "lab"])
def test_wrong_options_are_wrong_usage(words: list[str], why: str, program: list[str]) -> None:
    done = vfsfuse("trace", *words, *program)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: vfsfuse trace ") and why in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--"], "no command after --"),
        *(
            ([option, "x"], f"{option} is for a program: name one after --")
            for option in ("--config", "--log")
        ),
        *(([option], f"{option} is for a program: name one after --") for option in FLAGS),
    ],
)
def test_a_program_that_is_not_named(words: list[str], why: str) -> None:
    done = vfsfuse("trace", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["vgpu0", "VGPU12", "3"])
def test_a_name_that_a_device_gets_when_it_is_made(name: str) -> None:
    """The trace knows devices by other names, and a private lab has none yet that could be looked up."""
    done = vfsfuse("trace", name, "--", "true")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{name}: with a command, name a device by its UUID or its PCI address" in done.stderr


def test_the_devices_of_a_program(tmp_path: Path) -> None:
    script = (
        "xxd -l 4 /sys/bus/pci/devices/0000:86:00.0/config; xxd -l 4 /sys/bus/pci/devices/0000:00:01.0/config"
    )
    for name in ("0000:86:00.0", "86:00.0"):
        done, out = traced(tmp_path, script, "-k", "region", name)
        assert done.returncode == 0
        assert {line["subject"] for line in lines_of(out)} == {"0000:86:00.0"}


def test_a_device_is_shown_from_its_making_on(tmp_path: Path) -> None:
    """Also where the making is refused: then the lab has no device of that name."""
    done, out = traced(tmp_path, f"{CREATE}; {CREATE}", UUID)
    assert "record is about" not in done.stderr
    made = [(line["kind"], line["name"], line["errno_name"]) for line in lines_of(out)]
    once = {("lifecycle", "create", None), ("store", "create", None)}
    twice = {(kind, name, "EEXIST") for kind, name, _ in once}
    assert set(made) == {*once, *twice, ("lifecycle", "probe", None)}


def test_a_device_that_no_record_is_about(tmp_path: Path) -> None:
    """A name may be mistyped, and the devices are made later."""
    done, out = traced(tmp_path, CREATE, "0000:99:00.0")
    assert (done.returncode, out.read_text()) == (0, "")
    assert done.stderr.startswith("vfsfuse: trace: no record is about 0000:99:00.0 (")
    assert done.stderr.count("\n") == 1


def test_a_caller_that_ignores_its_children(tmp_path: Path) -> None:
    """The program ignores them, too, and its status is known."""
    ignore = "from os import execv; from signal import *; from sys import argv"
    ignore += "; signal(SIGCHLD, SIG_IGN); execv(argv[1], argv[1:])"
    words = [
        *VFSFUSE,
        "trace",
        "-o",
        str(tmp_path / "trace"),
        "--",
        "grep",
        "-s",
        "SigIgn",
        "/proc/self/status",
        "/nowhere",
    ]
    done = run(["sh", "-c", f"cd {ROOT} && exec {shlex.join([sys.executable, '-c', ignore, *words])}"])
    ignored = re.findall(r"SigIgn:\s*(\w+)", done.stdout)
    assert int(ignored[0], 16) & 1 << signal.SIGCHLD - 1
    assert (done.returncode, done.stderr) == (2, "")


def test_a_shell_takes_the_terminal_and_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tracer is in the background meanwhile, and writes nevertheless."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("NO_COLOR", "1")
    words = [*VFSFUSE, "trace", "--", "bash", "--norc", "-i"]
    script = f"stty tostop; {' '.join(words)}; echo back $?"
    steps = ((b"bash-", CREATE.encode() + b"; exit 5\n"), (b"back 5", b""))
    shown, status = in_terminal(["sh", "-c", script], *steps)
    assert status == 0
    assert re.search(rf"mtty-1 create {UUID}", shown), shown


READS = """
import os, sys
config = os.open("/sys/bus/pci/devices/0000:86:00.0/config", os.O_RDONLY)
os.pread(config, 4, 0)
sys.stdin.read(1)
for _ in range(int(sys.argv[1])):
    os.pread(config, 4, 0)
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("buffer", "fits"), [(20000, True), (500, False)])
def test_what_a_slow_tracer_has_not_read_at_the_end(tmp_path: Path, buffer: int, fits: bool) -> None:
    """The lab waits for it.  Nothing is missing of what the buffer holds, and what is missing is counted."""
    out = tmp_path / "trace"
    options = ("--json", "-o", out, "-k", "region", "--keep", str(buffer))
    with started("trace", *options, "--", sys.executable, "-c", READS, "10000") as tracer:
        wait_for(lambda: out.exists() and '"read"' in out.read_text())
        courier = courier_of(tracer)
        stop(courier)
        assert tracer.stdin is not None
        tracer.stdin.write("\n")
        tracer.stdin.flush()
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "done\n"
        stop(tracer.pid)
        tracer.stdin.close()
        os.kill(courier, signal.SIGCONT)
        tracer.send_signal(signal.SIGCONT)
        assert tracer.wait(SECONDS) == 0
        assert tracer.stderr is not None
        said = tracer.stderr.read()
    lines = lines_of(out)
    lost = sum(line["arguments"]["count"] for line in lines if line["kind"] == "lost")
    assert names(lines, "region").count("read") + lost == 10001
    assert (lost == 0) is fits
    assert said == "" if fits else f"{lost} records are missing" in said


def test_killed_on_the_way_it_leaves_no_process(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}.toml"
    (tmp_path / mark).write_text((ROOT / "vfsfuse/labfile/lab.toml").read_text())
    with started(
        "trace", "--config", tmp_path / mark, "-o", tmp_path / "trace", "--", "sleep", "1"
    ) as tracer:
        wait_for(lambda: programs(tracer))
        tracer.kill()
    wait_for(lambda: not processes_with(mark))
