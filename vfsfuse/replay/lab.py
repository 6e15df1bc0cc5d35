# SPDX-License-Identifier: Apache-2.0
"""The lab file in which the devices of a recording are: under the names that they had.  State: none.

docs/lab.md has the keys.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from devmodel.pci.regs import Reg
from vfsfuse.recording.recording import RecordedDevice, Recording
from vfsfuse.toml import document

PARENT = "replay"


def lab_file(recording: Recording, path: str) -> str:
    """The text of the lab file for the recording at `path`.  PCI functions are vfio-pci's from the start, and
    mediated devices are there."""
    whole = os.path.abspath(path)
    functions = [device for device in recording.devices if not device.is_mediated]
    mediated = [device for device in recording.devices if device.is_mediated]
    tables: dict[str, object] = {}
    if functions:
        ids = ",".join(sorted(set(map(_ids, functions))))
        tables["modules"] = {"vfio_pci": {"ids": ids}}
        tables["functions"] = {device.name: _function(device, whole) for device in functions}
    if mediated:
        tables["parents"] = {PARENT: _parent(mediated, whole)}
        tables["vgpus"] = [
            {"parent": PARENT, "type": _type(number), "uuid": device.name, **_group(device)}
            for number, device in enumerate(mediated)
        ]
    return document(tables)


def _function(device: RecordedDevice, path: str) -> dict[str, object]:
    return {**_replayed(device, path), **_group(device)}


def _group(device: RecordedDevice) -> dict[str, object]:
    return {} if device.group is None else {"group": device.group}


def _parent(devices: Sequence[RecordedDevice], path: str) -> dict[str, object]:
    types = {
        _type(number): {"description": "a device of a recording", **_replayed(device, path)}
        for number, device in enumerate(devices)
    }
    return {"kind": "virtual", "driver": PARENT, "slots": len(devices), "types": types}


def _type(number: int) -> str:
    return f"{PARENT}-{number + 1}"


def _replayed(device: RecordedDevice, path: str) -> dict[str, object]:
    return {"model": "replay", "recording": path, "recorded": device.name}


def _ids(device: RecordedDevice) -> str:
    """What vfio-pci takes it by."""
    vendor, number = (device.config[at : at + 2] for at in (Reg.VENDOR_ID, Reg.DEVICE_ID))
    return f"{int.from_bytes(vendor, 'little'):04x}:{int.from_bytes(number, 'little'):04x}"
