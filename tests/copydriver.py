# SPDX-License-Identifier: Apache-2.0
"""The driver of the examples, examples/driver/copy.c, compiled, also with other words."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.commands import ROOT

SOURCE = ROOT / "examples/driver/copy.c"


def compiled(folder: Path, *edits: tuple[str, str]) -> Path:
    """The program `copy` in `folder`.  An edit replaces words that are in the source once by others."""
    text = SOURCE.read_text(encoding="utf-8")
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "copy.c").write_text(text, encoding="utf-8")
    subprocess.run(["gcc", "-o", folder / "copy", folder / "copy.c"], check=True)
    return folder / "copy"
