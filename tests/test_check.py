# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse check`: its tree is what a mount of the same lab file shows, and each error is a line."""

import json
import re
import subprocess
from pathlib import Path

from tests.commands import ROOT, VFSFUSE, vfsfuse
from tests.labs import MountedLab

MACHINE = """
[nodes.0]
cpus = "0-3,8"
memory = "4G"
[nodes.1]
cpus = "4-7"
memory = "1536M"
[roots."0000:80"]
numa_node = 1
[functions."0000:00:02.0"]
bridge = "root-port"
secondary = 0x10
[functions."0000:10:00.0"]
vendor = 0x8086
device = 0x1592
class = 0x020000
driver = "ice"
bars = { 0 = { size = "32M", kind = "mem64-prefetch" }, 2 = { size = 32, kind = "io" } }
rom_size = "64K"
capabilities = ["pm", "express"]
vfs = 8
vf.device = 0x1889
slot = 3
[functions."0000:80:02.0"]
iommu = false
[functions."0000:00:03.0"]
bridge = "root-port"
secondary = 0x20
slot = 4
[functions."0000:20:00.0"]
slot = 4
plugged = false
[parents.mtty]
kind = "virtual"
driver = "mtty"
slots = 2
types.one = { description = "one port" }
"""
TREE = """\
0000:00 root bus
├── 0000:00:02.0 [0604] 1b36:000c, root-port to bus 10, driver pcieport, group 0
│   └── 0000:10:00.0 [0200] 8086:1592, driver ice, group 2, slot 3, BARs 0=32M(mem64-prefetch) \
2=32(io) ROM=64K, up to 8 VFs 8086:1889
└── 0000:00:03.0 [0604] 1b36:000c, root-port to bus 20, driver pcieport, group 1, slot 4
0000:80 root bus, NUMA node 1
└── 0000:80:02.0 [ff00] 1b36:0005, no driver, group 3 (no IOMMU), node 1
parents without hardware
└── mtty, driver mtty
    └── one: one port, room for 2
IOMMU groups
├── 0: 0000:00:02.0
├── 1: 0000:00:03.0
├── 2: 0000:10:00.0
└── 3 (no IOMMU): 0000:80:02.0
IOMMU units
└── dmar0: 3 functions
not plugged in
└── 0000:20:00.0, slot 4
NUMA nodes
├── 0: CPUs 0-3,8, memory 4G
└── 1: CPUs 4-7, memory 1536M
"""


def test_a_machine_is_a_tree(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(MACHINE)
    done = vfsfuse("check", tmp_path / "my.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == TREE


def test_a_mount_shows_what_the_tree_says(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(MACHINE)
    said = vfsfuse("check", tmp_path / "my.toml").stdout
    with MountedLab(tmp_path, "--config", str(tmp_path / "my.toml")) as lab:
        devices = lab.path / "sys/bus/pci/devices"
        lines = re.findall(
            r"(?m)^[ │├└─]*(\S+) \[(\w+)\] (\w+):(\w+), .*?(?:driver (\w+)|no driver), group (\d+)", said
        )
        assert {name for name, *_ in lines} == {path.name for path in devices.iterdir()}
        for name, class_, vendor, device, driver, group in lines:
            path = devices / name
            assert (path / "class").read_text().startswith(f"0x{class_}")
            assert (path / "vendor").read_text() == f"0x{vendor}\n"
            assert (path / "device").read_text() == f"0x{device}\n"
            assert (path / "driver").exists() == bool(driver)
            if driver:
                assert (path / "driver").resolve().name == driver
            if (path / "iommu_group").exists():
                assert (path / "iommu_group").resolve().name == group
        total = (devices / "0000:10:00.0/sriov_totalvfs").read_text()
        assert f"up to {total.strip()} VFs" in said


def test_the_built_in_lab() -> None:
    done = vfsfuse("check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "vgpu-8: virtual GPU, 32 MB video memory, room for 8\n" in done.stdout


def test_all_errors_are_told_in_a_line_each(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(MACHINE.replace("slots = 2", "slots = 0") + "[mount]\ncache = -1\n")
    done = vfsfuse("check", file)
    assert (done.returncode, done.stdout) == (1, "")
    said = f"vfsfuse: check: {file}"
    assert done.stderr.splitlines() == [
        f"{said}: mount.cache: -1 is not a time (give seconds, 0 to 86400)",
        f"{said}: parents.mtty.slots: 0 is out of range (give 1 or more, or leave the key out)",
    ]
    done = vfsfuse("check", tmp_path / "none.toml")
    assert done.returncode == 1 and "cannot be read: No such file or directory" in done.stderr


def test_a_model_that_fails_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "card.py").write_text(
        "from devmodel.sdk import Identity, PciDevice\n"
        "class Card(PciDevice):\n"
        "    identity = Identity(1, 2, 3, 4, 0)\n"
        "    def bars(self):\n"
        "        raise SystemExit(3)\n"
    )
    file = tmp_path / "my.toml"
    file.write_text('[models]\ncard = "card.py:Card"\n[functions."0000:01:00.0"]\nmodel = "card"\n')
    done = vfsfuse("check", file)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"vfsfuse: check: {file}: the lab cannot be made: SystemExit(3) at {tmp_path}/card.py:5\n"
    )


def test_a_pipe_that_closes_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('[functions."0000:{40-5f}:{00-1f}.{0-7}"]\nvendor = 1\n')
    command = f"{' '.join(VFSFUSE)} check {tmp_path / 'my.toml'} | head -n 1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert (done.stdout, done.stderr) == ("0000:00 root bus\n", "")


def test_the_schema_for_editors() -> None:
    done = vfsfuse("check", "--schema")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["title"] == "A lab file of vfsfuse"
