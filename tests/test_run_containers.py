# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run` and `mount` in containers: what works with the default limits of engines, and one line for
each thing that is refused.

tests/clients/container.c makes containers with these limits, for root and for an ordinary user.  Podman's own
are tried where Podman runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, run
from tests.ordinary_user import closed_directory, needed
from tests.tool import need

Compile = Callable[..., Path]
RUN = [*VFSFUSE, "run"]
UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"
PTRACE = "a seccomp filter refuses it; start a container with --cap-add SYS_PTRACE"
ADMIN = "a seccomp filter refuses it; start a container with --cap-add SYS_ADMIN"
DEVICE = "start a container with --device /dev/fuse"
MOUNT = "start a container with --cap-add SYS_ADMIN; `vfsfuse run` does without where users have namespaces"
REFUSED = "Operation not permitted"
ALL = "docker fuse sys_admin sys_ptrace"


CLIENT = f"""
    echo {UUID} > /sys/class/mdev_bus/0000:86:00.0/mdev_supported_types/vgpu-4/create
    group=$(basename $(readlink /sys/bus/mdev/devices/{UUID}/iommu_group))
    exec "$0" $group {UUID} errors"""
"""A script that creates a vGPU in the lab at /sys, and has $0 use it through its group."""


@pytest.fixture
def client(compile_client: Compile) -> list[str]:
    """A command that makes a vGPU in the lab at /sys and uses it: it says ok."""
    return ["sh", "-c", CLIENT, str(compile_client("device_fd"))]


@pytest.fixture
def container(compile_client: Compile) -> Callable[..., subprocess.CompletedProcess[str]]:
    """container("docker fuse", *command): run a command in a container with such limits."""
    launcher = compile_client("container")

    def enter(limits: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return run([launcher, *limits.split(), "--", *command], PYTHONPATH=str(ROOT))

    return enter


Enter = Callable[..., subprocess.CompletedProcess[str]]


def one_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line on stderr of a command that has failed."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removesuffix("\n")


@pytest.mark.parametrize("limits", [ALL, "podman fuse", "podman fuse no_new_privs"])
def test_a_program_uses_its_lab_in_a_container(container: Enter, client: list[str], limits: str) -> None:
    """With Podman's defaults and the device alone, with Docker's and two capabilities."""
    done = container(limits, *RUN, "--", *client)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ("podman", f"/dev/fuse: No such file or directory (modprobe fuse; {DEVICE})"),
        ("docker fuse", f"pidfd_getfd(2): {REFUSED} ({PTRACE})"),
        ("docker fuse sys_admin", f"pidfd_getfd(2): {REFUSED} ({PTRACE})"),
        ("docker fuse sys_ptrace", f"making a user namespace: unshare: {REFUSED} ({ADMIN})"),
    ],
)
def test_what_run_lacks_in_a_container_is_one_line(container: Enter, limits: str, said: str) -> None:
    line = one_line(container(limits, *RUN, "--", "true"), 125)
    assert line == f"vfsfuse: run: {said}"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("process_vm_readv", f"process_vm_readv(2): {REFUSED} ({PTRACE})"),
        ("mount", f"mounting in a namespace of its own: mount /: {REFUSED} ({ADMIN})"),
        ("open_tree", f"mounting a tmpfs at /sys: open_tree /sys/devices/system: {REFUSED} ({ADMIN})"),
        ("move_mount", f"mounting a tmpfs at /sys: move_mount /sys/devices/system: {REFUSED} ({ADMIN})"),
        (
            "seccomp",
            f"installing the seccomp filter: seccomp filter: {REFUSED}"
            " (start a container with a seccomp profile that allows seccomp(2))",
        ),
    ],
)
def test_a_call_that_a_stricter_profile_refuses_is_one_line(container: Enter, call: str, said: str) -> None:
    line = one_line(container(f"podman fuse without-{call}", *RUN, "--", "true"), 125)
    assert line == f"vfsfuse: run: {said}"


@needs.root("/proc is unmounted by root")
@pytest.mark.parametrize(("command", "status"), [("run -- true", 125), ("mount {}", 1)])
def test_a_place_without_proc_is_one_line(tmp_path: Path, command: str, status: int) -> None:
    words = command.format(tmp_path / "mnt")
    script = f"umount --lazy /proc && exec {shlex.join(VFSFUSE)} {words}"
    done = run(["unshare", "--mount", "sh", "-c", script], PYTHONPATH=str(ROOT))
    name = command.partition(" ")[0]
    assert one_line(done, status) == (
        f"vfsfuse: {name}: /proc: No such file or directory (mount -t proc proc /proc)"
    )


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ("podman", f"/dev/fuse: No such file or directory (modprobe fuse; {DEVICE})"),
        ("docker fuse", f"pidfd_getfd(2): {REFUSED} ({PTRACE})"),
        ("docker fuse sys_ptrace", f"{{mnt}}: fusermount3: mount failed: {REFUSED} ({MOUNT})"),
        ("podman fuse", f"{{mnt}}: fusermount3: mount failed: {REFUSED} ({MOUNT})"),
    ],
)
def test_what_mount_lacks_in_a_container_is_one_line(
    container: Enter, tmp_path: Path, limits: str, said: str
) -> None:
    need("fusermount3", "fuse3")
    log = ("--log-file", tmp_path / "log")
    line = one_line(container(limits, *VFSFUSE, "mount", *log, tmp_path / "mnt"), 1)
    assert line == f"vfsfuse: mount: {said.format(mnt=tmp_path / 'mnt')}"


def test_a_mounted_lab_is_used_in_a_container(container: Enter, client: list[str], tmp_path: Path) -> None:
    command, mnt = shlex.join(VFSFUSE), shlex.quote(str(tmp_path / "mnt"))
    script = f"""
        {command} mount --log-file {shlex.quote(str(tmp_path / "log"))} {mnt} > {mnt}.hints
        {command} run --mount {mnt} -- {shlex.join(client)}
        {command} umount {mnt}"""
    done = container(ALL, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_user_namespaces_that_are_used_up_are_one_line() -> None:
    """Their number is limited in each user namespace by itself."""
    need("setpriv", "util-linux")
    fall = "setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin"
    script = f"echo 0 > /proc/sys/user/max_user_namespaces && exec {fall} {shlex.join(RUN)} -- true"
    done = run(["unshare", "--user", "--map-root-user", "sh", "-c", script], PYTHONPATH=str(ROOT))
    assert one_line(done, 125) == (
        "vfsfuse: run: making a user namespace: unshare: No space left on device"
        " (sysctl user.max_user_namespaces is the limit)"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root mounts without fusermount3, which this is about")
@needs.open_fuse
def test_a_mount_without_new_privileges_is_one_line(tmp_path: Path) -> None:
    need("setpriv", "util-linux")
    need("fusermount3", "fuse3")
    command = [*VFSFUSE, "mount", "--log-file", str(tmp_path / "log"), str(tmp_path / "mnt")]
    line = one_line(run(["setpriv", "--no-new-privs", *command], PYTHONPATH=str(ROOT)), 1)
    assert line.endswith(
        " (no-new-privileges is set: fusermount3 is not root; use `vfsfuse run`, which needs no root)"
    )


# ---- Podman ----

PODMAN_LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
"""Else Podman raises the limits, which takes CAP_SYS_RESOURCE."""
PODMAN_RUN = ["run", "--rm", "--network=none", "--cgroups=disabled", *PODMAN_LIMITS]
ONE_HIERARCHY = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup"
"""crun refuses a mixture of both versions of cgroups, so root's container sees the second alone."""


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """podman(options, *command): run a command in a container of Podman whose files are those of the
    machine."""
    needs.be_root("a container on the machine's own files is started by root")
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed (apt-get install podman)")
    store = tmp_path_factory.mktemp("podman")

    def enter(options: Sequence[str], *command: str | Path) -> subprocess.CompletedProcess[str]:
        places = ["--root", str(store / "root"), "--runroot", str(store / "run")]
        words = ["podman", *places, *PODMAN_RUN, *options, "--env", f"PYTHONPATH={ROOT}", "--rootfs", "/:O"]
        script = f'if [ -d /sys/fs/cgroup/unified ]; then {ONE_HIERARCHY}; fi; exec "$@"'
        own = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        return run([*own, *words, *command])

    tried = enter([], "true")
    if tried.returncode:
        pytest.skip(f"podman does not run here: {tried.stderr.strip().splitlines()[-1]}")
    return enter


Podman = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--security-opt", "no-new-privileges"],
        ["--cap-add", "SYS_ADMIN"],
        ["--privileged"],
    ],
    ids=" ".join,
)
def test_a_program_uses_its_lab_in_podmans_container(
    podman: Podman, client: list[str], options: list[str]
) -> None:
    done = podman([*options, "--device", "/dev/fuse"], *RUN, "--", *client)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_a_user_in_podmans_container_needs_no_capability(podman: Podman, compile_client: Compile) -> None:
    for path in needed():
        if closed := closed_directory(path):
            pytest.skip(f"an ordinary user cannot read {closed}, where this checkout or its Python is")
    program = ["--volume", f"{compile_client('device_fd')}:/client:ro"]
    as_user = ["--user", "1000", "--cap-drop", "all", *program, "--device", "/dev/fuse"]
    done = podman(as_user, *RUN, "--", "sh", "-c", CLIENT, "/client")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], f"/dev/fuse: No such file or directory (modprobe fuse; {DEVICE})"),
        (
            ["--device", "/dev/fuse", "--cap-drop", "all"],
            f"becoming root in the user namespace: {REFUSED}"
            " (root needs CAP_SETFCAP for it; start a container with --cap-add SETFCAP)",
        ),
    ],
)
def test_what_run_lacks_in_podmans_container_is_one_line(
    podman: Podman, options: list[str], said: str
) -> None:
    assert one_line(podman(options, *RUN, "--", "true"), 125) == f"vfsfuse: run: {said}"


def test_a_lab_is_mounted_in_podmans_container(podman: Podman) -> None:
    script = f"""
        {shlex.join(VFSFUSE)} mount --log-file /tmp/log /tmp/mnt > /tmp/hints
        ls /tmp/mnt/sys/class/mdev_bus
        {shlex.join(VFSFUSE)} umount /tmp/mnt"""
    done = podman(["--device", "/dev/fuse", "--cap-add", "SYS_ADMIN"], "sh", "-c", script)
    assert (done.returncode, done.stdout.split()[-1:], done.stderr) == (0, ["mtty"], "")
