# SPDX-License-Identifier: Apache-2.0
"""[[vgpus]], [modules] and what else a lab file says of the start: each key arrives, and what cannot be."""

from pathlib import Path
from uuid import UUID

import pytest

from devmodel.lifecycle.spec import VgpuSpec
from devmodel.pci.ids import ANY, PciId, parse_module_ids
from devmodel.vfio.module import VfioModule
from tests.unit.labtexts import Load, check_error
from vfsfuse.labfile.reader import LabFileError, load

PARENT = """
[parents.tty]
kind = "virtual"
driver = "mtty"
slots = 2
type_names = false
types.one = { description = "one port" }
"""
TEXT = "11111111-2222-3333-4444-55555555aBcD"
GIVEN = f'parent = "tty"\ntype = "one"\nuuid = "{TEXT}"\n'


@pytest.fixture
def load_text(load_text: Load) -> Load:
    """Reads a text and the table of a parent."""
    return lambda text: load_text(PARENT + text if text.lstrip().startswith("[") else text + "\n" + PARENT)


def test_every_key_of_a_vgpu_arrives(load_text: Load, tmp_path: Path) -> None:
    lab = load_text(
        f"[[vgpus]]\n{GIVEN}[[vgpus]]\n{GIVEN}instance = 3\n"
        f'[[vgpus]]\n{GIVEN}instance = 4\nname = "port"\nvram = "4 MiB"\nweight = 2\nframe_rate = 30\n'
        'max_resolution = "800x600"\n'
    )
    file, uuid = tmp_path / "my.toml", UUID(TEXT)
    assert lab.vgpus == (
        VgpuSpec("tty", "one", uuid, name=TEXT.lower(), place=f"{file}: vgpus.0"),
        VgpuSpec("tty", "one", uuid, 3, f"{TEXT.lower()}-3", place=f"{file}: vgpus.1"),
        VgpuSpec(
            "tty",
            "one",
            uuid,
            4,
            "port",
            None,
            {"vram": "4MiB", "weight": "2", "frame_rate": "30", "max_resolution": "800x600"},
            f"{file}: vgpus.2",
        ),
    )
    assert lab.source == str(file) and not lab.parents[0].type_names


OTHER = f'parent = "tty"\ntype = "one"\nuuid = "{TEXT[:-1]}0"\n'


def test_a_vgpu_is_alone_in_the_group_that_it_is_given(load_text: Load) -> None:
    (vgpu,) = load_text(f"[[vgpus]]\n{GIVEN}group = 12\n").vgpus
    assert vgpu.group == 12
    alone = "too (a vGPU is alone in its group: give another)"
    for others, owner in (
        (f"[[vgpus]]\n{OTHER}group = 12\n", f"{TEXT[:-1]}0".lower()),
        ('[functions."0000:01:00.0"]\ngroup = 12\n', "0000:01:00.0"),
    ):
        with pytest.raises(LabFileError, match=f"group: is the group of {owner}") as caught:
            load_text(f"{others}[[vgpus]]\n{GIVEN}group = 12\n")
        assert alone in str(caught.value)


NVIDIA = """
mount.mdev = false
[parents."0000:01:00.0"]
kind = "gpu"
framework = "nvidia"
driver = "nvidia"
memory = "64M"
vfs = 4
vf.enabled = 2
types.half = { id = 256, memory = "32M", description = "half" }
"""
OF_NVIDIA = '[[vgpus]]\nparent = "0000:01:00.0"\n'


def test_a_vgpu_of_a_vendor_is_a_virtual_function(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(NVIDIA + OF_NVIDIA + 'type = "half"\nvf = 0\n' + OF_NVIDIA + "type = 256\nvf = 1\n")
    name = "0000:01:00.0"
    assert load(file).vgpus == (
        VgpuSpec(name, "half", name=f"{name}.vf0", vf=0, place=f"{file}: vgpus.0"),
        VgpuSpec(name, "half", name=f"{name}.vf1", vf=1, place=f"{file}: vgpus.1"),
    )


@pytest.mark.parametrize(
    ("keys", "key", "why"),
    [
        ("type = 256", "vf", "is missing (add it)"),
        ("type = 256\nvf = 2", "vf", "virtual function 2 is not enabled (give the parent vf.enabled = 3)"),
        ("type = 255\nvf = 0", "type", "0000:01:00.0 has no type '255' (it has half)"),
        (f'type = 256\nvf = 0\nuuid = "{TEXT}"', "uuid", "is for mediated devices (leave it out)"),
        ("type = 256\nvf = 0\nweight = 3", "weight", "is for mediated devices (leave it out)"),
    ],
)
def test_errors_of_a_vgpu_of_a_vendor(tmp_path: Path, keys: str, key: str, why: str) -> None:
    (tmp_path / "my.toml").write_text(NVIDIA + OF_NVIDIA + keys)
    with pytest.raises(LabFileError) as caught:
        load(tmp_path / "my.toml")
    assert f"/my.toml: vgpus.0.{key}: " in caught.value.lines[0] and why in caught.value.lines[0]


def test_module_parameters_arrive(load_text: Load) -> None:
    lab = load_text(
        """
        [modules]
        iommufd.allow_unsafe_interrupts = true
        vfio.enable_unsafe_noiommu_mode = "y"
        vfio_iommu_type1 = { allow_unsafe_interrupts = 1, disable_hugepages = "on", dma_entry_limit = 7 }
        [modules.vfio_pci]
        ids = "8086:1592"
        enable_sriov = "1"
        nointxmask = "Yes"
        disable_idle_d3 = false
        disable_vga = "off"
        disable_denylist = 0
        """
    )
    assert VfioModule(**dict(lab.modules)) == VfioModule(  # type: ignore[arg-type]
        enable_unsafe_noiommu_mode=True,
        allow_unsafe_interrupts=True,
        iommufd_unsafe_interrupts=True,
        disable_hugepages=True,
        enable_sriov=True,
        nointxmask=True,
        ids="8086:1592",
        dma_entry_limit=7,
    )


def test_ids_are_those_of_the_module() -> None:
    assert parse_module_ids("") == ()
    assert parse_module_ids("8086:1592,0x10de:2204:1458:4015:030000:ff0000,") == (
        PciId(0x8086, 0x1592),
        PciId(0x10DE, 0x2204, 0x1458, 0x4015, 0x030000, 0xFF0000),
    )
    assert parse_module_ids("8086:ffffffff") == (PciId(0x8086, ANY),)
    for wrong in ("8086", "8086:", "8086:g", "1:2:3:4:5:6:7", "8086 1592"):
        with pytest.raises(ValueError, match="is no id"):
            parse_module_ids(wrong)


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ("vgpus = 3", "vgpus", "is not an array of tables (write [[vgpus]])"),
        ("vgpus = [3]", "vgpus", "is not an array of tables"),
        ("vgpus = [{}]", "vgpus.0.parent", "is missing (add it)"),
        (f"[[vgpus]]\n{GIVEN}flavour = 1", "vgpus.0.flavour", "there is no such key"),
        (f"[[vgpus]]\n{GIVEN}".replace(TEXT, "1234"), "vgpus.0.uuid", "not a UUID: '1234' (write 8-4-4-4-12"),
        ('[[vgpus]]\nparent = "tty"\ntype = "one"', "vgpus.0.uuid", "is missing (add it)"),
        (
            f"[[vgpus]]\n{GIVEN}".replace("tty", "tt"),
            "vgpus.0.parent",
            "there is no parent 'tt' (there is tty)",
        ),
        (f"[[vgpus]]\n{GIVEN}".replace("one", "on"), "vgpus.0.type", "tty has no type 'on' (it has one)"),
        (f"[[vgpus]]\n{GIVEN}instance = -1", "vgpus.0.instance", "is out of range"),
        (f'[[vgpus]]\n{GIVEN}name = "a/b"', "vgpus.0.name", "cannot be a name"),
        (f"[[vgpus]]\n{GIVEN}weight = 0", "vgpus.0.weight", "is out of range"),
        (f"[[vgpus]]\n{GIVEN}[[vgpus]]\n{GIVEN}", "vgpus.1", f"is called {TEXT.lower()} as vgpus.0 is"),
        (f"[[vgpus]]\n{GIVEN}vf = 0", "vgpus.0.vf", 'is for a parent with framework = "nvidia"'),
        ("modules.vfio-pci = {}", "modules.vfio-pci", "did you mean 'vfio_pci'?"),
        ("modules.vfio_pci.id = 1", "modules.vfio_pci.id", "did you mean 'ids'?"),
        ('modules.vfio_pci.ids = "8086"', "modules.vfio_pci.ids", "'8086' is no id (write vendor:device"),
        ("modules.vfio_pci.ids = 8086", "modules.vfio_pci.ids", "is not a list of ids"),
        ('modules.vfio_pci.disable_vga = "x"', "modules.vfio_pci.disable_vga", "neither Y nor N (give true"),
        ("modules.vfio_pci.disable_vga = 2", "modules.vfio_pci.disable_vga", "neither true nor false"),
        (
            "modules.vfio_iommu_type1.dma_entry_limit = 4294967296",
            "modules.vfio_iommu_type1.dma_entry_limit",
            "is not a number of 32 bits (give 0 to 4294967295)",
        ),
        ("mount.mdev = 0", "mount.mdev", "neither true nor false"),
        ("mount.mdev = false", "parents.tty", "makes mediated devices, which this lab has no bus for"),
    ],
)
def test_errors(load_text: Load, text: str, key: str, why: str) -> None:
    check_error(load_text, text, key, why)
