# SPDX-License-Identifier: Apache-2.0
"""What a lab needs of the machine or the container that it runs in: one line for each thing that is refused.

Each line says what was refused, why as far as this process can tell, and how to mend it.  Single-threaded
callers; no state.  Source: seccomp(2), capabilities(7), user_namespaces(7), the default profiles of Docker
and Podman.
"""

from __future__ import annotations

import errno
import os
import re

from ioctl_shim._native import ffi, lib
from vfsfuse.asking import Refusal

FUSE = "/dev/fuse"
SYS_ADMIN = 21
ADMINISTRATE = "start a container with --cap-add SYS_ADMIN"
UNCONFINED = "start a container with --security-opt apparmor=unconfined"
KNOBS = (
    "user.max_user_namespaces",
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
)
"""What can keep users from user namespaces: the kernel's limit, Debian's switch, Ubuntu's restriction."""


def check_proc() -> None:
    """Raise Refusal unless /proc shows this process."""
    try:
        os.stat("/proc/self/mountinfo")
    except OSError as error:
        raise Refusal(f"/proc: {error.strerror} (mount -t proc proc /proc)") from None


def check_fuse() -> None:
    """Raise Refusal unless this process can open /dev/fuse."""
    try:
        os.close(os.open(FUSE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise Refusal(f"{FUSE}: {error.strerror} ({_mend_fuse(error.errno)})") from None


def _mend_fuse(number: int | None) -> str:
    if number == errno.EACCES:
        return "chmod 0666 /dev/fuse, as udev does"
    of_container = "start a container with --device /dev/fuse"
    return of_container if number == errno.EPERM else f"modprobe fuse; {of_container}"


def check_calls() -> None:
    """Raise Refusal unless the kernel lets this process copy descriptors and memory of its clients.

    It asks for its own, which is refused only by a filter of system calls, or a kernel without the call.
    """
    pidfd = os.pidfd_open(os.getpid())
    copy = int(lib.shim_pidfd_getfd(pidfd, pidfd))
    os.close(pidfd)
    if copy < 0:
        raise _refused_call("pidfd_getfd(2)", -copy)
    os.close(copy)
    byte, copied = ffi.new("char[1]"), ffi.new("char[1]")
    failed = int(lib.shim_peek(os.getpid(), int(ffi.cast("uintptr_t", byte)), copied, 1))
    if failed:
        raise _refused_call("process_vm_readv(2)", -failed)


def _refused_call(call: str, number: int) -> Refusal:
    mend = "Linux 5.6 has it"
    if is_filtered():
        mend = "a seccomp filter refuses it; start a container with --cap-add SYS_PTRACE"
    return Refusal(f"{call}: {os.strerror(number)} ({mend})")


def mend_namespace(error: OSError, rootless: bool) -> str:
    """What to do when unshare(2) has failed for a user namespace (`rootless`) or a mount namespace."""
    if error.errno == errno.ENOSPC:
        return "sysctl user.max_user_namespaces is the limit"
    if is_filtered():
        return f"a seccomp filter refuses it; {ADMINISTRATE}"
    if not rootless:
        return "it needs CAP_SYS_ADMIN, outside a chroot"
    return f"run it as root, or outside a chroot, or see sysctl {' '.join(KNOBS)}"


def mend_root(was_root: bool) -> str:
    """What to do when a user cannot become root in a user namespace that is that user's own."""
    if was_root:
        return "root needs CAP_SETFCAP for it; start a container with --cap-add SETFCAP"
    return f"see sysctl {KNOBS[-1]}"


def mend_mount(error: OSError) -> str:
    """What to do when mount(2), umount2(2), open_tree(2) or move_mount(2) has failed in a namespace that is
    our own."""
    if error.errno == errno.EINVAL:
        return "a chroot whose root is no mountpoint cannot have it: mount --bind it over itself"
    if profile := _apparmor():
        return f"AppArmor's profile {profile} refuses it; {UNCONFINED}"
    if is_filtered():
        return f"a seccomp filter refuses it; {ADMINISTRATE}"
    return f"see sysctl {KNOBS[-1]}"


def mend_lab_mount() -> str:
    """What to do when libfuse could not mount a lab, empty when this process cannot tell."""
    if not may_administrate("CapEff" if os.geteuid() == 0 else "CapBnd"):
        return f"{ADMINISTRATE}; `vfsfuse run` does without where users have namespaces"
    if os.geteuid() and _status("NoNewPrivs") == "1":
        return "no-new-privileges is set: fusermount3 is not root; use `vfsfuse run`, which needs no root"
    if profile := _apparmor():
        return f"AppArmor's profile is {profile}; {UNCONFINED}"
    return ""


def may_administrate(capabilities: str = "CapEff") -> bool:
    """Whether CAP_SYS_ADMIN is in a capability set of this thread: the effective one, or CapBnd."""
    return bool(int(_status(capabilities) or "0", 16) >> SYS_ADMIN & 1)


def is_filtered() -> bool:
    """Whether a seccomp filter looks at the system calls of this thread."""
    return _status("Seccomp") == "2"


def _status(name: str) -> str:
    """A field of /proc/self/status, empty when it is not there."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as told:
            found = re.search(rf"^{name}:\s*(\w+)$", told.read(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def _apparmor() -> str:
    """The AppArmor profile of this thread, empty when it has none."""
    try:
        with open("/proc/self/attr/apparmor/current", encoding="utf-8", errors="replace") as told:
            profile = told.read().strip("\0\n").removesuffix(" (enforce)")
    except OSError:
        return ""
    return "" if profile == "unconfined" or profile.endswith(" (complain)") else profile
