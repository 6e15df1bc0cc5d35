# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run` and VFIO_GROUP_GET_DEVICE_FD: unmodified C clients get their device, also as a user."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import needs, ordinary_user
from tests.commands import ROOT, VFSFUSE, run, vfsfuse
from tests.labs import MountedLab, Vgpu
from tests.tool import need
from vfsfuse.run.traps import TRAPS

Compile = Callable[..., Path]
RUN = [*VFSFUSE, "run"]


def run_client(vgpu: Vgpu, *command: str | Path) -> None:
    """`command` under the lab of `vgpu`; it has to end with "ok"."""
    done = vfsfuse("run", "--mount", vgpu.lab.path, "--", *command)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith("ok\n")


@pytest.mark.parametrize("linking", [(), ("-static",)], ids=["dynamic", "static"])
@pytest.mark.parametrize("where", [(), ("-t",), ("-f",)], ids=["main", "thread", "fork"])
def test_an_unmodified_client_gets_its_device(
    lab: MountedLab, compile_client: Compile, linking: tuple[str, ...], where: tuple[str, ...]
) -> None:
    with lab.create() as vgpu:
        run_client(vgpu, compile_client("vfio_client", *linking), *where, vgpu.group, vgpu.name)


@pytest.mark.parametrize("mode", ["errors", "signals", "last-thread"])
def test_get_device_fd(lab: MountedLab, compile_client: Compile, mode: str) -> None:
    with lab.create() as vgpu:
        run_client(vgpu, compile_client("device_fd"), vgpu.group, vgpu.name, mode)


ASK = """
import errno, fcntl, os, socket, sys
lab, *numbers = sys.argv[1:]
paths = ("/dev/null", "/etc/passwd", "/", lab + "/sys/bus", lab + "/dev/iommu")
files = [os.open(path, os.O_RDONLY) for path in paths]
files += [*os.pipe(), socket.socket().detach(), os.eventfd(0), os.memfd_create("a file")]
for number in map(int, numbers):
    for file in files:
        try:
            print(fcntl.ioctl(file, number, bytearray(64)))
        except OSError as error:
            print(errno.errorcode[error.errno])
"""


def test_the_numbers_of_its_ioctls_on_other_files_are_the_kernels(lab: MountedLab) -> None:
    """A struct of zeros is an error in each of them, so /dev/iommu answers as on the bare mount."""
    numbers = [str(trap.cmd) for trap in TRAPS]
    words = [sys.executable, "-c", ASK, str(lab.path), *numbers]
    outside, inside = run(words), vfsfuse("run", "--mount", lab.path, "--", *words)
    assert (inside.stdout, inside.stderr) == (outside.stdout, "")
    assert {"ENOTTY", "EINVAL"} <= set(inside.stdout.split())
    assert len(inside.stdout.splitlines()) == len(numbers) * 10


def test_what_the_client_closes_is_closed(lab: MountedLab, compile_client: Compile) -> None:
    """The supervisor holds neither device nor group once it has answered.

    Both share a processor, and the client (where we may) goes first.
    """
    with lab.create() as vgpu:
        client = shlex.join([str(compile_client("device_fd")), vgpu.group, vgpu.name, "unset"])
        script = f"renice -n -20 $$ >/dev/null 2>&1; {client}"
        slow = ["taskset", "-c", "0", "nice", "-n", "5", *RUN, "--mount", str(lab.path)]
        done = run([*slow, "--", "sh", "-c", script], PYTHONPATH=str(ROOT))
        assert (done.returncode, done.stderr) == (0, "")


def holder(vgpu: Vgpu, program: Path) -> subprocess.Popen[str]:
    command = [*RUN, "--mount", str(vgpu.lab.path), "--", str(program), vgpu.group, vgpu.name, "hold"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)


def test_two_clients_at_once(lab: MountedLab, compile_client: Compile) -> None:
    """Each under a run of its own, and two more under one; a device in use cannot be removed."""
    program = compile_client("device_fd")
    with ExitStack() as stack:
        vgpus = [stack.enter_context(lab.create()) for _ in range(4)]
        first, second = (stack.enter_context(holder(vgpu, program)) for vgpu in vgpus[:2])
        for process, vgpu in ((first, vgpus[0]), (second, vgpus[1])):
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(OSError, match="busy"):
                vgpu.remove()
        third, fourth = (f"{program} {vgpu.group} {vgpu.name} signals" for vgpu in vgpus[2:])
        run_client(vgpus[2], "sh", "-c", f"{third} & {fourth} && wait $!")
        for process in (first, second):
            assert process.communicate(timeout=30)[0] == "ok\n"
            assert process.returncode == 0


def test_a_client_killed_at_any_moment_is_the_others_gain(lab: MountedLab, compile_client: Compile) -> None:
    """The group opens for the next one, the supervisor goes on, and no descriptor stays anywhere."""
    with lab.create() as vgpu:
        client = f"{compile_client('device_fd')} {vgpu.group} {vgpu.name}"
        script = f"""
            for i in $(seq 25); do
                {client} forever & sleep 0.0$i; kill -9 $!; wait $!
            done 2>/dev/null
            {client} errors"""
        run_client(vgpu, "sh", "-c", script)


@dataclass
class Somebody:
    """An ordinary user: what makes a command theirs, and a directory of theirs."""

    prefix: list[str]
    home: Path

    def sh(self, script: str) -> subprocess.CompletedProcess[str]:
        """`script` as that user, with $V the command line of vfsfuse and $H the directory."""
        environment = {**os.environ, "V": " ".join(VFSFUSE), "H": str(self.home), "HOME": str(self.home)}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [*self.prefix, "sh", "-euc", script]
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
def somebody() -> Iterator[Somebody]:
    if needs.NO_OPEN_FUSE:
        pytest.skip(needs.NO_OPEN_FUSE)
    with tempfile.TemporaryDirectory() as home:
        if os.geteuid() == 0:
            os.chown(home, ordinary_user.UID, ordinary_user.UID)
            yield Somebody([sys.executable, "-m", "tests.ordinary_user"], Path(home))
        else:
            yield Somebody([], Path(home))


def test_a_folder_of_path_that_may_not_be_searched_is_passed_over(somebody: Somebody) -> None:
    """As by a shell: what is in no other folder is not found."""
    closed = Path("/root")
    if os.geteuid() == 0:
        closed = somebody.home / "closed"
        closed.mkdir(0o700)
    elif os.access(closed, os.X_OK):
        pytest.skip("there is no folder here that this user may not search")
    there = somebody.home / "there"
    there.write_text("#!/bin/sh\necho ran\n")
    for name, mode, status in (("not-there", 0o755, 127), ("there", 0o755, 0), ("there", 0o644, 126)):
        there.chmod(mode)
        done = somebody.sh(f"PATH={closed}:$H:$PATH $V run -- {name}")
        assert done.returncode == status, done.stderr


CLIENT_SCRIPT = """\
U=0fb1e1d2-7c0d-4c1e-8a53-5a7d1b2c3d4e
echo $U > /sys/class/mdev_bus/mbochs/mdev_supported_types/mbochs-small/create
for g in $(ls /sys/kernel/iommu_groups); do
    test ! -e /sys/kernel/iommu_groups/$g/devices/$U || $H/client $g $U
done
"""


def test_a_user_runs_a_private_lab(somebody: Somebody, compile_client: Compile) -> None:
    shutil.copy(compile_client("vfio_client", "-static"), somebody.home / "client")
    (somebody.home / "script").write_text(CLIENT_SCRIPT)
    done = somebody.sh("$V run -- sh -eu $H/script")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ok\n")


def test_a_user_runs_in_their_own_lab(somebody: Somebody, compile_client: Compile) -> None:
    need("fusermount3", "fuse3")
    shutil.copy(compile_client("vfio_client"), somebody.home / "client")
    (somebody.home / "script").write_text(CLIENT_SCRIPT)
    done = somebody.sh(
        "$V mount --log-file $H/log $H/mnt >$H/hints; trap '$V umount --lazy $H/mnt' EXIT;"
        "$V run --mount $H/mnt -- sh -eu $H/script"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ok\n")
