# SPDX-License-Identifier: Apache-2.0
"""The JSON schemas of what commands print, and the check of an object by one."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from tests import needs
from tests.commands import ROOT


def checked(printed: str, name: str) -> dict[str, Any]:
    """The JSON object in `printed`, which is as the schema `name` of vfsfuse/monitor says.  The schema says
    everything: the object has no other keys."""
    needs.module("jsonschema")
    schema = json.loads((ROOT / f"vfsfuse/monitor/{name}.schema.json").read_text())
    validator = import_module("jsonschema").Draft202012Validator
    validator.check_schema(schema)
    found: dict[str, Any] = json.loads(printed)
    validator(_closed(schema)).validate(found)
    return found


def _closed(schema: Any) -> Any:
    """The schema, by which objects have only the keys that it names."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    return {**closed, "additionalProperties": False} if isinstance(schema.get("properties"), dict) else closed
