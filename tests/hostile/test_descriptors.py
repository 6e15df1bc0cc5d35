# SPDX-License-Identifier: Apache-2.0
"""A descriptor of a file that answers nothing, wherever VFIO takes one."""

from __future__ import annotations

import pytest

from tests.hostile.conftest import Lab, Place

HOSTILE = {
    "trigger of INTx": (["set-irqs", "-i", "0"], "EINVAL"),
    "trigger of MSI": (["set-irqs", "-i", "1"], "EINVAL"),
    "trigger of MSI-X": (["set-irqs", "-i", "2"], "EINVAL"),
}


@pytest.mark.parametrize("row", HOSTILE)
def test_hostile_descriptor(hostile_lab: Lab, vgpu: Place, row: str) -> None:
    (call, *options), outcome = HOSTILE[row]
    hostile_lab.check(hostile_lab.hostile(vgpu, call, *options), outcome)
