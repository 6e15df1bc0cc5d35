# SPDX-License-Identifier: Apache-2.0
"""The server's life: how it starts, ends, is recovered, and what cannot bring it down."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tests.commands
from tests import needs
from tests.commands import ROOT, run, vfsfuse
from tests.faulty_server import FAULT
from tests.labs import MountedLab
from tests.snapshot import snapshot
from tests.tool import need
from tests.waiting import comes_to
from vfsfuse.cli.mountpoint import wait_for_end
from vfsfuse.scheduling import attributes_of

END_SECONDS = 60


@pytest.fixture
def mountpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a test may mount in the background; afterwards nothing is, whatever became of it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "mnt"
    yield path
    while mounts(path):
        subprocess.run(["umount", "--lazy", path], check=True)


def mounts(path: Path) -> list[str]:
    """The rows of /proc/mounts for `path`."""
    rows = Path("/proc/self/mounts").read_text().splitlines()
    return [row for row in rows if row.split(" ")[1] == str(path)]


def server_of(path: Path) -> int:
    """The pid of the server behind `path`."""
    return int(os.getxattr(path, "user.vfsfuse.pid"))


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The line on stderr by which a command says that it failed."""
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("vfsfuse: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# ---- ends ----


def terminate(lab: MountedLab) -> None:
    """Send SIGTERM again and again, so that one comes in every state of the server."""
    assert lab.server is not None
    deadline = time.monotonic() + END_SECONDS
    while lab.server.poll() is None:
        assert time.monotonic() < deadline
        os.kill(lab.pid, signal.SIGTERM)


ENDS: dict[str, Callable[[MountedLab], object]] = {
    "SIGTERM": lambda lab: os.kill(lab.pid, signal.SIGTERM),
    "SIGINT": lambda lab: os.kill(lab.pid, signal.SIGINT),
    "SIGHUP": lambda lab: os.kill(lab.pid, signal.SIGHUP),
    "SIGTERM twice": lambda lab: subprocess.run(
        ["sh", "-c", f"kill {lab.pid}; kill {lab.pid} || :"], check=True
    ),
    "SIGTERM until it has ended": terminate,
    "umount(8)": lambda lab: subprocess.run(["umount", lab.path], check=True),
    "umount(8) --lazy": lambda lab: subprocess.run(["umount", "--lazy", lab.path], check=True),
    "vfsfuse umount": lambda lab: vfsfuse("umount", lab.path).check_returncode(),
    "vfsfuse umount --lazy": lambda lab: vfsfuse("umount", "--lazy", lab.path).check_returncode(),
    "fusermount3": lambda lab: subprocess.run(["fusermount3", "-u", lab.path], check=True),
}


@pytest.mark.parametrize("how", ENDS)
def test_the_server_ends_with_status_0_and_nothing_stays_mounted(tmp_path: Path, how: str) -> None:
    if how == "fusermount3":
        need(how, "fuse3")
    with MountedLab(tmp_path, umount=False) as lab:
        assert len(mounts(lab.path)) == 1
        vgpu = lab.create()
        (vgpu.path / "resource0").write_bytes(b"used")
        ENDS[how](lab)
        assert lab.server is not None
        assert lab.server.wait(END_SECONDS) == 0
    assert mounts(lab.path) == [] and os.listdir(lab.path) == []


def test_a_signal_ends_the_server_while_clients_use_the_mount(tmp_path: Path) -> None:
    with MountedLab(tmp_path, umount=False) as lab:
        vgpu = lab.create()
        files = [vgpu.open(), *(os.open(vgpu.path / name, os.O_RDWR) for name in ("config", "uevent"))]
        os.kill(lab.pid, signal.SIGTERM)
        assert lab.server is not None
        assert lab.server.wait(END_SECONDS) == 0
        for fd in files:
            with pytest.raises(OSError) as caught:
                os.pread(fd, 4, 0)
            assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
            with contextlib.suppress(OSError):  # closed all the same
                os.close(fd)
    assert mounts(lab.path) == []


@pytest.mark.parametrize("turn", range(2))
def test_a_signal_that_comes_while_the_server_starts_leaves_no_mount(mountpoint: Path, turn: int) -> None:
    command = [*tests.commands.VFSFUSE, "mount", "--foreground", str(mountpoint)]
    with subprocess.Popen(command, cwd=ROOT) as server:
        while not mounts(mountpoint):
            assert server.poll() is None
        server.terminate()
        assert server.wait(END_SECONDS) == 0
    assert mounts(mountpoint) == []


BUSY = """
import os, sys
from tests.iommufd.bound import open_bound
device = open_bound(sys.argv[1])
print(flush=True)
try:
    while True:
        os.pread(device, 3, 7 << 40)
        os.stat(sys.argv[2])
except OSError:
    pass
"""


@pytest.mark.parametrize("number", range(5))
def test_the_server_ends_while_clients_are_busy(tmp_path: Path, number: int) -> None:
    with MountedLab(tmp_path) as lab, contextlib.ExitStack() as stack:
        commands = [
            [sys.executable, "-c", BUSY, str(vgpu.cdev), str(vgpu.path / "vgpu_uuid")]
            for vgpu in (lab.create() for _ in range(3))
        ]
        clients = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT))
            for command in commands
        ]
        for client in clients:
            assert client.stdout is not None and client.stdout.readline() == b"\n"
        os.kill(lab.pid, signal.SIGTERM)
        assert lab.server is not None and lab.server.wait(END_SECONDS) == 0
        for client in clients:
            assert client.wait(END_SECONDS) == 0


def test_the_main_thread_gives_way_to_whom_it_wakes_and_the_pump_does_not(tmp_path: Path) -> None:
    with MountedLab(tmp_path) as lab:
        slices = [attributes_of(int(thread)).runtime for thread in os.listdir(f"/proc/{lab.pid}/task")]
        usual, main = attributes_of(0).runtime, attributes_of(lab.pid).runtime
        assert main > usual or not usual
        assert slices.count(usual) >= 2  # the pump's and the watchdog's
        assert {*slices} == {usual, main}  # trio's threads have the main thread's


CHURN = """
while echo {uuid} > {gpu}/mdev_supported_types/vgpu-8/create && echo 1 > {gpu}/{uuid}/remove; do echo; done
"""
LOOK = "while :; do ls {mdevs}/a {gpu}/b {mdevs}/c {gpu}/d; echo; done"


def test_a_signal_ends_the_server_under_load(tmp_path: Path) -> None:
    """Lookups that wait for an answer hold locks that the kernel, when told of a removal, wants."""
    with MountedLab(tmp_path, umount=False) as lab:
        scripts = [CHURN.format(uuid=uuid.uuid4(), gpu=lab.gpu) for _ in range(3)]
        scripts += [LOOK.format(mdevs=lab.mdevs, gpu=lab.gpu)] * 4
        load = [
            subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            for script in scripts
        ]
        for program in load:
            assert program.stdout is not None and program.stdout.read(20) == b"\n" * 20
        os.kill(lab.pid, signal.SIGTERM)
        try:
            assert lab.server is not None
            assert lab.server.wait(END_SECONDS) == 0
        finally:
            run(
                ["umount", "--force", "--lazy", lab.path]
            )  # else who waits for an answer cannot even be killed
            for program in load:
                program.kill()
                program.communicate()
    assert mounts(lab.path) == []


def test_a_busy_mount_is_not_unmounted_but_by_lazy(tmp_path: Path) -> None:
    with MountedLab(tmp_path, umount=False) as lab:
        fd = os.open(lab.gpu / "vendor", os.O_RDONLY)
        said = one_line(vfsfuse("umount", lab.path))
        assert f"{lab.path}: Device or resource busy" in said and "--lazy" in said
        assert (lab.gpu / "vendor").read_text() == "0x1234\n"
        done = vfsfuse("umount", "--lazy", lab.path)
        assert (done.returncode, done.stdout) == (0, "") and str(lab.pid) in done.stderr
        assert mounts(lab.path) == []
        assert os.pread(fd, 16, 0) == b"0x1234\n"  # who uses it goes on
        os.close(fd)


def test_a_killed_server_is_recovered_by_the_next_mount(mountpoint: Path) -> None:
    assert vfsfuse("mount", mountpoint).returncode == 0
    for _ in range(2):
        server = server_of(mountpoint)
        os.kill(server, signal.SIGKILL)
        assert wait_for_end(server, END_SECONDS)
        with pytest.raises(OSError) as caught:
            os.listdir(mountpoint)
        assert caught.value.errno == errno.ENOTCONN
        assert "no lab is mounted there" in one_line(vfsfuse("tree", mountpoint))
        done = vfsfuse("mount", mountpoint)
        assert (done.returncode, len(mounts(mountpoint))) == (0, 1)
        assert "recovering" in done.stderr and done.stderr.count("\n") == 1
        assert (mountpoint / "sys/class/mdev_bus/mtty").exists()
    assert vfsfuse("umount", mountpoint).returncode == 0
    assert mounts(mountpoint) == []


def test_umount_takes_a_stale_mount_away(tmp_path: Path, mountpoint: Path) -> None:
    assert vfsfuse("mount", mountpoint).returncode == 0
    held = os.open(mountpoint / "sys", os.O_PATH)
    server = server_of(mountpoint)
    os.kill(server, signal.SIGKILL)
    assert wait_for_end(server, END_SECONDS)
    done = vfsfuse("umount", mountpoint)
    os.close(held)
    assert (done.returncode, done.stderr, mounts(mountpoint)) == (0, "", [])
    assert "no lab is mounted there" in one_line(vfsfuse("umount", mountpoint))


# ---- starts ----


def test_mount_returns_when_the_tree_answers_and_the_server_stays(mountpoint: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    log = tmp_path / "log"
    command = [*tests.commands.VFSFUSE, "mount", "--log-file", str(log), str(mountpoint)]
    with subprocess.Popen(
        command, cwd=ROOT, pass_fds=(writer,), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as mount:
        os.close(writer)
        assert mount.stdin is not None and mount.stdout is not None
        assert f"mounted at {mountpoint}" in mount.stdout.read().decode()  # to its end: the server has let go
        assert mount.wait(END_SECONDS) == 0
    assert (mountpoint / "sys/class/mdev_bus/mtty").exists()
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        assert pipe.read(1) == b"", "the server keeps a descriptor of ours open"
    server = server_of(mountpoint)
    assert os.getsid(server) == server and os.readlink(f"/proc/{server}/cwd") == "/"
    assert {os.readlink(f"/proc/{server}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
    assert f"mounted at {mountpoint}, pid {server}" in log.read_text()
    assert vfsfuse("umount", mountpoint).returncode == 0
    assert wait_for_end(server, END_SECONDS) and "Traceback" not in log.read_text()


def test_a_second_mount_finds_the_first_and_changes_nothing(mountpoint: Path) -> None:
    assert vfsfuse("mount", mountpoint).returncode == 0
    server = server_of(mountpoint)
    for path in (mountpoint, f"{mountpoint}/", mountpoint.parent / "." / mountpoint.name):
        done = vfsfuse("mount", path)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"mounted at {mountpoint} already (pid {server})" in done.stdout
    assert len(mounts(mountpoint)) == 1


def test_of_mounts_at_the_same_time_one_mounts(mountpoint: Path) -> None:
    command = [*tests.commands.VFSFUSE, "mount", str(mountpoint)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [mount.communicate() for mount in started]
    assert [mount.returncode for mount in started] == [0] * 4 and {error for _, error in said} == {""}
    assert sorted("already" in out for out, _ in said) == [False, True, True, True]
    assert len(mounts(mountpoint)) == 1


def test_the_hints_of_mount_work_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    mountpoint = tmp_path / "a lab's mount"
    hints = vfsfuse("mount", mountpoint).stdout.split("Try, as pasted:\n")[1]
    try:
        done = subprocess.run(
            ["sh", "-ex"], input=hints, capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        assert "vgpu0" in done.stdout
        assert os.listdir(mountpoint) == []
    finally:
        run(["umount", "--lazy", mountpoint])


def test_mount_makes_a_directory_that_is_missing(mountpoint: Path) -> None:
    path = mountpoint / "deep" / "er"
    assert vfsfuse("mount", path).returncode == 0
    assert (path / "sys").is_dir()
    assert vfsfuse("umount", path).returncode == 0


def full(mountpoint: Path) -> None:
    mountpoint.mkdir()
    (mountpoint / "precious").write_text("")


@pytest.mark.parametrize(
    ("prepare", "arguments", "said"),
    [
        (full, ["{mnt}"], "{mnt}: Directory not empty"),
        (Path.touch, ["{mnt}"], "{mnt}: Not a directory"),
        (Path.touch, ["{mnt}/below"], "{mnt}: Not a directory"),
        (
            lambda path: path.symlink_to("loop") or (path.parent / "loop").symlink_to(path),
            ["{mnt}"],
            "symbolic links",
        ),
        (Path.mkdir, ["/proc"], "/proc: Device or resource busy"),
        (Path.mkdir, ["/proc/nothing"], "/proc/nothing: No such file or directory"),
        (Path.mkdir, ["--log-file", "{mnt}/no/log", "{mnt}"], "{mnt}/no/log: No such file or directory"),
        (Path.mkdir, ["--log-file", "{mnt}", "{mnt}"], "{mnt}: Is a directory"),
        (Path.mkdir, ["--foreground", "/proc"], "/proc: Device or resource busy"),
        (full, ["--foreground", "{mnt}"], "{mnt}: Directory not empty"),
    ],
)
def test_a_mount_that_cannot_be_is_one_line(
    mountpoint: Path, prepare: Callable[[Path], object], arguments: list[str], said: str
) -> None:
    prepare(mountpoint)
    line = one_line(vfsfuse("mount", *(argument.format(mnt=mountpoint) for argument in arguments)))
    assert said.format(mnt=mountpoint) in line
    assert mounts(mountpoint) == []


def test_a_config_that_cannot_be_used_leaves_no_directory(mountpoint: Path) -> None:
    assert "nothing.toml" in one_line(vfsfuse("mount", "--config", "nothing.toml", mountpoint))
    assert not mountpoint.exists()


# ---- other users ----

ENTER = """
import os, sys
from tests.ordinary_user import open_the_way
open_the_way()
os.execvp("sh", sys.argv[1:])
"""
AS_NOBODY = "setpriv --reuid=65534 --regid=65534 --clear-groups"
SCRIPT = f"""
set -u
top=$(mktemp -d) && chmod 711 "$top" && mkdir "$top/own" "$top/roots" && chown 65534 "$top/own"
export HOME="$top/own" XDG_STATE_HOME="$top/own/state"
try() {{ echo "== $*"; "$@"; echo "-> $?"; }}
{AS_NOBODY} mkdir "$top/own/mnt"
try {AS_NOBODY} "$PYTHON" -m vfsfuse mount "$top/roots"
try {AS_NOBODY} "$PYTHON" -m vfsfuse mount "$top/own/mnt"
try {AS_NOBODY} cat "$top/own/mnt/sys/class/mdev_bus/0000:86:00.0/vendor"
try "$PYTHON" -m vfsfuse tree "$top/own/mnt"
try "$PYTHON" -m vfsfuse mount "$top/own/mnt"
try "$PYTHON" -m vfsfuse umount "$top/own/mnt"
try {AS_NOBODY} "$PYTHON" -m vfsfuse mount "$top/own/mnt"
try {AS_NOBODY} "$PYTHON" -m vfsfuse umount "$top/own/mnt"
grep "$top" /proc/mounts
rm -r "$top"
"""


@needs.open_fuse
@needs.root("only root can be two users")
def test_a_users_mount_is_that_users_alone_and_root_can_unmount_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENTER, "sh", "-c", f"exec 2>&1; {SCRIPT}"],
        env={**os.environ, "PYTHON": sys.executable},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    parts = [part.splitlines() for part in done.stdout.split("== ")[1:]]
    assert [part[-1][-1] for part in parts] == list("10010000"), done.stdout
    assert [len(parts[number]) for number in (0, 2, 3, 4, 5, 7)] == [3, 3, 3, 3, 2, 2], done.stdout
    assert "Permission denied" in parts[0][1] and "Permission denied" in parts[3][1]
    assert "already" in parts[4][1]


# ---- what cannot bring it down ----


def test_a_handler_that_fails_is_eio_for_its_caller_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tests.commands, "VFSFUSE", [sys.executable, "-m", "tests.faulty_server"])
    with MountedLab(tmp_path) as lab, lab.create() as vgpu, open(vgpu.open(), "rb", buffering=0) as device:
        faulty = lab.gpu / "mdev_supported_types/vgpu-1"
        for action in (
            (faulty / "description").read_text,
            (vgpu.path / "config").read_bytes,
            lambda: (vgpu.path / "config").write_bytes(b"1"),
            lambda: os.pread(device.fileno(), 3, 7 << 40),  # 4 bytes the pump reads by itself
        ):
            faults = lab.log.count(FAULT)
            with pytest.raises(OSError) as caught:
                action()
            assert caught.value.errno == errno.EIO
            # in the line and at the end of the traceback
            assert lab.log.count(FAULT) == faults + 2 and "Traceback" in lab.log
            assert (faulty / "device_api").read_text() == "vfio-pci\n"
            assert os.pread(device.fileno(), 4, 0) == bytes(4)
        with lab.create():
            pass
        lab.log_path.write_text("")  # of faults asked for: a log is looked through at the end
    assert mounts(lab.path) == []


READER = """
import os, random, sys
top, seed = sys.argv[1:]
gpu = top + "/sys/bus/pci/devices/0000:86:00.0/"
chance = random.Random(int(seed))
config = open(gpu + "config", "rb").read()
names = sorted(os.listdir(gpu + "mdev_supported_types"))
memory = os.open(gpu + "resource0", os.O_RDWR)
mine = int(seed) << 20
for turn in range(150):
    offset, size = chance.randrange(256), chance.randrange(64)
    assert os.pread(os.open(gpu + "config", os.O_RDONLY), size, offset) == config[offset : offset + size]
    assert sorted(os.listdir(gpu + "mdev_supported_types")) == names
    assert open(gpu + "vendor").read() == "0x1234\\n"
    data = chance.randbytes(chance.randrange(1, 9000))
    offset = mine + chance.randrange(1 << 19)
    assert os.pwrite(memory, data, offset) == len(data)
    assert os.pread(memory, len(data), offset) == data
    os.closerange(memory + 1, memory + 64)
"""


def test_readers_in_parallel_all_read_what_is_there(lab: MountedLab) -> None:
    before = snapshot(lab.path)
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, lab.path, str(seed)], stderr=subprocess.PIPE, text=True
        )
        for seed in range(8)
    ]
    for _ in range(30):
        with lab.create(), lab.create("mtty-2", "mtty"):
            pass
    assert [reader.communicate()[1] for reader in readers] == [""] * 8
    assert [reader.returncode for reader in readers] == [0] * 8
    comes_to(lambda: snapshot(lab.path), before)


UNMAPPABLE = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
for flags in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
    page = libc.mmap(None, 4096, mmap.PROT_READ, flags, os.open(sys.argv[1], os.O_RDONLY), ctypes.c_long(0))
    print(ctypes.c_long(page).value, ctypes.get_errno())
"""


@needs.passthrough
def test_what_is_no_memory_cannot_be_mapped(lab: MountedLab) -> None:
    """Else the pump would wait for itself when a client hands it a pointer into such a page."""
    with lab.create() as vgpu:
        for path in (vgpu.path / "vgpu_uuid", vgpu.path / "config", vgpu.path / "resource2"):
            done = run([sys.executable, "-c", UNMAPPABLE, path])
            assert (done.stdout, done.stderr) == (f"-1 {errno.ENODEV}\n" * 2, "")
