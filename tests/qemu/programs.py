# SPDX-License-Identifier: Apache-2.0
"""Which QEMU a test runs: this system's own, or that of a newer Debian, which tests/qemu/newer.sh gets."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

SYSTEM = "qemu-system-x86_64"
NEWER = ("trixie", "forky")
"""The suites of Debian whose QEMU (10 and 11) knows iommufd."""
CACHE = Path(__file__).parent / ".cache"


def system() -> str:
    """This system's QEMU; the test is skipped when there is none."""
    if shutil.which(SYSTEM) is None:
        pytest.skip(f"{SYSTEM} is missing: apt-get install qemu-system-x86")
    return SYSTEM


def of_suite(suite: str) -> str:
    """The QEMU of a suite of Debian; the test is skipped when it cannot be had, with the reason."""
    if platform.freedesktop_os_release().get("VERSION_CODENAME") == suite:
        return system()
    program, reason = CACHE / f"qemu-{suite}/run", CACHE / f"qemu-{suite}.why"
    if program.exists():
        return str(program)
    why = reason.read_text().strip() if reason.exists() else "run tests/qemu/newer.sh"
    pytest.skip(f"the QEMU of Debian's {suite} is not here: {why}")
