# SPDX-License-Identifier: Apache-2.0
"""DMA of a vGPU's engine to memory that waits when it is touched.

The engine takes its turn away from such a vGPU after engine_timeout_ms, so its commands may fail.
"""

from __future__ import annotations

import pytest

from tests.hostile.conftest import Lab, Place

ENDS = {
    "dma-read": ["0", "EFAULT"],
    "dma-write": ["0", "EFAULT"],
    "dma-map": ["0"],
    "dma-unmap": ["0", "EBUSY"],
    "dma-reset": ["0"],
    "dma-close": ["0"],
}
"""Calls while a DMA is held, and how they may end.  An unmap waits for DMA under way, two seconds at most."""
MEMORY = [
    ("dma-read", "private"),
    ("dma-read", "userfault"),
    ("dma-read", "locked"),
    ("dma-write", "stored"),
    ("dma-write", "shared"),
    *((call, "shared") for call in ENDS if call not in ("dma-read", "dma-write")),
]


@pytest.mark.parametrize("run", [True, False], ids=["container", "IOAS"])
@pytest.mark.parametrize(("call", "memory"), MEMORY)
def test_dma_that_waits(hostile_lab: Lab, vgpu: Place, call: str, memory: str, run: bool) -> None:
    client = hostile_lab.hostile(vgpu, call, "-m", memory, run=run)
    hostile_lab.check(client, *ENDS[call])
