# SPDX-License-Identifier: Apache-2.0
"""What hostile programs and labs put in the way of `vfsfuse run`: folders, limits, names for a terminal."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, vfsfuse
from tests.failing import MODEL, failing_lab
from tests.labs import MountedLab
from tests.supervisors import supervisor_of
from tests.tool import need
from tests.uevents import UUID, heard_by
from vfsfuse import mounts
from vfsfuse.ownfolder import SUFFIX, XATTR
from vfsfuse.run.definitions import own_folder

Compile = Callable[..., Path]
SECONDS = 60.0


# ---- other namespaces ----

PREFIXES = {
    "pid namespace": ("unshare", "--fork", "--pid"),
    "user namespace": ("unshare", "--user", "--map-root-user", "--fork", "--pid"),
    "mount namespace": ("unshare", "--mount"),
    "chroot": ("chroot", "/"),
}
"""By what a program under the filter is put into: the command before it."""


@pytest.mark.parametrize("where", PREFIXES)
def test_a_client_in_another(lab: MountedLab, compile_client: Compile, where: str) -> None:
    """Its numbers of threads and its paths are not those of the supervisor."""
    if where != "user namespace":
        needs.be_root("making it alone")
    client = compile_client("stats_client")
    with lab.create() as vgpu:
        group = f"/dev/vfio/{vgpu.group}"
        for mode, what, first in (("show", group, "20"), ("device", f"{group}:{vgpu.name}", "600")):
            done = vfsfuse("run", "--mount", lab.path, "--", *PREFIXES[where], client, mode, what)
            assert (done.returncode, done.stderr) == (0, ""), done.stdout
            *shown, last = done.stdout.splitlines()
            assert last == "ok" and shown
            assert all(line.split()[1].startswith(first) for line in shown), shown


# ---- the folder of a lab ----


@pytest.mark.parametrize("name", ["etc", f"own{SUFFIX}"])
def test_what_is_not_mounted_by_this_user_names_no_folder(tmp_path: Path, name: str) -> None:
    """It would name one of ours, such as /etc, and the program would save its definitions there."""
    ours, theirs = tmp_path / name, tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    try:
        os.setxattr(theirs, XATTR, os.fsencode(ours))
    except OSError as error:
        pytest.skip(f"{tmp_path} has no user.* attributes ({error.strerror})")
    assert own_folder(str(theirs), os.geteuid()) == ""


def test_a_lab_of_this_user_has_its_folder(fresh_lab: MountedLab) -> None:
    named = os.fsdecode(os.getxattr(fresh_lab.path, XATTR))
    assert own_folder(str(fresh_lab.path), os.geteuid()) == named
    assert own_folder(str(fresh_lab.path), os.geteuid() + 1) == ""


def test_a_disk_with_the_number_of_a_lab_is_no_lab(
    fresh_lab: MountedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of disks and of other devices are counted apart: a loop device may be 7:51 and a lab 0:51."""
    minor = os.minor(fresh_lab.path.stat().st_dev)
    rows = mounts.table()
    disk = mounts.parsed(f"1 1 7:{minor} / /snap/core ro - squashfs /dev/loop{minor} ro")
    assert disk is not None
    monkeypatch.setattr(mounts, "table", lambda: [disk, *rows])
    assert own_folder(str(fresh_lab.path), os.geteuid()) != ""


# ---- limits of the program ----


def test_limits_of_the_program_are_not_those_of_its_supervisor() -> None:
    """It answers calls of the program, however long and however many."""
    need("prlimit", "util-linux")
    most = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])  # only root may raise it
    command = ["prlimit", "--cpu=30:40", f"--nofile=64:{most}", "--fsize=1000000:2000000"]
    run = [*command, *VFSFUSE, "run", "--", "sh", "-c", "ulimit -t; ulimit -n; ulimit -f; echo up; read line"]
    pipe = subprocess.PIPE
    with subprocess.Popen(run, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as program:
        assert program.stdout is not None
        lines = [program.stdout.readline() for _ in range(4)]
        program.args = run[len(command) :]
        supervisor = supervisor_of(program)
        found = {
            name: resource.prlimit(supervisor, getattr(resource, f"RLIMIT_{name}"))[0]
            for name in ("CPU", "NOFILE", "FSIZE")
        }
        program.communicate("\n", timeout=SECONDS)
    assert lines == ["30\n", "64\n", f"{1000000 // 512}\n", "up\n"]
    assert found["CPU"] in (40, resource.RLIM_INFINITY) and found["NOFILE"] >= most
    assert found["FSIZE"] in (2000000, resource.RLIM_INFINITY)


# ---- /run/udev ----


@needs.root("the machine's files are root's")
def test_a_symlink_in_its_udev_leads_the_relay_nowhere(tmp_path: Path) -> None:
    """The relay lives outside the namespaces of the program, and would remove files there."""
    victim = tmp_path / f"+mdev:{UUID}"
    victim.write_text("I:7\n")
    body = f"""
os.rename("/run/udev/data", "/run/udev/before")
os.symlink({str(tmp_path)!r}, "/run/udev/data")
create(); remove()
kernel.until("remove@", UUID + "\\0")
heard = [properties(each) for each in udev.until("remove", UUID + "\\0")]
result = [each.get("USEC_INITIALIZED") for each in heard]
"""
    assert set(heard_by(body)) == {None}
    assert os.listdir(tmp_path) == [victim.name] and victim.read_text() == "I:7\n"


# ---- text for a terminal ----


def test_umount_escapes_the_name_of_a_process(tmp_path: Path) -> None:
    code = r"""
import os, sys
with open("/proc/self/comm", "wb") as comm: comm.write(b"a\x1b[2J\nb")
print("up", flush=True)
sys.stdin.read()
"""
    pipe = subprocess.PIPE
    with MountedLab(tmp_path, umount=False) as lab:
        command = [*VFSFUSE, "run", "--mount", str(lab.path), "--", sys.executable, "-c", code]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as program:
            assert program.stdout is not None and program.stdout.readline() == "up\n"
            done = vfsfuse("umount", lab.path)
            program.communicate(timeout=SECONDS)
        assert lab.server is not None and lab.server.wait(SECONDS) == 0
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert r"a\x1b[2J\nb" in done.stderr


def test_a_traceback_in_the_log_has_nothing_for_a_terminal(tmp_path: Path) -> None:
    assert r"\x1b[31m" in MODEL
    with failing_lab(tmp_path) as lab, open(lab.path / "log", "rb", buffering=0) as log:
        card = lab.create("one", "pool")
        with contextlib.suppress(OSError):
            (card.path / "spoken").read_text()
        record = os.read(log.fileno(), 1 << 20)
        on_disk = lab.log_path.read_bytes()
        card.remove()
    for text in (record, on_disk):
        assert rb"\x1b[31msecond" in text and b"\x1b" not in text


def test_a_client_cannot_fill_the_log_of_a_mount(tmp_path: Path) -> None:
    """It may repeat an ioctl that is refused as fast as it likes."""
    code = """
import contextlib, fcntl, os, struct, sys
iommu = os.open(sys.argv[1], os.O_RDWR)
for _ in range(3000):
    with contextlib.suppress(OSError):
        fcntl.ioctl(iommu, 0x3b8e, struct.pack("IIII", 16, 0, 0, 0))
"""
    with MountedLab(tmp_path) as lab:
        command = [sys.executable, "-c", code, str(lab.path / "dev/iommu")]
        subprocess.run(command, check=True, timeout=SECONDS)
        lines = lab.log_path.read_text().count("run it there")
        lab.log_path.write_text("")
    assert 1 <= lines <= 2 * SECONDS


# ---- words ----


def test_what_is_said_once_is_not_remembered_for_ever() -> None:
    code = """
import os
from vfsfuse.run.programstderr import ProgramStderr
words = ProgramStderr(os.getpid(), quiet=True)
for number in range(10000): words.say_once(f"program {number}")
print(len(words._told))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 100
