# SPDX-License-Identifier: Apache-2.0
"""The model "replay" of a lab file: a device of a recording.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`.
"""

import os

from devmodel.device.pci import PciDevice
from vfsfuse.labfile.mistakes import Keys, with_remedy
from vfsfuse.labfile.reading import Found, Reading
from vfsfuse.labfile.schema import PLAIN, REPLAY

NAME = "replay"
"""The name of the model in a lab file."""


def replay(reading: Reading, found: Found, keys: Keys, name: str = "") -> type[PciDevice]:
    """The model that plays a device of a recording: the one that is named, or the only one, or the one with
    this ``name``."""
    for key in PLAIN:
        if key in found:
            reading.note((*keys, key), "is what the recording says (leave it out)")
    if "recording" not in found:
        reading.fail((*keys, "recording"), "is missing (give the path of a recording)")
    from vfsfuse.replay.model import replay_model  # few labs need it
    from vfsfuse.replay.replayed import load

    where = (*keys, "recording")
    path = os.path.join(reading.folder(where), found["recording"])
    try:
        played = load(path)
        there = [device.name for device in played.recording.devices]
        wanted = found.get("recorded", name if name in there else "")
        return replay_model(played.device(wanted))
    except ValueError as error:
        reading.fail(where, with_remedy(str(error), "vfsfuse record makes a recording"))


def check_not_replay(reading: Reading, found: Found, keys: Keys) -> None:
    """Note the keys of the model "replay" in a table of another model."""
    for key in REPLAY:
        if key in found:
            reading.note((*keys, key), f'is for the model "{NAME}" (leave it out)')
