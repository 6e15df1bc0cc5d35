# SPDX-License-Identifier: Apache-2.0
"""Fixtures of tests without a mount."""

from pathlib import Path

import pytest

from devmodel.lifecycle.spec import LabSpec
from tests.unit.labtexts import Load
from vfsfuse.labfile.reader import load


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    """Reads a text as the lab file my.toml."""

    def load_text(text: str) -> LabSpec:
        (tmp_path / "my.toml").write_text(text, encoding="utf-8")
        return load(tmp_path / "my.toml")

    return load_text
