# SPDX-License-Identifier: Apache-2.0
"""The private mount namespaces of `vfsfuse run`, in which a lab appears at /sys, /dev/vfio and /dev/iommu.

There are two, one inside the other.  `enter` makes the outer one, where the supervisor and a private lab's
server live; `show` makes the inner one, for the program.  The server must not live in the inner one: its C
library reads /sys/devices/system/cpu, and a lookup in its own mount would wait for itself.

Runs in the only thread of a process that is about to exec.  Source: mount_namespaces(7), user_namespaces(7).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping

from ioctl_shim.seccomp import file_id
from vfsfuse.asking import NoAnswer, Patience, Refusal
from vfsfuse.requirements import may_administrate, mend_mount, mend_namespace, mend_root
from vfsfuse.run import syscalls, terminals
from vfsfuse.viewers import PLACE_OF_RUNS, SOURCE_OF_RUNS

GIVEN_BACK = (
    "devices/system",
    "devices/system/clockevents",
    "devices/system/clocksource",
    "devices/system/cpu/vulnerabilities",
    "devices/virtual/net",
    "class/net",
    "kernel/mm",
    "kernel/debug",
    "fs",
    "firmware",
    "power",
)
"""Directories under /sys that stay the machine's own where the lab has an empty directory of that name.  A
lab with network interfaces has its own class/net and devices/virtual/net, which are never empty.

Each holds its own files, or links within this list.  A lab that describes its machine has nodes and CPUs of
its own in devices/system, and a few empty directories there.  /sys/block and /sys/dev are not here, because
they would have only dangling links into devices/."""

DEVICE_NODES = ("vfio", "iommu")
"""The names under /dev that come from the lab. A name that it does not have is not there: `[mount]` can
switch off all of dev/vfio."""

PROCESSORS = "/sys/devices/system"
STAGED_LAB = "/sys/lab"
"""The mountpoint of a private lab in the outer namespace (see `stage`)."""


class SetupError(Exception):
    """`run` cannot give the program its lab.  str() is one line: the problem, its place, and a remedy.

    It is empty when the server has already reported the error on stderr.
    """


@contextlib.contextmanager
def explained(what: str, mend: str | Callable[[OSError], str] = "") -> Iterator[None]:
    """Turn an OSError of the block into a SetupError.  `what` names the step, `mend` the remedy."""
    try:
        yield
    except OSError as error:
        remedy = mend if isinstance(mend, str) else mend(error)
        raise SetupError(f"{what}: {error.strerror or error}" + (f" ({remedy})" if remedy else "")) from error


def check_lab(path: str) -> None:
    """Raise SetupError unless `path` is the root of a mounted lab whose server answers in time."""
    mend = f"mount one there with: vfsfuse mount {path}"
    try:
        Patience().ask(lambda: _look_at(path))
    except NoAnswer:
        hung = f"unmount it with: vfsfuse umount --lazy {path}"
        raise SetupError(f"{path}: the lab does not answer: its server is stopped or hung ({hung})") from None
    except Refusal:
        raise SetupError(f"{path}: no lab is mounted here ({mend})") from None
    except PermissionError as error:
        mend = "the lab, or a directory above it, is another user's"
        raise SetupError(f"{path}: {error.strerror} ({mend})") from None
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror} ({mend})") from None


def _look_at(path: str) -> None:
    """Look for a lab at `path`.  Raises OSError when `path` cannot be read, Refusal for another directory.

    This asks every thread of the server that answers names: the pump, and by statfs(2) the main thread.
    """
    root = file_id(path, ask=True)
    os.statvfs(path)
    try:
        parts = [file_id(f"{path}/{part}", ask=True) for part in ("sys", "dev/iommu")]
    except OSError:
        raise Refusal(path) from None
    if any(part.device != root.device for part in parts):
        raise Refusal(path)


def enter() -> None:
    """Enter the outer namespace.  Without CAP_SYS_ADMIN, enter a user namespace first, with the caller as its
    root."""
    rootless = not may_administrate()
    ids = os.geteuid(), os.getegid()
    kind = "user" if rootless else "mount"
    with explained(f"making a {kind} namespace", lambda error: mend_namespace(error, rootless)):
        syscalls.unshare(syscalls.CLONE_NEWNS | (syscalls.CLONE_NEWUSER if rootless else 0))
    if rootless:
        with explained("becoming root in the user namespace", lambda error: mend_root(ids[0] == 0)):
            _become_root_here(*ids)
    with explained("mounting in a namespace of its own", mend_mount):
        # not private: a mount that is unmounted outside would stay here, and so would a lab's server
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)


def _become_root_here(uid: int, gid: int) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def stage(lab: str | None) -> None:
    """Cover /sys of the outer namespace with a small tmpfs that has STAGED_LAB.  It ends with the namespace.

    /sys exists on every machine, and the server of a private lab needs no more of it than the machine's
    processors and NUMA nodes, which stay.  A run in a mounted `lab` needs none of it: the tmpfs shows other
    labs that this namespace does not use them (vfsfuse.viewers).
    """
    if lab and lab.startswith("/sys/"):
        return
    with explained("mounting a tmpfs at /sys", mend_mount):
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        system = syscalls.clone_tree(PROCESSORS) if os.path.isdir(PROCESSORS) else None
        syscalls.mount(SOURCE_OF_RUNS, PLACE_OF_RUNS, "tmpfs", flags, "mode=755,size=64k")
        os.mkdir(STAGED_LAB)
        if system is not None:
            os.makedirs(PROCESSORS)
            syscalls.attach_tree(system, PROCESSORS)


def show(lab: str) -> None:
    """Enter the inner namespace and put `lab` (the path of its root, or STAGED_LAB) over /sys and /dev."""
    with explained("showing the lab at /sys and /dev", mend_mount):
        syscalls.unshare(syscalls.CLONE_NEWNS)
        sys_tree = syscalls.clone_tree(f"{lab}/sys")
        nodes = {name: syscalls.clone_tree(f"{lab}/dev/{name}") for name in _lab_nodes(lab)}
        if not lab.startswith("/sys/") or lab == STAGED_LAB:
            syscalls.detach("/sys")  # of `stage`
        _show_sys(sys_tree)
        _show_dev(nodes)
        with contextlib.suppress(OSError):
            os.chdir(os.getcwd())  # into the new mount, if the program starts in /sys or /dev


def describes_machine() -> bool:
    """Whether the NUMA nodes at /sys, where the lab is now, are the lab's own."""
    try:
        return os.stat(f"{PROCESSORS}/node").st_dev == os.stat("/sys").st_dev
    except FileNotFoundError:
        return False


def _lab_nodes(lab: str) -> list[str]:
    return [name for name in DEVICE_NODES if os.path.exists(f"{lab}/dev/{name}")]


def _show_sys(tree: int) -> None:
    real = os.open("/sys", os.O_PATH | os.O_DIRECTORY)
    try:
        syscalls.attach_tree(tree, "/sys")
        for name in GIVEN_BACK:
            if _is_dir(name, real) and _is_empty_dir(f"/sys/{name}"):
                syscalls.attach_tree(syscalls.clone_tree(name, real), f"/sys/{name}")
    finally:
        os.close(real)


def _is_dir(name: str, dir_fd: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=dir_fd).st_mode)
    except OSError:
        return False


def _is_empty_dir(path: str) -> bool:
    try:
        return not os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _show_dev(nodes: Mapping[str, int]) -> None:
    others = [name for name in DEVICE_NODES if name not in nodes and os.path.lexists(f"/dev/{name}")]
    if others or not all(_has_place(name, tree) for name, tree in nodes.items()):
        _rebuild_dev(nodes)
    for name, tree in nodes.items():
        syscalls.attach_tree(tree, f"/dev/{name}")


def _has_place(name: str, tree: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(f"/dev/{name}").st_mode) == stat.S_ISDIR(os.fstat(tree).st_mode)
    except OSError:
        return False


def _rebuild_dev(nodes: Mapping[str, int]) -> None:
    """Cover /dev with one that has none of the machine's DEVICE_NODES, and a place for each of `nodes`.

    A user namespace may not use mknod(2), so the other entries are mounts.
    """
    ptmx, machine = terminals.node(), syscalls.clone_tree("/dev")
    rebuild("/dev", (*DEVICE_NODES, *([terminals.NAME] if ptmx else ())), "mode=755,size=1m")
    if ptmx:
        terminals.show(ptmx, machine, DEVICE_NODES)
    else:
        os.close(machine)
    for name, tree in nodes.items():
        make_place(f"/dev/{name}", directory=stat.S_ISDIR(os.fstat(tree).st_mode))


def rebuild(directory: str, without: Collection[str], options: str) -> None:
    """Cover `directory` with a tmpfs, mounted with `options`, that has a mount of every old entry but those
    in `without`.  So it can have an entry that the real directory must not gain.  Raises OSError."""
    old = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    syscalls.mount("vfsfuse", directory, "tmpfs", syscalls.MS_NOSUID, options)
    new = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        with os.scandir(old) as entries:
            for entry in entries:
                if entry.name not in without:
                    with contextlib.suppress(FileNotFoundError):  # it went while we look
                        _carry_over(entry, old, new)
    finally:
        os.close(new)
        os.close(old)


def _carry_over(entry: os.DirEntry[str], old: int, new: int) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(entry.name, dir_fd=old), entry.name, dir_fd=new)
        return
    tree = syscalls.clone_tree(entry.name, old)
    make_place(entry.name, new, directory=entry.is_dir())
    syscalls.attach_tree(tree, entry.name, new)


def make_place(name: str, dir_fd: int | None = None, *, directory: bool) -> None:
    """Make a mountpoint for a directory or a file.  Raises OSError."""
    if directory:
        os.mkdir(name, 0o755, dir_fd=dir_fd)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=dir_fd))
