# SPDX-License-Identifier: Apache-2.0
"""The test file that docs/models.md shows: it passes beside its model, and fails without DMA."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.commands import ROOT


def shown() -> str:
    """The test file of "Testing a model"."""
    section = (ROOT / "docs/models.md").read_text(encoding="utf-8").partition("\n## Testing a model\n")[2]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return str(code)


def pytest_of(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_copier.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_shown_test_passes_and_can_fail(tmp_path: Path) -> None:
    (tmp_path / "test_copier.py").write_text(shown(), encoding="utf-8")
    shutil.copy(ROOT / "examples/copier.py", tmp_path)
    done = pytest_of(tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("2 passed"), done.stdout
    model = (tmp_path / "copier.py").read_text(encoding="utf-8")
    broken = model.replace("await self.dma.read(source, size)", "await self.dma.red(source, size)")
    assert broken != model
    (tmp_path / "copier.py").write_text(broken, encoding="utf-8")
    done = pytest_of(tmp_path)
    assert "2 failed" in done.stdout and done.returncode == 1
    assert "ModelFailed: a task of a device failed: AttributeError: 'DmaPort' object has no" in done.stdout
