# SPDX-License-Identifier: Apache-2.0
"""Writers, drivers and clients quarrel about virtual functions; in the end everything is given back."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.commands import one_write
from tests.iommufd.bound import open_bound
from tests.nvidia.host import ALL, SLOT, SLOTS, Host, Vf, host_of
from tests.vfio.devices import opened
from tests.waiting import settled

SECONDS = 6
MOST_SECONDS = 60
"""How long it goes on at most until each deed was done without a hindrance: on a busy machine, longer."""
EXPECTED = {
    *(errno.EBUSY, errno.EPERM, errno.ENODEV, errno.ENOENT, errno.EINVAL, errno.ENXIO),
    *(errno.ESTALE, errno.ENODATA),
}
"""What a change or an open may be answered with while others change the same."""


def retype(vf: Vf, chance: random.Random) -> None:
    vf.set(chance.choice((0, 0, 14, 24, 11)))


def use_by_file(vf: Vf, chance: random.Random) -> None:
    fd = open_bound(vf.cdev)
    try:
        mark = chance.randbytes(8)
        os.pwrite(fd, mark, 4096)
        assert os.pread(fd, 8, 4096) == mark and os.pread(fd, 2, 7 << 40) == b"\x34\x12"
    finally:
        os.close(fd)


def use_by_group(vf: Vf, chance: random.Random) -> None:
    with opened(vf.host.lab, vf.group, vf.name) as device:
        os.pwrite(device.device.fd, chance.randbytes(8), 8192)
        assert len(os.pread(device.device.fd, 64, 7 << 40)) == 64


def rebind(vf: Vf, chance: random.Random) -> None:
    vf.host.unbind(vf.name)
    vf.host.bind(vf.name)


def look(vf: Vf, chance: random.Random) -> None:
    for folder in (vf.path, vf.nvidia, vf.path / "vgpu"):
        for name in os.listdir(folder):
            if (folder / name).is_file() and not name.startswith("resource"):
                with contextlib.suppress(PermissionError):
                    (folder / name).read_bytes()


DEEDS: tuple[Callable[[Vf, random.Random], None], ...] = (retype, use_by_file, use_by_group, rebind, look)


def test_everything_is_given_back(tmp_path: Path) -> None:
    with host_of(tmp_path, count=3) as host:
        vfs = [host.vf(index) for index in range(3)]
        wrong: list[BaseException] = []
        end = time.monotonic() + SECONDS
        latest = end + MOST_SECONDS
        done = [0] * len(DEEDS)

        def work(number: int) -> None:
            chance, deed = random.Random(number), number % len(DEEDS)
            while not wrong and (time.monotonic() < end or not (all(done) or time.monotonic() > latest)):
                try:
                    DEEDS[deed](chance.choice(vfs), chance)
                    done[deed] += 1
                except OSError as error:
                    no_room = error.errno == errno.EIO and DEEDS[deed] is retype
                    if error.errno not in EXPECTED and not no_room:
                        wrong.append(error)
                except ValueError:
                    pass  # the one name that was to be in vfio-dev has gone
                except BaseException as error:
                    wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2 * len(DEEDS))]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        if wrong:  # with its traceback, which names the deed
            raise wrong[0]
        assert all(done)
        check_whole(host, vfs)


def check_whole(host: Host, vfs: list[Vf]) -> None:
    """All is as at the start, and works."""
    for vf in vfs:
        if not (vf.path / "driver").exists():
            host.bind(vf.name)
        if settled(lambda vf=vf: vf.type):  # type: ignore[misc]  # a lambda with a default
            vf.set(0)
    assert (host.vgpus, host.free) == (0, SLOTS * SLOT)
    assert {vf.creatable for vf in vfs} == {ALL}
    for vf in vfs:
        with vf.typed(14):
            os.close(open_bound(vf.cdev))
            settled(lambda vf=vf: vf.type)  # type: ignore[misc]  # a lambda with a default
    one_write(host.pf / "sriov_numvfs", "0")
