# SPDX-License-Identifier: Apache-2.0
"""TOML that is written is read again as what it was."""

from __future__ import annotations

import math
import tomllib
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsfuse.toml import document, quoted

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner))


@given(st.dictionaries(TEXTS, VALUES))
def test_a_table_is_read_again(table: dict[str, object]) -> None:
    assert tomllib.loads(document(table)) == table


def test_what_python_has_besides() -> None:
    said = tomllib.loads(document({"a": PurePosixPath("b/c"), "d": (1, [2]), "e": math.nan}))
    assert (said["a"], said["d"]) == ("b/c", [1, [2]]) and math.isnan(said["e"])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"a": None}, "a: a lab file cannot have the NoneType None"),
        ({"a": {"b": [b"c"]}}, "a.b: a lab file cannot have the bytes b'c'"),
        ({"a": {1: 2}}, "a: a key of a lab file is a text, not 1"),
    ],
)
def test_what_toml_has_not(table: dict[str, object], said: str) -> None:
    with pytest.raises(TypeError) as caught:
        document(table)
    assert str(caught.value) == said


def test_a_text_is_one_line() -> None:
    assert quoted('a"b\\\n\t\x00\x7f') == '"a\\"b\\\\\\n\\t\\u0000\\u007f"'
