# SPDX-License-Identifier: Apache-2.0
"""What the kernel asks with capable(): whether the thread that made a request has a capability.  Any
thread."""

from __future__ import annotations

CAP_SYS_RAWIO = 17


def has_capability(tid: int, capability: int) -> bool:
    """Whether `capability` is in the effective set of thread `tid`; one that has ended has none."""
    try:
        with open(f"/proc/{tid}/status", "rb") as status:
            effective = next(line for line in status if line.startswith(b"CapEff:"))
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        return False
    return bool(int(effective.split()[1], 16) >> capability & 1)
