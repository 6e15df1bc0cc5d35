# SPDX-License-Identifier: Apache-2.0
"""Models that fail when they have to let go: the device goes nevertheless, and the group is free again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import MountedLab
from tests.snapshot import snapshot
from tests.vfio.devices import opened, vfio_pci
from tests.waiting import comes_to

MODELS = {"closed": "Closed", "exits": "Exits", "stopped": "Stopped"}
FILE = Path(__file__).parent / "models/unwilling.py"
LAB = "[models]\n" + "".join(f'{name} = "{FILE}:{model}"\n' for name, model in MODELS.items())
for _number, _name in enumerate(MODELS):
    LAB += f"""
[parents.{_name}s]
kind = "virtual"
driver = "{_name}"
model = "{_name}"
slots = 1
types.card = {{ description = "a card", slots = 1 }}

[parents."0000:9{_number}:00.0"]
kind = "gpu"
driver = "host-{_name}"
model = "{_name}"
memory = "1M"
types.mute = {{ description = "a card", memory = "1M" }}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[MountedLab]:
    """A lab that ends well, whatever its models do."""
    config = tmp_path / "lab.toml"
    config.write_text(LAB)
    with MountedLab(tmp_path, "--config", str(config)) as mounted:
        mounted.api.strict = False  # its log has tracebacks, of bugs asked for
        server = mounted.server
        yield mounted
        assert "() failed" in mounted.log
    assert server is not None and server.returncode == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_vgpu_and_its_group_are_free_again(lab: MountedLab, name: str) -> None:
    before = snapshot(lab.path)
    for _ in range(2):
        with lab.create("card", f"{name}s") as vgpu:
            for _ in range(2):
                with opened(lab, vgpu.group, vgpu.name):
                    pass
            os.close(vgpu.open())
        comes_to(lambda: snapshot(lab.path), before)
    vgpu = lab.create("card", f"{name}s")
    (vgpu.path / "surprise_remove").write_text("1")
    assert snapshot(lab.path) == before


@pytest.mark.parametrize(("number", "name"), list(enumerate(MODELS)))
def test_a_function_is_removed_and_comes_back(lab: MountedLab, number: int, name: str) -> None:
    function = f"0000:9{number}:00.0"
    path, rescan = lab.path / "sys/bus/pci/devices" / function, lab.path / "sys/bus/pci/rescan"
    before = snapshot(lab.path)
    for _ in range(2):
        group = vfio_pci(lab, function)
        if name != "stopped":  # whose reset fails, at the first open as well
            with opened(lab, group, function):
                pass
        (path / "remove").write_text("1")
        assert not path.exists() and group not in os.listdir(lab.path / "dev/vfio")
        rescan.write_text("1")
        comes_to(lambda: snapshot(lab.path), before)
