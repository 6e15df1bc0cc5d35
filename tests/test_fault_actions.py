# SPDX-License-Identifier: Apache-2.0
"""What fault rules have happen to devices of a mount, as clients, udev and tools see it: surprise removals,
resets and errors; virtual functions that are late or without a driver; probes that are refused."""

from __future__ import annotations

import errno
import os
import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.commands import ROOT, one_write, run
from tests.labs import MountedLab, described
from tests.nic import driver_of, function, give_back, to_vfio
from tests.test_uevents import hear, listening
from tests.tool import need
from tests.vfio.client import DEVICE_GET_INFO, DEVICE_RESET, DeviceInfo, fails, ioctl
from tests.vfio.devices import ERR, REQ, TRIGGER, Opened, eventfd, mdev, opened, signals, silent
from tests.waiting import wait_for

PORT, NIC = "0000:00:01.0", "0000:65:00.0"
CARD, BESIDE, INTEGRATED = "0000:66:00.0", "0000:66:00.1", "0000:00:05.0"
ALONE = "0000:67:00.0"
SLOT = "7"
LAB = f"""
[models]
copier = "{ROOT}/examples/copier.py:Copier"
accelerator = "{ROOT}/tests/vfio/models/accelerator.py:Accelerator"

[parents.copiers]
kind = "virtual"
driver = "copier"
slots = 8
types.copier-1 = {{ description = "copies" }}
types.express = {{ description = "is PCI Express", model = "accelerator" }}

[functions."{PORT}"]
bridge = "root-port"
secondary = 0x65
capabilities = ["express", "aer"]

[functions."{NIC}"]
driver = "ice"
capabilities = ["pm", "msix:4", "express", "aer"]
bars = {{ 0 = {{ size = "64K" }} }}
vfs = 4
[functions."{NIC}".vf]
driver = "iavf"
capabilities = ["express", "aer"]
bars = {{ 0 = {{ size = "4K", kind = "mem64" }} }}

[functions."{CARD}"]
driver = "nvme"
slot = "{SLOT}"
capabilities = ["express", "aer"]
bars = {{ 0 = {{ size = "4K" }} }}
[functions."{BESIDE}"]
driver = "nvme"
capabilities = ["express"]

[functions."{INTEGRATED}"]
driver = "snd"
capabilities = ["express:2.5GT,x1,no-flr", "aer"]
bars = {{ 0 = {{ size = "4K" }} }}

[functions."{ALONE}"]
driver = "nvme"
capabilities = ["express"]
bars = {{ 0 = {{ size = "4K" }} }}
"""
CONFIG, BAR0 = 7 << 40, 0
SCRATCH = 4
"""The register of an accelerator that a client can write."""
AER, EXPRESS = 0x01, 0x10
DEVSTA, UNCORRECTABLE, FIRST, CORRECTABLE = 0x0A, 0x04, 0x18, 0x10
CACHE_LINE = 0x0C
"""A register that a client can write, and that no reset keeps."""
ONES = b"\xff"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("actions"), LAB) as made:
        yield made


@pytest.fixture(autouse=True)
def as_before(lab: MountedLab) -> Iterator[None]:
    """Each test leaves no rule, and all functions with their host drivers."""
    yield
    one_write(lab.path / "faults", "clear")
    (lab.path / "sys/bus/pci/rescan").write_text("1")
    with suppress(OSError):  # it is there
        (lab.path / "sys/bus/pci/slots" / SLOT / "plug").write_text("1")
    enable(lab, 0)
    for name in (NIC, CARD, BESIDE, INTEGRATED, ALONE):
        if driver_of(function(lab, name)) in (None, "vfio-pci"):
            give_back(lab, function(lab, name))


def add(lab: MountedLab, rule: str) -> None:
    one_write(lab.path / "faults", f"add {rule}")


def enable(lab: MountedLab, count: int) -> None:
    (function(lab, NIC) / "sriov_numvfs").write_text(str(count))


def virtual(lab: MountedLab) -> dict[int, Path]:
    """The virtual functions that are there, by index."""
    own = function(lab, NIC)
    found = sorted(int(name[6:]) for name in os.listdir(own) if name.startswith("virtfn"))
    return {each: function(lab, (own / f"virtfn{each}").readlink().name) for each in found}


def read(opened: Opened, offset: int, size: int = 4) -> bytes:
    return os.pread(opened.device.fd, size, offset)


def write(opened: Opened, offset: int, data: bytes) -> None:
    assert os.pwrite(opened.device.fd, data, offset) == len(data)


def place_of(config: bytes, identity: int) -> int:
    """Where an extended capability is in a configuration space."""
    place = 0x100
    while place:
        (head,) = struct.unpack_from("<I", config, place)
        if head & 0xFFFF == identity:
            return place
        place = head >> 20
    raise LookupError(identity)


def express_of(config: bytes) -> int:
    place = config[0x34]
    while config[place] != EXPRESS:
        place = config[place + 1]
    return place


def counts(lab: MountedLab, name: str) -> dict[str, int]:
    """The counters of a function that are not 0."""
    found: dict[str, int] = {}
    for path in function(lab, name).glob("aer_*"):
        for line in path.read_text().splitlines():
            key, _, count = line.rpartition(" ")
            if int(count):
                found[f"{path.name} {key}".strip()] = int(count)
    return found


@pytest.fixture
def vgpu(lab: MountedLab) -> Iterator[Opened]:
    """An open copier, which has no PCI Express capability."""
    made = lab.create("copier-1", "copiers")
    with opened(lab, made.group, made.name) as device:
        yield device


def opened_function(lab: MountedLab, stack: ExitStack, name: str) -> Opened:
    """A function that vfio-pci drives, opened."""
    return stack.enter_context(opened(lab, to_vfio(lab, function(lab, name)), name))


# ---- surprise removal ----


def test_a_vgpu_goes_after_the_write_that_a_rule_names(lab: MountedLab, vgpu: Opened) -> None:
    add(lab, f"device={vgpu.name} region=BAR0 access=write nth=2 remove=true")
    with eventfd() as req, listening(lab, os.O_NONBLOCK) as events:
        vgpu.device.eventfds(REQ, TRIGGER, 0, req)
        write(vgpu, BAR0, b"\1\2\3\4")
        assert read(vgpu, BAR0) == b"\1\2\3\4" and silent(req)
        write(vgpu, BAR0, b"\5\6\7\x08")
        assert read(vgpu, BAR0) == read(vgpu, CONFIG) == 4 * ONES and signals(req) == 1
        write(vgpu, BAR0, b"\1\2\3\4")
        fails(errno.ENODEV, ioctl, vgpu.device.fd, DEVICE_RESET)
        assert read(vgpu, BAR0) == 4 * ONES
        heard: list[str] = []

        def gone() -> bool:
            heard.extend(variables["ACTION"] for _, variables in hear(events))
            return "remove" in heard and not (lab.mdevs / vgpu.name).exists()

        wait_for(gone)
    assert heard[-2:] == ["unbind", "remove"]


def test_a_virtual_function_goes_alone_and_stays_enabled(lab: MountedLab) -> None:
    enable(lab, 4)
    first, second = virtual(lab)[0], virtual(lab)[1]
    with ExitStack() as stack:
        device = opened_function(lab, stack, second.name)
        err, req = (stack.enter_context(eventfd()) for _ in range(2))
        device.device.eventfds(ERR, TRIGGER, 0, err)
        device.device.eventfds(REQ, TRIGGER, 0, req)
        add(lab, f"device={second.name} ioctl=VFIO_DEVICE_GET_INFO remove=true")
        ioctl(device.device.fd, DEVICE_GET_INFO, DeviceInfo())
        assert read(device, CONFIG) == read(device, BAR0) == 4 * ONES
        assert signals(err) == signals(req) == 1
        wait_for(lambda: not second.exists())
        assert list(virtual(lab)) == [0, 2, 3] and driver_of(first) == "iavf"
        assert (function(lab, NIC) / "sriov_numvfs").read_text() == "4\n"
        fails(errno.EBUSY, enable, lab, 2)
    enable(lab, 0)
    enable(lab, 4)
    wait_for(lambda: list(virtual(lab)) == [0, 1, 2, 3])
    assert driver_of(second) == "iavf"


def test_a_function_without_a_slot_goes_and_a_rescan_finds_it(lab: MountedLab) -> None:
    with ExitStack() as stack:
        device = opened_function(lab, stack, ALONE)
        add(lab, f"device={ALONE} after=0 remove=true")
        wait_for(lambda: not function(lab, ALONE).exists())
        assert read(device, CONFIG) == 4 * ONES
    (lab.path / "sys/bus/pci/rescan").write_text("1")
    assert driver_of(function(lab, ALONE)) == "nvme"


def test_a_function_in_a_slot_goes_with_its_card(lab: MountedLab) -> None:
    slot = lab.path / "sys/bus/pci/slots" / SLOT
    assert (slot / "adapter").read_text() == "1\n"
    add(lab, f"device={BESIDE} after=0 remove=true")
    wait_for(lambda: (slot / "adapter").read_text() == "0\n")
    assert not function(lab, CARD).exists() and not function(lab, BESIDE).exists()
    (lab.path / "sys/bus/pci/rescan").write_text("1")
    assert not function(lab, CARD).exists()
    (slot / "plug").write_text("1")
    assert driver_of(function(lab, CARD)) == driver_of(function(lab, BESIDE)) == "nvme"


def test_a_physical_function_takes_its_virtual_ones_along(lab: MountedLab) -> None:
    enable(lab, 2)
    with ExitStack() as stack:
        device = opened_function(lab, stack, virtual(lab)[0].name)
        add(lab, f"device={NIC} after=0 remove=true")
        wait_for(lambda: not function(lab, NIC).exists())
        assert read(device, CONFIG) == 4 * ONES
        assert not function(lab, device.name).exists()
    (lab.path / "sys/bus/pci/rescan").write_text("1")
    assert driver_of(function(lab, NIC)) == "ice" and virtual(lab) == {}


# ---- reset ----


def test_a_device_that_resets_itself_has_lost_what_was_written(lab: MountedLab, vgpu: Opened) -> None:
    write(vgpu, BAR0, b"\1\2\3\4")
    vgpu.device.set_config(4, 0x4 | vgpu.device.config(4))
    before = vgpu.device.config(4)
    add(lab, f"device={vgpu.name} region=BAR0 access=read reset=true")
    assert read(vgpu, BAR0) == b"\1\2\3\4"
    assert read(vgpu, BAR0) == bytes(4)
    assert vgpu.device.config(4) != before
    one_write(lab.path / "faults", "clear")
    write(vgpu, BAR0, b"\5\6\7\x08")
    assert read(vgpu, BAR0) == b"\5\6\7\x08"


def test_a_function_that_resets_itself_loses_its_configuration_space(lab: MountedLab) -> None:
    with ExitStack() as stack:
        device = opened_function(lab, stack, ALONE)
        write(device, CONFIG + CACHE_LINE, b"\x10")
        add(lab, f"device={ALONE} after=0 reset=true")
        wait_for(lambda: read(device, CONFIG + CACHE_LINE, 1) == b"\0")
        assert read(device, CONFIG, 2) != 2 * ONES


# ---- errors ----


@pytest.mark.parametrize(
    ("severity", "status", "bit", "name", "total", "root"),
    [
        ("corrected", 0x1, 0, "RxErr", "aer_dev_correctable TOTAL_ERR_COR", "cor"),
        ("nonfatal", 0x2, 14, "CmpltTO", "aer_dev_nonfatal TOTAL_ERR_NONFATAL", "nonfatal"),
        ("fatal", 0, 4, "DLP", "aer_dev_fatal TOTAL_ERR_FATAL", "fatal"),  # the link was reset
    ],
)
def test_an_error_is_in_registers_counters_and_events(
    lab: MountedLab, severity: str, status: int, bit: int, name: str, total: str, root: str
) -> None:
    before, before_port = counts(lab, NIC), counts(lab, PORT)
    with ExitStack() as stack:
        device = opened_function(lab, stack, NIC)
        err = stack.enter_context(eventfd())
        device.device.eventfds(ERR, TRIGGER, 0, err)
        write(device, CONFIG + CACHE_LINE, b"\x10")
        events = stack.enter_context(listening(lab, os.O_NONBLOCK))
        add(lab, f"device={NIC} region=BAR0 access=read times=1 error={severity}")
        read(device, BAR0)
        wait_for(lambda: counts(lab, NIC) != before)
        config = read(device, CONFIG, 4096)
        aer, express = place_of(config, AER), express_of(config)
        corrected = severity == "corrected"
        place = aer + (CORRECTABLE if corrected else UNCORRECTABLE)

        def value(offset: int, width: int = 4) -> int:
            return int.from_bytes(read(device, CONFIG + offset, width), "little")

        wait_for(lambda: read(device, CONFIG + CACHE_LINE, 1) == (b"\0" if severity == "fatal" else b"\x10"))
        assert value(express + DEVSTA, 2) & 0xF == status
        assert value(place) == 1 << bit
        assert value(aer + (UNCORRECTABLE if corrected else CORRECTABLE)) == 0
        if corrected:
            assert silent(err)
        else:
            assert signals(err) == 1 and value(aer + FIRST) & 0x1F == bit
        write(device, CONFIG + place, struct.pack("<I", 1 << bit))  # the client clears it
        assert value(place) == 0
        wanted = [] if corrected else [(NIC, "BEGIN_RECOVERY", "0"), (NIC, "SUCCESSFUL_RECOVERY", "1")]
        assert recoveries(events, len(wanted)) == wanted
    file = total.split(" ", maxsplit=1)[0]
    assert counts(lab, NIC) == {
        **before,
        f"{file} {name}": before.get(f"{file} {name}", 0) + 1,
        total: before.get(total, 0) + 1,
    }
    key = f"aer_rootport_total_err_{root}"
    assert counts(lab, PORT) == {**before_port, key: before_port.get(key, 0) + 1}


def recoveries(events: int, count: int) -> list[tuple[str, str, str]]:
    """The next events of recoveries: function, event, whether it is online."""
    found: list[tuple[str, str, str]] = []

    def enough() -> bool:
        found.extend(
            (variables["PCI_SLOT_NAME"], variables["ERROR_EVENT"], variables["DEVICE_ONLINE"])
            for _, variables in hear(events)
            if "ERROR_EVENT" in variables
        )
        return len(found) >= count

    wait_for(enough)
    return found


def test_a_fatal_error_reaches_all_below_the_port(lab: MountedLab) -> None:
    """The neighbour's client gets ERR too, and loses what it has written: the link was reset."""
    to_vfio(lab, function(lab, BESIDE))
    with ExitStack() as stack:
        device = opened_function(lab, stack, CARD)
        err = stack.enter_context(eventfd())
        device.device.eventfds(ERR, TRIGGER, 0, err)
        write(device, CONFIG + CACHE_LINE, b"\x10")
        events = stack.enter_context(listening(lab, os.O_NONBLOCK))
        add(lab, f"device={BESIDE} after=0 error=fatal")
        assert signals(err) == 1
        wait_for(lambda: read(device, CONFIG + CACHE_LINE, 1) == b"\0")
        begun, done = [(CARD, "BEGIN_RECOVERY", "0"), (BESIDE, "BEGIN_RECOVERY", "0")], "SUCCESSFUL_RECOVERY"
        assert recoveries(events, 4) == [*begun, (CARD, done, "1"), (BESIDE, done, "1")]


def test_a_function_without_a_driver_makes_the_recovery_fail(lab: MountedLab) -> None:
    (function(lab, BESIDE) / "driver/unbind").write_text(BESIDE)
    with listening(lab, os.O_NONBLOCK) as events:
        add(lab, f"device={CARD} after=0 error=nonfatal")
        failed = "FAILED_RECOVERY"
        assert recoveries(events, 3) == [
            (CARD, "BEGIN_RECOVERY", "0"),
            (CARD, failed, "0"),
            (BESIDE, failed, "0"),
        ]


def test_an_integrated_endpoint_that_cannot_be_reset_stays_as_it_is(lab: MountedLab) -> None:
    with ExitStack() as stack:
        device = opened_function(lab, stack, INTEGRATED)
        err = stack.enter_context(eventfd())
        device.device.eventfds(ERR, TRIGGER, 0, err)
        write(device, CONFIG + CACHE_LINE, b"\x10")
        events = stack.enter_context(listening(lab, os.O_NONBLOCK))
        add(lab, f"device={INTEGRATED} after=0 error=fatal")
        assert signals(err) == 1
        assert recoveries(events, 2) == [
            (INTEGRATED, "BEGIN_RECOVERY", "0"),
            (INTEGRATED, "FAILED_RECOVERY", "0"),
        ]
        assert read(device, CONFIG + CACHE_LINE, 1) == b"\x10"


def test_an_error_of_a_vgpu_is_told_to_its_client_alone(lab: MountedLab) -> None:
    with ExitStack() as stack:
        vgpu = stack.enter_context(mdev(lab, "express", "copiers"))
        err, events = stack.enter_context(eventfd()), stack.enter_context(listening(lab, os.O_NONBLOCK))
        vgpu.device.eventfds(ERR, TRIGGER, 0, err)
        status = CONFIG + express_of(read(vgpu, CONFIG, 256)) + DEVSTA
        write(vgpu, BAR0 + SCRATCH, b"\1\2\3\4")
        for number, severity in enumerate(("corrected", "nonfatal", "fatal"), 1):
            add(lab, f"device={vgpu.name} region=BAR0 access=read nth={number} error={severity}")
        assert read(vgpu, BAR0 + SCRATCH) == b"\1\2\3\4" and silent(err)
        assert read(vgpu, status, 1) == b"\1"
        assert read(vgpu, BAR0 + SCRATCH) == b"\1\2\3\4" and signals(err) == 1
        assert read(vgpu, status, 1) == b"\3"
        assert read(vgpu, BAR0 + SCRATCH) == b"\1\2\3\4" and signals(err) == 1
        assert read(vgpu, BAR0 + SCRATCH) == bytes(4) and read(vgpu, status, 1) == b"\0"  # it was reset
        assert not any("ERROR_EVENT" in variables for _, variables in hear(events))


def test_lspci_shows_the_errors(lab: MountedLab) -> None:
    need("lspci", "pciutils")
    for severity in ("corrected", "nonfatal"):
        add(lab, f"device={CARD} after=0 error={severity}")
    wait_for(lambda: {"aer_dev_correctable RxErr", "aer_dev_nonfatal CmpltTO"} <= counts(lab, CARD).keys())
    shown = run(["lspci", "-O", f"sysfs.path={lab.path}/sys/bus/pci", "-vvvs", CARD]).stdout
    lines = {line.split(":")[0].strip(): line for line in shown.splitlines()}
    assert "CorrErr+ NonFatalErr+ FatalErr-" in lines["DevSta"]
    assert "CmpltTO+" in lines["UESta"] and "RxErr+" in lines["CESta"] and "DLP-" in lines["UESta"]


# ---- virtual functions as they appear ----


def test_a_late_virtual_function_comes_by_itself_with_its_events(lab: MountedLab) -> None:
    add(lab, f"device={NIC} nth=2 late=0.5")
    with listening(lab, os.O_NONBLOCK) as events:
        enable(lab, 3)
        there = virtual(lab)
        assert list(there) == [0, 2] and all(driver_of(each) == "iavf" for each in there.values())
        assert (function(lab, NIC) / "sriov_numvfs").read_text() == "3\n"
        heard = [head for head, variables in hear(events) if variables["SUBSYSTEM"] == "pci"]
        wait_for(lambda: list(virtual(lab)) == [0, 1, 2])
        late = virtual(lab)[1]
        wait_for(lambda: driver_of(late) == "iavf")
        assert not any(late.name in head for head in heard)
        assert [variables["ACTION"] for head, variables in hear(events) if head.endswith(late.name)] == [
            *("add", "change", "bind")
        ]


def test_a_late_virtual_function_does_not_come_when_all_are_disabled(lab: MountedLab) -> None:
    add(lab, f"device={NIC} late=0.2")
    enable(lab, 2)
    assert virtual(lab) == {}
    enable(lab, 0)
    one_write(lab.path / "faults", "clear")
    add(lab, f"device={NIC} nth=1 late=0.4")
    enable(lab, 2)
    wait_for(lambda: list(virtual(lab)) == [0, 1])
    enable(lab, 0)
    assert virtual(lab) == {}


def test_a_virtual_function_without_a_driver_can_be_bound_later(lab: MountedLab) -> None:
    add(lab, f"device={NIC} nth=1 driverless=true")
    with listening(lab, os.O_NONBLOCK) as events:
        enable(lab, 2)
        first, second = virtual(lab).values()
        assert driver_of(first) is None and driver_of(second) == "iavf"
        bound = [head for head, variables in hear(events) if variables["ACTION"] == "bind"]
        assert [head.rpartition("/")[2] for head in bound] == [second.name]
    (lab.path / "sys/bus/pci/drivers/iavf/bind").write_text(first.name)
    assert driver_of(first) == "iavf"


# ---- probes ----


def test_a_refused_probe_is_the_errno_of_bind_and_of_nothing_else(lab: MountedLab) -> None:
    own, drivers = function(lab, ALONE), lab.path / "sys/bus/pci/drivers"
    (own / "driver/unbind").write_text(ALONE)
    (own / "driver_override").write_text("vfio-pci")
    add(lab, f"name=probe device={ALONE} probe=vfio-pci errno=ENOMEM")
    for number, file in (
        (errno.ENOMEM, drivers / "vfio-pci/bind"),
        (0, lab.path / "sys/bus/pci/drivers_probe"),
    ):
        if number:
            fails(number, one_write, file, ALONE)
        else:
            one_write(file, ALONE)
        assert driver_of(own) is None and not (own / "vfio-dev").exists()
    one_write(lab.path / "faults", "clear probe")
    one_write(drivers / "vfio-pci/bind", ALONE)
    assert driver_of(own) == "vfio-pci"


def test_a_vgpu_whose_probe_is_refused_is_there_without_a_driver(lab: MountedLab) -> None:
    add(lab, "probe=vfio_mdev nth=1 errno=EIO")
    name = str(uuid.uuid4())
    types = lab.parent("copiers") / "mdev_supported_types/copier-1"
    one_write(types / "create", name)
    own = lab.mdevs / name
    assert own.is_dir() and driver_of(own) is None and not (own / "iommu_group").exists()
    one_write(lab.path / "sys/bus/mdev/drivers_probe", name)
    assert driver_of(own) == "vfio_mdev"
    driver = lab.path / "sys/bus/mdev/drivers/vfio_mdev"
    one_write(driver / "unbind", name)
    add(lab, f"device={name} probe=vfio_mdev nth=1 errno=EBUSY")
    fails(errno.EBUSY, one_write, driver / "bind", name)
    assert driver_of(own) is None
    one_write(driver / "bind", name)
    assert driver_of(own) == "vfio_mdev" and (own / "iommu_group").exists()
    one_write(own / "remove", "1")


def test_a_probe_that_takes_its_time_holds_up_its_store_alone(lab: MountedLab) -> None:
    own = function(lab, ALONE)
    (own / "driver/unbind").write_text(ALONE)
    add(lab, f"name=slow device={ALONE} probe=nvme hang=true")
    done = threading.Event()

    def bind() -> None:
        one_write(lab.path / "sys/bus/pci/drivers/nvme/bind", ALONE)
        done.set()

    thread = threading.Thread(target=bind)
    thread.start()
    wait_for(lambda: driver_of(own) == "nvme")
    made = lab.create("copier-1", "copiers")  # others go on
    made.remove()
    assert not done.is_set()
    one_write(lab.path / "faults", "release slow")
    thread.join(60)
    assert done.is_set()


# ---- races ----


def together(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls at the same time; each may find that the device has gone."""
    start = threading.Barrier(len(calls))

    def make(call: Callable[[], None]) -> None:
        start.wait()
        with suppress(OSError):
            call()

    threads = [threading.Thread(target=make, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("action", ["remove=true", "reset=true", "error=fatal"])
def test_an_action_meets_a_close_and_a_removal(lab: MountedLab, action: str) -> None:
    types = lab.parent("copiers") / "mdev_supported_types/copier-1"
    room = (types / "available_instances").read_text()
    for _ in range(30):
        made = lab.create("copier-1", "copiers")
        with ExitStack() as stack:
            stack.enter_context(opened(lab, made.group, made.name))
            name = made.name
            together(
                [
                    lambda name=name: add(lab, f"device={name} after=0 {action}"),  # type: ignore[misc]
                    lambda name=name: add(lab, f"device={name} after=0 {action}"),  # type: ignore[misc]
                    lambda stack=stack: stack.close(),  # type: ignore[misc]
                    lambda made=made: made.remove(),  # type: ignore[misc]
                ]
            )
        with suppress(OSError):  # it is gone
            made.remove()
        wait_for(lambda made=made: not (lab.mdevs / made.name).exists())  # type: ignore[misc]
        one_write(lab.path / "faults", "clear")
    wait_for(lambda: (types / "available_instances").read_text() == room)


def test_an_action_meets_a_driver_that_leaves_and_virtual_functions_that_go(lab: MountedLab) -> None:
    for _ in range(10):
        enable(lab, 3)
        first = virtual(lab)[0].name
        together(
            [
                lambda first=first: add(lab, f"device={first} after=0 remove=true"),  # type: ignore[misc]
                lambda: add(lab, f"device={NIC} after=0 error=fatal"),
                lambda: enable(lab, 0),
                lambda first=first: one_write(function(lab, first) / "driver/unbind", first),  # type: ignore[misc]
            ]
        )
        one_write(lab.path / "faults", "clear")
        enable(lab, 0)
        assert virtual(lab) == {}


def test_an_action_meets_a_reload(lab: MountedLab, vgpu: Opened) -> None:
    together(
        [
            lambda: one_write(lab.path / "reload", "copier"),
            lambda: add(lab, f"device={vgpu.name} after=0 reset=true"),
            lambda: add(lab, f"device={vgpu.name} after=0 remove=true"),
        ]
    )
    wait_for(lambda: not (lab.mdevs / vgpu.name).exists())
    assert read(vgpu, BAR0) == 4 * ONES
