# SPDX-License-Identifier: Apache-2.0
"""What a test needs of this machine and of its user. A test that lacks it is skipped, and says why.

Each is a mark for tests: `@needs.passthrough`. The condition itself is tried where it can be. None asks the
lab: a lab that does not do what it should must not make its tests disappear.
Source: capabilities(7), userfaultfd(2), proc_pid_map_files(5).
"""

from __future__ import annotations

import ctypes
import errno
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from ioctl_shim import procfs

CAPABILITIES = {"CAP_IPC_LOCK": 14, "CAP_SYS_RAWIO": 17, "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24}
_USERFAULTFD = 323 if os.uname().machine == "x86_64" else 282


def has_capability(name: str) -> bool:
    """Whether this process has it, in the initial user namespace."""
    return procfs.capable(os.getpid(), CAPABILITIES[name])


def linux() -> tuple[int, int]:
    """The kernel's version."""
    major, minor = os.uname().release.split("-")[0].split(".")[:2]
    return int(major), int(minor)


def _passthrough() -> str:
    if linux() < (6, 9):
        return f"FUSE passthrough, by which memory is mapped, needs Linux 6.9: this is {os.uname().release}"
    if not has_capability("CAP_SYS_ADMIN"):
        return "FUSE passthrough, by which memory is mapped, needs CAP_SYS_ADMIN outside all user namespaces"
    return ""


def _userfaultfd() -> str:
    fd = ctypes.CDLL(None, use_errno=True).syscall(_USERFAULTFD, os.O_CLOEXEC)
    if fd >= 0:
        os.close(fd)
        return ""
    number = ctypes.get_errno()
    why = {errno.EPERM: "vm.unprivileged_userfaultfd is 0, and this user has no CAP_SYS_PTRACE"}
    return f"userfaultfd(2) is refused: {why.get(number, os.strerror(number))}"


def _map_files() -> str:
    entry = next(Path("/proc/self/map_files").iterdir())
    try:
        os.close(os.open(entry, os.O_RDONLY))
    except OSError as error:
        return (
            f"shared memory without a descriptor is found by /proc/PID/map_files alone: {error.strerror},"
            " it takes CAP_CHECKPOINT_RESTORE"
        )
    return ""


def _open_fuse() -> str:
    if os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
        return ""
    return "/dev/fuse is not open to users (chmod 0666 /dev/fuse, as udev does)"


def _abort() -> str:
    if os.geteuid() and not os.path.ismount("/sys/fs/fuse/connections"):
        return (
            "a FUSE connection is aborted by root, or in fusectl, which is not mounted at"
            " /sys/fs/fuse/connections"
        )
    return ""


def _unless(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(reason), reason=reason)


NO_PASSTHROUGH = _passthrough()
"""The reason why memory of a lab cannot be mapped, empty when it can."""
NO_USERFAULTFD = _userfaultfd()
"""The reason why userfaultfd(2) is refused, empty when it is not."""
NO_MAP_FILES = _map_files()
"""The reason why shared memory without a descriptor cannot be mapped here, empty when it can."""
NO_OPEN_FUSE = _open_fuse()
"""The reason why an ordinary user cannot mount, empty when they can."""
passthrough = _unless(NO_PASSTHROUGH)
userfaultfd = _unless(NO_USERFAULTFD)
open_fuse = _unless(NO_OPEN_FUSE)
abort = _unless(_abort())


def not_root(why: str) -> str:
    """The reason why what root alone may cannot be done here, empty when it can. `why` is what it is."""
    return f"{why}: this is user {os.geteuid()}" if os.geteuid() else ""


def root(why: str) -> pytest.MarkDecorator:
    """For tests of what root alone may, or that act as root and as somebody else. `why` is what it is."""
    return _unless(not_root(why))


def be_root(why: str) -> None:
    """In a fixture: skip the test unless this is root. `why` as for `root`."""
    if reason := not_root(why):
        pytest.skip(reason)


def capability(name: str) -> pytest.MarkDecorator:
    """The capability, by its name, in the initial user namespace."""
    return _unless("" if has_capability(name) else f"it takes {name} in the initial user namespace")


def module(name: str) -> None:
    """Skip the test unless this module of the extra `test` is installed."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed: run ./tools/setup.sh test")
