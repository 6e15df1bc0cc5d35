# SPDX-License-Identifier: Apache-2.0
"""QEMU resets two functions on one bus together, because neither has a reset of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT
from tests.labs import MountedLab, described
from tests.qemu import programs
from tests.qemu.iommufd import Opened
from tests.qemu.machine import Machine, in_lab
from tests.vfio.devices import bound

FIRST, SECOND = "0000:87:00.0", "0000:87:00.1"
LAB = f"""\
[models]
fixed = "{ROOT}/tests/vfio/models/wired.py:Fixed"
""" + "".join(
    f"""
[parents."{name}"]
kind = "gpu"
driver = "host"
model = "fixed"
memory = "1M"
types.own = {{ memory = "1M", description = "mediated", model = "fixed" }}
"""
    for name in (FIRST, SECOND)
)
TRACE = ["-trace", "vfio_pci_hot_reset_result"]
SUCCESS = "hot reset: Success"


@pytest.mark.qemu
@pytest.mark.skipif(
    not needs.has_capability("CAP_IPC_LOCK"),
    reason="a physical function pins all of the guest's memory, which takes CAP_IPC_LOCK",
)
@pytest.mark.parametrize("suite", ["", *programs.NEWER])
def test_qemu_resets_a_bus(tmp_path: Path, suite: str) -> None:
    """It does so before the guest starts. The functions come by groups, or by iommufd in a newer QEMU."""
    with described(tmp_path, LAB) as lab, bound(lab, FIRST, SECOND), machine(lab, suite) as started:
        assert SUCCESS in started.explain(), started.explain()
        assert "hot reset info failed" not in started.explain(), started.explain()


def machine(lab: MountedLab, suite: str) -> Machine:
    """A machine that has both functions, at 00:05.0 and 00:05.1."""
    if not suite:
        first = ["-device", f"vfio-pci,host={FIRST},addr=5.0,multifunction=on"]
        return Machine(in_lab(lab), [*first, "-device", f"vfio-pci,host={SECOND},addr=5.1", *TRACE])
    program, opened = programs.of_suite(suite), Opened(lab)
    devices = opened.physical(FIRST, 5, multifunction="on") + opened.physical(SECOND, 6, addr="5.1")
    return Machine([], [*opened.iommu(), *devices, *TRACE], program=program, descriptors=opened.descriptors)
