# SPDX-License-Identifier: Apache-2.0
"""Functions of the plain model: the keys of a lab file that say what such a function is, and its model.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from devmodel.device.pci import PciDevice
from devmodel.models.plain import PlainBar, PlainSpec, plain_model
from devmodel.pci.fields import Identity
from vfsfuse.labfile.content import read_config, read_content
from vfsfuse.labfile.mistakes import Keys, Mistake, with_remedy
from vfsfuse.labfile.reading import Found, Reading, fields
from vfsfuse.labfile.schema import BAR, NO_SUCH_BAR, PLAIN

NAME = "plain"
"""The name of the model in a lab file."""


def plain(reading: Reading, found: Found, keys: Keys, physical: Identity | None = None) -> type[PciDevice]:
    """The model that the plain keys of a function describe. A virtual function is like its ``physical``
    function where nothing else is said."""
    members: dict[str, Any] = {} if physical is None else _like(physical)
    members |= fields({key: found[key] for key in PLAIN if key in found}, PLAIN)
    if "serial" in found:
        members["serial"] = found["serial"]
    members["bars"] = read_bars(reading, found.get("bars", {}), (*keys, "bars"))
    before = len(reading.mistakes.lines)
    for key, read in (("rom", read_content), ("vpd", read_content), ("config", read_config)):
        if key in found:
            folder = reading.folder((*keys, key))
            with reading.noted():
                members[key] = reading.value(partial(read, folder=folder), found[key], (*keys, key))
    if len(reading.mistakes.lines) > before:
        raise Mistake
    try:
        return plain_model(PlainSpec(**members))
    except ValueError as error:
        reading.fail(keys, with_remedy(str(error), "as the plain model needs it"))


def _like(identity: Identity) -> dict[str, int]:
    return {
        "vendor": identity.vendor,
        "device": identity.device,
        "subsystem_vendor": identity.subsystem_vendor,
        "subsystem_device": identity.subsystem_device,
        "class_code": identity.class_code,
        "revision": identity.revision,
    }


def read_bars(reading: Reading, tables: Mapping[str, object], keys: Keys) -> tuple[PlainBar, ...]:
    """BARs by index."""
    bars = []
    for index, content in tables.items():
        found = reading.table(content, BAR, (*keys, index))
        if index not in ("0", "1", "2", "3", "4", "5"):
            reading.fail((*keys, index), NO_SUCH_BAR)
        bars.append(PlainBar(int(index), **fields(found, BAR)))
    return tuple(bars)
