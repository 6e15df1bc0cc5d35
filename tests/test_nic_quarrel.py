# SPDX-License-Identifier: Apache-2.0
"""Everybody writes at once: virtual functions come, late or not, drivers leave, cards are removed, and others
look.  Each store ends as it may, and nothing is left over."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests import nic
from tests.commands import one_write
from tests.labs import MountedLab, described
from tests.nic import CARD, LATE, function
from tests.snapshot import snapshot, walk
from tests.waiting import comes_to

SECONDS = 4.0
MANY = 100
"""So much has to be done, however long it takes on a busy machine."""
HARMLESS = {
    errno.ENOENT,
    errno.ENODEV,
    errno.EBUSY,
    errno.EOPNOTSUPP,
    errno.ENOSPC,
    errno.ESTALE,
    errno.EINVAL,
}
"""What a store or a look may end with: what it is about is going, gone or in use, or there is no room."""


class Quarrel:
    """The lab, the end of the quarrel, and what nobody should see."""

    def __init__(self, lab: MountedLab) -> None:
        self.lab, self.end = lab, time.monotonic() + SECONDS
        self.wrong: list[str] = []
        self.done = 0

    def attempt(self, call: Callable[[], object]) -> None:
        try:
            call()
            self.done += 1
        except OSError as error:
            if error.errno not in HARMLESS:
                self.wrong.append(repr(error))

    def store(self, path: Path, text: str) -> None:
        self.attempt(lambda: one_write(path, text))

    def enables(self, name: str, most: int) -> None:
        self.store(function(self.lab, name) / "sriov_numvfs", str(random.choice([0, 0, 1, 2, most])))
        time.sleep(random.random() * 0.05)

    def takes_driver(self, name: str, driver: str) -> None:
        own = self.lab.path / "sys/bus/pci/drivers" / driver
        time.sleep(random.random() * 0.3)
        self.store(own / "unbind", name)
        self.store(own / "bind", name)

    def removes(self) -> None:
        time.sleep(random.random() * 0.5)
        self.store(function(self.lab, random.choice([CARD, LATE])) / "remove", "1")
        self.store(self.lab.path / "sys/bus/pci/rescan", "1")

    def binds_virtual(self) -> None:
        for name in os.listdir(self.lab.path / "sys/bus/pci/devices"):
            own = function(self.lab, name)
            if (own / "physfn").is_symlink():
                self.store(own / "driver/unbind", name)
                self.store(own / "driver_override", random.choice(["vfio-pci", "\n"]))
                self.store(own / "sriov_vf_msix_count", str(random.randint(0, 12)))
                self.store(self.lab.path / "sys/bus/pci/drivers_probe", name)

    def looks_at_interfaces(self) -> None:
        for name in os.listdir(self.lab.path / "sys/class/net"):
            own = self.lab.path / "sys/class/net" / name
            for each in ("address", "operstate", "uevent", "statistics/rx_bytes", "device/vendor"):
                if name != "lo" or "vendor" not in each:
                    self.attempt((own / each).read_text)

    def looks_around(self) -> None:
        self.attempt(lambda: list(walk(self.lab.path / "sys/devices")))

    def go_on(self, step: Callable[[], None]) -> None:
        while time.monotonic() < self.end or not (self.wrong or self.done > MANY):
            step()


def shown(lab: MountedLab) -> dict[str, str]:
    """What the lab shows, but for numbers that depend on who came first: of interfaces and of groups."""
    return {
        path: text
        for path, text in snapshot(lab.path).items()
        if not ("/net/" in path and path.endswith(("ifindex", "iflink", "uevent")))
        and not path.endswith("/iommu_group")
        and "/iommu_groups/" not in path
    }


def test_nothing_is_left_over(tmp_path: Path) -> None:
    with described(tmp_path, nic.LAB.replace(f"delay = {nic.DELAY}", "delay = 0.02")) as lab:
        before, quarrel = shown(lab), Quarrel(lab)
        steps: list[Callable[[], None]] = [
            lambda: quarrel.enables(CARD, 8),
            lambda: quarrel.enables(LATE, 4),
            lambda: quarrel.takes_driver(CARD, "ice"),
            lambda: quarrel.takes_driver(LATE, "mlx5_core"),
            quarrel.removes,
            quarrel.binds_virtual,
            quarrel.looks_at_interfaces,
            quarrel.looks_around,
        ]
        threads = [threading.Thread(target=quarrel.go_on, args=(step,)) for step in steps]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert quarrel.wrong == []
        (lab.path / "sys/bus/pci/rescan").write_text("1")
        for name, driver in ((CARD, "ice"), (LATE, "mlx5_core")):
            if nic.driver_of(function(lab, name)) is None:
                (lab.path / "sys/bus/pci/drivers" / driver / "bind").write_text(name)
            nic.enable(lab, 0, name)
        comes_to(lambda: shown(lab), before)
