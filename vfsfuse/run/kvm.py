# SPDX-License-Identifier: Apache-2.0
"""KVM_SET_DEVICE_ATTR for a program of `vfsfuse run`: KVM's VFIO device tracks files of the lab.

A program that runs a virtual machine (VM) tells KVM which VFIO files it uses, by KVM_DEV_VFIO_FILE_ADD
and _DEL.  KVM accepts files of the kernel's own VFIO only.  So the supervisor answers these calls for groups
and devices of the lab, and remembers which files a VM has; no device of a lab needs more of KVM.  The
kernel carries out all other calls, with its own errnos: for other files, descriptors that are not open, bad
pointers, other attributes.

Nothing of the program's is held, because a held file would keep a group or a VM in use.  A group or a
device has a number that the server gives to no other open file (FILE_NUMBER).  The VFIO device of a VM
has a mark that lasts as long as its open file: the signal of F_SETSIG, which means nothing on a file that
never sends SIGIO.  There are 64 marks, which are given in turn, so a VM is known by its process as well.

The program's pointers and descriptors are hostile.  Each call has a thread of its own, which they may hold
up; the lock is held for calls that wait for nobody.
Source: <linux/kvm.h>, Documentation/virt/kvm/devices/vfio.rst, fcntl(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from typing import NamedTuple

from ioctl_shim import procfs
from ioctl_shim.abi import FILE_NUMBER
from ioctl_shim.client import Caller
from ioctl_shim.seccomp import SeccompListener, TrappedCall
from vfsfuse.run.labfiles import LabFiles, LeftToKernel

KVM_SET_DEVICE_ATTR = 0x4018AEE1
"""_IOW(KVMIO, 0xe1, struct kvm_device_attr)."""
KVM_DEV_VFIO_FILE = 1
KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL = 1, 2

MAX_FILES = 1024
"""How many files of one VM are remembered.  Beyond that the oldest is forgotten."""
MAX_VMS = 256
"""How many VMs are remembered.  Beyond that those of processes that have ended are forgotten, or else
the oldest."""

_ATTRIBUTE = struct.Struct("=IIQQ")  # struct kvm_device_attr: flags, group, attr, addr
_VFIO_DEVICE = "anon_inode:kvm-vfio"
"""What /proc calls the VFIO device of a VM.  The path of a file begins with a slash."""
_MARKS = 64


class Owner(NamedTuple):
    """A process.  A child is greater than its parent."""

    start: int
    tgid: int


class Vm(NamedTuple):
    """A VM: the process that has made it, and the mark of its VFIO device."""

    owner: Owner
    mark: int


class KvmFiles:
    """Adds files of the lab to the VMs of programs, and takes them away, for the calls that `listener`
    catches.  Any thread, several at once."""

    def __init__(self, listener: SeccompListener, files: LabFiles) -> None:
        self._listener, self._files = listener, files
        self._lock = threading.Lock()
        self._vms: dict[Vm, dict[int, None]] = {}
        """The numbers of the files that each has, in the order of their ADD."""
        self._marked = 0

    def __call__(self, call: TrappedCall) -> int:
        """0.  Raises OSError: EEXIST (ADD of a file that the VM has), ENOENT (DEL of one that it has
        not), EIO (the VM is another process's)."""
        if not _is_vfio_device(f"/proc/{call.tid}/fd/{call.fd}"):
            raise LeftToKernel
        attribute, fd = _asked(call)  # may be held up, and so comes before we hold a file of the caller's
        self._files.require(call, fd)
        with self._files.copy(call, fd) as file:
            number = _number(file)
        with self._files.copy_if(call, call.fd, _is_vfio_device) as device, self._lock:
            _change(self._files_of(call.tid, device), attribute, number)
        return 0

    def _files_of(self, tid: int, device: int) -> dict[int, None]:
        """The files of the VM whose VFIO device this is.  Under the lock.

        KVM answers only the process that has made the VM.  Of two processes that have the descriptor,
        that is the older one, from which the other has inherited it."""
        tgid = procfs.tgid_of(tid)
        vm = Vm(Owner(procfs.start_time(tgid), tgid), fcntl.fcntl(device, fcntl.F_GETSIG))
        if vm.mark and (files := self._vms.get(vm)) is not None:
            return files
        if vm.mark and any(each.mark == vm.mark and each < vm for each in self._vms):
            raise OSError(errno.EIO, "the VM is another process's")
        if not vm.mark:
            vm = Vm(vm.owner, self._marked % _MARKS + 1)
            fcntl.fcntl(device, fcntl.F_SETSIG, vm.mark)
            self._marked += 1
        return self._remember(vm)

    def _remember(self, vm: Vm) -> dict[int, None]:
        """The files, none so far, of a VM.  Under the lock."""
        self._vms.pop(vm, None)
        if len(self._vms) >= MAX_VMS:
            self._vms = {each: files for each, files in self._vms.items() if _lives(each.owner)}
        if len(self._vms) >= MAX_VMS:
            del self._vms[next(iter(self._vms))]
        files = self._vms[vm] = dict[int, None]()
        return files


def _is_vfio_device(file: int | str) -> bool:
    """Whether our descriptor, or a path of /proc, is the VFIO device of a VM.  Asks no file system."""
    path = f"/proc/self/fd/{file}" if isinstance(file, int) else file
    try:
        return os.readlink(path) == _VFIO_DEVICE
    except OSError:
        return False


def _asked(call: TrappedCall) -> tuple[int, int]:
    """Which attribute the caller sets, and the descriptor that it names."""
    caller = Caller(call.tid)
    try:
        _, group, attribute, address = _ATTRIBUTE.unpack(caller.read(call.arg, _ATTRIBUTE.size))
        if group != KVM_DEV_VFIO_FILE or attribute not in (KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL):
            raise LeftToKernel
        return attribute, int.from_bytes(caller.read(address, 4), "little", signed=True)
    except OSError as error:
        if error.errno == errno.EFAULT:
            raise LeftToKernel from None
        raise


def _number(file: int) -> int:
    """The number of an open file of the lab.  Raises LeftToKernel for one that is no group and no device."""
    number = bytearray(8)
    try:
        fcntl.ioctl(file, FILE_NUMBER, number)
    except OSError:  # another file, one opened with O_PATH, or a lab that has ended: KVM does not know it
        raise LeftToKernel from None
    return int.from_bytes(number, "little")


def _change(files: dict[int, None], attribute: int, number: int) -> None:
    """Add a file to those of a VM, or take it away."""
    if attribute == KVM_DEV_VFIO_FILE_DEL:
        if number not in files:
            raise OSError(errno.ENOENT, "the VM does not have this file")
        del files[number]
        return
    if number in files:
        raise OSError(errno.EEXIST, "the VM has this file")
    files[number] = None
    if len(files) > MAX_FILES:
        del files[next(iter(files))]


def _lives(owner: Owner) -> bool:
    try:
        return procfs.start_time(owner.tgid) == owner.start
    except OSError:
        return False
