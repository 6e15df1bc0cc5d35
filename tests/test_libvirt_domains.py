# SPDX-License-Identifier: Apache-2.0
"""libvirt's domains, unmodified, under `vfsfuse run --udev`: they get mediated devices and PCI functions of a
lab, by themselves (managed='yes') or by hand, when they start or while they run.

QEMU runs as the user that libvirt chooses.  It is paused, so no guest has to boot: tests/qemu/test_libvirt.py
has one.  Source: libvirt's "Domain XML format", "Host device assignment".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import domains
from tests.commands import VFSFUSE, run
from tests.domains import HOTPLUG, PORTS, SCRIPT, USER, Libvirt, driver, mdev, pci
from tests.labs import MountedLab, Vgpu
from tests.waiting import wait_for

GPU = "0000:86:00.0"
NODE = "pci_0000_86_00_0"
OF_GPU, OF_VGPU = "1234:86f0", "1234:1111"


@pytest.fixture(scope="module")
def libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirt]:
    """A libvirtd for the built-in lab."""
    domains.need()
    with (
        MountedLab(tmp_path_factory.mktemp("lab")) as lab,
        Libvirt(lab, tmp_path_factory.mktemp("libvirt")) as running,
    ):
        yield running


@pytest.fixture
def vgpu(libvirt: Libvirt) -> Iterator[Vgpu]:
    """A vGPU, which nobody has when it is removed."""
    with libvirt.lab.create() as made:
        yield made


@pytest.fixture
def name(libvirt: Libvirt, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for a domain, which is gone after the test."""
    chosen = f"domain-{abs(hash(request.node.name)) % 10**9}"
    yield chosen
    libvirt.drop(chosen)


def start(libvirt: Libvirt, name: str) -> None:
    libvirt.virsh("start", name, "--paused")


def owner(libvirt: Libvirt, group: str) -> tuple[int, list[str]]:
    """Who owns the file of a group, and the names of its extended attributes."""
    path = libvirt.lab.path / "dev/vfio" / group
    return os.stat(path).st_uid, os.listxattr(path)


def gpu(libvirt: Libvirt) -> Path:
    return libvirt.lab.path / "sys/bus/pci/devices" / GPU


# ---- mediated devices ----


def test_a_domain_with_a_vgpu(libvirt: Libvirt, vgpu: Vgpu, name: str) -> None:
    """QEMU is libvirt's user, and gets the group for as long as the domain runs.  libvirt 9 notes its owner
    in extended attributes meanwhile, libvirt 11 does not."""
    libvirt.define(name, mdev(vgpu.name))
    start(libvirt, name)
    assert libvirt.user_of(name) == USER
    assert OF_VGPU in libvirt.pci_ids(name)
    assert owner(libvirt, vgpu.group)[0]
    libvirt.virsh("destroy", name)
    assert owner(libvirt, vgpu.group) == (0, [])


def test_a_vgpu_has_one_domain(libvirt: Libvirt, vgpu: Vgpu, name: str) -> None:
    libvirt.define(name, mdev(vgpu.name))
    libvirt.define("second", mdev(vgpu.name))
    start(libvirt, name)
    assert f"is in use by driver QEMU, domain {name}" in libvirt.refused("start", "second")
    libvirt.virsh("destroy", name)
    start(libvirt, "second")
    libvirt.drop("second")


def test_a_domain_with_a_vgpu_that_is_not_there(libvirt: Libvirt, vgpu: Vgpu, name: str) -> None:
    libvirt.define(name, mdev("6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e77"))
    assert "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e77" in libvirt.refused("start", name)


def test_libvirt_makes_the_vgpu_of_a_domain(libvirt: Libvirt, name: str) -> None:
    """A definition of a node device is started before the domain, and stopped after it."""
    uuid = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e31"
    xml = f"<device><parent>{NODE}</parent><capability type='mdev'><type id='vgpu-8'/><uuid>{uuid}</uuid>"
    libvirt.virsh("nodedev-create", libvirt.file("vgpu", f"{xml}</capability></device>"))
    libvirt.define(name, mdev(uuid))
    start(libvirt, name)
    assert OF_VGPU in libvirt.pci_ids(name)
    node = f"mdev_{uuid.replace('-', '_')}_0000_86_00_0"
    libvirt.refused("nodedev-destroy", node)
    libvirt.virsh("destroy", name)
    libvirt.virsh("nodedev-destroy", node)
    assert not (libvirt.lab.mdevs / uuid).exists()


def test_a_vgpu_is_plugged_into_a_running_domain(libvirt: Libvirt, vgpu: Vgpu, name: str) -> None:
    libvirt.define(name, PORTS, machine=HOTPLUG)
    start(libvirt, name)
    device = libvirt.file("device", mdev(vgpu.name))
    libvirt.virsh("attach-device", name, device, "--live")
    assert OF_VGPU in libvirt.pci_ids(name) and len(libvirt.hostdevs(name)) == 1
    assert owner(libvirt, vgpu.group)[0]
    libvirt.virsh("detach-device", name, device, "--live")
    wait_for(lambda: not libvirt.hostdevs(name))  # on a busy machine virsh does not wait for that
    assert OF_VGPU not in libvirt.pci_ids(name)
    assert owner(libvirt, vgpu.group) == (0, [])


def test_a_domain_under_kvm(libvirt: Libvirt, vgpu: Vgpu, name: str) -> None:
    """QEMU tells KVM of the group, and would say so if KVM refused it."""
    said, status = libvirt.shell.run("virsh -q domcapabilities --virttype kvm")
    if status:
        pytest.skip(f"libvirt finds no KVM: {said.strip()}")
    libvirt.define(name, mdev(vgpu.name), kind="kvm")
    start(libvirt, name)
    assert "enabled" in libvirt.virsh("qemu-monitor-command", name, "--hmp", "info kvm")
    assert OF_VGPU in libvirt.pci_ids(name)
    assert "KVM" not in libvirt.shell.check(f"grep -v '^-' /var/log/libvirt/qemu/{name}.log")


# ---- PCI functions ----


def test_a_managed_function_comes_from_its_driver_and_goes_back(libvirt: Libvirt, name: str) -> None:
    group = os.path.basename(os.readlink(gpu(libvirt) / "iommu_group"))
    libvirt.define(name, pci(GPU))
    assert driver(gpu(libvirt)) == "vgpu"
    start(libvirt, name)
    assert driver(gpu(libvirt)) == "vfio-pci" and OF_GPU in libvirt.pci_ids(name)
    assert owner(libvirt, group)[0]
    libvirt.virsh("destroy", name)
    assert driver(gpu(libvirt)) == "vgpu"
    assert (gpu(libvirt) / "driver_override").read_text() == "(null)\n"


def test_a_function_that_is_not_managed(libvirt: Libvirt, name: str) -> None:
    """It must have vfio-pci before, and keeps it."""
    libvirt.define(name, pci(GPU, managed="no"))
    assert "0000:86:00.0" in libvirt.refused("start", name)
    assert driver(gpu(libvirt)) == "vgpu"
    libvirt.virsh("nodedev-detach", NODE)
    assert driver(gpu(libvirt)) == "vfio-pci"
    start(libvirt, name)
    assert "in use by driver QEMU" in libvirt.refused("nodedev-reattach", NODE)
    assert "0000:86:00.0" in libvirt.refused("nodedev-reset", NODE)
    libvirt.virsh("destroy", name)
    assert driver(gpu(libvirt)) == "vfio-pci"
    libvirt.virsh("nodedev-reset", NODE)
    libvirt.virsh("nodedev-reattach", NODE)
    assert driver(gpu(libvirt)) == "vgpu"


def test_a_function_with_vgpus_in_use_is_refused(libvirt: Libvirt, vgpu: Vgpu, name: str) -> None:
    """The driver cannot leave a function whose vGPU a domain has."""
    libvirt.define("user", mdev(vgpu.name))
    start(libvirt, "user")
    libvirt.define(name, pci(GPU))
    libvirt.refused("start", name)
    assert driver(gpu(libvirt)) == "vgpu" and OF_VGPU in libvirt.pci_ids("user")
    libvirt.drop("user")


def test_a_function_is_plugged_into_a_running_domain(libvirt: Libvirt, name: str) -> None:
    libvirt.define(name, PORTS, machine=HOTPLUG)
    start(libvirt, name)
    device = libvirt.file("device", pci(GPU))
    libvirt.virsh("attach-device", name, device, "--live")
    assert driver(gpu(libvirt)) == "vfio-pci" and OF_GPU in libvirt.pci_ids(name)
    libvirt.virsh("detach-device", name, device, "--live")
    wait_for(lambda: not libvirt.hostdevs(name))
    assert driver(gpu(libvirt)) == "vgpu" and OF_GPU not in libvirt.pci_ids(name)


# ---- libvirtd ----


def test_a_new_libvirtd_finds_the_domain_with_its_device(libvirt: Libvirt, vgpu: Vgpu, name: str) -> None:
    libvirt.define(name, mdev(vgpu.name))
    start(libvirt, name)
    libvirt.restart()
    assert libvirt.virsh("domstate", name) == "paused"
    assert OF_VGPU in libvirt.pci_ids(name) and len(libvirt.hostdevs(name)) == 1
    libvirt.define("second", mdev(vgpu.name))
    assert f"domain {name}" in libvirt.refused("start", "second")
    libvirt.drop("second")
    libvirt.virsh("destroy", name)
    assert owner(libvirt, vgpu.group) == (0, [])


# ---- --stat-paths ----


def test_domains_start_where_stats_by_path_tell_of_devices(
    libvirt: Libvirt, vgpu: Vgpu, tmp_path: Path
) -> None:
    """libvirt makes no nodes in the private /dev of a domain for files below a mount, as /dev/vfio is."""
    with Libvirt(libvirt.lab, tmp_path, "--stat-paths") as seeing:
        seeing.shell.check(f"test -c /dev/vfio/{vgpu.group}")
        seeing.define("devices", PORTS, machine=HOTPLUG)
        start(seeing, "devices")
        seeing.virsh("attach-device", "devices", seeing.file("vgpu", mdev(vgpu.name)), "--live")
        assert OF_VGPU in seeing.pci_ids("devices")
        seeing.drop("devices")
        seeing.define("devices", mdev(vgpu.name))
        start(seeing, "devices")
        assert OF_VGPU in seeing.pci_ids("devices")
        seeing.drop("devices")


# ---- the example's script ----


def test_the_exit_status_is_that_of_the_command(tmp_path: Path) -> None:
    domains.need()
    done = run([*VFSFUSE, "run", "--udev", "--", SCRIPT, "sh", "-c", "virsh -q list --all; exit 3"])
    assert (done.returncode, done.stdout.strip(), done.stderr) == (3, "", "")


def test_domains_end_with_the_command(libvirt: Libvirt, vgpu: Vgpu, tmp_path: Path) -> None:
    """Nobody has the vGPU any more, so it can be removed."""
    with Libvirt(libvirt.lab, tmp_path) as ending:
        ending.define("ending", mdev(vgpu.name))
        start(ending, "ending")
        with pytest.raises(OSError, match="busy"):
            vgpu.remove()


def test_a_libvirtd_that_does_not_start_says_why(tmp_path: Path) -> None:
    domains.need()
    (tmp_path / "libvirtd").write_text("#!/bin/sh\necho 'no libvirtd today' >&2; exit 7\n")
    (tmp_path / "libvirtd").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run([*VFSFUSE, "run", "--udev", "--", SCRIPT, "true"], PATH=path)
    assert (done.returncode, done.stderr) == (1, "no libvirtd today\n")
