# SPDX-License-Identifier: Apache-2.0
"""A device comes only through one's own open group file: who gets it under `vfsfuse run`, who does not, and
who may hold that up.

C clients, and processes of other users, on a real mount.  Linux has the same outcomes, with its errnos.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import needs, ordinary_user
from tests.commands import ROOT, VFSFUSE, run, vfsfuse
from tests.labs import MountedLab, Vgpu, described
from tests.supervisors import supervisor_of
from tests.vfio.client import NOIOMMU, PAGE, TYPE1V2, Container, Group, fails
from tests.vfio.devices import LAB, UNPROTECTED, Device, bound, opened, prepared_device
from tests.waiting import wait_for

Compile = Callable[..., Path]
RUN = [*VFSFUSE, "run"]
SECONDS = 60
MOUNT = """\
[mount]
device_mode = "0660"
device_group = {}

"""
GROUP_ID = 4300


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A lab whose device files belong to a group of users."""
    owner = os.getegid() if os.geteuid() else GROUP_ID
    with described(tmp_path_factory.mktemp("shared"), MOUNT.format(owner) + LAB) as mounted:
        yield mounted


@pytest.fixture
def vgpu(shared: MountedLab) -> Iterator[Vgpu]:
    with shared.create("own") as made:
        yield made


def client(vgpu: Vgpu, program: Path, *mode: str) -> subprocess.CompletedProcess[str]:
    """The C client on a vGPU, under a run."""
    limited = ["timeout", "-k", "1", str(SECONDS), str(program)]
    return vfsfuse("run", "--mount", vgpu.lab.path, "--", *limited, vgpu.group, vgpu.name, *mode)


@pytest.mark.parametrize("mode", ["sent", "forked", "reused"])
def test_a_descriptor_is_the_group_however_it_came(vgpu: Vgpu, compile_client: Compile, mode: str) -> None:
    done = client(vgpu, compile_client("handover"), mode)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_a_path_descriptor_gives_nothing(vgpu: Vgpu, compile_client: Compile) -> None:
    """O_PATH opens nothing, so it is EBADF, whoever has the group open."""
    with opened(vgpu.lab, vgpu.group, vgpu.name):
        done = client(vgpu, compile_client("handover"), "path")
        assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
        path = os.open(vgpu.lab.path / "dev/vfio" / vgpu.group, os.O_PATH)
        fails(errno.EBADF, prepared_device, vgpu.lab.path, path, vgpu.name, os.getpid())
        os.close(path)


def test_a_strangers_file_is_the_kernels(vgpu: Vgpu, compile_client: Compile) -> None:
    """Its server answers no GETATTR and no FLUSH; nobody asks it."""
    done = client(vgpu, compile_client("handover"), "stranger")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


@pytest.mark.parametrize("memory", ["fuse", "userfaultfd"])
def test_a_number_that_becomes_a_strangers_file(vgpu: Vgpu, compile_client: Compile, memory: str) -> None:
    """close(2) of it never returns, and nobody waits for that."""
    done = client(vgpu, compile_client("handover"), "swapped", memory)
    if done.returncode == 77:
        pytest.skip("userfaultfd for faults in the kernel takes CAP_SYS_PTRACE")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


@pytest.mark.parametrize("memory", ["fuse", "userfaultfd"])
def test_a_name_in_slow_memory_holds_up_its_caller_alone(
    shared: MountedLab, compile_client: Compile, memory: str
) -> None:
    """Three calls of one run are held up.  The others of the run get their devices, as fast as ever."""
    program = compile_client("handover")
    with ExitStack() as stack:
        vgpus = [stack.enter_context(shared.create("own")) for _ in range(4)]
        *slow, free = vgpus
        held = " & ".join(f"{program} {each.group} {each.name} held {memory} <$D/go" for each in slow)
        script = f"""
            mkfifo $D/go; exec 3<>$D/go
            {{ {held} & wait; }} >$D/out 2>&1 &
            until test $(grep -c held $D/out) = 3; do
                kill -0 $! || exit 77
                sleep 0.02
            done
            timeout -k 1 40 {program} {free.group} {free.name} forked || exit 1
            printf '\\n\\n\\n' >&3; wait; cat $D/out"""
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        command = [*RUN, "--mount", str(shared.path), "--", "timeout", "-k", "1", str(SECONDS)]
        done = run([*command, "sh", "-c", script], D=folder, PYTHONPATH=str(ROOT))
        if done.returncode == 77 and memory == "userfaultfd":
            pytest.skip("userfaultfd for faults in the kernel takes CAP_SYS_PTRACE")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["ok", "held", "held", "held", "ok", "ok", "ok"]


def test_a_caller_killed_while_it_is_held_up_holds_no_group(vgpu: Vgpu, compile_client: Compile) -> None:
    program = compile_client("handover")
    script = f"""
        exec 3<>$D/go
        {program} {vgpu.group} {vgpu.name} held fuse <$D/go >$D/out & client=$!
        until grep -q held $D/out; do sleep 0.02; done
        kill -9 $client; wait $client
        {program} {vgpu.group} {vgpu.name} forked"""
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(f"{folder}/go")
        command = [*RUN, "--mount", str(vgpu.lab.path), "--", "timeout", "-k", "1", str(SECONDS)]
        done = run([*command, "sh", "-c", script], D=folder, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def fails_in_child(error: int, call: Callable[..., object], *arguments: object) -> None:
    """`call` fails with `error` in another process."""
    pid = os.fork()
    if pid == 0:
        try:
            fails(error, call, *arguments)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_prepared_file_is_for_the_thread_that_prepared_it(vgpu: Vgpu) -> None:
    """It can be opened once, by that thread alone; it is listed nowhere, and its mode keeps nobody away."""
    with opened(vgpu.lab, vgpu.group, vgpu.name) as found:
        path = prepared_device(vgpu.lab.path, found.group.fd, vgpu.name, os.getpid())
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert path.name not in os.listdir(path.parent)
        fails_in_child(errno.EACCES, os.open, path, os.O_RDWR)
        with Device(os.open(path, os.O_RDWR)) as device:
            assert device.config(0) == found.device.config(0)
            fails(errno.ENOENT, os.open, path, os.O_RDWR)
            fails_in_child(errno.ENOENT, os.open, path, os.O_RDWR)


def test_the_prepared_file_goes_with_the_group(vgpu: Vgpu) -> None:
    root = vgpu.lab.path
    with opened(vgpu.lab, vgpu.group, vgpu.name) as found:
        path = prepared_device(root, found.group.fd, vgpu.name, os.getpid())
        looked_up = os.open(path, os.O_PATH)
        found.group.close()
        deadline = time.monotonic() + SECONDS
        while path.exists() and time.monotonic() < deadline:  # a file is released after close(2) returns
            time.sleep(0.002)
        fails(errno.ENOENT, os.open, path, os.O_RDWR)
        with pytest.raises(OSError, match=r"No such|not configured|Stale"):
            os.open(f"/proc/self/fd/{looked_up}", os.O_RDWR)
        os.close(looked_up)


def test_a_client_that_prepares_and_never_opens_keeps_a_bounded_number(vgpu: Vgpu) -> None:
    root = vgpu.lab.path
    with opened(vgpu.lab, vgpu.group, vgpu.name) as found:
        paths = [prepared_device(root, found.group.fd, vgpu.name, os.getpid()) for _ in range(300)]
        assert [path.exists() for path in paths] == [False] * 44 + [True] * 256
        Device(os.open(paths[-1], os.O_RDWR)).close()


def test_only_a_group_is_asked(vgpu: Vgpu) -> None:
    """Every other file of the lab does not know the request."""
    root = vgpu.lab.path
    with opened(vgpu.lab, vgpu.group, vgpu.name) as found:
        others = [root, vgpu.path / "resource0", vgpu.path / "uevent", root / "uevents"]
        for path in others:
            fd = os.open(path, os.O_RDONLY)
            fails(errno.ENOTTY, prepared_device, root, fd, vgpu.name, os.getpid())
            os.close(fd)
        for file in (found.container, found.device):
            fails(errno.ENOTTY, prepared_device, root, file.fd, vgpu.name, os.getpid())
        fails(errno.ENOENT, os.stat, root / "dev/vfio/.devices")


def as_user(*groups: int, uid: int = 4999) -> list[str]:
    """The beginning of a command that another user runs."""
    needs.be_root("acting as two other users takes root")
    chosen = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", *chosen]


STEAL = """\
import errno, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.vfio.client import fails
root, group, prepared = Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
fails(errno.EACCES, os.open, root / "dev/vfio" / group, os.O_RDWR)
fails(errno.ENOENT, os.open, root / "dev/vfio/.devices", os.O_RDWR)
fails(errno.EACCES, os.open, prepared, os.O_RDWR)
fails(errno.EACCES, os.open, prepared, os.O_RDONLY)
print("kept out")
"""


def test_a_member_of_device_group_does_not_get_what_another_user_has_open(vgpu: Vgpu) -> None:
    """The group's file was given to one user alone: device_group and device_mode give nobody its device."""
    thief = as_user(GROUP_ID)
    root, file = vgpu.lab.path, vgpu.lab.path / "dev/vfio" / vgpu.group
    with opened(vgpu.lab, vgpu.group, vgpu.name) as found, reachable(root) as seen:
        os.chown(file, 4998, 4998)
        file.chmod(0o600)
        prepared = prepared_device(root, found.group.fd, vgpu.name, os.getpid())
        command = [*thief, sys.executable, "-c", STEAL, str(ROOT), str(seen), vgpu.group]
        done = run([*command, str(seen / prepared.relative_to(root))])
        assert done.stdout == "kept out\n", done.stderr
        Device(os.open(prepared, os.O_RDWR)).close()


@contextmanager
def reachable(root: Path) -> Iterator[Path]:
    """The lab by a path that every user may walk.  pytest's folders are closed."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        place = Path(folder, "lab")
        place.mkdir()
        subprocess.run(["mount", "--bind", root, place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


@needs.root("giving a file away takes root")
def test_chown_of_the_group_is_enough(vgpu: Vgpu, compile_client: Compile) -> None:
    """A user to whom root gave the group's file, and nothing else, has the device under `vfsfuse run`."""
    file = vgpu.lab.path / "dev/vfio" / vgpu.group
    with reachable(vgpu.lab.path) as seen:
        program = shutil.copy(compile_client("vfio_client", "-static"), seen.parent / "client")
        as_nobody = [sys.executable, "-m", "tests.ordinary_user", *RUN, "--mount", str(seen), "--"]
        command = [*as_nobody, str(program), vgpu.group, vgpu.name]
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert refused.returncode and "ermission denied" in refused.stderr
        os.chown(file, ordinary_user.UID, -1)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ok\n")


@pytest.fixture
def noiommu(shared: MountedLab) -> Iterator[str]:
    """The name of a noiommu group."""
    needs.be_root("opening a noiommu group takes CAP_SYS_RAWIO")
    enable = shared.path / "sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    enable.write_text("Y")
    try:
        with bound(shared, UNPROTECTED) as groups:
            yield f"noiommu-{groups[0]}"
    finally:
        enable.write_text("N")


DROPPED = """\
import ctypes, os, struct, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.vfio.client import fails
from tests.vfio.devices import prepared_device
import errno
libc = ctypes.CDLL(None)
head, sets = struct.pack("Ii", 0x20080522, 0), bytearray(24)
held = (ctypes.c_char * 24).from_buffer(sets)
assert libc.capget(head, held) == 0
for at in (0, 4):
    value = int.from_bytes(sets[at:at + 4], "little") & ~(1 << 17)
    sets[at:at + 4] = value.to_bytes(4, "little")
assert libc.capset(head, held) == 0
root, group, name = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for tid in (os.getpid(), os.getppid(), 1):
    fails(errno.EPERM, prepared_device, root, group, name, tid)
print("refused")
"""


def test_a_foreign_thread_lends_nobody_its_capability(shared: MountedLab, noiommu: str) -> None:
    """A process without CAP_SYS_RAWIO has the group, and names a thread that has the capability."""
    with (
        Container(shared.path) as container,
        Group(shared.path, noiommu) as group,
    ):
        group.set_container(container)
        container.set_iommu(NOIOMMU)
        command = [sys.executable, "-c", DROPPED, str(ROOT), str(shared.path), str(group.fd), UNPROTECTED]
        done = subprocess.run(command, pass_fds=(group.fd,), capture_output=True, text=True, check=False)
        assert done.stdout == "refused\n", done.stderr
        path = prepared_device(shared.path, group.fd, UNPROTECTED, os.getpid())
        Device(os.open(path, os.O_RDWR)).close()


def test_a_client_that_dropped_its_capability_is_refused_under_roots_run(
    shared: MountedLab, noiommu: str, compile_client: Compile
) -> None:
    program = compile_client("handover")
    done = vfsfuse("run", "--mount", shared.path, "--", program, noiommu, UNPROTECTED, "dropped")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


@pytest.mark.parametrize("moment", [0.0, 0.005, 0.02])
def test_a_supervisor_killed_in_the_middle_leaves_nothing(
    vgpu: Vgpu, compile_client: Compile, moment: float
) -> None:
    """What it had prepared or open goes with it."""
    program = compile_client("device_fd")
    command = [*RUN, "--mount", str(vgpu.lab.path), "--", str(program), vgpu.group, vgpu.name, "forever"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        supervisor = supervisor_of(process)
        wait_for(lambda: os.readlink(f"/proc/{process.pid}/exe") == str(program))
        time.sleep(moment)
        os.kill(supervisor, signal.SIGKILL)
        assert process.wait(SECONDS) == 1
        assert process.stderr is not None and "Operation not supported" in process.stderr.read()
    with opened(vgpu.lab, vgpu.group, vgpu.name, TYPE1V2) as found:
        assert len(os.pread(found.device.fd, PAGE, 0)) == PAGE
