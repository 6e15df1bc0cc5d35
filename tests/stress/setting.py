# SPDX-License-Identifier: Apache-2.0
"""What all campaigns of a run share: the seed, how much there is to do, who runs it, and which build."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTED_SECONDS = 1200
"""The length of the run that docs/robustness.md quotes. Half of it is the soak."""


@dataclass(frozen=True)
class Setting:
    """One run of `./tests/stress.sh`."""

    folder: Path
    seed: int
    seconds: float
    tree: Path
    """Where the packages of the server are: the checkout, or the sanitized build."""
    sanitized: dict[str, str] | None = None
    """Environment of a server with sanitizers."""

    @property
    def root(self) -> bool:
        return os.geteuid() == 0

    @property
    def vfsfuse(self) -> list[str]:
        return [sys.executable, "-P", "-m", "vfsfuse"]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.tree), **(self.sanitized or {})}

    def run(self, mount: Path) -> list[str]:
        """The command that runs a program in the lab at `mount`. The campaigns read the lab's log."""
        return [*self.vfsfuse, "run", "--quiet", "--mount", str(mount), "--"]

    def ordinary(self) -> list[str]:
        """The command that runs a program as an ordinary user; empty if this process is one."""
        return [sys.executable, "-m", "tests.ordinary_user"] if self.root else []

    def share(self, documented: int, least: int = 1) -> int:
        """How much of what the documented run does this one does."""
        return max(round(documented * self.seconds / DOCUMENTED_SECONDS), least)

    def random(self, name: str) -> Random:
        """Random numbers of a campaign, or of a part of it."""
        return Random(f"{self.seed}/{name}")
