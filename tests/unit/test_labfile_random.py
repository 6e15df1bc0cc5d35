# SPDX-License-Identifier: Apache-2.0
"""Random lab files: whatever they say, each error is a line with file, key and remedy, and the JSON schema
takes every file that the reader takes."""

import json
import re
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import needs
from tests.unit.test_labfile_schema import SAMPLES
from tools import lab_schema
from vfsfuse.labfile.reader import LabFileError, read
from vfsfuse.labfile.schema import LAB, Key, Schema
from vfsfuse.labfile.source import Source

FILE = Path("/lab/my.toml")
LINE = re.compile(rf"{FILE}: [^\n]+: [^\n]+\([^\n]+\)|{FILE}: has \d+ more errors .*")
NAMES = [
    "0000:65:00.0",
    "0000:65:00.{0-3}",
    "0000:66:{00-01}.0",
    "0000:80",
    "0",
    "1",
    "5",
    "card",
    "a b",
    "vfio",
]
RIGHT: dict[str, list[object]] = {
    "kind": ["gpu", "virtual", "mem64", "io"],
    "driver": ["vgpu", "mtty", "ice"],
    "model": ["plain", "gpu", "vgpu", "mtty"],
    "memory": ["16M", "64M", 1 << 20],
    "size": ["4K", "16M", 128],
    "description": ["a line"],
    "capabilities": [["express"], ["pm", "msi:4", "express", "aer"], ["msix:8"]],
    "vfs": [1, 2, 8],
    "parent": [*NAMES],
    "type": ["card", 5],
    "uuid": ["11111111-2222-3333-4444-555555555555"],
    "bridge": ["root-port", "pci", "switch-upstream"],
    "secondary": [0x10, 0x66],
}
"""Values that are right for many keys, so that what is behind them is read too."""


def value_of(name: str, key: Key) -> st.SearchStrategy[object]:
    """Values of a key, right ones and wrong ones."""
    wrong = st.sampled_from(SAMPLES)
    if key.table is not None:
        return table_of(key.table)
    if key.each is not None:
        each = table_of(key.each)
        if key.kind.json["type"] == "array":
            return st.lists(each, max_size=2)
        right_names = [name for name in NAMES if re.search(key.names, name)]
        return st.dictionaries(st.sampled_from(right_names or NAMES), each, max_size=2)
    right = st.sampled_from(RIGHT.get(name) or _right(key))
    return st.integers(0, 15).flatmap(lambda number: right if number else wrong)


def _right(key: Key) -> list[object]:
    """The samples that a key takes, all of them if it takes none."""
    found = []
    for sample in SAMPLES:
        with suppress(ValueError):
            key.kind.read(sample)
            found.append(sample)
    return found or SAMPLES


def table_of(schema: Schema) -> st.SearchStrategy[dict[str, object]]:
    """Tables with some of the keys, and those that are required as a rule."""
    required = {name: value_of(name, key) for name, key in schema.items() if key.required}
    optional = {name: value_of(name, key) for name, key in schema.items() if not key.required}
    some = st.lists(st.sampled_from(sorted(optional)), max_size=4, unique=True)
    return some.flatmap(
        lambda names: st.fixed_dictionaries({**required, **{name: optional[name] for name in names}})
    )


LABS = table_of({name: key for name, key in LAB.items() if name != "include"})


@cache
def validator() -> Any:
    schema = json.loads(lab_schema.PATH.read_text(encoding="utf-8"))
    return import_module("jsonschema").Draft7Validator(schema)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=LABS)
def test_random_lab_files(content: dict[str, object]) -> None:
    needs.module("jsonschema")
    try:
        read(Source(FILE, json.loads(json.dumps(content))))
    except LabFileError as error:
        for line in error.lines:
            assert LINE.fullmatch(line), line
    else:
        validator().validate(content)
