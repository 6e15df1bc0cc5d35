# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.lab_schema`: write vfsfuse/labfile/lab.schema.json, the JSON schema of lab files for
editors, from the declarations of vfsfuse/labfile/schema.py.  tests/unit/test_labfile_schema.py keeps it true.

It is of draft 7, which editors of TOML know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vfsfuse.labfile import schema as declared
from vfsfuse.labfile.schema import LAB, Key, Schema

PATH = Path(declared.__file__).with_name("lab.schema.json")
DRAFT = "http://json-schema.org/draft-07/schema#"
Json = dict[str, Any]

_NAMES = {id(value): name.lower() for name, value in vars(declared).items() if name.isupper()}


def document() -> Json:
    """The JSON schema of a lab file.  A file that includes others may leave any key to them."""
    tables = {_NAMES[id(table)]: _object(table) for table in _below(LAB)}
    return {
        "$schema": DRAFT,
        "title": "A lab file of vfsfuse",
        **_object(LAB),
        "if": {"not": {"required": ["include"]}},
        "then": _required(LAB) or {},
        "definitions": dict(sorted(tables.items())),
    }


def text() -> str:
    """The file's content."""
    return json.dumps(document(), indent=1) + "\n"


def _below(table: Schema) -> Iterator[Schema]:
    """The tables within one, each as often as it is named."""
    for key in table.values():
        for below in (key.table, key.each):
            if below is not None:
                yield below
                yield from _below(below)


def _object(table: Schema) -> Json:
    """A table with these keys."""
    properties = {name: _value(key) for name, key in table.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _value(key: Key) -> Json:
    """The value of a key."""
    if key.table is not None:
        return {"description": key.doc, "allOf": [_reference(key.table)]}
    if key.each is None:
        return {"description": key.doc, **key.kind.json}
    each = _reference(key.each)
    if key.kind.json["type"] == "array":
        return {"description": key.doc, "type": "array", "items": each}
    names = {"patternProperties": {key.names: each}, "additionalProperties": False}
    return {"description": key.doc, "type": "object", **names}


def _reference(table: Schema) -> Json:
    return {"$ref": f"#/definitions/{_NAMES[id(table)]}"}


def _required(table: Schema) -> Json:
    """The keys that a file without includes must have, in all tables.  Empty without one."""
    required = [name for name, key in table.items() if key.required]
    made: Json = {"required": required} if required else {}
    inner: Json = {}
    for name, key in table.items():
        if key.table is not None:
            inner[name] = _required(key.table)
        elif key.each is not None:
            rest = "items" if key.kind.json["type"] == "array" else "additionalProperties"
            below = _required(key.each)
            inner[name] = {rest: below} if below else {}
    inner = {name: each for name, each in inner.items() if each}
    return {**made, "properties": inner} if inner else made


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
