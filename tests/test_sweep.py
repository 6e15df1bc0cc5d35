# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse sweep`: which calls fail, what each run shows of a program, and that nothing stays behind."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, vfsfuse
from tests.copydriver import compiled
from tests.test_run import in_terminal, processes_with
from tests.tracers import COPIERS, CREATE, UUID, started
from tests.waiting import wait_for
from vfsfuse.sweep import family

Compile = Callable[..., Path]
COPIER = ("--config", "examples/copier.toml")
OPENED = ["open"] * 2
NAP = 100_000 + os.getpid()
"""Seconds of a sleep that no other run of these tests makes."""
GROUP = [
    *("GROUP_SET_CONTAINER", "SET_IOMMU", "IOMMU_MAP_DMA", "GROUP_GET_DEVICE_FD"),
    *("DEVICE_GET_INFO", "DEVICE_SET_IRQS"),
]


def swept(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A sweep of a program, with two runs at once."""
    command = [*VFSFUSE, "sweep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, cwd=ROOT)


def told(*arguments: str | Path, status: int) -> list[dict[str, Any]]:
    """What a sweep tells of each run."""
    done = swept("--json", *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    *runs, counts = map(json.loads, done.stdout.splitlines())
    assert counts["runs"] == len(runs) and counts["bad"] == sum(run["bad"] for run in runs)
    assert [run["run"] for run in runs] == sorted(run["run"] for run in runs)
    return runs


def script(text: str, *options: str, status: int) -> list[dict[str, Any]]:
    """What a sweep tells of a shell script in the built-in lab."""
    return told(*options, "--", "sh", "-c", text, status=status)


def driven(program: Path, size: int = 5) -> list[str]:
    """The command that makes a copier and has it driven by `program`."""
    return ["sh", "-c", f"echo {UUID} > {COPIERS}; exec {program} 0 {UUID} {size}"]


# ---- our clients ----


def test_the_driver_of_the_examples_survives_its_sweep(tmp_path: Path) -> None:
    done = swept("-j2", *COPIER, "--", *driven(compiled(tmp_path)))
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, counts = done.stdout.splitlines()
    assert counts == (
        "16 calls failed, one in each run: 16 fails, 0 copes, 0 crashes, 0 hangs, 0 succeeds wrongly"
    )
    assert lines[0].startswith("1 fails: sh sys/devices/virtual/copier/") and (
        f'store create "{UUID}\\n" = -1 ENOSPC (No space left on device); then exit status 1: '
        "copy: /dev/vfio/0: No such file or directory" in lines[0]
    )
    assert lines[1] == (
        '2 fails: copy open "dev/vfio/vfio" = -1 ENOMEM (Cannot allocate memory); '
        "then exit status 1: copy: /dev/vfio/vfio: Cannot allocate memory"
    )
    assert lines[11] == (
        f"12 fails: copy {UUID} BAR0 write TARGET (0x8, 8 bytes) = 0x100800 = -1 EIO (Input/output error); "
        "then exit status 1: copy: write of a register: Input/output error"
    )
    assert done.stderr == ""


def test_the_copiers_client_survives_its_sweep(compile_client: Compile) -> None:
    program = ["sh", "-c", f"echo {UUID} > {COPIERS}; exec {compile_client('copier_client')} 0 {UUID}"]
    runs = told("-j2", *COPIER, "--", *program, status=0)
    assert [run["call"]["name"].removeprefix("VFIO_") for run in runs] == [
        *("create", *OPENED, *GROUP, *["write"] * 5, "read", "write", "DEVICE_RESET", "IOMMU_UNMAP_DMA")
    ]
    assert [run["call"]["errno"] for run in runs[:4]] == [
        errno.ENOSPC,
        errno.ENOMEM,
        errno.EBUSY,
        errno.EBUSY,
    ]
    assert all(run["call"]["fault"] == "sweep" for run in runs)
    endings = {run["call"]["name"]: run["verdict"] for run in runs}
    assert endings.pop("VFIO_DEVICE_RESET") == "copes"
    assert set(endings.values()) == {"fails"}


@pytest.mark.limit(400)
def test_the_main_client_survives_its_sweep(compile_client: Compile) -> None:
    """tests/clients/vfio_client.c on the built-in lab.  It copes where it expects the errno anyway."""
    make = (
        f"type=$(ls -d /sys/class/mdev_bus/*/mdev_supported_types/* | head -1); echo {UUID} > $type/create; "
        f"group=$(basename $(readlink /sys/bus/mdev/devices/{UUID}/iommu_group)); "
    )
    client = compile_client("vfio_client")
    runs = script(f"{make} exec {client} $group {UUID}", "-j2", status=0)
    expected = [run["call"] for run in runs if run["verdict"] == "copes"]
    assert {(call["name"], call["errno"]) for call in expected} <= {
        ("VFIO_GROUP_GET_DEVICE_FD", errno.ENODEV),
        ("VFIO_IOMMU_UNMAP_DMA", errno.EINVAL),
    }, expected
    assert len(runs) >= 29


# ---- clients that do not survive ----


INFO = 'must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config), "GET_REGION_INFO");'
IRQS = 'must(ioctl(device, VFIO_DEVICE_SET_IRQS, &irq), "SET_IRQS");'
WAIT = 'must(read(irq.event, &interrupts, sizeof(interrupts)), "the interrupt");'
PUT = 'must(pwrite(device, &value, size, offset), "write of a register");'
IGNORE = "if (pwrite(device, &value, size, offset) < 0 && offset != {}) exit(1);"


@pytest.mark.parametrize(
    ("edits", "kind", "call", "verdict", "ending"),
    [
        pytest.param(
            [
                (
                    INFO,
                    "int *of = ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) ? NULL : &irq.event; "
                    "if (*of < 0) return 1;",
                )
            ],
            *("ioctl", "VFIO_DEVICE_GET_REGION_INFO", "crashes", "SIGSEGV"),
            id="uses what it has not got",
        ),
        pytest.param(
            [(IRQS, "ioctl(device, VFIO_DEVICE_SET_IRQS, &irq);")],
            *("ioctl", "VFIO_DEVICE_SET_IRQS", "hangs", "no end after 15 s"),
            id="waits for an interrupt that cannot come",
        ),
        pytest.param(
            [
                (PUT, IGNORE.format("COMMAND_REG")),
                (WAIT, "while (!status) if (pread(device, &status, 4, STATUS_REG) < 0) exit(1);"),
                ("uint64_t interrupts;", ""),
            ],
            *("region", "write", "hangs", "no end after 15 s"),
            id="polls for ever",
        ),
        pytest.param(
            [(PUT, IGNORE.format("SIZE_REG"))],
            *("region", "write", "succeeds wrongly", 'exit status 0, prints "'),
            id="takes an error for a result",
        ),
    ],
)
def test_a_broken_driver_is_found(
    edits: Sequence[tuple[str, str]], kind: str, call: str, verdict: str, ending: str, tmp_path: Path
) -> None:
    """One call is not looked at, and the sweep finds it."""
    program = compiled(tmp_path, *edits)
    runs = told("-j2", "-k", kind, "--timeout", "15", *COPIER, "--", *driven(program), status=1)
    (bad,) = (run for run in runs if run["bad"])
    assert (bad["call"]["name"], bad["verdict"]) == (call, verdict)
    assert bad["ending"].startswith(ending)
    assert {run["verdict"] for run in runs if run is not bad} == {"fails"}
    wait_for(lambda: not processes_with(str(program)))


# ---- verdicts ----


@pytest.mark.parametrize(
    ("text", "verdict", "ending"),
    [
        pytest.param(f"{CREATE} || exit 3", "fails", "exit status 3: sh: 1: ", id="its own status"),
        pytest.param(f"until {CREATE}; do :; done; echo made", "copes", "exit status 0", id="tries again"),
        pytest.param(f"{CREATE} || kill -SEGV $$", "crashes", "SIGSEGV", id="signal"),
        pytest.param(f"{CREATE} || sh -c 'kill -ABRT $$'", "crashes", "SIGABRT", id="signal, in a child"),
        pytest.param(f"{CREATE} || kill -TERM $$", "crashes", "SIGTERM", id="any signal"),
        pytest.param(
            f"{CREATE} && echo made || echo not made",
            *("succeeds wrongly", 'exit status 0, prints "not made" in place of "made"'),
            id="another line",
        ),
        pytest.param(
            f"echo begun; {CREATE} && echo made; :",
            *("succeeds wrongly", 'exit status 0, does not print "made"'),
            id="a line less",
        ),
        pytest.param(
            f"{CREATE} || echo oh; :", "succeeds wrongly", 'exit status 0, prints "oh" at the end', id="more"
        ),
        pytest.param(
            f"{CREATE.replace('>', '| tee')} | cat > /dev/null; ls /sys/bus/mdev/devices",
            *("succeeds wrongly", f'exit status 0, does not print "{UUID}": tee: '),
            id="in a pipeline",
        ),
    ],
)
def test_the_verdict(text: str, verdict: str, ending: str) -> None:
    (run,) = script(text, status=int(verdict not in ("fails", "copes")))
    assert (run["verdict"], run["call"]["name"], run["call"]["errno"]) == (verdict, "create", errno.ENOSPC)
    assert run["ending"].startswith(ending), run["ending"]


@pytest.mark.parametrize(
    "hang",
    [
        pytest.param(f"sleep {NAP}", id="waits"),
        pytest.param("until echo x > /sys/bus/mdev/drivers/vfio_mdev/bind; do :; done", id="tries for ever"),
        pytest.param(f"setsid sh -c 'trap : TERM HUP INT; sleep {NAP}; sleep {NAP}' & wait", id="a session"),
        pytest.param("while :; do echo more; done", id="prints for ever"),
    ],
)
def test_a_hanging_run_is_ended_with_all_its_processes(hang: str, tmp_path: Path) -> None:
    text = f": {tmp_path}; ({CREATE}) 2> /dev/null || {{ {hang}; }}"
    runs = script(text, "--timeout", "10", "-k", "store", "--to", "1", status=1)
    assert [(run["verdict"], run["exit_status"]) for run in runs] == [("hangs", None)]
    wait_for(lambda: not processes_with(str(tmp_path)) and not processes_with(f"sleep\0{NAP}"))


@pytest.mark.parametrize("killed", ["-KILL $PPID", "-KILL 0", "-TERM 0"])
def test_a_program_that_kills_the_process_which_watches_it(killed: str, tmp_path: Path) -> None:
    left = tmp_path / "left"
    done = swept("--", "sh", "-c", f"setsid sh -c 'sleep 1000; : {left}' & kill {killed}; sleep 9")
    assert done.returncode == 125 and not done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("vfsfuse: sweep: the pro")
    wait_for(lambda: not processes_with(str(left)))


def test_a_file_is_compared_as_the_output_is(tmp_path: Path) -> None:
    file = tmp_path / "result"
    text = f"{CREATE} && echo made > {file}; :"
    (run,) = script(text, "--output", str(file), status=1)
    assert run["verdict"] == "succeeds wrongly"
    (run,) = script(text, status=0)
    assert run["verdict"] == "copes"


def test_an_output_that_changes_by_itself_is_not_compared() -> None:
    done = swept("--", "sh", "-c", f"{CREATE}; cat /proc/sys/kernel/random/uuid")
    assert done.returncode == 0
    assert "1 copes" in done.stdout
    assert done.stderr == (
        "vfsfuse: sweep: the program's output is not the same when it runs again, and so it is not compared\n"
    )


# ---- which calls, which errnos ----


def test_each_call_fails_with_each_errno_that_linux_gives(tmp_path: Path) -> None:
    runs = script(CREATE, "--all-errnos", "-j2", status=0)
    assert [(run["run"], run["call"]["errno_name"]) for run in runs] == [
        (1, "ENOSPC"),
        (1, "ENODEV"),
        (1, "ENOMEM"),
    ]


def test_chosen_errnos_calls_and_kinds() -> None:
    text = f"{CREATE}; exec 3<> /dev/vfio/vfio; :"
    runs = script(text, "--errno", "EPERM,EINTR", "-k", "open", status=0)  # the shell tries again after EINTR
    assert [(run["run"], run["call"]["kind"], run["call"]["errno_name"], run["verdict"]) for run in runs] == [
        (1, "open", "EPERM", "fails"),
        (1, "open", "EINTR", "copes"),
    ]
    runs = script(text, "--from", "2", "--to", "2", status=0)
    assert [(run["run"], run["call"]["name"]) for run in runs] == [(2, "open")]


def test_a_program_without_such_a_call() -> None:
    done = swept("--", "true")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("0 calls failed, one in each run: 0 fails")


# ---- what is kept and shown ----


def test_bad_runs_leave_their_trace_and_output(tmp_path: Path) -> None:
    text = f"{CREATE} || {{ echo no >&2; echo other; }}; {CREATE} 2> /dev/null; exit 0"
    script(text, "--keep", str(tmp_path / "kept"), status=1)
    (folder,) = (tmp_path / "kept").iterdir()
    assert folder.name == "run-1"
    lines = (folder / "trace").read_text().splitlines()
    assert re.search(r' store create ".*" = -1 ENOSPC .*\(INJECTED sweep\)', lines[0])
    assert any(re.search(rf'store create "{UUID}\\n" = 37', line) for line in lines[1:])
    assert (folder / "stdout").read_text() == "other\n"
    assert (folder / "stderr").read_text().endswith("no\n")


def test_the_progress_on_a_terminal() -> None:
    shown, status = in_terminal([*VFSFUSE, "sweep", "--", "sh", "-c", f"{CREATE}; :"])
    assert status == 0
    assert "\r\x1b[K1 of 1 runs of sh -c" in shown
    assert "1 copes" in shown


# ---- the end ----


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, -2), (signal.SIGTERM, -15), (signal.SIGKILL, -9)]
)
def test_a_sweep_that_is_ended_leaves_nothing(number: int, status: int, tmp_path: Path) -> None:
    """A run waits, in a session of its own; all of it ends, and its lab, too."""
    text = f": {tmp_path}; {CREATE} || setsid sh -c 'echo > {tmp_path}/waits; sleep 1000'"
    with started("sweep", "-j2", "--", "sh", "-c", text) as sweep:
        wait_for((tmp_path / "waits").exists)
        running = family.members([sweep.pid])
        assert len(running) > 5
        sweep.send_signal(number)
        output = sweep.communicate(timeout=60)[0]
    assert sweep.returncode == status
    wait_for(lambda: not [pid for pid in running if Path(f"/proc/{pid}").exists()])
    wait_for(lambda: not processes_with(str(tmp_path)))
    assert output == "" or "0 calls failed" in output


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (
            ["--", "sh", "-c", "echo oh >&2; exit 3"],
            125,
            "the program fails without a fault (exit status 3): oh",
        ),
        (["--", "sh", "-c", "kill -9 $$"], 125, "the program fails without a fault (signal 9)"),
        (
            ["--timeout", "1", "--", "sleep", "60"],
            *(125, "the program does not end within 1 s, without a fault"),
        ),
        (["--config", "/nonexistent", "--", "true"], 125, "/nonexistent: cannot be read: No such file"),
        (["--keep", "/dev/null/x", "--", "true"], 1, "/dev/null/x: Not a directory"),
        (["true"], 2, "unrecognized arguments: true"),
        ([], 2, "no command; name one after --"),
        (["--"], 2, "no command; name one after --"),
        (["-k", "dma", "--", "true"], 2, "dma: calls that can fail are open, ioctl, region, store"),
        (["--errno", "EWHAT", "--", "true"], 2, "EWHAT: there is no such errno"),
        (["--from", "3", "--to", "2", "--", "true"], 2, "--to 2 is before --from 3"),
        (["-j", "0", "--", "true"], 2, "'0' is no number above 0"),
        (["--timeout", "inf", "--", "true"], 2, "'inf' is no time in seconds"),
        (["-j2", "--output", "x", "--", "true"], 2, "with --output, one run is made at a time: leave out -j"),
        (["--errno", "EIO", "--all-errnos", "--", "true"], 2, "not allowed with argument --errno"),
    ],
)
def test_what_cannot_be_swept(arguments: list[str], status: int, why: str) -> None:
    done = vfsfuse("sweep", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    *_, last = done.stderr.splitlines()
    assert why in last and last.startswith("vfsfuse")


@needs.root("the other tests run as an ordinary user already")
@needs.open_fuse
def test_an_ordinary_user_sweeps() -> None:
    command = [sys.executable, "-m", "tests.ordinary_user", *VFSFUSE, "sweep", "--", "sh", "-c", CREATE]
    shown, status = in_terminal(command)
    assert status == 0
    assert "\n" not in shown.partition("1 of 1 runs of ")[0]  # it is known how many calls there are
    assert "1 fails: sh sys/devices/virtual/mtty/mtty/mdev_supported_types/mtty-1 store " in shown
