# SPDX-License-Identifier: Apache-2.0
"""The model "replay" of a lab file: which device it is, and what is wrong in its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from devmodel.device.pci import PciDevice
from vfsfuse.labfile.reader import LabFileError, load
from vfsfuse.recording.recording import (
    Event,
    Irq,
    RecordedDevice,
    Recording,
    Region,
)
from vfsfuse.recording.writing import write
from vfsfuse.replay.lab import lab_file
from vfsfuse.replay.model import ReplayDevice

ADDRESS, OTHER = "0000:05:00.0", "0000:05:00.1"
UUIDS = ("6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01", "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e02")
HEADER = bytes.fromhex("341200c000000000 0100 8800 00000000 00000000 00000000")


def device(name: str, **more: object) -> RecordedDevice:
    """A function with a BAR of ports, INTx and a ROM."""
    config = bytearray(HEADER.ljust(256, b"\0"))
    config[0x10] = 1
    config[0x3D] = 1
    regions = [Region(0, 32, 3), Region(6, 2048, 1), Region(7, 256, 3)]
    made = RecordedDevice(
        name,
        flags=3,
        num_regions=9,
        num_irqs=5,
        regions={region.index: region for region in regions},
        irqs={0: Irq(0, 1, 7)},
        config=bytes(config),
    )
    for key, value in more.items():
        setattr(made, key, value)
    return made


def file(folder: Path, *devices: RecordedDevice) -> Path:
    """A recording, x.rec."""
    rom = Event(0, 0, "read", region=6, offset=0, size=4, data=b"\x55\xaa\1\2")
    recording = Recording(devices=list(devices), events=[rom])
    write(recording, folder / "x.rec")
    return folder / "x.rec"


def text(folder: Path, content: str) -> Path:
    path = folder / "lab.toml"
    path.write_text(content)
    return path


def function(folder: Path, *keys: str, address: str = ADDRESS) -> type[PciDevice]:
    """The model of a function with these keys."""
    lines = [f'[functions."{address}"]', 'model = "replay"', *keys]
    (spec,) = load(text(folder, "\n".join(lines))).functions
    assert spec.model is not None
    return spec.model


def errors(folder: Path, *keys: str, head: str = f'[functions."{ADDRESS}"]\nmodel = "replay"') -> list[str]:
    with pytest.raises(LabFileError) as caught:
        load(text(folder, "\n".join((head, *keys))))
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_it_is_the_recorded_function(tmp_path: Path) -> None:
    file(tmp_path, device(ADDRESS))
    model = function(tmp_path, 'recording = "x.rec"')
    assert issubclass(model, ReplayDevice)
    made = model("0000:05:00.0")
    try:
        assert (made.identity.vendor, made.identity.device, made.identity.irq_pin) == (0x1234, 0xC000, 1)
        assert {index: bar.size for index, bar in made.bar_map.items()} == {0: 32, 6: 2048}
        assert made.bar_map[0].io
        assert made.read(6, 0, 6) == b"\x55\xaa\1\2\xff\xff"
        assert [each is not None and each.count for each in made.irqs] == [1, False, False, False, False]
        assert made.resettable
    finally:
        made.close()


def test_the_same_table_is_the_same_model(tmp_path: Path) -> None:
    file(tmp_path, device(ADDRESS))
    assert function(tmp_path, 'recording = "x.rec"') is function(tmp_path, 'recording = "x.rec"')


def test_the_device_is_that_with_the_same_address_or_the_named_one(tmp_path: Path) -> None:
    file(tmp_path, device(ADDRESS), device(OTHER))
    assert function(tmp_path, 'recording = "x.rec"', address=OTHER).PLAYED.device.name == OTHER  # type: ignore[attr-defined]
    named = function(tmp_path, 'recording = "x.rec"', f'recorded = "{OTHER}"', address="0000:09:00.0")
    assert named.PLAYED.device.name == OTHER  # type: ignore[attr-defined]
    assert errors(tmp_path, 'recording = "x.rec"', head='[functions."0000:09:00.0"]\nmodel = "replay"') == [
        'lab.toml: functions."0000:09:00.0".recording: the recording has 2 devices '
        f"(say which one with recorded: {ADDRESS}, {OTHER})"
    ]


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    place = f'lab.toml: functions."{ADDRESS}"'
    assert errors(tmp_path) == [f"{place}.recording: is missing (give the path of a recording)"]
    assert errors(tmp_path, 'recording = "x.rec"')[0].startswith(f"{place}.recording: x.rec cannot be read: ")
    (tmp_path / "x.rec").write_text("nonsense\n")
    assert errors(tmp_path, 'recording = "x.rec"')[0].startswith(
        f"{place}.recording: x.rec:1: this is no recording"
    )
    file(tmp_path, device(ADDRESS))
    assert errors(tmp_path, 'recording = "x.rec"', 'recorded = "nobody"') == [
        f"{place}.recording: the recording has no device nobody (there is {ADDRESS})"
    ]
    found = errors(tmp_path, 'recording = "x.rec"', "vendor = 1", "bars.0.size = 4096")
    assert found == [
        f"{place}.{key}: is what the recording says (leave it out)" for key in ("vendor", "bars")
    ]
    plain = f'[functions."{ADDRESS}"]'
    assert errors(tmp_path, 'recording = "x.rec"', head=plain) == [
        f'{place}.recording: is for the model "replay" (leave it out)'
    ]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"flags": 4}, "is no PCI device"),
        ({"config": b""}, "has 0 bytes of configuration space, not 256 or 4096"),
        ({"regions": {0: Region(0, 48, 3)}}, "BAR 0 of 48 bytes: not a power of two of 4 to 65536"),
        ({"num_regions": 11, "regions": {10: Region(10, 4096, 3)}}, "do not follow one another"),
        ({"config": b"\xff" * 256}, "all ones"),
    ],
)
def test_a_device_that_cannot_be_is_one_line(tmp_path: Path, more: dict[str, object], why: str) -> None:
    file(tmp_path, device(ADDRESS, **more))
    (line,) = errors(tmp_path, 'recording = "x.rec"')
    assert why in line


def test_types_of_a_parent(tmp_path: Path) -> None:
    file(tmp_path, *map(device, UUIDS))
    head = '[parents.p]\nkind = "virtual"\ndriver = "d"\nslots = 2\n'
    own = "\n".join(
        f'[parents.p.types.t-{number}]\ndescription = "x"\nmodel = "replay"\n'
        f'recording = "x.rec"\nrecorded = "{uuid}"'
        for number, uuid in enumerate(UUIDS)
    )
    (parent,) = load(text(tmp_path, f'{head}model = "replay"\n{own}')).parents
    assert [type_.model.PLAYED.device.name for type_ in parent.types] == list(UUIDS)  # type: ignore[attr-defined]
    shared = (
        f'{head}model = "replay"\nrecording = "x.rec"\nrecorded = "{UUIDS[1]}"\ntypes.t.description = "x"'
    )
    (parent,) = load(text(tmp_path, shared)).parents
    assert parent.types[0].model.PLAYED.device.name == UUIDS[1]  # type: ignore[attr-defined]
    assert errors(tmp_path, head=f'{head}model = "replay"\ntypes.t.description = "x"') == [
        "lab.toml: parents.p.recording: is missing (give the path of a recording)"
    ]
    assert errors(tmp_path, head=f'{head}model = "mtty"\nrecorded = "x"\ntypes.t.description = "x"') == [
        'lab.toml: parents.p.recorded: is for the model "replay" (leave it out)'
    ]


def test_the_lab_of_a_recording_has_its_devices(tmp_path: Path) -> None:
    devices = device(ADDRESS, group=7), device(OTHER), *map(device, UUIDS)
    path = file(tmp_path, *devices)
    spec = load(text(tmp_path, lab_file(Recording(devices=list(devices)), str(path))))
    assert [each.name for each in spec.functions] == [ADDRESS, OTHER]
    assert [each.group for each in spec.functions] == [7, None]
    assert [each.name for each in spec.vgpus] == list(UUIDS)
    assert spec.modules["ids"] == "1234:c000"
