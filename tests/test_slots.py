# SPDX-License-Identifier: Apache-2.0
"""Hot-plug slots on a real mount: cards that are plugged in and out, slots that lose their power, and clients
that hold what goes."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.commands import ROOT, VFSFUSE, vfsfuse
from tests.descriptors import open_files
from tests.inotify import watching
from tests.labs import MountedLab, described
from tests.snapshot import snapshot
from tests.test_hotplug import driver_of, functions, group_of, held, mentions, rescan
from tests.test_removal import Writer
from tests.test_topology import lspci
from tests.test_uevents import hear, listening
from tests.vfio.client import DEVICE_GET_INFO, DEVICE_RESET, DeviceInfo, fails, ioctl
from tests.vfio.devices import ERR, REQ, TRIGGER, eventfd, function_dir, opened, signals, vfio_pci
from tests.waiting import comes_to, settled, wait_for

GPU, AUDIO, NIC = "0000:86:00.0", "0000:86:00.1", "0000:03:00.0"
NIC_PORT, GPU_PORT = "0000:00:01.0", "0000:00:02.0"
CARD = {GPU, AUDIO}
HELD = "a program has one of its functions open (end it, or unplug --surprise)"
TOKEN = "2ab74924-c335-45f4-9b16-8569e5b08258"
LAB = f"""\
[mount]
remove = "@"

[parents."{GPU}"]
kind = "gpu"
driver = "vgpu"
memory = "256M"
slot = "3"
acs = true
vfs = 2
vf_memory = "16M"
types.vgpu-8 = {{ memory = "32M", description = "an eighth" }}

[functions."{AUDIO}"]
vendor = 0x10de
device = 0x10f1
class = 0x040300
driver = "snd_hda_intel"
acs = true
capabilities = ["express", "msi"]
bars = {{ 0 = {{ size = "16K" }} }}

[functions."{NIC}"]
vendor = 0x8086
device = 0x1563
class = 0x020000
driver = "ixgbe"
slot = "3"
plugged = false
bars = {{ 0 = {{ size = "128K" }} }}

[parents.mtty]
kind = "virtual"
driver = "mtty"
slots = 24
types.mtty-1 = {{ description = "a port" }}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("slots"), LAB.replace("@", "busy")) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("slots"), LAB.replace("@", "wait")) as mounted:
        yield mounted


@pytest.fixture(autouse=True)
def as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the GPU is plugged in, and the NIC is not."""
    yield
    for name in ("lab", "patient"):
        if name in request.fixturenames:
            mounted: MountedLab = request.getfixturevalue(name)
            rescan(mounted)
            if state(mounted, GPU)["adapter"] == "0":
                write(mounted, GPU, "plug")
            elif state(mounted, GPU)["power"] == "0":
                write(mounted, GPU, "power")
            if state(mounted, NIC)["adapter"] == "1":
                write(mounted, NIC, "surprise_unplug")
            assert set(functions(mounted)) == {*CARD, NIC_PORT, GPU_PORT}


def slot(lab: MountedLab, name: str) -> Path:
    """The slot of the card at `name`."""
    (found,) = (
        each
        for each in (lab.path / "sys/bus/pci/slots").iterdir()
        if (each / "address").read_text().strip() == name[:-2]
    )
    return found


def state(lab: MountedLab, name: str) -> dict[str, str]:
    return {each: (slot(lab, name) / each).read_text().strip() for each in ("power", "adapter", "latch")}


ON = {"power": "1", "adapter": "1", "latch": "0"}
OFF = {"power": "0", "adapter": "1", "latch": "0"}
EMPTY = {"power": "0", "adapter": "0", "latch": "1"}


def write(lab: MountedLab, name: str, attribute: str, text: str = "1") -> None:
    with (slot(lab, name) / attribute).open("wb", buffering=0) as file:
        file.write(text.encode())


def command(lab: MountedLab, *arguments: str) -> str:
    """What a command says on stderr; nothing if it succeeds."""
    done = vfsfuse(*arguments, "--mount", lab.path)
    assert done.stdout == "" and (done.returncode, done.stderr == "") in ((0, True), (1, False))
    return done.stderr


def vfio_of(lab: MountedLab, name: str) -> str:
    """The name of the own device file of a function of vfio-pci."""
    (found,) = os.listdir(function_dir(lab, name) / "vfio-dev")
    return found


def comings(fd: int) -> list[str]:
    """The events of functions since the last look, without their places."""
    heads = [head for head, _ in hear(fd)]
    found = [head for head in heads if re.search(r"/[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f.]{4}$", head)]
    return [f"{head.split('@')[0]} {head.rsplit('/', 1)[1]}" for head in found]


def hold(lab: MountedLab, stack: ExitStack, name: str, token: bool = False) -> tuple[int, int, int]:
    """Open a function of vfio-pci: the descriptor, and eventfds of ERR and REQ."""
    group = group_of(lab, name)
    client = stack.enter_context(opened(lab, group, f"{name} vf_token={TOKEN}" if token else name))
    err, req = stack.enter_context(eventfd()), stack.enter_context(eventfd())
    client.device.eventfds(ERR, TRIGGER, 0, err)
    client.device.eventfds(REQ, TRIGGER, 0, req)
    return client.device.fd, err, req


# ---- slots ----


def test_the_files_of_a_slot(lab: MountedLab) -> None:
    """Two slots of one number get names as pciehp gives them."""
    slots = lab.path / "sys/bus/pci/slots"
    assert sorted(os.listdir(slots)) == ["3", "3-1"]
    assert slot(lab, NIC).name == "3" and slot(lab, GPU).name == "3-1"
    modes = {each.name: each.lstat().st_mode & 0o777 for each in slot(lab, GPU).iterdir()}
    assert modes == {
        **dict.fromkeys(("address", "max_bus_speed", "cur_bus_speed", "adapter", "latch"), 0o444),
        **dict.fromkeys(("power", "attention"), 0o644),
        **dict.fromkeys(("plug", "unplug", "surprise_unplug"), 0o200),
        "module": 0o777,
    }
    assert (slot(lab, GPU) / "address").read_text() == "0000:86:00\n"
    assert (slot(lab, GPU) / "max_bus_speed").read_text() == "16.0 GT/s PCIe\n"
    assert (slot(lab, GPU) / "cur_bus_speed").read_text() == "16.0 GT/s PCIe\n"
    assert (slot(lab, GPU) / "module").resolve() == lab.path / "sys/module/pciehp"
    assert state(lab, GPU) == ON and state(lab, NIC) == EMPTY


def test_a_lab_without_slots(tmp_path: Path) -> None:
    text = LAB.replace('slot = "3"\n', "").replace("plugged = false\n", "")
    with described(tmp_path, text.replace("@", "busy")) as lab:
        assert os.listdir(lab.path / "sys/bus/pci/slots") == []
        assert not (lab.path / "sys/module/pciehp").exists()
        assert "is in no slot" in command(lab, "unplug", GPU) and GPU in functions(lab)


def test_a_slot_on_a_root_bus_is_only_a_name(tmp_path: Path) -> None:
    with described(tmp_path, '[functions."0000:00:1f.3"]\nslot = "9"\n') as lab:
        fixed = lab.path / "sys/bus/pci/slots/9"
        speed = "Unknown\n"
        assert {each.name: each.read_text() for each in fixed.iterdir()} == {
            "address": "0000:00:1f\n",
            "max_bus_speed": speed,
            "cur_bus_speed": speed,
        }
        assert "Physical Slot: 9" in lspci(lab, "-v", "-s", "00:1f.3")
        said = command(lab, "unplug", "9")
        assert (
            said == "vfsfuse: unplug: 9: nothing can be taken out of this slot (its port has no hot-plug)\n"
        )


def test_lspci_shows_the_slot(lab: MountedLab) -> None:
    shown = lspci(lab, "-vvv", "-s", GPU_PORT)
    for line in (
        "Root Port (Slot+)",
        "Slot #3, PowerLimit",
        "AttnBtn+ PwrCtrl+ MRL+ AttnInd+ PwrInd+ HotPlug+ Surprise+",
        "Control: AttnInd Off, PwrInd On, Power- Interlock-",
        "Status: AttnBtn- PowerFlt- MRL- CmdCplt- PresDet+",
        "DLActive+",
    ):
        assert line in shown
    assert "Physical Slot: 3-1" in lspci(lab, "-v", "-s", AUDIO)
    write(lab, GPU, "power", "0")
    shown = lspci(lab, "-vvv", "-s", GPU_PORT)
    assert "PwrInd Off, Power+" in shown and "PresDet+" in shown and "DLActive-" in shown
    shown = lspci(lab, "-vvv", "-s", NIC_PORT)
    assert "PwrInd Off, Power+" in shown and "MRL+ CmdCplt- PresDet-" in shown and "DLActive-" in shown


def test_the_attention_indicator(lab: MountedLab) -> None:
    attention = slot(lab, GPU) / "attention"
    for text, value, shown in (
        ("1", "1", "On"),
        ("2\n", "2", "Blink"),
        ("x", "0", "Off"),
        ("257", "1", "On"),
    ):
        attention.write_text(text)
        assert attention.read_text() == f"{value}\n"
        assert f"AttnInd {shown}" in lspci(lab, "-vvv", "-s", GPU_PORT)
    fails(errno.EINVAL, attention.write_text, "3")
    attention.write_text("0")


# ---- power ----


def test_a_slot_without_power_has_no_functions(lab: MountedLab) -> None:
    vgpu = lab.create("vgpu-8", GPU)
    with listening(lab, os.O_NONBLOCK) as fd:
        write(lab, GPU, "power", "0")
        assert comings(fd) == [
            f"unbind {AUDIO}",
            f"remove {AUDIO}",
            f"change {GPU}",
            f"unbind {GPU}",
            f"remove {GPU}",
        ]
        assert state(lab, GPU) == OFF
        for name in (*CARD, vgpu.name):
            assert mentions(lab, name) == []
        for text in ("0", "off", "256"):
            fails(errno.ENODEV, write, lab, GPU, "power", text)
        for text in ("2", "255", "10"):
            fails(errno.EINVAL, write, lab, GPU, "power", text)
        rescan(lab)
        (function_dir(lab, GPU_PORT) / "rescan").write_text("1")
        assert not CARD & set(functions(lab)) and state(lab, GPU) == OFF
        write(lab, GPU, "power", "1")
        assert state(lab, GPU) == ON and driver_of(lab, AUDIO) == "snd_hda_intel"
        assert comings(fd) == [f"add {GPU}", f"add {AUDIO}", f"change {GPU}", f"bind {GPU}", f"bind {AUDIO}"]
        fails(errno.ENODEV, write, lab, GPU, "power", "1")
    fails(errno.ENODEV, write, lab, NIC, "power", "1")
    fails(errno.ENODEV, write, lab, NIC, "power", "0")
    assert state(lab, NIC) == EMPTY


def test_drivers_autoprobe(lab: MountedLab) -> None:
    autoprobe = lab.path / "sys/bus/pci/drivers_autoprobe"
    autoprobe.write_text("0")
    write(lab, GPU, "power", "0")
    write(lab, GPU, "power", "1")
    assert driver_of(lab, GPU) is driver_of(lab, AUDIO) is None
    autoprobe.write_text("1")
    for name in CARD:
        (lab.path / "sys/bus/pci/drivers_probe").write_text(name)


def test_a_function_that_was_removed_is_found_in_a_slot_with_power(lab: MountedLab) -> None:
    (function_dir(lab, AUDIO) / "remove").write_text("1")
    assert state(lab, GPU) == ON and AUDIO not in functions(lab)
    rescan(lab)
    assert AUDIO in functions(lab)
    (function_dir(lab, AUDIO) / "remove").write_text("1")
    write(lab, GPU, "power", "0")
    write(lab, GPU, "power", "1")
    assert set(functions(lab)) >= CARD


@pytest.mark.parametrize("attribute", ["power", "unplug"])
@pytest.mark.parametrize("what", ["vgpu", "vf", "function"])
def test_what_is_held_stays(lab: MountedLab, what: str, attribute: str) -> None:
    with ExitStack() as stack:
        event = held(lab, stack, what)
        before = snapshot(lab.path)
        fails(errno.EBUSY, write, lab, GPU, attribute, "0" if attribute == "power" else "1")
        assert signals(event) == 1
        comes_to(lambda: snapshot(lab.path), before)
        assert driver_of(lab, AUDIO) == "snd_hda_intel"
        said = command(lab, "unplug", AUDIO)
        assert said == f"vfsfuse: unplug: {AUDIO}: {HELD}\n"
    write(lab, GPU, "unplug")
    assert state(lab, GPU) == EMPTY


@pytest.mark.parametrize(("attribute", "text"), [("power", "0"), ("unplug", "1")])
def test_it_waits_for_the_holder(patient: MountedLab, attribute: str, text: str) -> None:
    with ExitStack() as stack:
        event = held(patient, stack, "vgpu")
        with Writer(slot(patient, GPU) / attribute, text) as writer:
            assert signals(event) == 1 and writer.waits
            assert state(patient, GPU) == ON and set(functions(patient)) >= CARD
            stack.close()
            assert writer.said() == "written"
    assert not CARD & set(functions(patient))


def test_the_command_waits_for_the_holder(patient: MountedLab) -> None:
    with ExitStack() as stack:
        event = held(patient, stack, "function")
        waiting = subprocess.Popen(
            [*VFSFUSE, "unplug", GPU, "--mount", patient.path], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        assert signals(event) == 1
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(3)
        stack.close()
        assert (waiting.communicate(timeout=30)[1], waiting.returncode) == ("", 0)
    assert state(patient, GPU) == EMPTY


# ---- plug and unplug ----


def test_a_card_is_plugged_in_and_out(lab: MountedLab) -> None:
    assert NIC not in functions(lab)
    with listening(lab, os.O_NONBLOCK) as fd:
        assert command(lab, "plug", NIC) == ""
        assert comings(fd) == [f"add {NIC}", f"bind {NIC}"]
        assert state(lab, NIC) == ON and driver_of(lab, NIC) == "ixgbe"
        assert command(lab, "plug", "3") == "vfsfuse: plug: 3: the card is in its slot already\n"
        assert command(lab, "unplug", "3") == ""
        assert comings(fd) == [f"unbind {NIC}", f"remove {NIC}"]
        assert state(lab, NIC) == EMPTY and mentions(lab, NIC) == []
        rescan(lab)
        assert NIC not in functions(lab)
        assert command(lab, "unplug", NIC) == f"vfsfuse: unplug: {NIC}: the slot is empty\n"
        assert command(lab, "unplug", "--surprise", NIC) == f"vfsfuse: unplug: {NIC}: the slot is empty\n"
    for attribute in ("plug", "unplug", "surprise_unplug"):
        write(lab, NIC, attribute, "0")
        fails(errno.EINVAL, write, lab, NIC, attribute, "x")
    fails(errno.EBUSY, write, lab, GPU, "plug")
    fails(errno.ENODEV, write, lab, NIC, "unplug")


def test_a_card_without_power_is_taken_out_and_gets_power_when_it_is_back(lab: MountedLab) -> None:
    write(lab, GPU, "power", "0")
    assert command(lab, "unplug", GPU) == "" and state(lab, GPU) == EMPTY
    assert command(lab, "plug", AUDIO) == "" and state(lab, GPU) == ON
    assert driver_of(lab, GPU) == "vgpu"


def test_what_is_plugged_in_is_new(lab: MountedLab) -> None:
    with (function_dir(lab, GPU) / "resource0").open("r+b", buffering=0) as memory:
        memory.write(b"kept")
    (function_dir(lab, GPU) / "driver_override").write_text("vfio-pci")
    resource = (function_dir(lab, GPU) / "resource").read_text()
    for arguments in (["unplug", GPU], ["plug", GPU]):
        assert command(lab, *arguments) == ""
    assert (function_dir(lab, GPU) / "resource").read_text() == resource
    assert (function_dir(lab, GPU) / "driver_override").read_text() == "(null)\n"
    with (function_dir(lab, GPU) / "resource0").open("rb", buffering=0) as memory:
        assert memory.read(4) == bytes(4)


@pytest.mark.parametrize("card", ["4", "0000:86", "0000:00:02.0", "0000:99:00.0", "../..", "/sys"])
def test_no_such_slot(lab: MountedLab, card: str) -> None:
    said = command(lab, "unplug", card)
    assert said.startswith(f"vfsfuse: unplug: {card}: is in no slot of ") and said.count("\n") == 1
    assert said.endswith("(its slots are 3 at 0000:03:00, 3-1 at 0000:86:00)\n")


def test_an_empty_name_is_no_card(lab: MountedLab) -> None:
    done = vfsfuse("unplug", "", "--mount", lab.path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "vfsfuse: unplug: an argument is empty\n")


def test_watchers_of_device_nodes_hear_of_a_card(lab: MountedLab) -> None:
    command(lab, "plug", NIC)
    nodes = lab.path / "dev/vfio"
    with watching(nodes) as watch:
        group = vfio_pci(lab, NIC)
        assert (str(nodes), "IN_CREATE", group) in watch.hear(1)
        command(lab, "unplug", "--surprise", NIC)
        assert (str(nodes), "IN_DELETE", group) in watch.hear(1)


# ---- by surprise ----


def test_the_holder_of_a_card_that_is_pulled_reads_all_ones(lab: MountedLab) -> None:
    vfio_pci(lab, AUDIO)
    number, minor = group_of(lab, AUDIO), vfio_of(lab, AUDIO)
    with ExitStack() as stack:
        fd, err, req = hold(lab, stack, AUDIO)
        assert os.pread(fd, 2, 7 << 40) == b"\xde\x10"
        with listening(lab, os.O_NONBLOCK) as events:
            assert command(lab, "unplug", "--surprise", GPU) == ""
            assert comings(events) == [
                f"unbind {AUDIO}",
                f"remove {AUDIO}",
                f"change {GPU}",
                f"unbind {GPU}",
                f"remove {GPU}",
            ]
        assert state(lab, GPU) == EMPTY and signals(err) == 1 and signals(req) == 1
        assert mentions(lab, AUDIO) == mentions(lab, GPU) == []
        for place in (0, 0x100, 7 << 40, (7 << 40) + 0x3C):
            os.pwrite(fd, bytes(4), place)
            assert os.pread(fd, 4, place) == b"\xff" * 4
        rescan(lab)
        assert not CARD & set(functions(lab))
        # the card comes back while the client still holds what was there before
        assert command(lab, "plug", GPU) == "" and driver_of(lab, AUDIO) == "snd_hda_intel"
        assert group_of(lab, AUDIO) != number and os.pread(fd, 4, 7 << 40) == b"\xff" * 4
        vfio_pci(lab, AUDIO)
        assert vfio_of(lab, AUDIO) != minor
        with ExitStack() as again:
            assert os.pread(hold(lab, again, AUDIO)[0], 2, 7 << 40) == b"\xde\x10"
    groups = lab.path / "sys/kernel/iommu_groups"
    wait_for(lambda: not (groups / number).exists())
    write(lab, GPU, "unplug")
    write(lab, GPU, "plug")
    assert number in {group_of(lab, name) for name in CARD}  # the numbers are free again


def test_ioctls_of_the_holder_fail(lab: MountedLab) -> None:
    vfio_pci(lab, AUDIO)
    with ExitStack() as stack:
        group = group_of(lab, AUDIO)
        client = stack.enter_context(opened(lab, group, AUDIO))
        write(lab, GPU, "surprise_unplug")
        for cmd in (DEVICE_GET_INFO, DEVICE_RESET):
            fails(errno.ENODEV, ioctl, client.device.fd, cmd, DeviceInfo())
        fails(errno.ENODEV, client.device.tear_down, REQ)
        assert client.group.flags and client.container.dma_avail
        with pytest.raises(OSError) as caught:
            client.group.device_fd(AUDIO)
        assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("what", ["vgpu", "vf"])
def test_what_was_made_of_a_card_that_is_pulled_goes_with_it(lab: MountedLab, what: str) -> None:
    with ExitStack() as stack:
        event = held(lab, stack, what)
        made = [each for each in functions(lab) if each.startswith("0000:86:00.") and each not in CARD]
        made += os.listdir(lab.mdevs)
        assert len(made) == 1
        write(lab, GPU, "surprise_unplug")
        assert signals(event) == 1
        assert mentions(lab, made[0]) == [] and not CARD & set(functions(lab))
        write(lab, GPU, "plug")
        assert (function_dir(lab, GPU) / "sriov_numvfs").read_text() == "0\n"
        with lab.create("vgpu-8", GPU):
            pass
    lab.create("vgpu-8", GPU).remove()


def test_pulling_ends_the_wait_for_a_holder(patient: MountedLab) -> None:
    with ExitStack() as stack:
        event = held(patient, stack, "function")
        with Writer(slot(patient, GPU) / "unplug", "1") as writer:
            assert signals(event) == 1 and writer.waits
            write(patient, GPU, "surprise_unplug")
            assert writer.said() == os.strerror(errno.ENODEV)
    assert state(patient, GPU) == EMPTY


# ---- the port ----


def test_a_slot_is_there_while_its_port_has_a_driver(lab: MountedLab) -> None:
    driver, slots = lab.path / "sys/bus/pci/drivers/pcieport", lab.path / "sys/bus/pci/slots"
    (driver / "unbind").write_text(GPU_PORT)
    assert os.listdir(slots) == ["3"] and set(functions(lab)) >= CARD
    (driver / "bind").write_text(GPU_PORT)
    assert state(lab, GPU) == ON
    write(lab, GPU, "power", "0")
    (driver / "unbind").write_text(GPU_PORT)
    (driver / "bind").write_text(GPU_PORT)  # it looks into its slot, and there is a card
    assert state(lab, GPU) == ON and set(functions(lab)) >= CARD


def test_a_port_goes_with_its_slot(lab: MountedLab) -> None:
    name = slot(lab, GPU).name
    (function_dir(lab, GPU_PORT) / "remove").write_text("1")
    assert mentions(lab, name) == [] and not CARD & set(functions(lab))
    rescan(lab)
    assert state(lab, GPU) == ON and set(functions(lab)) >= CARD
    (function_dir(lab, NIC_PORT) / "remove").write_text("1")
    rescan(lab)
    assert state(lab, NIC) == EMPTY and NIC not in functions(lab)
    assert "PresDet-" in lspci(lab, "-vvv", "-s", NIC_PORT)


# ---- for long ----


@pytest.mark.parametrize("pull", ["unplug", "surprise_unplug", "power"])
def test_many_lives_leave_nothing(lab: MountedLab, pull: str) -> None:
    def resources() -> tuple[int, int]:
        maps = Path(f"/proc/{lab.pid}/maps").read_text().count("\n")
        return open_files(lab.pid), maps

    def live(times: int) -> None:
        for _ in range(times):
            vfio_pci(lab, AUDIO)
            with ExitStack() as stack:
                if pull == "surprise_unplug":
                    hold(lab, stack, AUDIO)
                write(lab, GPU, pull, "0" if pull == "power" else "1")
            write(lab, GPU, "power" if pull == "power" else "plug")
            (function_dir(lab, GPU) / "sriov_numvfs").write_text("2")
            (function_dir(lab, GPU) / "resource0").read_bytes()[:4]

    live(3)
    fds, maps = settled(resources)
    live(12)
    wait_for(lambda: resources()[0] <= fds)
    wait_for(lambda: resources()[1] < maps + 12)  # threads that have begun meanwhile have some
    (function_dir(lab, GPU) / "sriov_numvfs").write_text("0")


def test_a_lab_may_end_without_its_cards(tmp_path: Path) -> None:
    with described(tmp_path, LAB.replace("@", "busy")) as lab:
        vfio_pci(lab, AUDIO)
        with ExitStack() as stack:
            hold(lab, stack, AUDIO)
            write(lab, GPU, "surprise_unplug")
        write(lab, NIC, "plug")
        write(lab, NIC, "power", "0")
