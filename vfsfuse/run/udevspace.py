# SPDX-License-Identifier: Apache-2.0
"""What `vfsfuse run --udev` gives a program besides: a network namespace, and a /run/udev of its own.

uevents go to a network namespace, so those of a lab need one of their own: no other program may hear them.
Runs in the only thread of the process that becomes the program, after the lab is at /sys.  The sockets are
then the relay's (vfsfuse.run.udev).  Source: network_namespaces(7), unix(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import NoReturn

from vfsfuse.run import namespace, syscalls, ueventsocket
from vfsfuse.run.udev import UdevFiles
from vfsfuse.run.udevdata import FOLDER

PLACE = "/run/udev"
CONTROL = f"{PLACE}/control"
_MEND = "see sysctl user.max_net_namespaces user.max_user_namespaces"
_RUN = ("/run", ("udev",), "mode=755")
_ALL_IDS = ["0", "0", "4294967295"]
"""The user ids of the initial user namespace."""

_NETWORK = ("devices/virtual/net", "class/net")
"""Directories under /sys that show the interfaces of a network namespace."""

_BACKLOG = 16


def enter() -> UdevFiles:
    """Enter the network namespace and cover /run/udev.  Raises namespace.SetupError."""
    with namespace.explained("making a network namespace for --udev", _MEND):
        _enter_network()
        ueventsocket.raise_loopback()
        events = ueventsocket.open_socket()
    with namespace.explained(f"making {PLACE} for --udev"):
        folder = _cover()
        os.mkdir(FOLDER, 0o755, dir_fd=folder)
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        control.bind(CONTROL)
        os.chmod(CONTROL, 0o600)
        control.listen(_BACKLOG)
        control.setblocking(False)
    return UdevFiles(events, control, folder)


def _enter_network() -> None:
    """Enter a network namespace that hears no event of the machine's devices.

    Linux sends those to the network namespaces of the initial user namespace.  So ours is of another one,
    which has the same users.
    """
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ids = file.read().split()
    if ids != _ALL_IDS:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        return
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        _be_owner(ours, theirs)
    theirs.close()
    try:
        number = int.from_bytes(ours.recv(1) or bytes([errno.EIO]))
        if number:
            raise OSError(number, os.strerror(number))
        _enter_network_of(child)
    finally:
        ours.close()
        with contextlib.suppress(ChildProcessError):  # with SIGCHLD ignored there is no child to wait for
            os.waitpid(child, 0)


def _be_owner(ours: socket.socket, theirs: socket.socket) -> NoReturn:
    """In a forked child: make the namespaces, tell the errno, and keep them until the parent hangs up."""
    number = errno.EIO
    try:
        ours.close()
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNET)
            number = 0
        except OSError as error:
            number = error.errno or errno.EIO
        theirs.send(bytes([number]))
        theirs.recv(1)
    finally:
        os._exit(0)


def _enter_network_of(child: int) -> None:
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{child}/{name}", "w", encoding="ascii") as file:
            file.write(" ".join(_ALL_IDS))
    fd = os.open(f"/proc/{child}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
    finally:
        os.close(fd)


def _cover() -> int:
    """Mount an empty directory at PLACE and open it."""
    if not os.path.isdir(PLACE):
        namespace.rebuild(*_RUN)
        namespace.make_place(PLACE, directory=True)
    _show_interfaces()
    syscalls.mount("vfsfuse", PLACE, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755")
    with contextlib.suppress(OSError):
        os.chdir(os.getcwd())  # into the new mount, if the program starts there
    return os.open(PLACE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _show_interfaces() -> None:
    """Where /sys has the machine's network interfaces, show those of this network namespace.  A lab with
    interfaces of its own shows these.

    Where sysfs may not be mounted, in a container for example, /sys shows none.  PLACE is a mountpoint for a
    moment.
    """
    given = [name for name in _NETWORK if os.path.ismount(f"/sys/{name}")]
    for name in given:
        syscalls.detach(f"/sys/{name}")
    if given and _mount_sysfs():
        trees = {name: syscalls.clone_tree(f"{PLACE}/{name}") for name in given}
        syscalls.detach(PLACE)
        for name, tree in trees.items():
            syscalls.attach_tree(tree, f"/sys/{name}")


def _mount_sysfs() -> bool:
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    for more in (0, syscalls.MS_RDONLY):  # Linux refuses what is less restricted than the machine's /sys
        with contextlib.suppress(OSError):
            syscalls.mount("sysfs", PLACE, "sysfs", flags | more)
            return True
    return False
