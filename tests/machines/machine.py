# SPDX-License-Identifier: Apache-2.0
"""What the tests of machines share: a mounted example, programs run in it, and its groups and drivers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, vfsfuse
from tests.labs import MountedLab
from tests.tool import NO_MODULES, need

can_pin = pytest.mark.skipif(
    not needs.has_capability("CAP_IPC_LOCK"),
    reason="a function pins all of the guest's memory, which takes CAP_IPC_LOCK",
)
EXAMPLES = ROOT / "examples"
GROUPS = r"""
for g in $(find /sys/kernel/iommu_groups/* -maxdepth 0 -type d | sort -V); do
    echo "IOMMU Group ${g##*/}:"
    for d in $g/devices/*; do
        echo "    $(lspci -n -s ${d##*/})"
    done
done
"""
"""The shell loop of countless guides to passthrough, with numbers for names."""


def example(folder: Path, name: str) -> MountedLab:
    """The lab of a file in examples/."""
    return MountedLab(folder, "--config", str(EXAMPLES / name))


def shell(lab: MountedLab, script: str) -> str:
    """What a shell script prints under `vfsfuse run`; it has to succeed."""
    done = vfsfuse("run", "--mount", lab.path, "--", "sh", "-ec", script)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lspci(lab: MountedLab, *arguments: str) -> str:
    """What lspci prints. It has to complain of nothing."""
    need("lspci", "pciutils")
    done = vfsfuse("run", "--mount", lab.path, "--", "lspci", *arguments)
    assert (done.returncode, NO_MODULES.sub("", done.stderr)) == (0, "")
    return done.stdout


def override(lab: MountedLab, function: str, driver: str = "vfio-pci") -> None:
    """Have driverctl bind a function to a driver."""
    need("driverctl")
    shell(lab, f"driverctl --nosave set-override {function} {driver}")


def reset(lab: MountedLab, function: str) -> None:
    """Have driverctl give a function back to its host driver."""
    need("driverctl")
    shell(lab, f"driverctl --nosave unset-override {function}")


def function_dir(lab: MountedLab, name: str) -> Path:
    return lab.path / "sys/bus/pci/devices" / name


def driver_of(lab: MountedLab, function: str) -> str:
    """The name of a function's driver, empty without one."""
    link = function_dir(lab, function) / "driver"
    return os.path.basename(os.readlink(link)) if link.is_symlink() else ""


def group_of(lab: MountedLab, function: str) -> str:
    """The number of a function's IOMMU group."""
    return os.path.basename(os.readlink(function_dir(lab, function) / "iommu_group"))


def members(lab: MountedLab, group: str) -> list[str]:
    """The devices of an IOMMU group."""
    return sorted(os.listdir(lab.path / "sys/kernel/iommu_groups" / group / "devices"))


def partition(lab: MountedLab) -> list[list[str]]:
    """The devices of all IOMMU groups, by number."""
    groups = os.listdir(lab.path / "sys/kernel/iommu_groups")
    return [members(lab, group) for group in sorted(groups, key=int)]
