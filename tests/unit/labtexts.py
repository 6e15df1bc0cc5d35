# SPDX-License-Identifier: Apache-2.0
"""Texts of lab files in tests, and the errors of wrong ones."""

from collections.abc import Callable, Sequence

import pytest

from devmodel.lifecycle.spec import LabSpec
from vfsfuse.labfile.reader import LabFileError

Load = Callable[[str], LabSpec]


def errors_of(load_text: Load, text: str) -> Sequence[str]:
    """The lines of the error that this text is."""
    with pytest.raises(LabFileError) as caught:
        load_text(text)
    return caught.value.lines


def check_error(load_text: Load, text: str, key: str, why: str) -> None:
    """The first error of the text is of this key, with this reason, and it ends with a remedy."""
    line = errors_of(load_text, text)[0]
    assert f"/my.toml: {key}: " in line and why in line and line.endswith(")")
