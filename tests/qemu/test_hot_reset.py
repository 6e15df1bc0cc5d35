# SPDX-License-Identifier: Apache-2.0
"""QEMU resets two functions on one bus together, because neither has a reset of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import needs
from tests.lab import ROOT, described
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
OPTIONS = [
    *("-device", f"vfio-pci,host={FIRST},addr=5.0,multifunction=on"),
    *("-device", f"vfio-pci,host={SECOND},addr=5.1"),
    *("-trace", "vfio_pci_hot_reset_result"),
]
SUCCESS = "hot reset: Success"


@pytest.mark.qemu
@pytest.mark.skipif(
    not needs.has_capability("CAP_IPC_LOCK"),
    reason="a physical function pins all of the guest's memory, which takes CAP_IPC_LOCK",
)
def test_qemu_resets_a_bus(tmp_path: Path) -> None:
    """It does so before the guest starts."""
    with (
        described(tmp_path, LAB) as lab,
        bound(lab, FIRST, SECOND),
        Machine(in_lab(lab), OPTIONS) as machine,
    ):
        assert SUCCESS in machine.explain(), machine.explain()
        assert "hot reset info failed" not in machine.explain(), machine.explain()
