# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse replay` and `model = "replay"`: recorded devices, without the models that were recorded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vfsfuse
from tests import needs
from tests.commands import ROOT, SECONDS, VFSFUSE
from tests.copydriver import compiled
from tests.labs import MountedLab
from tests.tool import need

pytestmark = needs.open_fuse
UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"
GROUP = "5"
ADDRESS = "0000:05:00.0"
COPIERS = f"""\
include = "{ROOT}/examples/copier.toml"
vgpus = [{{ parent = "copiers", type = "copier-1", uuid = "{UUID}", group = {GROUP} }}]
"""
SERIAL = f"""\
[modules.vfio_pci]
ids = "4348:3253"
[functions."{ADDRESS}"]
model = "mtty"
group = 7
"""
ENGINE = f"""\
[parents."0000:65:00.0"]
kind = "gpu"
driver = "acme"
memory = "1G"
slots = 4
types.acme-1 = {{ description = "one", memory = "16M" }}
[[vgpus]]
parent = "0000:65:00.0"
type = "acme-1"
uuid = "{UUID}"
"""
REPLAYED = f"""\
[parents.copiers]
kind = "virtual"
driver = "copier"
model = "replay"
recording = "copy.rec"
slots = 1
types.copier-1 = {{ description = "a recorded copier" }}
[[vgpus]]
parent = "copiers"
type = "copier-1"
uuid = "{UUID}"
group = {GROUP}
"""

CLIENT = """\
import fcntl, os, struct, sys
container = os.open("/dev/vfio/vfio", os.O_RDWR)
group = os.open(f"/dev/vfio/{sys.argv[1]}", os.O_RDWR)
fcntl.ioctl(group, 0x3B68, struct.pack("i", container))  # VFIO_GROUP_SET_CONTAINER
fcntl.ioctl(container, 0x3B66, 3)  # VFIO_SET_IOMMU
name = bytearray(sys.argv[2].encode() + b"\\0")
device = fcntl.ioctl(group, 0x3B6A, name)  # VFIO_GROUP_GET_DEVICE_FD
event = os.eventfd(0)
fcntl.ioctl(device, 0x3B6E, struct.pack("IIIIIi", 24, 36, 0, 0, 1, event))  # VFIO_DEVICE_SET_IRQS: INTx

def put(register, value):
    os.pwrite(device, bytes([value]), register)

def get(register):
    return os.pread(device, 1, register)[0]

put(1, 1)  # an interrupt when there is data
put(4, 0x0B)  # DTR, RTS and OUT2
for byte in b"hello":
    put(0, byte)
    os.read(event, 8)
    fcntl.ioctl(device, 0x3B6E, struct.pack("IIIII", 20, 17, 0, 0, 1))  # unmask
    print(chr(get(0)), get(5) & 1, end=" ")
print()
"""
"""A program that sends bytes through the loopback plug of a serial card."""


def command(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder."""
    whole = [*VFSFUSE, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        whole, cwd=folder, capture_output=True, text=True, check=False, timeout=SECONDS, env=environment
    )


@pytest.fixture(scope="session")
def compile_driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile the driver of the tutorial, with other words for some of its own."""
    need("gcc")
    return lambda *edits: compiled(tmp_path_factory.mktemp("copy"), *edits)


@pytest.fixture(scope="session")
def copied(compile_driver: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording of a copy, made of examples/copier.py."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "copiers.toml").write_text(COPIERS)
    options, program = ("-o", "copy.rec", "--config", "copiers.toml"), compile_driver()
    done = command(folder, "record", *options, "--", program, GROUP, UUID, "20")
    assert (done.returncode, done.stdout) == (0, "*" * 20 + "\n"), done.stderr
    return folder / "copy.rec"


@pytest.fixture
def folder(copied: Path, tmp_path: Path) -> Path:
    """A folder with nothing but the recording."""
    shutil.copy(copied, tmp_path)
    return tmp_path


def line_of(recording: Path, words: str) -> int:
    """The line of a recording that has these words."""
    lines = recording.read_text().splitlines()
    (found,) = (number for number, line in enumerate(lines, 1) if words in line)
    return found


def test_the_same_client_finds_the_same_device(folder: Path, compile_driver: Callable[..., Path]) -> None:
    done = command(folder, "replay", "copy.rec", "--", compile_driver(), GROUP, UUID, "20")
    assert (done.returncode, done.stdout) == (0, "*" * 20 + "\n"), done.stderr
    assert done.stderr == "vfsfuse: replay: 10 of 10 events replayed, no divergence\n"


def test_another_client_diverges_at_a_line(folder: Path, compile_driver: Callable[..., Path]) -> None:
    changed = compile_driver(("put(COMMAND_REG, 1, 4)", "put(COMMAND_REG, 3, 4)"))
    place = f"copy.rec:{line_of(folder / 'copy.rec', 'write BAR0 0x14')}"
    for strict, status in (((), 0), (("--strict",), 1)):
        done = command(folder, "replay", *strict, "copy.rec", "--", changed, GROUP, UUID, "20")
        assert (done.returncode, done.stdout) == (status, "*" * 20 + "\n")
        assert done.stderr.splitlines() == [
            f"vfsfuse: replay: {place}: expected BAR0 write COMMAND = 0x1, got BAR0 write COMMAND = 0x3",
            f"vfsfuse: replay: 9 of 10 events replayed, 1 divergence, the first at {place}",
        ]
    done = command(folder, "replay", "-q", "--strict", "copy.rec", "--", changed, GROUP, UUID, "20")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_the_program_keeps_its_status(folder: Path) -> None:
    for script, status in (("exit 3", 3), ("kill -9 $$", -9)):
        done = command(folder, "replay", "--strict", "copy.rec", "--", "sh", "-c", script)
        assert done.returncode == status
        assert done.stderr == "vfsfuse: replay: 0 of 10 events replayed, no divergence\n"


@pytest.mark.parametrize(("strict", "status"), [("--strict", 1), ("-q", 0)])
def test_a_program_that_leaves_the_device_alone(folder: Path, strict: str, status: int) -> None:
    done = command(folder, "replay", strict, "copy.rec", "--", "true")
    assert done.returncode == status
    assert done.stderr == (
        "vfsfuse: replay: 0 of 10 events replayed, no divergence\n"
        f"vfsfuse: replay: copy.rec: CMD did nothing of what was recorded with {UUID}\n"
    )


def test_a_client_that_maps_its_memory_elsewhere_does_not_diverge(
    folder: Path, compile_driver: Callable[..., Path]
) -> None:
    done = command(
        folder,
        "replay",
        "copy.rec",
        "--",
        compile_driver(("IOVA = 0x100000", "IOVA = 0x700000")),
        GROUP,
        UUID,
        "20",
    )
    assert (done.returncode, done.stdout) == (0, "*" * 20 + "\n"), done.stderr
    assert done.stderr == "vfsfuse: replay: 10 of 10 events replayed, no divergence\n"


def test_other_data_diverge(folder: Path, compile_driver: Callable[..., Path]) -> None:
    changed = compile_driver(("memset(memory, '*', TARGET)", "memset(memory, '+', TARGET)"))
    done = command(folder, "replay", "copy.rec", "--", changed, GROUP, UUID, "20")
    assert (done.returncode, done.stdout) == (0, "*" * 20 + "\n")  # what the device wrote
    place = f"copy.rec:{line_of(folder / 'copy.rec', 'dma read')}"
    other, recorded = " ".join(["2b"] * 8), " ".join(["2a"] * 8)
    assert done.stderr.splitlines()[0] == (
        f"vfsfuse: replay: {place}: expected DMA read 0x100000, 20 bytes, "
        f"got other data: at byte 0x0 {other} instead of {recorded}"
    )


def test_memory_that_is_not_mapped_diverges(folder: Path, compile_driver: Callable[..., Path]) -> None:
    changed = compile_driver(('must(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), "MAP_DMA");', ""))
    done = command(folder, "replay", "copy.rec", "--", changed, GROUP, UUID, "20")
    assert done.returncode == 0
    assert re.search(r"expected DMA read 0x100000, 20 bytes, got a refused DMA at 0x100000: \w+", done.stderr)


def test_a_serial_card_in_a_group_of_its_own(tmp_path: Path) -> None:
    """A PCI function with INTx: its address and group are there."""
    (tmp_path / "lab.toml").write_text(SERIAL)
    (tmp_path / "client.py").write_text(CLIENT)
    client = (sys.executable, "client.py", "7", ADDRESS)
    done = command(tmp_path, "record", "-o", "serial.rec", "--config", "lab.toml", "--", *client)
    assert (done.returncode, done.stdout) == (0, "h 0 e 0 l 0 l 0 o 0 \n"), done.stderr
    (tmp_path / "lab.toml").unlink()
    for _ in range(2):
        again = command(tmp_path, "replay", "--strict", "serial.rec", "--", *client)
        assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
    changed = CLIENT.replace("hello", "help")
    (tmp_path / "client.py").write_text(changed)
    again = command(tmp_path, "replay", "--strict", "serial.rec", "--", *client)
    assert (again.returncode, again.stdout) == (1, "h 0 e 0 l 0 l 0 \n")
    first, last, _ = again.stderr.splitlines()
    assert re.search(r"serial.rec:\d+: expected BAR0 write DATA = 0x6c, got BAR0 write DATA = 0x70$", first)
    assert re.search(r"serial.rec:\d+: expected BAR0 write DATA = 0x6f, got close$", last)


def test_a_recording_of_a_host_has_no_dma(tmp_path: Path, compile_driver: Callable[..., Path]) -> None:
    (tmp_path / "copiers.toml").write_text(COPIERS)
    record = (*VFSFUSE, "record", "--host", "-o", "host.rec", "--", str(compile_driver()), GROUP, UUID, "20")
    done = command(tmp_path, "run", "--config", "copiers.toml", "--", *record)
    assert done.returncode == 0, done.stderr
    done = command(tmp_path, "replay", "--strict", "host.rec", "--", compile_driver(), GROUP, UUID, "20")
    assert done.returncode == 0
    assert done.stderr.endswith("8 of 8 events replayed, no divergence\n")


@pytest.mark.parametrize(
    ("client", "lab", "arguments"),
    [("copier_client", COPIERS, (GROUP, UUID)), ("iommufd_client", ENGINE, ("vfio0",))],
)
def test_other_clients(
    client: str, lab: str, arguments: tuple[str, ...], tmp_path: Path, compile_client: Callable[..., Path]
) -> None:
    """One that resets the device, and one of iommufd whose device has an engine that reads a ring.  A second
    open plays the recording again."""
    (tmp_path / "lab.toml").write_text(lab)
    program = (str(compile_client(client)), *arguments)
    recorded = command(tmp_path, "record", "-o", "x.rec", "--config", "lab.toml", "--", *program)
    assert recorded.returncode == 0, recorded.stderr
    done = command(tmp_path, "replay", "--strict", "x.rec", "--", *program)
    assert (done.returncode, done.stdout) == (0, recorded.stdout), done.stderr
    twice = f"{' '.join(program)}; {' '.join(program)}"
    done = command(tmp_path, "replay", "--strict", "x.rec", "--", "sh", "-c", twice)
    assert (done.returncode, done.stdout) == (0, 2 * recorded.stdout), done.stderr


def test_a_client_that_polls_where_the_recorded_one_waited(
    folder: Path, compile_driver: Callable[..., Path]
) -> None:
    """The status is 0 until the device has done its DMA.  The interrupt comes at once after it, so it comes
    before the client has closed the device."""
    text = (folder / "copy.rec").read_text()
    text, count = re.subn(r"(?m)^(\S+)( 0 dma write .*\n)\S+( 0 interrupt)", r"\1\2\1\3", text)
    assert count == 1
    (folder / "copy.rec").write_text(text)
    poll = 'must(pread(device, &status, 4, STATUS_REG), "STATUS");'
    changed = compile_driver(
        ('must(ioctl(device, VFIO_DEVICE_SET_IRQS, &irq), "SET_IRQS");', ""),
        ('must(read(irq.event, &interrupts, sizeof(interrupts)), "the interrupt");', "(void)interrupts;"),
        (poll, f"while (!status) {poll} for (int again = 0; again < 100; again++) {poll}"),
    )
    done = command(folder, "replay", "copy.rec", "--", changed, GROUP, UUID, "20")
    assert (done.returncode, done.stdout) == (0, "*" * 20 + "\n"), done.stderr
    first, second, _ = done.stderr.splitlines()
    assert "expected SET_IRQS MSIX 0 trigger eventfd, got BAR0 write SOURCE = 0x100000" in first
    assert "expected interrupt MSIX 0, got no such interrupt" in second


def test_two_devices_of_one_recording(tmp_path: Path) -> None:
    second = SERIAL.replace(ADDRESS, "0000:06:00.0").replace("group = 7", "group = 9")
    (tmp_path / "lab.toml").write_text(SERIAL + second.partition("\n[")[2].join(("[", "")))
    (tmp_path / "client.py").write_text(CLIENT)
    both = " && ".join(
        f"{sys.executable} client.py {group} {address}"
        for group, address in (("7", ADDRESS), ("9", "0000:06:00.0"))
    )
    done = command(tmp_path, "record", "-o", "x.rec", "--config", "lab.toml", "--", "sh", "-c", both)
    assert done.stdout == 2 * "h 0 e 0 l 0 l 0 o 0 \n", done.stderr
    again = command(tmp_path, "replay", "--strict", "x.rec", "--", "sh", "-c", both)
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
    assert again.stderr.endswith("58 of 58 events replayed, no divergence\n")


def test_divergences_in_python(folder: Path, compile_driver: Callable[..., Path]) -> None:
    (folder / "lab.toml").write_text(REPLAYED)
    changed = compile_driver(("put(COMMAND_REG, 1, 4)", "put(COMMAND_REG, 3, 4)"))
    with vfsfuse.Lab(folder / "lab.toml") as lab:
        assert lab.divergences == []
        lab.run([changed, GROUP, UUID, "20"], check=True)
        (line,) = lab.divergences
        assert line.endswith("expected BAR0 write COMMAND = 0x1, got BAR0 write COMMAND = 0x3")
    with vfsfuse.Lab() as lab:
        assert lab.divergences == []


def test_a_mounted_lab(folder: Path, compile_driver: Callable[..., Path]) -> None:
    """The log has the divergences, and the file `replay` what there was."""
    (folder / "lab.toml").write_text(REPLAYED)
    changed = compile_driver(("put(COMMAND_REG, 1, 4)", "put(COMMAND_REG, 3, 4)"))
    with MountedLab(folder, "--config", str(folder / "lab.toml")) as lab:
        before = json.loads((lab.path / "replay").read_text())
        assert (before["count"], before["open"], before["divergences"]) == (0, 0, [])
        done = command(folder, "run", "--mount", lab.path, "--", changed, GROUP, UUID, "20")
        assert done.returncode == 0, done.stderr
        after = json.loads((lab.path / "replay").read_text())
        assert after["count"] == 1
        assert after["summary"].startswith("9 of 10 events replayed, 1 divergence")
        assert after["divergences"][0].endswith(
            "expected BAR0 write COMMAND = 0x1, got BAR0 write COMMAND = 0x3"
        )
        assert after["divergences"][0] in lab.log
        done = command(folder, "run", "--mount", lab.path, "--", compile_driver(), GROUP, UUID, "20")
        assert (done.returncode, done.stdout) == (0, "*" * 20 + "\n")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "x.rec: the file is empty"),
        ("vfsfuse recording 1\nwrong\n", "x.rec:2: "),
        ("vfsfuse recording 1\nsource lab\nmmap hidden\ndialogue\n", "x.rec: no device was recorded (its "),
        (None, "x.rec: No such file or directory (vfsfuse record makes a recording)"),
    ],
)
def test_what_is_no_recording_is_one_line(tmp_path: Path, text: str | None, why: str) -> None:
    if text is not None:
        (tmp_path / "x.rec").write_text(text)
    done = command(tmp_path, "replay", "x.rec", "--", "true")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith(f"vfsfuse: replay: {why}")


def test_a_command_is_needed(folder: Path) -> None:
    done = command(folder, "replay", "copy.rec")
    assert done.returncode == 2
    assert "no command: name one after --" in done.stderr
