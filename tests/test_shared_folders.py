# SPDX-License-Identifier: Apache-2.0
"""Folders that everybody may write to: other users' links, files and locks there, met by the command line.

The kernel's own protection (fs.protected_symlinks, fs.protected_regular) may be on or off: the outcome is the
same.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, vfsfuse
from tests.intime import in_time
from tests.labs import MountedLab
from vfsfuse import mounts, sticky
from vfsfuse.cli.mountpoint import wait_for_end

OTHER = 65534

only_root = needs.root("only root can make other users' files")


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder like /tmp; afterwards no lab is mounted in it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    yield folder
    for row in Path("/proc/self/mounts").read_text().splitlines():
        if row.split(" ")[1].startswith(str(tmp_path)):
            subprocess.run(["umount", "--lazy", row.split(" ")[1]], check=True)


def theirs(path: Path) -> Path:
    os.chown(path, OTHER, OTHER, follow_symlinks=False)
    return path


def link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return theirs(path)


def error_of(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.startswith("vfsfuse: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# ---- links and files ----


@only_root
@pytest.mark.parametrize("command", ["mount", "umount", "tree"])
def test_a_mountpoint_is_not_followed_through_another_users_link(shared: Path, command: str) -> None:
    with MountedLab(shared.parent) as lab:
        for trap in (lab.path, lab.path.parent / "missing"):
            there = link(shared / f"to-{trap.name}", trap)
            line = error_of(vfsfuse(command, there))
            assert f"{there}: is a symlink of user {OTHER}" in line and "name another path" in line
            assert not (lab.path.parent / "missing").exists()
        assert (lab.path / "sys").is_dir()


def test_a_link_that_has_hard_links_is_not_followed(shared: Path) -> None:
    """A symlink of root's own may be linked by anybody to where it was not meant to be."""
    (shared.parent / "missing-link").symlink_to(shared.parent / "missing")
    os.link(shared.parent / "missing-link", shared / "mnt", follow_symlinks=False)
    line = error_of(vfsfuse("mount", shared / "mnt"))
    assert f"{shared / 'mnt'}: has 2 hard links" in line
    assert not (shared.parent / "missing").exists()


@only_root
def test_ones_own_link_and_that_of_the_folders_owner_are_followed(shared: Path) -> None:
    (shared / "own").symlink_to(shared.parent / "mnt")
    with MountedLab(shared.parent):
        assert vfsfuse("tree", shared / "own").returncode == 0
        theirs(shared)
        assert vfsfuse("tree", link(shared / "owners", shared / "own")).returncode == 0
        os.chown(shared, 0, 0)
        shared.chmod(0o777)  # not sticky: whoever may remove files there may do worse
        assert vfsfuse("tree", shared / "owners").returncode == 0


@only_root
@pytest.mark.parametrize("what", ["link", "dangling link", "chain", "hard link", "file", "fifo"])
@pytest.mark.parametrize("use", ["log", "log of a run", "state", "picture"])
def test_a_file_that_is_written_is_not_another_users(shared: Path, what: str, use: str) -> None:
    trap, there = shared.parent / "trap", shared / "out"
    if what != "dangling link":
        trap.write_text("precious")
    if what == "chain":
        there.symlink_to(link(shared / "between", trap))
    elif what == "hard link":
        there.hardlink_to(trap)  # as anybody may make it without fs.protected_hardlinks
    elif what == "file":
        there.write_text("precious")
        theirs(there).chmod(0o666)
    elif what == "fifo":
        os.mkfifo(there, 0o666)
        theirs(there)
    else:
        link(there, trap)
    reading = os.open(there, os.O_RDONLY | os.O_NONBLOCK) if what == "fifo" else -1
    mnt = shared.parent / "mnt"
    if use == "log":
        done = vfsfuse("mount", "--log-file", there, mnt)
    elif use == "log of a run":
        done = vfsfuse("run", "--log", there, "--", "true")
    elif use == "state":
        log = shared.parent / "state/vfsfuse" / f"{str(mnt).strip('/').replace('/', '-')}.log"
        log.parent.mkdir(parents=True)
        log.parent.chmod(0o1777)
        os.rename(there, log)
        there = log
        if what == "chain":
            os.rename(shared / "between", log.parent / "between")
            there.unlink()
            there.symlink_to("between")
        done = vfsfuse("mount", mnt)
    else:
        with MountedLab(shared.parent) as lab, lab.create("mdpy-vga", "mdpy") as vgpu:
            done = vfsfuse("screenshot", "--mount", lab.path, vgpu.name, there)
    line = error_of(done, 125 if use == "log of a run" else 1)
    why = "has 2 hard links" if what == "hard link" else f" user {OTHER}"
    assert why in line and "name another path" in line, line
    assert str(there) in line or "between" in line
    if reading >= 0:
        assert os.read(reading, 1) == b""
        os.close(reading)
    assert trap.exists() == (what != "dangling link")
    assert what == "dangling link" or trap.read_text() == "precious"
    assert what != "file" or there.read_text() == "precious"
    assert not mnt.is_mount()


@only_root
def test_another_users_directory_in_a_sticky_folder_is_not_mounted_on(shared: Path) -> None:
    there = shared / "mnt"
    there.mkdir()
    line = error_of(vfsfuse("mount", theirs(there)))
    assert f"{there}: belongs to user {OTHER}" in line
    assert not there.is_mount()


@only_root
@pytest.mark.parametrize("name", ["", "vfsfuse"])
def test_another_users_state_directory_has_no_log_of_ours(
    shared: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    base = shared if name else shared / "base"
    (base / "vfsfuse").mkdir(parents=True)
    theirs(base / name)
    monkeypatch.setenv("XDG_STATE_HOME", str(base))
    line = error_of(vfsfuse("mount", shared.parent / "mnt"))
    assert f"belongs to user {OTHER}" in line and "--log-file" in line
    assert not list((base / "vfsfuse").iterdir())


def test_files_of_ones_own_are_made_opened_and_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new")
    for name, flags, content in (
        ("link", os.O_CREAT | os.O_WRONLY | os.O_APPEND, b"one"),
        ("new", os.O_CREAT | os.O_WRONLY | os.O_APPEND, b"onetwo"),
        ("link", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, b"2"),
    ):
        fd = sticky.open_file(str(tmp_path / name), flags)
        os.write(fd, content[3:] or content)
        os.close(fd)
        assert (tmp_path / "new").read_bytes() == content
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        sticky.open_file(str(tmp_path / "loop"), os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="symbolic links"):
        sticky.resolve(str(tmp_path / "loop"))


def test_a_log_may_be_an_open_file_of_the_caller(shared: Path) -> None:
    with (shared / "log").open("wb") as log:
        mount = ["mount", "--log-file", "/dev/stderr", str(shared / "mnt")]
        subprocess.run([sys.executable, "-m", "vfsfuse", *mount], stderr=log, stdout=log, check=True)
    assert vfsfuse("umount", shared / "mnt").returncode == 0
    assert "unmounted" in (shared / "log").read_text()


# ---- locks ----

LOCK = """
import fcntl, os, sys
os.setresuid(*[int(sys.argv[2])] * 3)
lock = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(lock, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(path: Path, user: int) -> Iterator[int]:
    """A process of `user` has locked `path`, until the end of the block."""
    command = [sys.executable, "-c", LOCK, str(path), str(user)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"\n"
        yield holder.pid
        holder.communicate()


def open_to_others(path: Path) -> None:
    """Let others reach `path`, which pytest keeps to itself."""
    for folder in (path, *path.parents):
        if folder == Path("/tmp"):
            break
        folder.chmod(folder.stat().st_mode | 0o55)


@only_root
def test_another_users_lock_on_the_mountpoint_is_reported(shared: Path) -> None:
    there = shared / "mnt"
    there.mkdir()
    open_to_others(there)
    with locked(there, OTHER) as holder:
        line = error_of(in_time(lambda: vfsfuse("mount", there)))
    assert f"{there}: process {holder} (python" in line and f"of user {OTHER} holds a lock" in line
    assert not there.is_mount()


def test_a_lock_on_the_shared_folder_itself_is_nothing_to_a_mount(shared: Path) -> None:
    with locked(shared, os.geteuid()):
        assert vfsfuse("mount", shared / "mnt").returncode == 0
    assert vfsfuse("umount", shared / "mnt").returncode == 0


@only_root
def test_recovering_a_stale_mount_reports_a_lock_on_the_folder(shared: Path) -> None:
    there = shared / "mnt"
    assert vfsfuse("mount", there).returncode == 0
    server = int(os.getxattr(there, "user.vfsfuse.pid"))
    os.kill(server, signal.SIGKILL)
    assert wait_for_end(server, 60)
    open_to_others(shared)
    with locked(shared, OTHER) as holder:
        line = error_of(in_time(lambda: vfsfuse("mount", there)))
    assert f"{shared}: process {holder} " in line
    assert vfsfuse("mount", there).returncode == 0 and (there / "sys").is_dir()


def test_a_lock_of_ones_own_is_waited_for_with_a_message(shared: Path) -> None:
    there = shared / "mnt"
    there.mkdir()
    with locked(there, os.geteuid()) as holder:
        mount = subprocess.Popen(
            [sys.executable, "-m", "vfsfuse", "mount", there], stderr=subprocess.PIPE, text=True
        )
        assert mount.stderr is not None
        assert mount.stderr.readline().startswith(f"vfsfuse: {there}: waiting for process {holder} (python")
    with mount:
        assert mount.stderr.read() == "" and mount.wait() == 0
    assert (there / "sys").is_dir()


# ---- mounts ----


def in_sight_of(labs: list[Path], *command: str | Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command line in a mount namespace without other labs, as of tests that run beside this one."""
    mounted = "awk '$3 == \"fuse.vfsfuse\" {print $2}' /proc/self/mounts"
    kept = "|".join(map(str, labs))
    others = f'for m in $({mounted}); do case $m in {kept}) ;; *) umount -l "$m";; esac; done'
    script = f'{others}; {before}\nexec "$@"'
    whole = ["unshare", "--mount", "sh", "-c", script, "sh", *VFSFUSE, *map(str, command)]
    return subprocess.run(whole, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)


@needs.open_fuse
@only_root
def test_another_users_mount_that_calls_itself_a_lab_is_none(shared: Path) -> None:
    decoy = shared / "decoy"
    decoy.mkdir()
    theirs(decoy)
    open_to_others(decoy)
    ours, helpers = socket.socketpair()
    options = "fsname=vfsfuse@1,subtype=vfsfuse"
    with ours, helpers:
        subprocess.run(
            ["fusermount3", "-o", options, "--", decoy],
            env={"_FUSE_COMMFD": str(helpers.fileno()), "PATH": os.environ["PATH"]},
            pass_fds=(helpers.fileno(),),
            user=OTHER,
            group=OTHER,
            extra_groups=[],
            check=True,
        )
        _, (connection,), _, _ = socket.recv_fds(ours, 1, 1)
    try:
        with MountedLab(shared.parent) as lab:
            vgpu = lab.create("mdpy-vga", "mdpy")
            labs = [lab.path, decoy]
            done = in_sight_of(labs, "surprise-remove", vgpu.name)
            assert (done.returncode, done.stderr) == (0, "") and not vgpu.path.exists()
            line = error_of(in_sight_of([decoy], "surprise-remove", vgpu.name))
            assert "no lab of yours or of root is mounted" in line and "vfsfuse mount MNT" in line
    finally:
        os.close(connection)


@only_root
@pytest.mark.parametrize(
    "name", ["a\rb", "a\r0 - fuse.vfsfuse", "\x0b\x0c", "\x1c\x85\u2028", "a\nb", "a\\b"]
)
def test_a_mountpoint_of_any_name_is_a_mountpoint(shared: Path, name: str) -> None:
    """Also to commands about other paths.  The kernel writes most of these characters as they are."""
    there = shared / name
    there.mkdir()
    (shared / "free").mkdir()
    mount = f"mount -t tmpfs none '{there}'"
    for command in ("tree", "umount"):
        line = error_of(in_sight_of([shared], command, shared / "free", before=mount))
        assert line == f"vfsfuse: {command}: {shared}/free: no lab is mounted there\n"
    done = in_sight_of([shared], "mount", there, before=mount)
    assert done.returncode == 1 and "another filesystem is mounted there" in done.stderr
    line = error_of(in_sight_of([shared], "surprise-remove", "vgpu0", before=mount))
    assert "no lab of yours or of root is mounted" in line


def test_a_row_that_is_no_mount_is_passed_over() -> None:
    good = "36 35 98:0 / /mnt rw - ext4 none rw\n"
    rows = ["", "\n", "1 2 3\n", "36 35 x:y / /mnt rw - ext4 none rw\n", good.replace(" - ", " ")]
    assert [mounts.parsed(row) for row in rows] == [None] * len(rows)
    assert mounts.parsed(good) is not None
