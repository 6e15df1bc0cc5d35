# SPDX-License-Identifier: Apache-2.0
"""Virtual functions of network cards on a mount: where they are, what they are, their drivers and interfaces;
those that come late, those that their driver fails to take, and MSI-X vectors that are shared out."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import nic
from tests.commands import one_write, run, vfsfuse
from tests.iommufd.bound import open_bound
from tests.labs import MountedLab, described
from tests.nic import CARD, DELAY, LATE, driver_of, enable, function, interfaces, virtual
from tests.snapshot import snapshot
from tests.test_uevents import hear, listening
from tests.tool import Tool, need
from tests.vfio.client import DEVICE_GET_IRQ_INFO, Container, Group, IrqInfo, fails, ioctl
from tests.vfio.devices import MSIX, TRIGGER, eventfd, group_device, opened
from tests.waiting import comes_to, settled, wait_for

PLACES = ["0000:65:1f.2", "0000:65:1f.4", "0000:65:1f.6", "0000:66:00.0", "0000:66:00.2"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("nics"), nic.LAB) as made:
        yield made


@pytest.fixture(autouse=True)
def as_before(lab: MountedLab) -> Iterator[None]:
    """Every test leaves the lab as it found it, but for the numbers of interfaces, which only rise."""
    before = unnumbered(lab)
    yield
    for name in (CARD, LATE):
        enable(lab, 0, name)
    comes_to(lambda: unnumbered(lab), before)


def unnumbered(lab: MountedLab) -> dict[str, str]:
    numbers = ("ifindex", "iflink", "uevent")
    return {
        path: text
        for path, text in snapshot(lab.path).items()
        if not ("/net/" in path and path.endswith(numbers))
    }


# ---- where they are, and what they are ----


def test_places_of_the_lab_file(lab: MountedLab) -> None:
    shown = {name: (function(lab, CARD) / name).read_text().strip() for name in ATTRIBUTES}
    assert shown == ATTRIBUTES
    assert [vf.name for vf in enable(lab, 5)] == PLACES
    assert struct.unpack_from("<HHHBxHHxxH", nic.sriov(function(lab, CARD)), 12) == (
        8,
        8,
        5,
        0,
        250,
        2,
        0x1889,
    )
    assert (lab.path / "sys/class/pci_bus/0000:66").exists()
    need("lspci", "pciutils")
    shown_by = run(["lspci", "-A", "linux-sysfs", "-O", f"sysfs.path={lab.path}/sys/bus/pci", "-vvs", CARD])
    assert "VF offset: 250, stride: 2, Device ID: 1889" in shown_by.stdout
    assert "Total VFs: 8, Number of VFs: 5" in shown_by.stdout


ATTRIBUTES = {
    "sriov_totalvfs": "8",
    "sriov_numvfs": "0",
    "sriov_offset": "250",
    "sriov_stride": "2",
    "sriov_vf_device": "1889",
    "sriov_drivers_autoprobe": "1",
    "sriov_vf_total_msix": "40",
}


def resource(own: Path) -> list[tuple[int, ...]]:
    """The lines of `resource`: start, end and flags."""
    lines = (own / "resource").read_text().splitlines()
    return [tuple(int(word, 16) for word in line.split()) for line in lines]


def test_identity_and_bars(lab: MountedLab) -> None:
    card, vfs = function(lab, CARD), enable(lab, 3)
    rows = resource(card)
    for index, vf in enumerate(vfs):
        texts = {name: (vf / name).read_text().strip() for name in IDENTITY}
        assert texts == IDENTITY
        assert (vf / "config").read_bytes()[:4] == b"\xff" * 4
        own = resource(vf)
        for bar, size in ((0, 64 << 10), (3, 16 << 10)):
            start, end, flags = rows[7 + bar]
            assert own[bar] == (start + index * size, start + (index + 1) * size - 1, flags)
            assert end - start + 1 == 8 * size
            assert (vf / f"resource{bar}").stat().st_size == size


IDENTITY = {
    "vendor": "0x8086",
    "device": "0x1889",
    "subsystem_vendor": "0x8086",
    "subsystem_device": "0x0002",
    "class": "0x020000",
    "revision": "0x02",
}


# ---- drivers and interfaces ----


def test_the_host_driver_takes_all_but_those_that_fail(lab: MountedLab) -> None:
    vfs = enable(lab, 3)
    assert [driver_of(vf) for vf in vfs] == ["iavf", "iavf", None]
    assert interfaces(lab) == ALONE | {"enp101s0f0v0", "enp101s0f0v1"}
    assert [sorted(os.listdir(vf / "net")) for vf in vfs[:2]] == [["enp101s0f0v0"], ["enp101s0f0v1"]]
    assert not (vfs[2] / "net").exists()
    drivers = lab.path / "sys/bus/pci/drivers"
    fails(errno.EIO, one_write, drivers / "iavf/bind", vfs[2].name)
    one_write(drivers.parent / "drivers_probe", vfs[2].name)
    (vfs[2] / "driver_override").write_text("iavf")
    one_write(drivers.parent / "drivers_probe", vfs[2].name)
    assert driver_of(vfs[2]) is None
    fails(errno.ENODEV, one_write, drivers / "ice/bind", vfs[1].name)
    nic.to_vfio(lab, vfs[2])


ALONE = {"lo", "enp101s0f0", "ens1", "ens2", "eth9"}


def test_without_autoprobe_they_are_left_alone(lab: MountedLab) -> None:
    autoprobe = function(lab, CARD) / "sriov_drivers_autoprobe"
    autoprobe.write_text("0")
    try:
        vfs = enable(lab, 2)
        assert [driver_of(vf) for vf in vfs] == [None, None] and interfaces(lab) == ALONE
        fails(errno.ENODEV, one_write, lab.path / "sys/bus/pci/drivers/iavf/bind", vfs[0].name)
    finally:
        autoprobe.write_text("1")
    one_write(lab.path / "sys/bus/pci/drivers_probe", vfs[0].name)
    assert driver_of(vfs[0]) == "iavf"


def test_an_interface_goes_with_its_driver_and_comes_back(lab: MountedLab) -> None:
    vf = enable(lab, 1)[0]
    own = vf / "net/enp101s0f0v0"
    address, index = (own / "address").read_text(), int((own / "ifindex").read_text())
    (own / "mtu").write_text("9000")
    with listening(lab, os.O_NONBLOCK) as events:
        nic.to_vfio(lab, vf)
        assert not (vf / "net").exists() and interfaces(lab) == ALONE and (vf / "vfio-dev").exists()
        nic.give_back(lab, vf)
        heard = [(each["ACTION"], each["SUBSYSTEM"], each.get("INTERFACE")) for _, each in hear(events)]
    assert heard == [
        ("remove", "net", "enp101s0f0v0"),
        ("unbind", "pci", None),
        ("add", "vfio", None),
        ("add", "vfio-dev", None),
        ("bind", "pci", None),
        ("remove", "vfio-dev", None),
        ("remove", "vfio", None),
        ("unbind", "pci", None),
        ("add", "net", "enp101s0f0v0"),
        ("bind", "pci", None),
    ]
    assert interfaces(lab) == ALONE | {"enp101s0f0v0"}
    assert (own / "address").read_text() == address == "02:00:00:65:fa:00\n"
    assert int((own / "ifindex").read_text()) > index and (own / "mtu").read_text() == "1500\n"


# ---- those that come late ----


@pytest.fixture
def later(tmp_path: Path) -> Iterator[MountedLab]:
    """A lab whose late virtual functions do not come during a test."""
    with described(tmp_path, nic.LAB.replace(f"delay = {DELAY}", "delay = 3600")) as mounted:
        yield mounted


def test_who_enables_late_ones_does_not_wait_for_them(later: MountedLab) -> None:
    late, before = function(later, LATE), interfaces(later)
    assert enable(later, 2, LATE) == []
    assert (late / "sriov_numvfs").read_text() == "2\n" and number_of_vfs(late) == 2
    assert interfaces(later) == before


def test_late_ones_come_by_themselves(lab: MountedLab) -> None:
    with listening(lab) as events:
        began = time.monotonic()
        enable(lab, 2, LATE)
        heard: list[tuple[str, str]] = []
        while not heard or heard[-1] != ("change", LATE):
            fields = dict(
                field.split("=", 1) for field in os.read(events, 4096).decode().split("\0") if "=" in field
            )
            heard.append((fields["ACTION"], fields["DEVPATH"].rsplit("/", 1)[1]))
        assert time.monotonic() - began >= DELAY
    first, second = (vf.name for vf in virtual(lab, LATE))
    assert heard == [
        *(("add", first), ("change", first), ("add", second), ("change", second)),
        *(("add", "late0"), ("bind", first), ("add", "ens1v1"), ("bind", second)),
        ("change", LATE),
    ]
    assert [driver_of(vf) for vf in virtual(lab, LATE)] == ["mlx5_core"] * 2
    assert interfaces(lab) == ALONE | {"late0", "ens1v1"}


def test_a_count_is_not_changed_while_they_are_to_come(later: MountedLab) -> None:
    enable(later, 2, LATE)
    for count in (1, 3):
        fails(errno.EBUSY, enable, later, count, LATE)
    enable(later, 2, LATE)
    fails(errno.ERANGE, enable, later, 5, LATE)


def test_the_same_count_once_more_brings_no_more_of_them(lab: MountedLab) -> None:
    enable(lab, 2, LATE)
    enable(lab, 2, LATE)
    wait_for(lambda: len(virtual(lab, LATE)) == 2)
    assert settled(lambda: len(virtual(lab, LATE))) == 2


def disable(lab: MountedLab) -> None:
    enable(lab, 0, LATE)


def unbind(lab: MountedLab) -> None:
    one_write(lab.path / "sys/bus/pci/drivers/mlx5_core/unbind", LATE)


def remove(lab: MountedLab) -> None:
    one_write(function(lab, LATE) / "remove", "1")


@pytest.mark.parametrize("end", [disable, unbind, remove])
def test_what_ends_before_it_comes_never_comes(lab: MountedLab, end: object) -> None:
    assert callable(end)
    enable(lab, 2, LATE)
    end(lab)
    with listening(lab, os.O_NONBLOCK) as events:
        time.sleep(2 * DELAY)
        assert hear(events) == []
    if end is remove:
        assert not function(lab, LATE).exists()
        one_write(lab.path / "sys/bus/pci/rescan", "1")
    elif end is unbind:
        one_write(lab.path / "sys/bus/pci/drivers/mlx5_core/bind", LATE)
    own = function(lab, LATE)
    assert virtual(lab, LATE) == [] and (own / "sriov_numvfs").read_text() == "0\n" and not number_of_vfs(own)
    enable(lab, 1, LATE)
    wait_for(lambda: len(virtual(lab, LATE)) == 1)


def number_of_vfs(own: Path) -> int:
    """NumVFs in the SR-IOV capability."""
    return int.from_bytes(nic.sriov(own)[16:18], "little")


def test_a_lab_ends_while_they_are_to_come(tmp_path: Path) -> None:
    text = nic.LAB.replace(f"delay = {DELAY}", "delay = 3600")
    with described(tmp_path, text) as own:
        enable(own, 4, LATE)


def test_a_device_that_a_client_waits_for(lab: MountedLab) -> None:
    """A program that enables and then looks for the first one has to wait for it."""
    program = (
        "import os, sys, time\n"
        "own = sys.argv[1]\n"
        "open(own + '/sriov_numvfs', 'w').write('1')\n"
        "waited = 0\n"
        "while not os.path.exists(own + '/virtfn0/net'):\n"
        "    time.sleep(0.01); waited += 1\n"
        "print(waited, *os.listdir(own + '/virtfn0/net'))\n"
    )
    command = [sys.executable, "-c", program, str(function(lab, LATE))]

    def looks() -> int:
        """How often it looks in vain."""
        enable(lab, 0, LATE)
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        waited, name = done.stdout.split()
        assert name == "late0"
        return int(waited)

    wait_for(looks)  # on a busy machine the first look may come late


# ---- MSI-X vectors ----


def vectors(lab: MountedLab, vf: Path) -> tuple[int, int]:
    """The size of the MSI-X table, as the capability says and as a client of vfio-pci is told, who can set up
    so many vectors and no more."""
    config = (vf / "config").read_bytes()
    place = config[0x34]
    while config[place] != 0x11:
        place = config[place + 1]
    group = nic.to_vfio(lab, vf)
    with opened(lab, group, vf.name) as client:
        info = IrqInfo(index=MSIX)
        ioctl(client.device.fd, DEVICE_GET_IRQ_INFO, info)
        table = client.device.config(place + 2)
        with eventfd() as fd:
            client.device.eventfds(MSIX, TRIGGER, 0, *[fd] * info.count)
            client.device.tear_down(MSIX)
            fails(errno.EINVAL, client.device.eventfds, MSIX, TRIGGER, 0, *[fd] * (info.count + 1))
    nic.give_back(lab, vf)
    said = (struct.unpack_from("<H", config, place + 2)[0] & 0x7FF) + 1
    assert (table & 0x7FF) + 1 == said
    return said, info.count


def unbound(lab: MountedLab, vf: Path) -> Path:
    (vf / "driver/unbind").write_text(vf.name)
    return vf / "sriov_vf_msix_count"


def test_each_gets_an_equal_part_at_first(lab: MountedLab) -> None:
    assert vectors(lab, enable(lab, 1)[0]) == (16, 16)
    enable(lab, 0)
    assert vectors(lab, enable(lab, 4)[0]) == (10, 10)


def test_vectors_go_from_one_to_another(lab: MountedLab) -> None:
    vfs = enable(lab, 4)
    first, second = (unbound(lab, vf) for vf in vfs[:2])
    fails(errno.ENOSPC, first.write_text, "11")
    second.write_text("5")
    first.write_text("15")
    fails(errno.ENOSPC, first.write_text, "16")
    fails(errno.ENOSPC, second.write_text, "0")
    first.write_text("10")
    second.write_text("0")
    first.write_text("3")
    assert (vectors(lab, vfs[0]), vectors(lab, vfs[1])) == ((3, 3), (10, 10))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-1", errno.EINVAL),
        ("x", errno.EINVAL),
        ("\n", errno.EINVAL),
        ("2147483648", errno.EINVAL),
        ("17", errno.EOVERFLOW),
        ("2147483647", errno.EOVERFLOW),
    ],
)
def test_sizes_that_cannot_be(lab: MountedLab, text: str, number: int) -> None:
    vf = enable(lab, 1)[0]
    fails(number, unbound(lab, vf).write_text, text)
    assert vectors(lab, vf) == (16, 16)


def test_a_driver_keeps_its_vectors(lab: MountedLab) -> None:
    vf = enable(lab, 1)[0]
    count = vf / "sriov_vf_msix_count"
    fails(errno.EBUSY, count.write_text, "4")
    nic.to_vfio(lab, vf)
    fails(errno.EBUSY, count.write_text, "4")
    fails(errno.EINVAL, count.write_text, "-4")


def test_vectors_need_a_driver_that_shares_them_out(lab: MountedLab) -> None:
    enable(lab, 1, LATE)
    wait_for(lambda: virtual(lab, LATE) and driver_of(virtual(lab, LATE)[0]))
    vf = virtual(lab, LATE)[0]
    fails(errno.EOPNOTSUPP, (vf / "sriov_vf_msix_count").write_text, "4")
    assert (function(lab, LATE) / "sriov_vf_total_msix").read_text() == "0\n"
    card = function(lab, CARD)
    (card / "driver/unbind").write_text(CARD)
    assert (card / "sriov_vf_total_msix").read_text() == "0\n"
    nic.give_back(lab, card)


# ---- tools ----


def test_driverctl_gives_one_to_vfio_pci_and_back(lab: MountedLab) -> None:
    need("driverctl")
    vf, tool = enable(lab, 1)[0], Tool(lab, "driverctl")
    assert f"{vf.name} iavf" in tool("list-devices", "network").splitlines()
    tool("--nosave", "set-override", vf.name, "vfio-pci")
    assert driver_of(vf) == "vfio-pci" and not (vf / "net").exists()
    assert f"{vf.name} vfio-pci [*]" in tool("list-devices", "network").splitlines()
    done = vfsfuse("run", "--mount", lab.path, "--", "driverctl", "--nosave", "unset-override", vf.name)
    if driver_of(vf) == "vfio-pci":  # newer versions of driverctl give vfio-pci the function's id
        (lab.path / "sys/bus/pci/drivers/vfio-pci/remove_id").write_text("8086 1889")
        nic.give_back(lab, vf)
    else:
        assert (done.returncode, done.stderr) == (0, "")
    assert driver_of(vf) == "iavf" and (vf / "net/enp101s0f0v0").exists()


def test_dpdk_devbind_shows_interfaces_and_binds(lab: MountedLab) -> None:
    for program, package in (("dpdk-devbind.py", "dpdk"), ("lspci", "pciutils"), ("ip", "iproute2")):
        need(program, package)
    vf, tool = enable(lab, 1)[0], Tool(lab, "dpdk-devbind.py")
    lines = {line.split()[0]: line for line in tool.quiet("-s").splitlines() if line.startswith("0000:")}
    assert "if=enp101s0f0v0 drv=iavf unused=vfio-pci" in lines[vf.name]
    assert "if=enp101s0f0 drv=ice unused=vfio-pci" in lines[CARD]
    assert tool.quiet("-b", "vfio-pci", vf.name) == "" and driver_of(vf) == "vfio-pci"
    assert not (vf / "net").exists()
    assert tool.quiet("-b", "iavf", vf.name) == "" and driver_of(vf) == "iavf"
    assert (vf / "net/enp101s0f0v0").exists()


# ---- functions that have some from the start, or share their group, or were captured ----

TOKEN = "e2d8f9a4-6a51-4b7e-9c05-3d1f0b8a7c66"
SMALL = """
[functions."0000:65:00.0"]
vendor = 0x8086
driver = "{driver}"
net = "eth0"
capabilities = ["pm", "express"]
bars = {{ 0 = {{ size = "1M" }} }}
vfs = 4
{more}
vf = {{ device = 2, driver = "igbvf", bars = {{ 0 = {{ size = "4K" }} }}, {vf} }}
"""


def small(folder: Path, vf: str, more: str = "", driver: str = "igb") -> MountedLab:
    folder.mkdir(exist_ok=True)
    return described(folder, SMALL.format(vf=vf, more=more, driver=driver))


def test_some_are_there_from_the_start(tmp_path: Path) -> None:
    with (
        small(tmp_path, "enabled = 2, delay = 60, failing = [1]") as own,
        listening(own, os.O_NONBLOCK) as events,
    ):
        card, vfs = function(own, CARD), virtual(own)
        assert [driver_of(vf) for vf in vfs] == ["igbvf", None]
        assert (card / "sriov_numvfs").read_text() == "2\n" and number_of_vfs(card) == 2
        assert interfaces(own) == {"lo", "eth0", "eth0v0"} and hear(events) == []
        groups = [(each / "iommu_group").readlink().name for each in (card, *vfs)]
        assert groups == ["0", "2", "3"]
        enable(own, 0)
        assert virtual(own) == [] and interfaces(own) == {"lo", "eth0"}


def test_a_group_with_the_physical_function(tmp_path: Path) -> None:
    """It is viable for clients once vfio-pci has them all."""
    with small(tmp_path, 'group = "physical"') as own:
        card = function(own, CARD)
        (vf,) = enable(own, 1)
        number = (card / "iommu_group").readlink().name
        assert (vf / "iommu_group").readlink().name == number
        assert {each.name for each in (card / "iommu_group/devices").iterdir()} == {card.name, vf.name}
        nic.to_vfio(own, vf)
        with Container(own.path) as container, Group(own.path, number) as group:
            fails(errno.EPERM, group.set_container, container)
        enable(own, 0)
        (own.path / "sys/module/vfio_pci/parameters/enable_sriov").write_text("1")
        nic.to_vfio(own, card)
        (vf,) = enable(own, 1)
        assert driver_of(vf) == "vfio-pci" and (vf / "iommu_group").readlink().name == number
        with Container(own.path) as container, Group(own.path, number) as group:
            group.set_container(container)
            container.set_iommu()
            names = [f"{each.name} vf_token={TOKEN}" for each in (card, vf)]
            devices = [group_device(own.path, group, name) for name in names]
            for index, device in enumerate(devices):
                os.pwrite(device, b"of %d" % index, 0)
            for index, device in enumerate(devices):
                assert os.pread(device, 4, 0) == b"of %d" % index
                os.close(device)
        wait_for(lambda: succeeds(lambda: nic.give_back(own, card)))
        assert virtual(own) == [] and driver_of(card) == "igb"


def test_a_captured_configuration_space_keeps_its_capability(tmp_path: Path) -> None:
    with small(tmp_path / "one", "offset = 16, stride = 2") as own:
        image = (function(own, CARD) / "config").read_bytes()
    assert len(image) == 4096
    (tmp_path / "two").mkdir()
    (tmp_path / "two/card.bin").write_bytes(image)
    (tmp_path / "two/full.bin").write_bytes(image[:0x100] + bytes(0xEFF) + b"\1")
    text = SMALL.format(driver="igb", more='config = "card.bin"', vf="offset = 8").replace(
        "vendor = 0x8086\n", ""
    )
    text = text.replace('capabilities = ["pm", "express"]\n', "").replace("vfs = 4", "vfs = 3")
    with described(tmp_path / "two", text) as own:
        card = function(own, CARD)
        assert [vf.name for vf in enable(own, 3)] == ["0000:65:01.0", "0000:65:01.1", "0000:65:01.2"]
        said = struct.unpack_from("<HHHBxHHxxH", nic.sriov(card), 12)
        assert said == (3, 3, 3, 0, 8, 1, 2)
        changed = (card / "config").read_bytes()
        place = image.index(nic.sriov(card)[:4], 0x100)
        assert (changed[:4], changed[0x40:place]) == (image[:4], image[0x40:place])
    (tmp_path / "two/lab.toml").write_text(text.replace("card.bin", "full.bin"))
    done = vfsfuse("check", tmp_path / "two/lab.toml")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f'functions."{CARD}".vfs: the configuration space has no room for an SR-IOV' in done.stderr


# ---- clients ----


def test_clients_use_one_by_its_group_and_by_its_own_file(lab: MountedLab) -> None:
    vfs = enable(lab, 2)
    groups = [nic.to_vfio(lab, vf) for vf in vfs]
    assert groups[0] != groups[1]
    with opened(lab, groups[0], vfs[0].name) as client:
        assert client.device.config(0) == 0x8086 and client.device.config(2) == 0x1889
        assert client.device.config(0x3D, 1) == 0  # no INTx
        os.pwrite(client.device.fd, b"of the group", 3 << 40)
        fails(errno.EBUSY, enable, lab, 0)
        (cdev,) = os.listdir(vfs[1] / "vfio-dev")
        device = open_bound(lab.path / "dev/vfio/devices" / cdev)
        try:
            assert os.pread(device, 4, 7 << 40) == bytes.fromhex("86808918")
            os.pwrite(device, b"of its own", 3 << 40)
            assert os.pread(device, 10, 3 << 40) == b"of its own"
            assert os.pread(client.device.fd, 12, 3 << 40) == b"of the group"
            fails(errno.EBUSY, one_write, vfs[1] / "driver/unbind", vfs[1].name)
        finally:
            os.close(device)
    wait_for(lambda: succeeds(lambda: enable(lab, 0)))


def succeeds(call: Callable[[], object]) -> bool:
    """Whether the call does; the server is told of a close a moment later."""
    try:
        call()
    except OSError as error:
        assert error.errno == errno.EBUSY
        return False
    return True


# ---- slots ----


def pull(lab: MountedLab, *options: str) -> None:
    done = vfsfuse("unplug", "--mount", lab.path, *options, "7")
    assert (done.returncode, done.stderr) == (0, "")


def plug(lab: MountedLab) -> None:
    done = vfsfuse("plug", "--mount", lab.path, "7")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("options", [(), ("--surprise",)])
def test_a_card_that_is_pulled_takes_all_with_it(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Its interfaces, its virtual functions, and those that have not come yet; a card that is put back has
    the same names."""
    with small(tmp_path, "delay = 0.2", 'slot = "7"') as own:
        before = interfaces(own)
        enable(own, 2)
        wait_for(lambda: len(virtual(own)) == 2 and interfaces(own) == before | {"eth0v0", "eth0v1"})
        pull(own, *options)
        assert interfaces(own) == {"lo"}
        plug(own)
        assert interfaces(own) == before and virtual(own) == []
        enable(own, 2)
        pull(own, *options)
        with listening(own, os.O_NONBLOCK) as events:
            time.sleep(0.5)
            assert hear(events) == []
        plug(own)
        assert interfaces(own) == before and (function(own, CARD) / "sriov_numvfs").read_text() == "0\n"
