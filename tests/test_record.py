# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse record -- CMD`: the dialogue of a C client, what is in the file, and how the command ends."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import SECONDS, vfsfuse
from tests.tracers import COPIERS, UUID, started
from vfsfuse import Lab
from vfsfuse.recording.reading import read
from vfsfuse.recording.recording import Recording

Compile = Callable[..., Path]
COPIER = ("--config", "examples/copier.toml")
DIALOGUE = """\
container open /dev/vfio/vfio
group open /dev/vfio/0
container ioctl VFIO_GET_API_VERSION = 0
group ioctl VFIO_GROUP_SET_CONTAINER = 0
container ioctl VFIO_SET_IOMMU argument=0x3 = 0
container ioctl VFIO_IOMMU_MAP_DMA = 0
group ioctl VFIO_GROUP_GET_DEVICE_FD = 0
0 ioctl VFIO_DEVICE_GET_INFO = 0
0 ioctl VFIO_DEVICE_SET_IRQS = 0
0 write config 0x4 2 = 0x6
0 write BAR0 0x0 8 = 0x100000
0 write BAR0 0x8 8 = 0x101000
0 write BAR0 0x10 4 = 0x64
0 write BAR0 0x14 4 = 0x1
0 dma read 0x100000 100 = 07*100
0 dma write 0x101000 100 = 07*100
0 interrupt MSIX 0
0 read BAR0 0x18 4 = 0x1
0 write BAR0 0x18 4 = 0x1
0 ioctl VFIO_DEVICE_RESET = 0
container ioctl VFIO_IOMMU_UNMAP_DMA = 0
0 close
group close /dev/vfio/0
container close /dev/vfio/vfio
"""


def plain(path: Path) -> str:
    """The dialogue without times, structs and comments."""
    dialogue = path.read_text().split("\ndialogue\n")[1]
    dialogue = re.sub(r"^[\d.]+ |  #.*$| (before|after)=\S+", "", dialogue, flags=re.MULTILINE)
    return dialogue


def recorded(tmp_path: Path, client: Path, *options: str) -> tuple[Recording, Path]:
    out = tmp_path / "copier.recording"
    script = f"echo {UUID} > {COPIERS}; exec {client} 0 {UUID}"
    done = vfsfuse("record", "-o", out, *COPIER, *options, "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "status 1\nok\n"), done.stderr
    return read(out), out


def test_the_dialogue_of_a_c_client(tmp_path: Path, compile_client: Compile) -> None:
    client = compile_client("copier_client")
    found, path = recorded(tmp_path, client)
    assert plain(path) == DIALOGUE
    assert found.source == "lab" and found.command[:2] == ("sh", "-c") and not found.shows_mmap
    (device,) = found.devices
    assert (device.name, device.group, len(device.config)) == (UUID, 0, 256)
    assert "0 write BAR0 0x14 4 = 0x1  # COMMAND\n" in path.read_text()


def test_what_it_says(tmp_path: Path, compile_client: Compile) -> None:
    script = f"echo {UUID} > {COPIERS}; exec {compile_client('copier_client')} 0 {UUID}"
    for options, says in (((), r"1 device, 24 events(; .*--mmap.*)?"), (("--mmap",), "1 device, 24 events")):
        out = tmp_path / "out"
        done = vfsfuse("record", "-o", out, *options, *COPIER, "--", "sh", "-c", script)
        assert re.fullmatch(rf"vfsfuse: record: {out}: {says}\n", done.stderr)
    done = vfsfuse("record", "-q", "-o", tmp_path / "out", *COPIER, "--", "sh", "-c", script)
    assert (done.stdout, done.stderr) == ("status 1\nok\n", "")


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -KILL $$", -signal.SIGKILL)])
def test_it_ends_as_the_program_does(tmp_path: Path, script: str, status: int) -> None:
    out = tmp_path / "out"
    done = vfsfuse("record", "-q", "-o", out, "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (status, "")
    assert read(out).devices == []


def test_a_file_that_cannot_be_written_is_an_error_before_the_program(tmp_path: Path) -> None:
    done = vfsfuse("record", "-o", tmp_path / "no" / "out", "--", "echo", "run")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == f"vfsfuse: record: {tmp_path}/no/out: No such file or directory\n"


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = vfsfuse("record", "-o", out, "--", "/no/such/program")
    assert done.returncode == 127 and "/no/such/program" in done.stderr


def test_a_lab_that_cannot_be_made_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    out, new = tmp_path / "out", tmp_path / "new"
    out.write_text("what was there")
    for path in (out, new):
        done = vfsfuse("record", "-o", path, "--config", "/no/lab.toml", "--", "true")
        assert done.returncode == 125 and "/no/lab.toml" in done.stderr
    assert out.read_text() == "what was there" and not new.exists()


def test_a_lab_that_ends_before_the_program_leaves_no_recording(tmp_path: Path) -> None:
    with Lab() as lab:
        out = tmp_path / "out"
        waits = ("sh", "-c", "echo begun; read line; exit 3")
        recorder = started("record", "-o", out, "--mount", lab.path, "--", *waits)
        assert recorder.stdout is not None and recorder.stdout.readline() == "begun\n"
        lab.kill()
        _, said = recorder.communicate("go\n", SECONDS)
    assert recorder.returncode == 125 and not out.exists()
    assert "vfsfuse: record: there is no recording: the lab has ended before the program\n" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name the program to be recorded after --"),
        (("--host", "--udev", "--", "true"), "--udev is for a lab"),
        (("--host", "--mount", "/tmp", "--", "true"), "not allowed with argument"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], says: str) -> None:
    done = vfsfuse("record", *arguments)
    assert done.returncode == 2 and says in done.stderr
