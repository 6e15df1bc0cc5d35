# SPDX-License-Identifier: Apache-2.0
"""Classes, character devices, modules and drivers in sysfs, as udev and other programs read them."""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import vfsfuse
from tests.labs import MountedLab, Vgpu, described
from tests.tool import SYSTEM_PYTHON, Tool, need, need_pyudev

GPU, PLAIN = "0000:86:00.0", "0000:87:00.0"
LAB = f"""
[parents."{GPU}"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
types.small = {{ memory = "16M", description = "a small one" }}

[parents."{PLAIN}"]
kind = "gpu"
driver = "my-gpu"
memory = "64M"
iommu = false
types.small = {{ memory = "16M", description = "a small one" }}

[parents.mtty]
kind = "virtual"
driver = "mtty"
slots = 4
types.two = {{ description = "two ports", slots = 2, options = {{ ports = 2 }} }}
"""
PARAMETERS = {
    "iommufd": {"allow_unsafe_interrupts": (0o644, "N")},
    "vfio": {"enable_unsafe_noiommu_mode": (0o644, "Y")},
    "vfio_iommu_type1": {
        "allow_unsafe_interrupts": (0o644, "N"),
        "disable_hugepages": (0o644, "N"),
    },
    "vfio_pci": {
        "disable_denylist": (0o444, "N"),
        "disable_idle_d3": (0o644, "N"),
        "disable_vga": (0o444, "N"),
        "enable_sriov": (0o644, "N"),
        "nointxmask": (0o644, "N"),
    },
}
USED_BY = {
    "iommufd": {"vfio"},
    "mdev": {"mtty", "my_gpu", "vfio_mdev", "vgpu"},
    "vfio": {"vfio_iommu_type1", "vfio_mdev", "vfio_pci_core"},
    "vfio_pci_core": {"vfio_pci"},
}
REGISTERS = {
    "my_gpu": ("pci", "my-gpu"),
    "vfio_mdev": ("mdev", "vfio_mdev"),
    "vfio_pci": ("pci", "vfio-pci"),
    "vgpu": ("pci", "vgpu"),
    "pcieportdrv": ("pci", "pcieport"),
}
MODULES = (
    *("iommufd", "mdev", "mtty", "my_gpu", "vfio"),
    *("vfio_iommu_type1", "vfio_mdev", "vfio_pci", "vfio_pci_core"),
)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MountedLab, Vgpu]]:
    """A lab with a vGPU, and a function without an IOMMU that vfio-pci has."""
    with described(tmp_path_factory.mktemp("lab"), LAB) as lab:
        (lab.path / "sys/module/vfio/parameters/enable_unsafe_noiommu_mode").write_text("Y")
        function = lab.path / "sys/bus/pci/devices" / PLAIN
        (function / "driver_override").write_text("vfio-pci")
        (function / "driver/unbind").write_text(PLAIN)
        (lab.path / "sys/bus/pci/drivers_probe").write_text(PLAIN)
        yield lab, lab.create("two", "mtty")


@pytest.fixture
def lab_of(full: tuple[MountedLab, Vgpu]) -> MountedLab:
    return full[0]


def class_devices(sys: Path) -> Iterator[Path]:
    for name in ("misc", "mtty", "vfio", "vfio-dev"):
        yield from (sys / "class" / name).iterdir()


def leads_to(link: Path) -> str:
    """What a link leads to, from sys/ on; its last component is the name of that."""
    assert os.path.basename(os.readlink(link)) == link.resolve(strict=True).name
    top = next(above for above in link.parents if above.name == "sys")
    return str(link.resolve().relative_to(top.resolve()))


# ---- classes and character devices ----


def test_every_device_of_a_class_has_a_subsystem(lab_of: MountedLab) -> None:
    found = list(class_devices(lab_of.path / "sys"))
    assert len(found) == 1 + 2 + 2 + 2
    for link in found:
        assert leads_to(link / "subsystem") == f"class/{link.parent.name}"
        assert leads_to(link).startswith("devices/")
        assert (link / "uevent").exists()


def test_every_character_device_is_found_by_its_number(lab_of: MountedLab) -> None:
    char = lab_of.path / "sys/dev/char"
    numbered = {
        (link / "dev").read_text().strip(): link.resolve()
        for link in class_devices(char.parents[1])
        if (link / "dev").exists()
    }
    assert len(numbered) == 6 and {"10:196", "10:256"} <= set(numbered)
    assert {link.name: link.resolve() for link in char.iterdir()} == numbered
    for name in numbered:
        assert leads_to(char / name).startswith("devices/")
        assert (char / name).lstat().st_size == 0


@pytest.mark.parametrize(
    "name", ["10", "10:", "10:195", "511", "511:", "511:00", "511:x", ":", "511:noiommu-1"]
)
def test_no_other_number_is_found(lab_of: MountedLab, name: str) -> None:
    with pytest.raises(OSError) as caught:
        os.lstat(lab_of.path / "sys/dev/char" / name)
    assert caught.value.errno == errno.ENOENT


def test_the_number_of_a_vgpu_comes_and_goes_with_its_driver(lab_of: MountedLab) -> None:
    char = lab_of.path / "sys/dev/char"
    before = set(os.listdir(char))
    with lab_of.create("two", "mtty") as vgpu:
        minor = vgpu.vfio.removeprefix("vfio")
        own = {f"510:{minor}", f"511:{vgpu.group}"}
        assert set(os.listdir(char)) == before | own
        assert leads_to(char / f"511:{vgpu.group}") == f"devices/virtual/vfio/{vgpu.group}"
        inode = (char / f"510:{minor}").lstat().st_ino
        assert {entry.name: entry.inode() for entry in os.scandir(char)}[f"510:{minor}"] == inode
        drivers = lab_of.path / "sys/bus/mdev/drivers/vfio_mdev"
        (drivers / "unbind").write_text(vgpu.name)
        assert set(os.listdir(char)) == before
        (drivers / "bind").write_text(vgpu.name)
        assert set(os.listdir(char)) == before | own
    assert set(os.listdir(char)) == before


def test_a_group_without_an_iommu_has_a_number_too(lab_of: MountedLab) -> None:
    (name,) = (each for each in os.listdir(lab_of.path / "sys/class/vfio") if each.startswith("noiommu-"))
    number = name.removeprefix("noiommu-")
    assert leads_to(lab_of.path / "sys/dev/char" / f"511:{number}") == f"devices/virtual/vfio/{name}"


def test_the_container_is_a_device_of_the_class_misc(lab_of: MountedLab) -> None:
    own = lab_of.path / "sys/class/misc/vfio"
    assert leads_to(own) == "devices/virtual/misc/vfio"
    assert (own / "dev").read_text() == "10:196\n"
    assert (own / "uevent").read_text() == "MAJOR=10\nMINOR=196\nDEVNAME=vfio/vfio\nDEVMODE=0666\n"
    assert (lab_of.path / "dev/vfio/vfio").stat().st_mode & 0o777 == 0o666


def test_iommufd_is_a_device_of_the_class_misc(lab_of: MountedLab) -> None:
    own = lab_of.path / "sys/class/misc/iommu"
    assert leads_to(own) == "devices/virtual/misc/iommu"
    assert (own / "dev").read_text() == "10:256\n"
    mode = (lab_of.path / "dev/iommu").stat().st_mode & 0o777
    assert (own / "uevent").read_text() == f"MAJOR=10\nMINOR=256\nDEVNAME=iommu\nDEVMODE=0{mode:o}\n"


def test_device_leads_up_by_name(full: tuple[MountedLab, Vgpu]) -> None:
    lab, vgpu = full
    assert os.readlink(lab.path / "sys/class/vfio-dev" / vgpu.vfio / "device") == f"../../../{vgpu.name}"
    function = lab.path / "sys/bus/pci/devices" / PLAIN
    (name,) = os.listdir(function / "vfio-dev")
    assert os.readlink(function / "vfio-dev" / name / "device") == f"../../../{PLAIN}"
    assert (function / "vfio-dev" / name / "device").resolve() == function.resolve()


# ---- modules and drivers ----


def test_the_modules_are_those_that_a_machine_has_loaded(lab_of: MountedLab) -> None:
    top = lab_of.path / "sys/module"
    directories = {entry.name for entry in os.scandir(top) if not entry.is_symlink()}
    assert directories == {*MODULES, "vgpu", "pcieportdrv"}
    assert set(os.listdir(top / "pcieportdrv")) == {"drivers", "uevent"}  # built in
    for name in directories - {"pcieportdrv"}:
        assert (top / name / "initstate").read_text() == "live\n"
        assert (top / name / "taint").read_text() == "\n"
        assert set(os.listdir(top / name / "holders")) == USED_BY.get(name, set())
        for user in USED_BY.get(name, ()):
            assert os.readlink(top / name / "holders" / user) == f"../../{user}"


def test_a_driver_with_a_dash_finds_its_module_under_both_names(lab_of: MountedLab) -> None:
    top = lab_of.path / "sys/module"
    links = {entry.name: os.readlink(entry) for entry in os.scandir(top) if entry.is_symlink()}
    assert links == {"vfio-pci": "vfio_pci", "my-gpu": "my_gpu"}


@pytest.mark.parametrize("module", (*MODULES, "vgpu", "pcieportdrv"))
def test_a_module_and_its_driver_lead_to_each_other(lab_of: MountedLab, module: str) -> None:
    own = lab_of.path / "sys/module" / module
    if module not in REGISTERS:
        assert not (own / "drivers").exists()
        return
    bus, driver = REGISTERS[module]
    assert os.listdir(own / "drivers") == [f"{bus}:{driver}"]
    assert leads_to(own / f"drivers/{bus}:{driver}") == f"bus/{bus}/drivers/{driver}"
    assert (
        os.readlink(lab_of.path / f"sys/bus/{bus}/drivers/{driver}/module") == f"../../../../module/{module}"
    )


@pytest.mark.parametrize("module", PARAMETERS)
def test_parameters_have_the_modes_and_values_of_linux(lab_of: MountedLab, module: str) -> None:
    folder = lab_of.path / "sys/module" / module / "parameters"
    shown = {
        name: ((folder / name).stat().st_mode & 0o777, (folder / name).read_text().removesuffix("\n"))
        for name in os.listdir(folder)
        if name != "dma_entry_limit"
    }
    assert shown == PARAMETERS[module]
    for name, (mode, before) in PARAMETERS[module].items():
        if mode == 0o444:
            with pytest.raises(PermissionError):
                os.open(folder / name, os.O_WRONLY)
            continue
        for text, now in (("y", "Y"), ("0", "N"), ("on", "Y"), (before, before)):
            (folder / name).write_text(text)
            assert (folder / name).read_text() == f"{now}\n"
        with pytest.raises(OSError) as caught:
            (folder / name).write_text("perhaps")
        assert caught.value.errno == errno.EINVAL


def test_resource_alignment_keeps_what_is_written(lab_of: MountedLab) -> None:
    path = lab_of.path / "sys/bus/pci/resource_alignment"
    assert path.read_text() == ""
    for text in ("12@0000:86:00.0", "pci:8086:9c22;20@87:00.0", ""):
        path.write_text(f"{text}\n")
        assert path.read_text() == (f"{text}\n" if text else "")


# ---- udev ----


@pytest.mark.parametrize("kind", ["devices", "subsystems"])
def test_udev_takes_nothing_for_a_device_that_has_no_uevent(lab_of: MountedLab, kind: str) -> None:
    need("udevadm", "udev")
    shown = Tool(lab_of, "udevadm").quiet("trigger", "--dry-run", "--verbose", f"--type={kind}").split()
    own = [lab_of.path / each.lstrip("/") for each in shown if "/virtual/net/" not in each]
    listed = [each for each in own if each.name != "drivers"]  # of a bus: it has no uevent on Linux either
    assert len(listed) > 8
    assert [each for each in listed if not (each / "uevent").exists()] == []
    assert not any("/vgpu/" in each for each in shown)


def test_udev_triggers_every_device(lab_of: MountedLab) -> None:
    need("udevadm", "udev")
    with open(lab_of.path / "uevents", "rb", buffering=0) as events:
        os.set_blocking(events.fileno(), False)
        vfsfuse("run", "--mount", lab_of.path, "--", "udevadm", "trigger", "--action=change")
        heard = set()
        while event := events.read(4096):
            heard.add(event.split(b"\0")[0].decode())
    for link in class_devices(lab_of.path / "sys"):
        assert f"change@/{leads_to(link)}" in heard


def test_udev_knows_the_devices_of_vfio(full: tuple[MountedLab, Vgpu]) -> None:
    need("udevadm", "udev")
    lab, vgpu = full
    for path, expected in (
        (f"/sys/class/vfio/{vgpu.group}", {"SUBSYSTEM": "vfio", "DEVNAME": f"/dev/vfio/{vgpu.group}"}),
        (f"/sys/class/vfio-dev/{vgpu.vfio}", {"DEVNAME": f"/dev/vfio/devices/{vgpu.vfio}"}),
        ("/sys/class/misc/vfio", {"SUBSYSTEM": "misc", "DEVNAME": "/dev/vfio/vfio", "DEVMODE": "0666"}),
        (f"/sys/bus/mdev/devices/{vgpu.name}", {"SUBSYSTEM": "mdev", "DRIVER": "vfio_mdev"}),
        ("/sys/class/mdev_bus/mtty", {"SUBSYSTEM": "mtty"}),
    ):
        shown = Tool(lab, "udevadm").quiet("info", "--query=property", f"--path={path}")
        properties = dict(line.split("=", 1) for line in shown.splitlines())
        assert properties.items() >= expected.items()
    walk = Tool(lab, "udevadm").quiet("info", "--attribute-walk", f"--path=/sys/class/vfio-dev/{vgpu.vfio}")
    kernels = re.findall(r'KERNELS?=="(.+)"', walk)
    assert kernels == [vgpu.vfio, vgpu.name, "mtty"]


def test_the_vendors_directory_is_no_device_and_lists_its_vgpus(full: tuple[MountedLab, Vgpu]) -> None:
    lab, vgpu = full
    own = lab.path / "sys/class/vgpu/vfsfuse"
    assert leads_to(own) == "devices/virtual/vgpu/vfsfuse"
    assert not (own / "uevent").exists()
    (link,) = own.iterdir()
    assert link.resolve() == vgpu.path.resolve()


def test_objects_that_are_no_devices_have_synthetic_events(lab_of: MountedLab) -> None:
    name = str(uuid.uuid4())
    for path, subsystem in (
        ("bus/pci", "bus"),
        ("bus/mdev", "bus"),
        ("bus/pci/drivers/vfio-pci", "drivers"),
        ("module/vfio_pci", "module"),
    ):
        with open(lab_of.path / "uevents", "rb", buffering=0) as events:
            (lab_of.path / "sys" / path / "uevent").write_text(f"change {name}")
            *lines, number = (events.read(4096) or b"").decode().rstrip("\0").split("\0")
        assert lines == [
            f"change@/{path}",
            "ACTION=change",
            f"DEVPATH=/{path}",
            f"SUBSYSTEM={subsystem}",
            f"SYNTH_UUID={name}",
        ]
        assert number.startswith("SEQNUM=")


def test_pyudev_lists_them(lab_of: MountedLab) -> None:
    need_pyudev()
    script = (
        "import pyudev\n"
        "for each in pyudev.Context().list_devices():\n"
        "    print(each.subsystem, each.sys_path, sep='\\t')\n"
    )
    rows = [line.split("\t") for line in Tool(lab_of, SYSTEM_PYTHON).quiet("-c", script).splitlines()]
    subsystems = {subsystem for subsystem, _ in rows}
    assert subsystems >= {"mdev", "misc", "mtty", "pci", "vfio", "vfio-dev"}
    assert not subsystems & {"subsystem", "drivers", "module", "vgpu"}
    by_class = [path for subsystem, path in rows if subsystem in ("misc", "mtty", "vfio", "vfio-dev")]
    found = [f"/sys/{leads_to(link)}" for link in class_devices(lab_of.path / "sys")]
    assert sorted(by_class) == sorted(found)
