# SPDX-License-Identifier: Apache-2.0
"""Where virtual functions are, by the lab file or where there is room, and what cannot be one."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.device.pci import PciDevice
from devmodel.lifecycle.spec import FunctionSpec, ParentSpec, VfSpec
from devmodel.lifecycle.vf import FIRST_OFFSET, VfLayout, place_vfs
from devmodel.models.gpu import Vgpu
from devmodel.models.mdpy import Mdpy
from devmodel.pci import regs
from devmodel.pci.address import PciAddress
from devmodel.pci.config import Aperture
from devmodel.pci.fields import Bar
from devmodel.region.region import Memory, Rom
from tests.unit.fakes import function_spec
from tests.unit.test_lab import BDF, MIB
from tests.unit.test_sriov import MODEL, at, with_vfs
from vfsfuse.labfile.reader import LabFileError, load


@pytest.mark.parametrize(
    ("parents", "offsets"),
    [
        ([at(BDF)], {}),
        ([at(BDF, 4)], {BDF: 4}),
        ([at(BDF, 4), at("0000:86:00.1", 4)], {BDF: 4, "0000:86:00.1": 7}),
        ([at(BDF, 4), at("0000:86:00.5")], {BDF: 6}),
        ([at(BDF, 4), at("0001:86:00.5")], {BDF: 4}),
        ([at("0000:86:1f.0", 8)], {"0000:86:1f.0": 4}),
        ([at("0000:86:1f.0", 8), at("0000:88:00.0"), at("0001:87:00.0")], {"0000:86:1f.0": 4}),
    ],
)
def test_virtual_functions_meet_nothing(parents: list[FunctionSpec], offsets: Mapping[str, int]) -> None:
    assert place_vfs(parents) == offsets
    names = [parent.name for parent in parents]
    for parent in parents:
        if parent.vf is not None:
            layout = VfLayout(parent, offsets[parent.name], Aperture())
            names += [str(layout.address(index)) for index in range(parent.vf.count)]
    assert len(names) == len(set(names))


def vfs_at(name: str, count: int, offset: int | None = None, stride: int = 1) -> FunctionSpec:
    spec = at(name, count)
    assert spec.vf is not None
    return replace(spec, vf=replace(spec.vf, offset=offset, stride=stride))


def test_given_places_come_before_chosen_ones() -> None:
    chosen, given = at(BDF, 4), vfs_at("0000:86:00.1", 3, offset=4, stride=2)
    assert place_vfs([chosen, given]) == {BDF: 10, "0000:86:00.1": 4}
    layout = VfLayout(given, 4, Aperture())
    assert [str(layout.address(index)) for index in range(3)] == [
        "0000:86:00.5",
        "0000:86:00.7",
        "0000:86:01.1",
    ]
    assert (layout.offset, layout.stride) == (4, 2)
    across = vfs_at("0000:86:00.0", 3, offset=128, stride=100)
    assert [str(VfLayout(across, 128, Aperture()).address(index)) for index in range(3)] == [
        *("0000:86:10.0", "0000:86:1c.4", "0000:87:09.0"),
    ]


@pytest.mark.parametrize(
    ("specs", "why"),
    [
        ([vfs_at(BDF, 2, offset=1), at("0000:86:00.2")], "meets another function at 0000:86:00.2"),
        ([vfs_at(BDF, 3, offset=2, stride=3), at("0000:86:01.0")], "meets another function at 0000:86:01.0"),
        (
            [vfs_at(BDF, 2, offset=8), vfs_at("0000:86:00.1", 2, offset=8)],
            "meets another function at 0000:86:01.1",
        ),
        ([vfs_at("0000:ff:00.0", 2, offset=128, stride=128)], "no room for 2 virtual functions"),
        ([vfs_at(BDF, 2, offset=250, stride=6), at("0000:87:1f.0")], "bus 87 is below another"),
    ],
)
def test_given_places_that_are_taken(specs: list[FunctionSpec], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        place_vfs(specs)


def by_trial(specs: list[FunctionSpec]) -> dict[str, int]:
    """Where virtual functions begin, found by trying one offset after the other."""
    taken = {PciAddress.parse(spec.name).rid for spec in specs}
    offsets: dict[str, int] = {}
    for spec in specs:
        if spec.vf is not None:
            steps, first = [spec.vf.stride * index for index in range(spec.vf.count)], FIRST_OFFSET
            own = PciAddress.parse(spec.name).rid
            while not taken.isdisjoint(own + first + step for step in steps):
                first += 1
            taken.update(own + first + step for step in steps)
            offsets[spec.name] = first
    return offsets


@given(
    wanted=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 4)), min_size=1, max_size=8),
    gap=st.integers(1, 9),
)
def test_virtual_functions_begin_at_the_first_place_with_room(
    wanted: list[tuple[int, int]], gap: int
) -> None:
    names = [str(PciAddress(0, 0x86, index * gap)) for index in range(len(wanted))]
    specs = [
        vfs_at(name, count, stride=stride) if count else at(name)
        for name, (count, stride) in zip(names, wanted, strict=True)
    ]
    assert place_vfs(specs) == by_trial(specs)


def test_places_of_many_virtual_functions_are_found_at_once() -> None:
    specs = [at(f"0000:60:00.{function}", 1024) for function in range(8)]
    began = time.process_time()
    assert place_vfs(specs) == {each.name: 8 + 1023 * index for index, each in enumerate(specs)}
    assert time.process_time() - began < 2


def test_names_of_virtual_functions() -> None:
    layout = VfLayout(at("0000:86:1f.0", 6), 4, Aperture())
    assert [str(layout.address(index)) for index in range(6)] == [
        *("0000:86:1f.4", "0000:86:1f.5", "0000:86:1f.6", "0000:86:1f.7", "0000:87:00.0", "0000:87:00.1"),
    ]


def test_there_is_an_end_of_the_last_bus() -> None:
    assert place_vfs([at("0000:ff:1f.0", 4)]) == {"0000:ff:1f.0": 4}
    with pytest.raises(ValueError, match="no room"):
        place_vfs([at("0000:ff:1f.0", 5)])


@pytest.mark.parametrize("other", ["0000:87:00.0", "0000:87:1f.7"])
def test_a_bus_is_below_one_root_port(other: str) -> None:
    with pytest.raises(ValueError, match="bus 87 is below another bridge"):
        place_vfs([at("0000:86:1f.0", 8), at(other)])


@pytest.mark.parametrize(
    ("vfs", "vf_memory", "expected"),
    [(4, 0, 4), (3, 0, 4), (5, 0, 2), (16, 0, 1), (1, 0, 16), (4, 2 * MIB, 2)],
)
def test_an_equal_share_unless_the_lab_says_so(vfs: int, vf_memory: int, expected: int) -> None:
    layout = VfLayout(function_spec(with_vfs(vfs, memory=vf_memory)), 4, Aperture())
    assert layout.type.memory == expected * MIB
    (base, bar) = layout.places[0]
    assert bar.size == expected * MIB and base % bar.size == 0


class WithBar(PciDevice):
    """A model with one BAR that no virtual function can have."""

    BAR: ClassVar[int] = 0
    identity = MODEL

    def bars(self) -> Mapping[int, Bar]:
        if self.BAR == regs.ROM_BAR:
            return {self.BAR: Bar(Rom(b"\x55\xaa", 2048))}
        return {self.BAR: Bar(Memory(4096), io=True)}


class WithRom(WithBar):
    BAR = regs.ROM_BAR


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (with_vfs(model=Mdpy), "vendor 1234, not 1b36"),
        (with_vfs(model=WithBar), "no I/O BARs"),
        (with_vfs(model=WithRom), "no ROM"),
        (with_vfs(memory=4096), "video memory is"),
        (with_vfs(memory=1 << 30), "no room at"),
    ],
)
def test_what_cannot_be_a_virtual_function(spec: ParentSpec, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        VfLayout(function_spec(spec), FIRST_OFFSET, Aperture())


LAB_FILE = """
[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
{keys}
types.half = {{ memory = "8M", description = "half" }}
"""
KEY = 'parents."0000:86:00.0".'
VIRTUAL = 'kind = "virtual"\ndriver = "pool"\nmodel = "vgpu"'


def test_keys_of_a_lab_file(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(LAB_FILE.format(keys='vfs = 3\nvf_memory = "2M"'))
    (parent,) = load(path).parents
    assert parent.function is not None
    assert parent.function.vf == VfSpec(3, Vgpu, 2 * MIB)
    path.write_text(LAB_FILE.format(keys=""))
    (parent,) = load(path).parents
    assert parent.function is not None and parent.function.vf is None


@pytest.mark.parametrize(
    ("keys", "where", "why"),
    [
        ("vfs = 0", "vfs", "is out of range"),
        ("vfs = 1025", "vfs", "is more than 1024"),
        ("vfs = 17", "vfs", "video memory is"),
        ('vfs = 2\nvf_model = "mdpy"', "vfs", "vendor 1234, not 1b36"),
        ('vfs = 2\nvf_model = "mtty"', "vfs", "vendor 1234, not 4348"),
        ('vfs = 2\nvf_model = "none"', "vf_model", "there is no model"),
        ('vfs = 2\nvf_memory = "32M"', "vf_memory", "more than the parent's"),
        ('vf_memory = "1M"', "vf_memory", 'is for a "gpu" with "vfs"'),
        ('vf_model = "vgpu"', "vf_model", 'is for a "gpu" with "vfs"'),
    ],
)
def test_keys_that_cannot_be(tmp_path: Path, keys: str, where: str, why: str) -> None:
    path = tmp_path / "my.toml"
    path.write_text(LAB_FILE.format(keys=keys))
    with pytest.raises(LabFileError) as caught:
        load(path)
    assert f": {KEY}{where}: " in str(caught.value) and why in str(caught.value)


@pytest.mark.parametrize(
    ("place", "text", "where"),
    [
        ("0000:ff:1f.0", "vfs = 8", 'parents."0000:ff:1f.0": no room for 8 virtual functions'),
        ("pool", "vfs = 8", 'parents.pool.vfs: is for a "gpu"'),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, place: str, text: str, where: str) -> None:
    path = tmp_path / "my.toml"
    made = LAB_FILE.format(keys=text).replace("0000:86:00.0", place)
    if place == "pool":
        made = made.replace('kind = "gpu"\ndriver = "vgpu"', VIRTUAL)
    path.write_text(made)
    with pytest.raises(LabFileError) as caught:
        load(path)
    assert where in str(caught.value)
