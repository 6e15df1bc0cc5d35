# SPDX-License-Identifier: Apache-2.0
"""Processes that are held at a place of their own choice, after they have mapped memory into a container that
another process uses."""

from __future__ import annotations

import pytest

from tests.hostile.conftest import Lab, Place

STATES = {"exec": "EFAULT", "exit": "EFAULT", "stop": "0", "vfork": "0"}
"""What DMA gives to the memory of a process that calls exec or exits while the close of a descriptor of it is
held, that is stopped, that waits for its vfork child."""


@pytest.mark.parametrize("state", STATES)
def test_the_container_of_a_process_that_is_held(hostile_lab: Lab, vgpu: Place, state: str) -> None:
    client = hostile_lab.check(hostile_lab.hostile(vgpu, state, run=True), "0")
    assert client.said == ["info 0", f"dma {STATES[state]}", "map 0"]
