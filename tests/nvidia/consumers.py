# SPDX-License-Identifier: Apache-2.0
"""What programs that manage such vGPUs do with the tree: the same files in the same order, with the checks
and parsers of each program. They share no code with the lab or with one another.

`sys` is the folder that they take for /sys. Source: the sources of the programs, as they were in 2026.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

NVIDIA, CLASSES = "0x10de", ("0x030000", "0x030200")


class Unusable(Exception):
    """The program ends with an error."""


def line(path: Path) -> str:
    return path.read_text().strip()


def link(path: Path) -> str:
    """The last component of a link's target."""
    return os.path.basename(os.readlink(path))


def go_write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """os.WriteFile of Go."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        if os.write(fd, text.encode()) != len(text):
            raise Unusable(f"{path}: a short write")
    finally:
        os.close(fd)


# ---- go-nvlib's nvpci, and vgpu-device-manager by it ----


@dataclass
class NvPciDevice:
    """What nvpci keeps of a function."""

    path: Path
    vendor: int
    device: int
    class_: int
    driver: str
    iommu_group: int
    numa_node: int
    vfio: str
    physfn: str
    total_vfs: int = -1
    vfs: int = -1
    resources: list[tuple[int, int, int]] = field(default_factory=list)


def nvpci_device(path: Path) -> NvPciDevice | None:
    """One function. None for another vendor's; a file that is missing fails the whole list."""
    vendor = int(line(path / "vendor"), 0)
    if vendor != 0x10DE:
        return None
    class_, device = int(line(path / "class"), 0) >> 8, int(line(path / "device"), 0)
    driver = link(path / "driver") if (path / "driver").is_symlink() else ""
    group = int((path / "iommu_group").resolve(strict=True).name) if (path / "iommu_group").exists() else -1
    vfio = ""
    if (path / "vfio-dev").exists():
        for entry in os.scandir(path / "vfio-dev"):
            if entry.is_dir(follow_symlinks=False) and entry.name.startswith("vfio"):
                vfio = entry.name
    found = NvPciDevice(path, vendor, device, class_, driver, group, int(line(path / "numa_node")), vfio, "")
    if (path / "physfn").is_symlink():
        found.physfn = (path / "physfn").resolve(strict=True).name
    elif (path / "sriov_totalvfs").exists():
        found.total_vfs, found.vfs = int(line(path / "sriov_totalvfs")), int(line(path / "sriov_numvfs"))
    if len((path / "config").read_bytes()) not in (256, 4096):
        raise Unusable(f"{path}: configuration space of another size")
    for row in (path / "resource").read_text().splitlines():
        start, end, flags = (int(word, 0) for word in row.split(" "))
        found.resources.append((start, end, flags))
    return found


def nvpci_gpus(sys: Path) -> list[NvPciDevice]:
    """GetGPUs: the GPUs in the order of their addresses, without virtual functions."""
    folder = sys / "bus/pci/devices"
    found = [nvpci_device(folder / name) for name in sorted(os.listdir(folder))]
    return [each for each in found if each and each.class_ in (0x0300, 0x0302) and not each.physfn]


class DeviceManager:
    """vgpu-device-manager by nvpci."""

    def __init__(self, sys: Path) -> None:
        self.gpus = [each for each in nvpci_gpus(sys) if each.total_vfs > 0]
        self.vfs: list[Path] = []
        for gpu in self.gpus:
            os.stat(gpu.path / "virtfn0/nvidia/creatable_vgpu_types")
            for index in range(gpu.vfs):
                folder = gpu.path / f"virtfn{index}/nvidia"
                os.stat(folder)  # one that is missing fails all of them
                self.vfs.append(folder)

    def type_id(self, folder: Path, name: str) -> str | None:
        """The id of a type, known by the last word of its name, if it can be created there."""
        for row in (folder / "creatable_vgpu_types").read_text().split("\n"):
            words = row.split()
            if len(words) >= 2 and words[-1] == name:
                return words[0]
        return None

    def create(self, name: str) -> Path:
        """A vGPU on the first function that offers the type."""
        for folder in self.vfs:
            number = self.type_id(folder, name)
            if number is not None:
                go_write_file(folder / "current_vgpu_type", number)
                return folder
        raise Unusable(f"no function offers {name}")

    def config(self) -> dict[str, int]:
        """How many vGPUs there are of each id."""
        counts: dict[str, int] = {}
        for folder in self.vfs:
            number = line(folder / "current_vgpu_type")
            if number != "0":
                counts[number] = counts.get(number, 0) + 1
        return counts

    def clear(self) -> None:
        for folder in self.vfs:
            if int(line(folder / "current_vgpu_type")):
                go_write_file(folder / "current_vgpu_type", "0")


# ---- vgpu-device-manager by files alone ----


class VfioManager:
    """The other form of vgpu-device-manager."""

    def __init__(self, sys: Path) -> None:
        buses = sys / "class/mdev_bus"
        if buses.is_dir() and os.listdir(buses):
            raise Unusable("the framework is mdev")
        devices = sys / "bus/pci/devices"
        self.gpus = [
            devices / name
            for name in sorted(os.listdir(devices))
            if line(devices / name / "vendor") == NVIDIA
            and line(devices / name / "class") in CLASSES
            and (devices / name / "sriov_totalvfs").exists()
            and link(devices / name / "driver") == "nvidia"
        ]
        if not self.gpus:
            raise Unusable("no GPU")

    def vfs(self, gpu: Path) -> list[Path]:
        """The directories nvidia of a GPU's functions, by number."""
        numbered = sorted((int(path.name.removeprefix("virtfn")), path) for path in gpu.glob("virtfn*"))
        names = [link(path) for _, path in numbered]
        found = [gpu.parent / name / "nvidia" for name in names]
        for folder in found:
            if not stat.S_ISDIR(os.stat(folder).st_mode):
                raise Unusable(f"{folder} is no directory")
        return found

    def catalogue(self, folder: Path) -> dict[int, str]:
        found: dict[int, str] = {}
        for row in (folder / "creatable_vgpu_types").read_text().splitlines():
            number, _, name = row.partition(":") if ":" in row else row.partition(" ")
            if number.strip().isdigit():
                found[int(number)] = name.strip()
        return found

    def set_config(self, wanted: dict[str, int]) -> None:
        """Clear all, then create: each request on the first free function that still offers the type."""
        for gpu in self.gpus:
            folders = self.vfs(gpu)
            for folder in folders:
                if line(folder / "current_vgpu_type") != "0":
                    self._write(folder, "0")
            ids: dict[str, int] = {}
            for folder in folders:
                ids |= {name.split()[-1]: number for number, name in self.catalogue(folder).items()}
            for name, count in wanted.items():
                for _ in range(count):
                    self._create(folders, ids[name])

    def _create(self, folders: list[Path], number: int) -> None:
        for folder in folders:
            if line(folder / "current_vgpu_type") == "0" and number in self.catalogue(folder):
                self._write(folder, str(number))
                return
        raise Unusable(f"no function for {number}")

    def _write(self, folder: Path, text: str) -> None:
        fd = os.open(folder / "current_vgpu_type", os.O_WRONLY | os.O_TRUNC | os.O_SYNC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


# ---- device plugins ----


def walk_links(sys: Path) -> list[Path]:
    """filepath.Walk of the functions: what is a directory by lstat(2) is passed over."""
    folder = sys / "bus/pci/devices"
    return [
        folder / name
        for name in sorted(os.listdir(folder))
        if not stat.S_ISDIR(os.lstat(folder / name).st_mode)
    ]


def gpu_device_plugin(sys: Path) -> dict[str, list[tuple[str, str, int]]]:
    """kubevirt-gpu-device-plugin: address, IOMMU group and NUMA node of the devices of each resource."""
    names: dict[str, dict[str, str]] = {}
    functions: list[tuple[str, Path]] = []
    for path in walk_links(sys):
        if (
            line(path / "vendor") != NVIDIA
            or not (path / "driver").is_symlink()
            or link(path / "driver") != "nvidia"
        ):
            continue
        is_physical = (path / "sriov_totalvfs").exists()
        if not is_physical and not (path / "physfn").is_symlink():
            continue
        physical = path.name if is_physical else link(path / "physfn")
        try:
            text = (path / "nvidia/creatable_vgpu_types").read_text()
        except FileNotFoundError:
            continue
        for number, name in re.findall(r"^\s*(\d+)\s*:\s*(.+?)\s*$", text, re.MULTILINE):
            names.setdefault(physical, {})[number] = name
        if not is_physical:
            functions.append((physical, path))
    found: dict[str, list[tuple[str, str, int]]] = {}
    for physical, path in functions:
        number = line(path / "nvidia/current_vgpu_type")
        if number in ("", "0"):
            continue
        resource = names[physical][number].replace(" ", "_")
        place = path.name, link(path / "iommu_group"), int(line(path / "numa_node"))
        found.setdefault(resource, []).append(place)
    return found


def virt_handler(sys: Path, selector: str) -> list[tuple[str, str, str]]:
    """KubeVirt: the devices of a `pciVendorSelector`, by driver, address and IOMMU group."""
    found = []
    for path in walk_links(sys):
        ids = [
            row.removeprefix("PCI_ID=")
            for row in (path / "uevent").read_text().splitlines()
            if row.startswith("PCI_ID=")
        ]
        if not ids or ids[0].lower() != selector.lower() or not (path / "driver").is_symlink():
            continue
        driver = link(path / "driver")
        if driver == "nvidia":
            if (path / "sriov_totalvfs").exists():
                continue
            try:
                profile = line(path / "nvidia/current_vgpu_type")
            except FileNotFoundError:
                continue
            if profile in ("", "0"):
                continue
        elif driver != "vfio-pci":
            continue
        found.append((driver, path.name, link(path / "iommu_group")))
    return found


# ---- managers of virtual machines ----


def proxmox_start(sys: Path, address: str, wanted: str) -> list[str]:
    """qemu-server: prepare a function for a type called nvidia-<id>; the arguments for QEMU."""
    path = sys / "bus/pci/devices" / address
    if (path / "mdev_supported_types").is_dir():
        raise Unusable("it is a parent of mediated devices")
    number = wanted.removeprefix("nvidia-")
    current = (path / "nvidia/current_vgpu_type").read_text().split("\n")[0]
    if current != number:
        if current != "0":
            (path / "nvidia/current_vgpu_type").write_text("0")
        rows = (path / "nvidia/creatable_vgpu_types").read_text().split("\n")
        offered = [
            match[1]
            for row in rows
            if not row.startswith("ID") and (match := re.match(r"(\d+)\s*:\s*(\S.*)$", row))
        ]
        if number not in offered:
            raise Unusable(f"{address} does not offer {wanted}")
        (path / "nvidia/current_vgpu_type").write_text(number)
    return ["-device", f"vfio-pci,host={address}"]


def proxmox_stop(sys: Path, address: str) -> None:
    """Take the type away: read, write 0, look again."""
    file = sys / "bus/pci/devices" / address / "nvidia/current_vgpu_type"
    for _ in range(10):
        if file.read_text().split("\n")[0] == "0":
            return
        file.write_text("0")
    raise Unusable(f"{address} keeps its type")


def harvester_types(sys: Path, address: str) -> dict[str, str]:
    """pcidevices: ids by name. A line with more than one colon is lost."""
    path = sys / "bus/pci/devices" / address
    os.stat(path / "nvidia/creatable_vgpu_types")
    parts = [row.split(":") for row in (path / "nvidia/creatable_vgpu_types").read_text().split("\n")]
    found = {each[1].strip(): each[0].strip() for each in parts if len(each) == 2}
    found.pop("vGPU Name")
    return found


def harvester_set(sys: Path, address: str, number: str) -> None:
    go_write_file(sys / "bus/pci/devices" / address / "nvidia/current_vgpu_type", number, 0o600)


def open_nebula_default(sys: Path, address: str) -> str:
    """Without a profile: the type in the second line of the catalogue."""
    if (sys / "bus/pci/devices" / address / "mdev_supported_types").exists():
        raise Unusable("it is a parent of mediated devices")
    rows = (sys / "bus/pci/devices" / address / "nvidia/creatable_vgpu_types").read_text().splitlines()
    if any(":" not in row for row in rows):
        raise Unusable("an empty line")
    return rows[1].split(":")[0].strip()


def hypeman_types(sys: Path, address: str) -> dict[int, tuple[str, int]]:
    """A strict parser: name and gigabytes by id."""
    found: dict[int, tuple[str, int]] = {}
    for row in (sys / "bus/pci/devices" / address / "nvidia/creatable_vgpu_types").read_text().split("\n"):
        if not row.strip() or row.startswith("ID"):
            continue
        number, separator, name = row.partition(":")
        size = re.search(r"-(\d+)[ABCQ]$", name.strip())
        if not separator or not number.strip().isdigit() or size is None:
            raise Unusable(f"a line that is not understood: {row!r}")
        found[int(number)] = name.strip(), int(size[1])
    return found


def hypeman_in_use(dev: Path, vfio: str, group: str) -> bool:
    """Whether some process has the device or its group open, by its descriptors in /proc."""
    wanted = {str(dev / "vfio/devices" / vfio), str(dev / "vfio" / group)}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{process}/fd"):
                if os.readlink(f"/proc/{process}/fd/{fd}") in wanted:
                    return True
        except OSError:
            continue
    return False
