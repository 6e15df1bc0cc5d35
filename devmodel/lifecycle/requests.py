# SPDX-License-Identifier: Apache-2.0
"""The lines that create and destroy vGPUs, parsed strictly: UUID, instance, type, resources.

State: none. Source: the vGPU RFC of 2016 (``vgpu_create``: "uuid:instance:type", ``vgpu_destroy``:
"uuid:instance"). Every error is ValueError, which an attribute answers with EINVAL.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple
from uuid import UUID

from devmodel.lifecycle.spec import PATH_NAME
from devmodel.uuids import parse_uuid_field

MAX_INSTANCE = 2**31 - 1

_INSTANCE = re.compile(r"[0-9]{1,10}", re.ASCII)
_OVERRIDE = re.compile(r"([a-z_]{1,32})=([0-9A-Za-z]{1,32})", re.ASCII)


class CreateLine(NamedTuple):
    """What a ``vgpu_create`` line asks for."""

    uuid: UUID
    instance: int
    type_name: str
    overrides: Mapping[str, str]
    """Resources of which it gets more or less than its type gives, as the line spells them: texts by key of
    :data:`devmodel.lifecycle.resources.OVERRIDES`."""


class DestroyLine(NamedTuple):
    """What a ``vgpu_destroy`` line names."""

    uuid: UUID
    instance: int


def parse_create_line(text: str) -> CreateLine:
    """Parse "uuid:instance:type", which ",key=value" may follow, each key once."""
    uuid, instance, what = _fields(text, 3, "uuid:instance:type")
    type_name, *rest = what.split(",")
    overrides = dict(map(_parse_override, rest))
    if len(overrides) < len(rest):
        raise ValueError(f"a resource is given twice: {what!r}")
    type_name = _match(PATH_NAME, type_name, "a type")
    return CreateLine(parse_uuid_field(uuid), _parse_instance(instance), type_name, overrides)


def parse_destroy_line(text: str) -> DestroyLine:
    """Parse "uuid:instance"."""
    uuid, instance = _fields(text, 2, "uuid:instance")
    return DestroyLine(parse_uuid_field(uuid), _parse_instance(instance))


def _fields(text: str, count: int, form: str) -> list[str]:
    fields = text.removesuffix("\n").split(":")
    if len(fields) != count:
        raise ValueError(f"not of the form {form}: {text!r}")
    return fields


def _parse_instance(text: str) -> int:
    instance = int(_match(_INSTANCE, text, "an instance"))
    if instance > MAX_INSTANCE:
        raise ValueError(f"instance {instance} is above {MAX_INSTANCE}")
    return instance


def _parse_override(text: str) -> tuple[str, str]:
    found = _OVERRIDE.fullmatch(text)
    if found is None:
        raise ValueError(f"not of the form key=value: {text!r}")
    return found[1], found[2]


def _match(pattern: re.Pattern[str], text: str, what: str) -> str:
    if pattern.fullmatch(text) is None:
        raise ValueError(f"not {what}: {text!r}")
    return text
