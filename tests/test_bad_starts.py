# SPDX-License-Identifier: Apache-2.0
"""What a lab cannot start with: models that exit, hostile lab files, bad descriptors and folders.

Each is one line on stderr, and nothing stays mounted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, vfsfuse
from tests.labs import described
from tests.waiting import wait_for
from vfsfuse.cli.mountpoint import wait_for_end

MODEL = """\
from devmodel.sdk import Identity, PciDevice

class Card(PciDevice):
    identity = Identity(0x1234, 0x5EEE, 0x1AF4, 0x1100, class_code=0x088000)
"""
LAB = """\
[models]
card = "card.py:Card"
[parents.box]
kind = "virtual"
driver = "box"
model = "card"
types.one = { description = "a card", instances = 4 }
"""
PHYSICAL = """\
[models]
card = "card.py:Card"
[parents."0000:03:00.0"]
kind = "gpu"
driver = "box"
model = "card"
memory = "16M"
types.one = { description = "a card", memory = "16M" }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder; afterwards nothing is mounted in it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path
    rows = [row.split(" ")[1] for row in Path("/proc/self/mounts").read_text().splitlines()]
    left = [path for path in rows if path.startswith(str(tmp_path))]
    for path in left:
        subprocess.run(["fusermount3", "-u", "-z", path], check=True)
    assert not left


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.startswith("vfsfuse: mount: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def mount(folder: Path, lab: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "lab.toml").write_text(lab)
    return vfsfuse("mount", *options, "--config", folder / "lab.toml", folder / "mnt")


# ---- models ----

AT_IMPORT = {
    "sys.exit": ("import sys; sys.exit(3)", "SystemExit(3)"),
    "exit without a status": ("raise SystemExit", "SystemExit()"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt()"),
    "GeneratorExit": ("raise GeneratorExit", "GeneratorExit()"),
    "an exception": ("{}['absent']", "KeyError('absent')"),
    "many lines": (r"raise ValueError('a\nb' * 999)", "ValueError('a\\n"),
    "a syntax error": ("def:", "SyntaxError('invalid syntax')"),
    "deep recursion": ("f = lambda: f(); f()", "RecursionError("),
    "a class attribute": ("class A: x = exit(7)", "SystemExit(7)"),
    "an exception without a text": (
        "class Bad(Exception): __repr__ = __str__ = lambda self: 1 / 0\nraise Bad",
        "Bad at",
    ),
}


@pytest.mark.parametrize("option", ["--foreground", "--log-level=info"])
@pytest.mark.parametrize("what", AT_IMPORT)
def test_a_model_file_that_fails_is_named_with_its_line(folder: Path, what: str, option: str) -> None:
    code, why = AT_IMPORT[what]
    (folder / "card.py").write_text(f"{MODEL}\n{code}\n")
    line = error_of(mount(folder, LAB, option))
    number = 6 + code.count("\n")
    assert line.startswith(
        f"vfsfuse: mount: {folder}/lab.toml: models.card: {folder}/card.py cannot be loaded: "
    )
    assert why in line and f"at {folder}/card.py:{number} (mend it)" in line, line
    assert len(line) < 1000 and not (folder / "mnt").exists()


@pytest.mark.parametrize("status", [0, 1, 3])
def test_a_model_that_calls_os_exit_is_told_by_mount(folder: Path, status: int) -> None:
    (folder / "card.py").write_text(f"import os\nos._exit({status})\n")
    line = error_of(mount(folder, LAB))
    assert f"{folder}/mnt: before the lab was ready, the server ended with status {status}" in line
    assert "os._exit" in line and f"see {folder}/state/vfsfuse/" in line


def test_a_model_that_crashes_is_told_by_mount(folder: Path) -> None:
    (folder / "card.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    assert "the server was killed by SIGSEGV; see" in error_of(mount(folder, LAB))


@pytest.mark.parametrize("option", ["--foreground", "--log-level=info"])
@pytest.mark.parametrize("method", ["validate", "__init__"])
@pytest.mark.parametrize("code", ["raise SystemExit(3)", "raise KeyboardInterrupt", "1 / 0"])
def test_a_model_that_fails_while_the_lab_is_made(folder: Path, option: str, method: str, code: str) -> None:
    decorator = "@classmethod" if method == "validate" else ""
    body = f"    {decorator}\n    def {method}(*_, **__):\n        {code}\n"
    (folder / "card.py").write_text(
        f"{MODEL.replace('PciDevice', 'PhysicalGpu')}{body}".replace(
            "from devmodel.sdk import Identity, PhysicalGpu",
            "from devmodel.models.gpu import PhysicalGpu\nfrom devmodel.sdk import Identity",
        )
    )
    line = error_of(mount(folder, PHYSICAL, option))
    assert f"{folder}/lab.toml: " in line and f"at {folder}/card.py:" in line, line


def test_an_interrupted_mount_ends_its_server(folder: Path) -> None:
    (folder / "card.py").write_text("import time\nopen('reached', 'w')\ntime.sleep(60)\n")
    (folder / "lab.toml").write_text(LAB)
    command = [*VFSFUSE, "mount", "--config", str(folder / "lab.toml"), str(folder / "mnt")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, env=environment, text=True
    ) as starting:
        while not (folder / "reached").exists():
            time.sleep(0.01)
            assert starting.poll() is None
        starting.send_signal(signal.SIGINT)
        assert starting.wait(60) == 130
        assert starting.stderr is not None and starting.stderr.read() == ""  # to its end: the server is gone


AT_THE_FORK = """
import os, signal, sys
from vfsfuse.cli import main, mount
class Os:
    def __getattr__(self, name):
        return getattr(os, name)
    def fork(self):
        child = os.fork()
        if child:
            os.kill(os.getpid(), signal.SIGINT)
        return child
mount.os = Os()
sys.exit(main(sys.argv[1:]))
"""


def test_a_mount_that_is_interrupted_as_it_forks_ends_its_server(folder: Path) -> None:
    log = folder / "log"
    command = [sys.executable, "-c", AT_THE_FORK, "mount", "--log-file", str(log), str(folder / "mnt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")  # to its end: the server is gone


# ---- lab files ----

LONG = "n" * 256


@pytest.mark.parametrize(
    ("lab", "key"),
    [
        ("vendor = " + "[" * 5000 + "]" * 5000, ""),
        ("vendor = " + "{a=" * 5000 + "1" + "}" * 5000, ""),
        ("a." * 5000 + "b = 1", ".".join("a" * 32)),
        ("vendor." + "a." * 400 + "b = 1", ".".join(["vendor", *"a" * 31])),
        (f"vendor = {'[' * 90}{']' * 90}", "vendor"),
        ("vendor = " + "9" * 5000, ""),
        ("vendor = 0x" + "f" * 9999 + "\n" + LAB, "vendor"),
        (f'vendor = "{LONG}"\n{LAB}', "vendor"),
        (LAB.replace("box]", f"{LONG}]"), f"parents.{LONG}"),
        (LAB.replace('driver = "box"', f'driver = "{LONG}"'), "parents.box.driver"),
        (LAB.replace("types.one", f"types.{LONG}"), f"parents.box.types.{LONG}"),
        (LAB.replace('"card.py:Card"', f'"{LONG}.py:Card"'), "models.card"),
        (LAB.replace('"card.py:Card"', f'"{"d/" * 3000}card.py:Card"'), "models.card"),
        (f'[mount]\ndevice_group = "{LONG}"\n{LAB}', "mount.device_group"),
        (f'[mount]\ndevice_owner = "{LONG}"\n{LAB}', "mount.device_owner"),
        ('[mount]\ndevice_owner = "a\\u0000b"\n' + LAB, "mount.device_owner"),
    ],
)  # fmt: skip
def test_a_hostile_lab_file_is_one_line_with_its_key(folder: Path, lab: str, key: str) -> None:
    (folder / "card.py").write_text(MODEL)
    line = error_of(mount(folder, lab))
    assert line.startswith(f"vfsfuse: mount: {folder}/lab.toml: {f'{key}: ' if key else ''}")
    assert line.endswith(")\n")


def test_names_of_255_bytes_are_names(folder: Path) -> None:
    (folder / "card.py").write_text(MODEL)
    name = "n" * 255
    lab = f'vendor = "{name}"\n{LAB}'.replace("box", name).replace("types.one", f"types.{name}")
    assert mount(folder, lab).returncode == 0
    parent = folder / "mnt/sys/class/mdev_bus" / name
    (parent / "mdev_supported_types" / name / "create").write_text("6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01")
    assert os.listdir(folder / "mnt/sys/class/vgpu" / name) == ["vgpu0"]
    assert vfsfuse("umount", folder / "mnt").returncode == 0


def test_a_lab_file_without_an_end_is_one_line(folder: Path) -> None:
    line = error_of(vfsfuse("mount", "--config", "/dev/zero", folder / "mnt"))
    assert line.startswith("vfsfuse: mount: /dev/zero: is larger than ")


# ---- the caller's descriptors and folders ----


@pytest.mark.parametrize("option", ["--foreground", "--log-level=info"])
@pytest.mark.parametrize("fd", ["999", "-1", "3", "99999999999"])
def test_a_ready_fd_that_is_not_open(folder: Path, option: str, fd: str) -> None:
    line = error_of(vfsfuse("mount", option, f"--ready-fd={fd}", folder / "mnt"))
    assert f"--ready-fd {fd}: no such descriptor is open" in line
    assert not (folder / "mnt").exists()


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH])
def test_a_ready_fd_that_cannot_be_written(folder: Path, flags: int) -> None:
    fd = os.open(folder, flags)
    command = [*VFSFUSE, "mount", "--foreground", "--ready-fd", str(fd), str(folder / "mnt")]
    done = subprocess.run(command, cwd=ROOT, pass_fds=[fd], capture_output=True, text=True, check=False)
    os.close(fd)
    assert "open for reading only" in error_of(done)


def test_a_reader_of_the_ready_fd_that_has_gone_or_is_full_stops_no_lab(folder: Path) -> None:
    for full in (False, True):
        reader, writer = os.pipe()
        if full:
            os.set_blocking(writer, False)
            while True:
                try:
                    os.write(writer, bytes(4096))
                except BlockingIOError:
                    break
            os.set_blocking(writer, True)
        else:
            os.close(reader)
        command = [*VFSFUSE, "mount", "--foreground", "--ready-fd", str(writer), str(folder / "mnt")]
        with subprocess.Popen(command, cwd=ROOT, pass_fds=[writer], stderr=subprocess.DEVNULL) as server:
            os.close(writer)
            wait_for(lambda: (folder / "mnt/sys").is_dir() or server.poll() is not None)
            assert server.poll() is None
            assert vfsfuse("umount", folder / "mnt").returncode == 0
            assert server.wait(60) == 0
        if full:
            os.close(reader)


@pytest.mark.parametrize("home", ["/proc/nothing", "/dev/null", None])
def test_a_home_that_cannot_be_written_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setenv("XDG_STATE_HOME", "relative")
    else:
        monkeypatch.setenv("HOME", home)
    line = error_of(vfsfuse("mount", folder / "mnt"))
    assert "name another with --log-file, or set XDG_STATE_HOME" in line
    assert not (folder / "mnt").exists()
    assert mount_and_umount(folder, "--log-file", str(folder / "log")) == ""


@needs.root("only root can be a user without an entry in passwd")
def test_a_user_without_a_home_is_told_so(folder: Path) -> None:
    code = "import os, runpy, sys; sys.argv = ['vfsfuse', 'mount', '/tmp/nobodys']; "
    code += "import vfsfuse.cli, vfsfuse.cli.mount; os.setresuid(4242, 4242, 4242); del os.environ['HOME']; "
    code += "os.environ.pop('XDG_STATE_HOME'); sys.exit(vfsfuse.cli.main())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "--log-file" in error_of(done)


def mount_and_umount(folder: Path, *options: str) -> str:
    """Mount and unmount.  Returns what `mount` said on stderr."""
    done = vfsfuse("mount", *options, folder / "mnt")
    assert done.returncode == 0, done.stderr
    assert vfsfuse("umount", folder / "mnt").returncode == 0
    return done.stderr


def test_a_full_disk_under_the_log_is_told_once(folder: Path) -> None:
    said = mount_and_umount(folder, "--log-file", "/dev/full")
    assert said == "vfsfuse: mount: /dev/full: No space left on device; lines are missing in this log\n"


def test_a_log_that_nobody_reads_is_one_line(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    line = error_of(vfsfuse("mount", "--log-file", folder / "fifo", folder / "mnt"))
    assert f"{folder}/fifo: No such device or address" in line


@pytest.mark.parametrize(
    ("path", "why"),
    [("x" * 256, "File name too long"), ("d/" * 2100, "File name too long"), ("\udcff", "")],
)
def test_a_mountpoint_of_any_name(folder: Path, path: str, why: str) -> None:
    if why:
        assert why in error_of(vfsfuse("mount", folder / path))
        return
    done = subprocess.run([*VFSFUSE, "mount", folder / path], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0 and os.fsencode(folder / path) in done.stdout
    done = subprocess.run([*VFSFUSE, "umount", folder / path], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_deep_mountpoint_has_a_log(folder: Path) -> None:
    deep = folder / "/".join(["d" * 100] * 5)
    said = vfsfuse("mount", deep).stdout
    (log,) = (folder / "state/vfsfuse").iterdir()
    assert f"logs to {log}" in said and len(os.fsencode(log.name)) <= 255
    assert vfsfuse("umount", deep).returncode == 0
    assert "mounted at" in log.read_text()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_obstacle(folder: Path, closed: str) -> None:
    for command in ("mount", "tree", "umount"):
        shell = f"{' '.join(VFSFUSE)} {command} {folder}/mnt {closed}"
        done = subprocess.run(["sh", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_output_to_a_full_disk_is_one_line(folder: Path) -> None:
    shell = (
        f"{' '.join(VFSFUSE)} mount {folder}/mnt >/dev/full; {' '.join(VFSFUSE)} tree {folder}/mnt >/dev/full"
    )
    done = subprocess.run(["sh", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "No space left" in done.stderr
    assert vfsfuse("umount", folder / "mnt").returncode == 0


# ---- models that exit later ----

LEAVING = """\
import sys
import trio
from devmodel.sdk import Bar, DeviceAttribute, Identity, Layout, PciDevice, Register, Registers

def leave(*_):
    sys.exit(5)

class Card(PciDevice):
    identity = Identity(0x1234, 0x5EEE, 0x1AF4, 0x1100, class_code=0x088000)
    ATTRIBUTES = (DeviceAttribute("leave", leave, leave),)

    def bars(self):
        self.registers = Registers(LAYOUT, self)
        return {0: Bar(self.registers)}

    def task(self, value):
        self.start(self.run_away, value)

    async def run_away(self, value):
        async with trio.open_nursery() as nursery:
            if value == 2:
                nursery.start_soon(self.run_away, 1)
                await trio.sleep_forever()
        leave()

class Early(Card):
    def __init__(self, *_, **__):
        leave()

LAYOUT = Layout(4096, [Register(0, 4, "H", on_write=leave), Register(4, 4, "T", on_write=Card.task)])
"""
TWO_CARDS = LAB.replace("[parents", 'early = "card.py:Early"\n[parents') + (
    'types.two = { description = "never made", instances = 4, model = "early" }\n'
)


def test_a_model_that_exits_ends_its_call_and_not_the_lab(folder: Path) -> None:
    (folder / "card.py").write_text(LEAVING)
    with described(folder, TWO_CARDS) as lab:
        early = lab.create("two", "box")
        with pytest.raises(OSError, match="Input/output error"):
            early.open()
        with lab.create("one", "box") as card, open(card.open(), "r+b", buffering=0) as device:
            for action in (
                (card.path / "leave").read_text,
                lambda: (card.path / "leave").write_text("1"),
                lambda: os.pwrite(device.fileno(), bytes(4), 0),
            ):
                with pytest.raises(OSError, match="Input/output error"):
                    action()
            for value in (1, 2):
                os.pwrite(device.fileno(), value.to_bytes(4, "little"), 4)
        assert (lab.path / "sys/class/mdev_bus/box").exists()
        lab.log_path.write_text("")  # tracebacks are what the test asked for


# ---- callers ----


def test_a_caller_that_ignores_sigchld_gets_the_same_answers(folder: Path) -> None:
    for command, status in (("mount", 0), ("mount", 0), ("tree", 0), ("umount", 0), ("umount", 1)):
        shell = f"trap '' CHLD; exec {' '.join(VFSFUSE)} {command} {folder}/mnt"
        done = subprocess.run(["sh", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (status, status), done


def test_a_server_that_is_stopped_before_it_is_ready_is_reported(folder: Path) -> None:
    (folder / "card.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n" + MODEL)
    line = error_of(mount(folder, LAB))
    assert f"{folder}/mnt: the server (pid " in line and "was stopped as it started" in line
    assert wait_for_end(int(line.split("(pid ")[1].split(")")[0]), 0)
