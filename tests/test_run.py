# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run` as a way to start a program: what passes through, what is seen, what is left behind."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, run, vfsfuse
from tests.labs import MountedLab, described

RUN = [*VFSFUSE, "run"]
END_SECONDS = 60


def sh(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`script` under a private lab."""
    return vfsfuse("run", *options, "--", "sh", "-c", script)


def started(
    script: str,
    *options: str,
    cwd: str | Path = ROOT,
    env: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    """`script` under a private lab, running, with pipes."""
    command, pipe = [*RUN, *options, "--", "sh", "-c", script], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=cwd, env=env)


def ended(pid: int) -> bool:
    """Whether process `pid` is gone, within END_SECONDS."""
    for _ in range(int(END_SECONDS / 0.02)):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def server_pid(log: Path) -> int:
    """The server of a private lab, from its log."""
    found = re.search(r"mounted at .*, pid (\d+)", log.read_text())
    assert found, log.read_text()
    return int(found[1])


def supervisor_pid(server: int) -> int:
    return int(Path(f"/proc/{server}/stat").read_text().rsplit(") ", 1)[1].split()[1])


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", -15), ("kill -PIPE $$", -13)]
)
def test_exit_status_and_signals_are_the_programs_own(script: str, status: int) -> None:
    done = sh(script)
    assert (done.returncode, done.stderr) == (status, "")


def test_the_program_is_the_process_that_was_started() -> None:
    with started("echo $$; read line; echo got $line") as program:
        out, _ = program.communicate("a line\n", timeout=60)
    assert out.split("\n") == [str(program.pid), "got a line", ""]


def test_signals_are_as_the_caller_left_them() -> None:
    """No ignored SIGPIPE from the interpreter, no descriptor of ours."""
    mine = set(re.findall(r"Sig(?:Ign|Blk):.*", Path("/proc/self/status").read_text()))
    done = sh("grep -E 'Sig(Ign|Blk)' /proc/self/status; ls /proc/self/fd")
    assert done.stdout.count("Sig") == 2
    ignored = int(re.findall(r"SigIgn:\s*(\w+)", done.stdout)[0], 16)
    assert not ignored & 1 << signal.SIGPIPE - 1
    assert next(line for line in mine if "Blk" in line) in done.stdout
    assert done.stdout.split()[-4:] == ["0", "1", "2", "3"]  # 3: the directory itself


def test_a_closed_standard_descriptor_stays_closed() -> None:
    command = f"exec {shlex.join(RUN)} -- ls /proc/self/fd <&-"
    done = run(["sh", "-c", f"cd {shlex.quote(str(ROOT))}; {command}"])
    assert (done.stdout.split(), done.stderr) == (["0", "1", "2"], "")  # 0: the directory itself


def in_terminal(argv: list[str], *entered: tuple[bytes, bytes]) -> tuple[str, int]:
    """What `argv` shows on a terminal of its own, and its status.  Of each pair in turn, the second is
    entered when the first is shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(argv[0], argv)
    shown, steps = b"", list(entered)
    while select.select([terminal], [], [], 60)[0]:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # EIO: the last user of the terminal has ended
            break
        if steps and steps[0][0] in shown:
            os.write(terminal, steps.pop(0)[1])
    os.close(terminal)
    return shown.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_terminal_is_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, a ^C that reaches it as SIGINT, and job control: it is the foreground process group."""
    monkeypatch.chdir(ROOT)
    command = "tty; ps -o pgid=,tpgid= $$; echo waiting; exec sleep 60"
    shown, status = in_terminal([*RUN, "--", "sh", "-c", command], (b"waiting", b"\x03"))
    assert status == -signal.SIGINT
    assert re.search(r"/dev/pts/\d+\r\n\s*(\d+)\s+\1\r\n", shown), shown


def test_nothing_holds_the_callers_pipe_once_the_program_has_ended(tmp_path: Path) -> None:
    """A daemon the program leaves behind keeps the lab, not the pipes; the lab goes with the daemon."""
    log = tmp_path / "log"
    done = sh("sleep 60 >&- 2>&- <&- & echo $!", "--log", str(log))  # returns at the end of its output
    daemon, server = int(done.stdout), server_pid(log)
    supervisor = supervisor_pid(server)
    os.kill(server, 0)
    os.kill(daemon, signal.SIGKILL)
    assert ended(server)
    assert ended(supervisor)
    assert "SIGTERM: ending" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_the_lab_dies_with_its_supervisor(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started("echo up; read line; cat /sys/class/*/*/name", "--log", str(log)) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        server = server_pid(log)
        os.kill(supervisor_pid(server), signal.SIGKILL)
        assert ended(server)
        program.communicate("\n", timeout=30)
    assert program.returncode > 0  # the mount is gone, and nothing hangs


@pytest.mark.parametrize("milliseconds", [50, 100, 150, 200, 300, 500])
def test_killed_on_the_way_it_leaves_no_process(milliseconds: int, tmp_path: Path) -> None:
    config = (
        tmp_path / f"mark-{os.getpid()}-{milliseconds}.toml"
    )  # in the supervisor's and the server's command line
    config.write_text((ROOT / "vfsfuse/labfile/lab.toml").read_text())
    with started("exec sleep 60", "--config", str(config)) as program:
        time.sleep(milliseconds / 1000)
        program.kill()
    deadline = time.monotonic() + END_SECONDS
    while (left := processes_with(config.name)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def processes_with(word: str) -> list[int]:
    """The processes with `word` in their command lines: a supervisor keeps that of its `run`."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if word.encode() in cmdline(path)]


def cmdline(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_failures_are_one_line_with_a_shells_status(tmp_path: Path) -> None:
    script = tmp_path / "no-interpreter"
    script.write_text("echo ran $1\n")
    script.chmod(0o755)
    assert vfsfuse("run", "--", script, "so").stdout == "ran so\n"
    config = tmp_path / "bad.toml"
    config.write_text("[nonsense]\n")
    missing = "no such file or directory"
    for arguments, status, why in (
        (["--", "no-such-program"], 127, missing),
        (["--", "/nowhere/at/all"], 127, missing),
        (["--", ""], 127, missing),
        (["--", "/"], 126, "permission denied"),
        (["--", "/etc/passwd"], 126, "permission denied"),
        (["--"], 2, "no command"),
        ([], 2, "no command"),
        (["--mount", str(tmp_path), "--", "true"], 125, "no lab is mounted here"),
        (["--mount", "/nowhere", "--", "true"], 125, missing),
        (["--log", "/nowhere/log", "--", "true"], 125, missing),
        (["--config", str(config), "--", "true"], 125, "nonsense"),
        (["--config", str(config), "--log", str(tmp_path / "log"), "--", "true"], 125, "nonsense"),
        (["--", *RUN, "--", "true"], 125, "not inside another run"),
    ):
        done = vfsfuse("run", *arguments)
        assert (done.returncode, done.stdout) == (status, ""), arguments
        assert done.stderr.startswith("vfsfuse: run: "), done.stderr
        assert why in done.stderr.lower()
        assert done.stderr.count("\n") == 1, done.stderr


def test_the_lab_is_at_sys_and_dev_and_only_there() -> None:
    before = Path("/proc/self/mounts").read_text(), sorted(os.listdir("/dev")), sorted(os.listdir("/sys"))
    done = sh("ls -d /sys/class/mdev_bus/mtty /dev/vfio/vfio /dev/iommu && grep sysfs /proc/mounts")
    assert done.returncode == 0, done.stderr
    assert before == (
        Path("/proc/self/mounts").read_text(),
        sorted(os.listdir("/dev")),
        sorted(os.listdir("/sys")),
    )


def test_the_machines_own_parts_stay() -> None:
    """All of /dev but the lab's, and what of /sys is not about devices."""
    parts = "/dev /sys/kernel/mm /sys/fs /sys/devices/system/cpu"
    script = f"ls -I vfio -I iommu {parts}; stat -c %d /dev/pts; readlink /dev/fd; stat -c %t /dev/null"
    inside, outside = sh(script), run(["sh", "-c", script])
    assert (inside.stdout, inside.stderr) == (outside.stdout, "")


def test_the_lab_knows_the_machines_processors() -> None:
    """Its server lives where most of /sys is covered."""
    done = sh("cat /sys/bus/pci/devices/0000:86:00.0/local_cpulist")
    assert (done.stdout, done.stderr) == (Path("/sys/devices/system/cpu/online").read_text(), "")


def test_a_current_directory_in_sys_is_the_labs() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with started("ls -d mtty", cwd="/sys/class", env=environment) as program:
        assert program.communicate(timeout=60) == ("mtty\n", "")


def test_the_environment_makes_libudev_trust_this_sys() -> None:
    assert sh("echo $SYSTEMD_DEVICE_VERIFY_SYSFS").stdout == "0\n"


def test_config_makes_the_private_lab(tmp_path: Path) -> None:
    config = tmp_path / "my lab.toml"
    config.write_text((ROOT / "vfsfuse/labfile/lab.toml").read_text().replace("0000:86:00.0", "0000:17:00.0"))
    done = sh("ls /sys/bus/pci/devices", "--config", str(config))
    assert (done.stdout, done.stderr) == ("0000:00:01.0\n0000:17:00.0\n", "")  # and the port above it


NO_NODES = "[parents]\n[mount]\ncdevs = false\ngroups = false\n"


def test_a_lab_without_device_files_of_vfio(tmp_path: Path) -> None:
    with described(tmp_path, NO_NODES) as lab:
        for options in (("--mount", str(lab.path)), ("--config", str(tmp_path / "lab.toml"))):
            done = sh("ls -d /dev/iommu /dev/vfio /sys/module/vfio", *options)
            assert done.stdout == "/dev/iommu\n/sys/module/vfio\n", done.stderr


@needs.root("another /dev is made by mknod(2)")
def test_the_machines_vfio_is_never_seen(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text(NO_NODES)
    (dev := tmp_path / "dev").mkdir()
    nodes = "/dev/null /dev/fuse /dev/urandom"
    other_dev = f"mount -t tmpfs dev {dev} && cp -a {nodes} {dev} && mkdir {dev}/vfio"
    command = shlex.join([*RUN, "--config", str(tmp_path / "lab.toml"), "--", "ls", "/dev"])
    script = f"{other_dev} && mount --move {dev} /dev && {command}"
    done = run(["unshare", "--mount", "--propagation", "private", "sh", "-c", f"cd {ROOT} && {script}"])
    assert done.stdout.split() == ["fuse", "iommu", "null", "urandom"], done.stderr


def test_mount_uses_that_lab_and_leaves_it(lab: MountedLab) -> None:
    with lab.create() as vgpu:
        done = vfsfuse("run", "--mount", lab.path, "--", "ls", "/sys/bus/mdev/devices")
        assert (done.stdout, done.stderr) == (f"{vgpu.name}\n", "")
        assert lab.gpu.is_dir()
