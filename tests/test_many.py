# SPDX-License-Identifier: Apache-2.0
"""A thousand vGPUs in one lab: created, listed, found and removed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import MountedLab, Vgpu
from tests.snapshot import snapshot

COUNT = 1000
LAB = f"""\
[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "{COUNT}M"
types.tiny = {{ memory = "1M", description = "a thousandth" }}

[parents.cards]
kind = "virtual"
driver = "mtty"
slots = {COUNT}
types.card = {{ description = "a serial card" }}
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    folder = tmp_path_factory.mktemp("large")
    (folder / "lab.toml").write_text(LAB)
    with MountedLab(folder, "--config", str(folder / "lab.toml")) as lab:
        yield lab


@pytest.mark.parametrize(("parent", "type_name"), [("0000:86:00.0", "tiny"), ("cards", "card")])
def test_a_thousand_come_are_there_and_go(large: MountedLab, parent: str, type_name: str) -> None:
    top, directory = large.path, large.parent(parent)
    type_dir = directory / "mdev_supported_types" / type_name
    before = snapshot(top)
    names = [str(uuid.uuid4()) for _ in range(COUNT)]
    for name in names:
        (type_dir / "create").write_text(name)
    assert (type_dir / "available_instances").read_text() == "0\n"
    assert (directory / "vgpus").read_text() == f"{COUNT}\n"
    with pytest.raises(OSError, match="No space left"):
        (type_dir / "create").write_text(str(uuid.uuid4()))
    lists = [
        *(os.listdir(large.mdevs), os.listdir(type_dir / "devices")),
        [name for name in os.listdir(directory) if "-" in name],
    ]
    assert all(sorted(listed) == sorted(names) for listed in lists)
    numbers = [
        *(os.listdir(top / "sys/class/vgpu/vfsfuse"), os.listdir(top / "sys/class/vfio-dev")),
        *(os.listdir(top / "dev/vfio/devices"), os.listdir(top / "sys/class/vfio")),
    ]
    assert [len(listed) for listed in numbers] == [COUNT] * 4
    vgpus = [Vgpu(large, name) for name in names]
    assert len({vgpu.group for vgpu in vgpus}) == len({vgpu.vfio for vgpu in vgpus}) == COUNT
    for vgpu in vgpus:
        assert Path(vgpu.path / "vgpu_uuid").read_text() == f"{vgpu.name}\n"
    for vgpu in vgpus[::50]:
        with open(vgpu.open(), "r+b", buffering=0) as device:
            assert len(os.pread(device.fileno(), 4, 7 << 40)) == 4
    for vgpu in vgpus[::2] + vgpus[1::2][::-1]:
        vgpu.remove()
    assert snapshot(top) == before
