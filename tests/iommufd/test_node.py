# SPDX-License-Identifier: Apache-2.0
"""dev/iommu as a file: what it does besides iommufd's ioctls."""

from __future__ import annotations

import errno
import mmap
import os
import select
import sys

from tests import needs
from tests.commands import vfsfuse
from tests.iommufd.client import Destroy, Iommufd
from tests.labs import MountedLab
from tests.vfio.client import PAGE, Memory, fails, ioctl

USE = """\
from tests.iommufd.client import Iommufd
with Iommufd("/") as iommufd:
    try:
        iommufd.destroy(1)
    except OSError as error:
        print(error.errno)
"""


def test_a_read_and_a_write_fail(iommufd: Iommufd) -> None:
    fails(errno.EINVAL, os.read, iommufd.fd, 1)
    fails(errno.EINVAL, os.pread, iommufd.fd, 1, 0)
    fails(errno.EINVAL, os.write, iommufd.fd, b"0")


@needs.passthrough
def test_a_mapping_fails(iommufd: Iommufd) -> None:
    for private in (False, True):
        fails(errno.ENODEV, Memory, PAGE, iommufd.fd, private=private, prot=mmap.PROT_READ)


def test_it_is_always_ready(iommufd: Iommufd) -> None:
    poll = select.poll()
    every = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
    poll.register(iommufd.fd, every | select.POLLPRI)
    assert poll.poll(0) == [(iommufd.fd, every)]


def test_unknown_numbers_are_enotty(iommufd: Iommufd) -> None:
    known = {ord(";") << 8 | nr for nr in (*range(0x80, 0x96), *range(100, 103), *range(112, 115))}
    for number in {ord(";") << 8 | nr for nr in range(256)} - known:
        fails(errno.ENOTTY, ioctl, iommufd.fd, number, 0)
    for kind in (0, ord(":"), 0xFF):  # the size is read before the rest of the number is looked at
        number = kind << 8 | Destroy.cmd() & 0xFF
        fails(errno.EFAULT, ioctl, iommufd.fd, number, 0)
        fails(errno.ENOTTY, ioctl, iommufd.fd, number, Destroy())
    for direction in (1, 2, 3):  # iommufd's numbers have neither a size nor a direction
        fails(errno.ENOTTY, ioctl, iommufd.fd, direction << 30 | 8 << 16 | Destroy.cmd(), Destroy())


def test_run_shows_it_in_dev(lab: MountedLab) -> None:
    command = ("run", "--mount", lab.path, "--", sys.executable, "-c", USE)
    done = vfsfuse(*command)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{errno.ENOENT}\n", "")
