# SPDX-License-Identifier: Apache-2.0
"""What a lab file decides for the start of a lab, on real mounts: vGPUs and virtual functions that exist,
parameters of modules, a kernel without the bus of mediated devices, and types without names."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT, vfsfuse
from tests.labs import MountedLab, Vgpu, described

UUID = "11111111-2222-3333-4444-555555555555"
OTHER = "11111111-2222-3333-4444-666666666666"
BUILT_IN = f'include = "{ROOT}/vfsfuse/labfile/lab.toml"\n'
VGPUS = f"""
[[vgpus]]
parent = "0000:86:00.0"
type = "vgpu-8"
uuid = "{UUID}"
[[vgpus]]
parent = "0000:86:00.0"
type = "vgpu-8"
uuid = "{UUID}"
instance = 1
vram = "64M"
weight = 3
max_resolution = "800x600"
[[vgpus]]
parent = "mtty"
type = "mtty-2"
uuid = "{OTHER}"
name = "port"
"""
MODULES = """
[modules]
iommufd.allow_unsafe_interrupts = true
vfio.enable_unsafe_noiommu_mode = "on"
vfio_iommu_type1 = { allow_unsafe_interrupts = 1, disable_hugepages = "Y", dma_entry_limit = "0x10" }
[modules.vfio_pci]
ids = "1af4:1041,8086:1592:ffffffff:ffffffff:020000:ff0000"
enable_sriov = true
nointxmask = true
disable_idle_d3 = true
disable_vga = true
disable_denylist = true
[functions."0000:01:00.0"]
vendor = 0x1af4
device = 0x1041
driver = "virtio"
[functions."0000:01:00.1"]
vendor = 0x8086
device = 0x1592
class = 0x020000
iommu = false
[functions."0000:01:00.2"]
vendor = 0x8086
device = 0x1592
class = 0x030000
driver = "other"
"""
NO_MDEV = """
mount.mdev = false
[functions."0000:01:00.0"]
driver = "ice"
"""


# ---- vGPUs ----


@pytest.fixture(scope="module")
def populated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("populated"), BUILT_IN + VGPUS) as lab:
        yield lab


def test_vgpus_exist_from_the_start(populated: MountedLab) -> None:
    assert sorted(os.listdir(populated.mdevs)) == [UUID, f"{UUID}-1", "port"]
    types = populated.parent("0000:86:00.0") / "mdev_supported_types"
    assert (types / "vgpu-8/available_instances").read_text() == "5\n"
    assert sorted(os.listdir(types / "vgpu-8/devices")) == [UUID, f"{UUID}-1"]
    assert (populated.mdevs / "port/mdev_type").resolve().name == "mtty-2"
    assert len({Vgpu(populated, name).group for name in os.listdir(populated.mdevs)}) == 3


def test_vgpus_get_what_a_line_of_vgpu_create_gives(populated: MountedLab) -> None:
    path = populated.mdevs / f"{UUID}-1"
    assert (path / "vgpu_instance").read_text() == "1\n"
    shown = {file: (path / file).read_text() for file in ("vram_size", "max_resolution", "engine_weight")}
    assert shown == {"vram_size": f"{64 << 20}\n", "max_resolution": "800x600\n", "engine_weight": "3\n"}


def test_vgpus_are_used_and_removed_as_others_are(populated: MountedLab) -> None:
    fd = Vgpu(populated, UUID).open()
    os.close(fd)
    (populated.mdevs / "port/remove").write_text("1")
    assert sorted(os.listdir(populated.mdevs)) == [UUID, f"{UUID}-1"]


@pytest.mark.parametrize("command", ["check", "mount"])
@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            '"64M"',
            '"256M"',
            f"vgpus.1: vGPU {UUID}-1: 0000:86:00.0 has no room for another vgpu-8 (give",
        ),
        (
            f'"{OTHER}"\n',
            f'"{UUID}"\n',
            "vgpus.2: vGPU port: port exists already (give it another instance or",
        ),
        (
            "weight = 3",
            "weight = 2000",
            f"vgpus.1: vGPU {UUID}-1: option 'weight' is 2000, not in 1 to 1000 (",
        ),
    ],
)
def test_a_vgpu_that_cannot_be_is_one_line(
    tmp_path: Path, command: str, old: str, new: str, why: str
) -> None:
    file = tmp_path / "my.toml"
    assert old in VGPUS
    file.write_text(BUILT_IN + VGPUS.replace(old, new))
    arguments = [file] if command == "check" else ["--config", file, tmp_path / "mnt"]
    done = vfsfuse(command, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"vfsfuse: {command}: {file}: {why}")


def test_virtual_functions_are_enabled_from_the_start(tmp_path: Path) -> None:
    text = """
        [functions."0000:01:00.0"]
        vendor = 0x8086
        driver = "ice"
        capabilities = ["express"]
        vfs = 8
        vf = { enabled = 3, driver = "iavf", bars = { 0 = { size = 4096, kind = "mem64" } } }
    """
    with described(tmp_path, text) as lab:
        physical = lab.path / "sys/bus/pci/devices/0000:01:00.0"
        assert (physical / "sriov_numvfs").read_text() == "3\n"
        drivers = [(physical / f"virtfn{index}/driver").resolve().name for index in range(3)]
        assert drivers == ["iavf"] * 3
        (physical / "sriov_numvfs").write_text("0")
        assert not (physical / "virtfn0").exists()


# ---- modules ----


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("loaded"), MODULES) as lab:
        yield lab


def test_parameters_have_the_values_of_the_lab_file(loaded: MountedLab) -> None:
    modules = loaded.path / "sys/module"
    shown = {
        f"{module}.{path.name}": path.read_text().strip()
        for module in ("iommufd", "vfio", "vfio_iommu_type1", "vfio_pci")
        for path in (modules / module / "parameters").iterdir()
    }
    assert shown.pop("vfio_iommu_type1.dma_entry_limit") == "16"
    assert len(shown) == 9 and set(shown.values()) == {"Y"}


def test_vfio_pci_takes_its_ids_before_host_drivers_do(loaded: MountedLab) -> None:
    devices = loaded.path / "sys/bus/pci/devices"
    drivers = {path.name: (path / "driver").resolve().name for path in devices.glob("0000:01:*")}
    assert drivers == {"0000:01:00.0": "vfio-pci", "0000:01:00.1": "vfio-pci", "0000:01:00.2": "other"}
    assert len(os.listdir(devices / "0000:01:00.0/vfio-dev")) == 1
    assert sorted(os.listdir(loaded.path / "dev/vfio/devices")) == ["noiommu-vfio1", "vfio0"]


def test_a_function_that_is_found_again_goes_to_vfio_pci(loaded: MountedLab) -> None:
    devices = loaded.path / "sys/bus/pci/devices"
    (devices / "0000:01:00.0/remove").write_text("1")
    (loaded.path / "sys/bus/pci/rescan").write_text("1")
    assert (devices / "0000:01:00.0/driver").resolve().name == "vfio-pci"
    driver = loaded.path / "sys/bus/pci/drivers/vfio-pci"
    (driver / "remove_id").write_text("1af4 1041")
    (devices / "0000:01:00.0/remove").write_text("1")
    (loaded.path / "sys/bus/pci/rescan").write_text("1")
    assert (devices / "0000:01:00.0/driver").resolve().name == "virtio"


# ---- no mdev bus, no names ----


def test_a_lab_without_the_mdev_bus(tmp_path: Path) -> None:
    with described(tmp_path, NO_MDEV) as lab:
        sys = lab.path / "sys"
        assert os.listdir(sys / "bus") == ["pci"]
        assert "mdev_bus" not in os.listdir(sys / "class")
        modules = set(os.listdir(sys / "module"))
        assert "ice" in modules and not {"mdev", "vfio_mdev"} & modules
        assert os.listdir(sys / "module/vfio/holders") and os.listdir(sys / "module/ice/holders") == []
        assert (sys / "bus/pci/devices/0000:01:00.0/driver").resolve().name == "ice"
        done = vfsfuse("surprise-remove", "--mount", lab.path, "vgpu0")
        assert done.returncode == 1 and "there is no such vGPU" in done.stderr


def test_a_parent_of_mediated_devices_needs_the_bus(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(BUILT_IN + "mount.mdev = false\n")
    done = vfsfuse("check", file)
    assert done.returncode == 1 and done.stderr.count("\n") == 4
    assert 'parents."0000:86:00.0": makes mediated devices, which this lab has no bus for' in done.stderr


def test_a_vendor_gpu_needs_no_mdev_bus(tmp_path: Path) -> None:
    text = """
        mount.mdev = false
        [parents."0000:01:00.0"]
        kind = "gpu"
        framework = "nvidia"
        driver = "nvidia"
        memory = "64M"
        vfs = 4
        vf.enabled = 2
        types.half = { id = 256, memory = "32M", description = "half" }
        [[vgpus]]
        parent = "0000:01:00.0"
        type = 256
        vf = 1
    """
    with described(tmp_path, text) as lab:
        gpu = lab.path / "sys/bus/pci/devices/0000:01:00.0"
        assert (gpu / "sriov_numvfs").read_text() == "2\n"
        types = [(gpu / f"virtfn{index}/nvidia/current_vgpu_type").read_text() for index in (0, 1)]
        assert types == ["0\n", "256\n"]
        assert "mdev" not in os.listdir(lab.path / "sys/bus") and not os.listdir(
            lab.path / "sys/module/nvidia/holders"
        )
        (gpu / "virtfn1/nvidia/current_vgpu_type").write_text("0")


def test_types_may_have_no_names(tmp_path: Path) -> None:
    with described(tmp_path, BUILT_IN + "parents.mtty.type_names = false\n") as lab:
        types = lab.parent("mtty") / "mdev_supported_types"
        assert "name" not in os.listdir(types / "mtty-1") and "description" in os.listdir(types / "mtty-1")
        assert (lab.parent("mdpy") / "mdev_supported_types/mdpy-hd/name").read_text() == "mdpy-hd\n"
