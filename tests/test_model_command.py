# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse model FILE`: models from recordings of real dialogues and of made-up ones.  They are imported,
they are formatted and typed, and answer what was recorded."""

from __future__ import annotations

import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from devmodel.device.pci import PciDevice
from tests.commands import ROOT, vfsfuse
from tests.tracers import COPIERS, UUID
from vfsfuse.recording import recording as kinds
from vfsfuse.recording.model import model
from vfsfuse.recording.recording import (
    Event,
    Irq,
    RecordedDevice,
    Recording,
    RecordingError,
    Region,
)
from vfsfuse.recording.writing import lines, write
from vfsfuse.testing import Bench

Compile = Callable[..., Path]
LAB = """\
[models]
recorded = "model.py:Recorded"

[parents.copiers]
kind = "virtual"
driver = "copier"
model = "recorded"
slots = 8
types.copier-1 = { description = "a copier of a recording" }
"""
READ_WRITE, MMAP = 3, 7


# ---- a real dialogue ----


def test_from_a_recording_to_a_model_that_a_driver_accepts(tmp_path: Path, compile_client: Compile) -> None:
    script = f"echo {UUID} > {COPIERS}; exec {compile_client('copier_client')} 0 {UUID}"
    recordings = [tmp_path / "first", tmp_path / "second"]
    command = ("--", "sh", "-c", script)
    done = vfsfuse("record", "-o", recordings[0], "--config", "examples/copier.toml", *command)
    assert done.returncode == 0, done.stderr
    made = vfsfuse("model", recordings[0])
    assert (made.returncode, made.stderr) == (0, "")
    (tmp_path / "model.py").write_text(made.stdout)
    (tmp_path / "lab.toml").write_text(LAB)
    check_style(tmp_path / "model.py")
    check("mypy", "--strict", "--cache-dir", "/dev/null", "--config-file", "/dev/null", tmp_path / "model.py")
    done = vfsfuse("record", "-o", recordings[1], "--config", tmp_path / "lab.toml", *command)
    assert (done.returncode, done.stdout) == (0, "status 1\nok\n"), done.stderr
    first, second = (plain(path) for path in recordings)
    assert first == second and len(first) > 20
    assert 'Register(0x14, 4, "COMMAND", on_write=Recorded.wrote_command)' in made.stdout
    assert "data = await self.dma.read(source, size)" in made.stdout


def plain(path: Path) -> list[str]:
    """What is in a recording, without times and the client's addresses."""
    rows = [line.partition("  #")[0].partition(" before=")[0] for line in path.read_text().splitlines()]
    return [row.partition(" ")[2] if row[:1].isdecimal() else row for row in rows]


def check_style(*paths: Path) -> None:
    """ruff finds nothing."""
    check("ruff", "format", "--isolated", "--no-cache", "--check", *paths)
    check("ruff", "check", "--isolated", "--no-cache", "--select", "E4,E7,E9,F,I,UP,B,SIM", *paths)


def check(*command: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


# ---- made-up devices ----


def config(capabilities: bytes = b"", size: int = 256, bars: Sequence[int] = ()) -> bytes:
    """Configuration space with capabilities from 0x40 on."""
    space = bytearray(size)
    struct.pack_into("<HHHHI", space, 0, 0x1AF4, 0x1000, 0, 0x10 if capabilities else 0, 0x02000001)
    struct.pack_into("<HH", space, 0x2C, 0x1AF4, 0x1)
    space[0x34], space[0x3D] = 0x40 if capabilities else 0, 1
    for index, value in enumerate(bars):
        struct.pack_into("<I", space, 0x10 + 4 * index, value)
    space[0x40 : 0x40 + len(capabilities)] = capabilities
    return bytes(space)


def device(space: bytes | None = None, **sizes: int) -> RecordedDevice:
    found = {int(name[3:]): Region(int(name[3:]), size, READ_WRITE) for name, size in sizes.items()}
    irqs = {0: Irq(0, 1, 7), 2: Irq(2, 4, 9)}
    return RecordedDevice("0000:01:00.0", 3, 9, 5, 1, found, irqs, config() if space is None else space)


def get(offset: int, value: int, size: int = 4, region: int = 0) -> Event:
    return Event(
        0, 0, kinds.READ, region=region, offset=offset, size=size, data=value.to_bytes(size, "little")
    )


def put(offset: int, value: int, size: int = 4, region: int = 0) -> Event:
    data = value.to_bytes(size, "little")
    return Event(0, 0, kinds.WRITE, region=region, offset=offset, size=size, data=data, result=size)


def interrupt(name: str = "INTX", vector: int = 0) -> Event:
    return Event(0, 0, kinds.INTERRUPT, name, vector=vector)


def made_of(events: Iterable[Event], which: RecordedDevice | None = None) -> tuple[type[PciDevice], str]:
    """The model of a recording."""
    text = model(Recording(devices=[which or device(bar0=4096)], events=list(events)))
    names: dict[str, type[PciDevice]] = {}
    exec(compile(text, "model.py", "exec"), names)  # it is what is tested
    return names["Recorded"], text


def answers(found: type[PciDevice], events: Iterable[Event], interrupts: str = "INTX") -> None:
    """A bench with the model answers the events as they were recorded."""
    with Bench(found, kind="function", interrupts=interrupts) as bench:
        seen = dict.fromkeys(range(8), 0)
        for number, event in enumerate(events):
            if event.kind == kinds.READ:
                assert bench.read(event.region, event.offset, event.size) == event.data, (number, event)
            elif event.kind == kinds.WRITE:
                bench.write(event.region, event.offset, event.data)
                bench.settle()
            elif event.kind == kinds.INTERRUPT:
                seen[event.vector] += 1
                assert bench.interrupts.count(event.vector) == seen[event.vector], (number, event)
                if interrupts == "INTX":
                    bench.interrupts.unmask()


DIALOGUES: dict[str, list[Event]] = {
    "values at first": [get(0, 0x1234), get(8, 7, 2), get(0, 0x1234), put(4, 9), get(4, 9)],
    "a change after a write": [get(8, 0), put(4, 1), get(8, 5), put(4, 2), get(8, 6), put(4, 1), get(8, 5)],
    "bits that a write clears": [get(0, 0xFF), put(0, 0x0F), get(0, 0xF0), put(0, 0x0F), get(0, 0xF0)],
    "a register that is polled": [
        get(8, 0),
        put(4, 1),
        get(8, 0),
        get(8, 0),
        put(0, 0),
        get(8, 1),
        get(8, 1),
    ],
    "a counter": [get(8, 1), get(8, 2), get(8, 3), get(8, 3)],
    "a fifo": [put(0, 1), get(8, 5), get(8, 9), get(8, 1), put(0, 2), get(8, 4), get(8, 2)],
    "a doorbell for any value": [
        *(event for value in range(20) for event in (put(0, value), get(4, 1), put(4, 0), get(4, 0)))
    ],
    "intx and its acknowledgement": [
        *[put(0, 1), interrupt(), get(4, 1), put(4, 1), get(4, 0)],
        *[put(0, 1), interrupt(), get(4, 1), put(4, 1), get(4, 0)],
    ],
    "registers of all widths": [
        put(0, 1, 1),
        get(1, 0, 1),
        put(2, 5, 2),
        put(8, 1 << 40, 8),
        get(8, 1 << 40, 8),
    ],
    "a reset": [
        *[get(0, 3), put(0, 4), get(0, 4)],
        *[Event(0, 0, kinds.IOCTL, "VFIO_DEVICE_RESET")],
    ],
}


@pytest.mark.parametrize("name", DIALOGUES)
def test_a_model_answers_as_recorded(name: str) -> None:
    found, _ = made_of(DIALOGUES[name])
    answers(found, DIALOGUES[name])


def test_models_are_formatted_and_typed(tmp_path: Path) -> None:
    paths = [tmp_path / f"model{number}.py" for number in range(len(DIALOGUES))]
    for path, events in zip(paths, DIALOGUES.values(), strict=True):
        path.write_text(made_of(events)[1])
    check_style(*paths)
    check("mypy", "--strict", "--cache-dir", "/dev/null", "--config-file", "/dev/null", *paths)


def test_dma_goes_where_registers_say() -> None:
    events = [
        *(put(0x10, 0x5000), put(0x14, 0x1), put(0x18, 64), put(0x1C, 1)),
        Event(0, 0, kinds.DMA, "read", iova=0x1_0000_5000, size=64, data=b"a" * 64),
        Event(0, 0, kinds.DMA, "write", iova=0x1_0000_5040, size=64, data=b"a" * 64),
        Event(0, 0, kinds.DMA, "write", iova=0x9000, size=4, data=b"done"),
        *(interrupt("MSIX", 3), get(0x20, 1)),
    ]
    table = bytes([0x11, 0, 3, 0]) + struct.pack("<II", 2, 0x40 | 2)
    which = device(config(table), bar0=4096, bar2=8192)
    found, text = made_of(events, which)
    assert "MsixBar(4, excluded=False)" in text
    with Bench(found, kind="function") as bench:
        for start in (0x1_0000_5000, 0x2_0000_8000):
            bench.memory.map(start, 0x1000, write=True)
            bench.memory.write(start, bytes(range(64)))
        bench.memory.map(0x9000, 0x1000, write=True)
        for high, low in ((1, 0x5000), (2, 0x8000)):
            for offset, value in ((0x10, low), (0x14, high), (0x18, 64), (0x1C, 1)):
                bench.write(0, offset, value.to_bytes(4, "little"))
            bench.wait_interrupt(3)
            start = high << 32 | low
            assert bench.memory.read(start + 0x40, 64) == bytes(range(64))
            assert bench.memory.read(0x9000, 4) == b"done"
            assert bench.read(0, 0x20, 4) == b"\1\0\0\0"


def test_bars_and_capabilities(tmp_path: Path) -> None:
    power = bytes([0x01, 0x50, *struct.pack("<HHH", 3, 8, 0)]).ljust(16, b"\0")
    message = bytes([0x05, 0x70, *struct.pack("<HIIHHII", 0x184, 0, 0, 0, 0, 0, 0)]).ljust(32, b"\0")
    own = bytes([0x09, 0x80, 7, 1, 2, 3, 4]).ljust(16, b"\0")
    other = bytes([0x12, 0, 1, 2, 3, 4, 5, 6])
    space = config(power + message + own + other, bars=(0x1, 0, 0xC, 0))
    which = device(space, bar0=256, bar1=1 << 20, bar2=1 << 24)
    which.regions[1].flags = which.regions[2].flags = MMAP
    which.regions[6] = Region(6, 65536, 1)
    rom = Event(0, 0, kinds.READ, region=6, size=4, data=b"\x55\xaa\x01\x02")
    found, text = made_of([get(0, 5), rom], which)
    for code in (
        "0: Bar(self.bar0, io=True)",
        "self.bar1 = Memory(0x100000)",
        "2: Bar(self.bar2, mem64=True, prefetch=True)",
        'self.rom = Rom(bytes.fromhex("55aa0102"), 0x10000)',
        *("power_management(),", "msi(4),", 'vendor(bytes.fromhex("01020304")),'),
        'Capability(0x12, bytes.fromhex("010203040506"), bytes(6)),',
        "Identity(0x1AF4, 0x1000, 0x1AF4, 0x0001, class_code=0x020000, revision=0x1, irq_pin=1)",
    ):
        assert code.replace(" ", "") in "".join(text.split()), code
    with Bench(found, kind="function") as bench:
        assert bench.read(7, 0, 4) == struct.pack("<HH", 0x1AF4, 0x1000)
        assert bench.read(6, 0, 5) == b"\x55\xaa\x01\x02\xff"
    (tmp_path / "model.py").write_text(text)
    check_style(tmp_path / "model.py")


def test_regions_of_the_device_alone(tmp_path: Path) -> None:
    which = device(bar0=4096)
    head, kind = struct.pack("<HHI", 2, 1, 0), struct.pack("<II", 1, 7)
    other = struct.pack("<HHI", 9, 1, 32 + 8)
    which.regions[9] = Region(9, 4096, 7, head + kind)
    which.regions[10] = Region(10, 0x50, 3, other + head + kind)
    which.regions[11] = Region(11, 4096, 3, b"\xff" * 40)  # it has no type
    found, text = made_of([get(0, 5)], which)
    assert "DeviceRegion(Memory(0x1000), 1, 7)" in text
    assert "DeviceRegion(Registers(Layout(0x50, [])), 1, 7)" in text
    with Bench(found, kind="function") as bench:
        bench.write(9, 0, b"memory")
        assert bench.read(9, 0, 6) == b"memory" and bench.read(10, 0, 4) == bytes(4)
    (tmp_path / "model.py").write_text(text)
    check_style(tmp_path / "model.py")


def test_an_endpoint_of_pci_express(tmp_path: Path) -> None:
    registers = struct.pack("<HIHHIHH", 2, 1 << 28, 0, 0, 0x43, 0, 0x43).ljust(58, b"\0")
    space = bytearray(config(bytes([0x10, 0]) + registers, 4096))
    struct.pack_into("<IQ", space, 0x100, 0x0001_0003, 0x1122334455667788)  # the serial number
    found, text = made_of([get(0, 5)], device(bytes(space), bar0=4096))
    assert "express(LinkSpeed.GT_8, 4)" in text
    with Bench(found, kind="function") as bench:
        assert bench.read(7, 0x104, 8) == struct.pack("<Q", 0x1122334455667788)
    (tmp_path / "model.py").write_text(text)
    check_style(tmp_path / "model.py")


def test_names_of_registers_are_quoted(tmp_path: Path) -> None:
    which = device(bar0=4096)
    names = [
        'A"B',
        "a\nb",
        "class",
        "1st",
        "",
        "RESET",
        "RESET",
        "STATE",
        "state",
        "\u202e",
        "import os; os._exit(1)",
    ]
    which.names = {(0, 8 * place, 4): name for place, name in enumerate(names)}
    events = [
        event for place in range(len(names)) for event in (put(8 * place, 1), interrupt(), get(0x100, place))
    ]
    found, text = made_of(events, which)
    assert text.isascii()
    answers(found, events)
    (tmp_path / "model.py").write_text(text)
    check_style(tmp_path / "model.py")


@pytest.mark.parametrize("seed", range(25))
def test_random_dialogues_make_models_that_work(seed: int) -> None:
    """Whatever was recorded, the model can be made, and a client can have the same dialogue with it."""
    chosen = random.Random(seed)
    events: list[Event] = []
    for _ in range(chosen.randrange(1, 60)):
        size = chosen.choice((1, 2, 4, 4, 4, 8, 3, 16))
        offset, value = chosen.randrange(0, 64), chosen.getrandbits(8 * size)
        kind = chosen.randrange(4)
        if kind < 2:
            events.append((get, put)[kind](offset, value, size))
        elif kind == 2:
            events.append(interrupt(chosen.choice(("INTX", "MSIX", "ERR")), chosen.randrange(4)))
        else:
            name, data = chosen.choice(("read", "write")), chosen.randbytes(size)
            events.append(
                Event(0, 0, kinds.DMA, name, iova=chosen.choice((value, offset)), size=size, data=data)
            )
    found, text = made_of(events)
    with Bench(found, kind="function", interrupts="INTX") as bench:
        for event in events:
            if event.kind == kinds.READ:
                assert len(bench.read(0, event.offset, event.size)) == event.size
            elif event.kind == kinds.WRITE:
                bench.write(0, event.offset, event.data)
    assert model(Recording(devices=[device(bar0=4096)], events=events)) == text


# ---- what cannot be ----


def refused(recording: Recording, tmp_path: Path, *options: str) -> str:
    path = tmp_path / "a.recording"
    write(recording, path)
    done = vfsfuse("model", path, *options)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_a_device_is_chosen_by_its_name(tmp_path: Path) -> None:
    second = device(bar0=4096)
    second.name = "0000:02:00.0"
    both = Recording(devices=[device(bar0=4096), second])
    assert refused(both, tmp_path) == (
        "vfsfuse: model: there are several devices, so choose one by --device: 0000:01:00.0, 0000:02:00.0\n"
    )
    assert "no is not in this recording" in refused(both, tmp_path, "--device", "no")
    assert "Recorded" in vfsfuse("model", tmp_path / "a.recording", "--device", "0000:02:00.0").stdout
    assert "no device is in this recording" in refused(Recording(), tmp_path)


def test_what_is_no_device_says_so(tmp_path: Path) -> None:
    odd = device(bar0=4000)
    assert "BAR0 has 4000 bytes, no power of 2" in refused(Recording(devices=[odd]), tmp_path)
    for space in (b"", bytes(100), b"\xff" * 256):
        with pytest.raises(RecordingError, match=r"^0000:01:00\.0: "):
            model(Recording(devices=[device(space, bar0=4096)]))


def test_a_file_that_is_none_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_text("\n".join(lines(Recording())) + "\nnonsense\n")
    done = vfsfuse("model", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"vfsfuse: model: {path}:6: ")
    done = vfsfuse("model", tmp_path / "missing")
    why = "No such file or directory (vfsfuse record makes a recording)"
    assert done.stderr == f"vfsfuse: model: {tmp_path}/missing: {why}\n"


# ---- hostile recordings ----


@pytest.mark.parametrize("name", ["bytes", "data", "data2", "self", "class", "value", "int", "Recorded"])
def test_registers_with_the_names_of_the_code(name: str) -> None:
    dma = [
        Event(0, 0, kinds.DMA, kind, iova=0x1000, size=64, data=bytes(range(64)))
        for kind in ("read", "write")
    ]
    which = device(bar0=4096)
    which.names = {(0, 8, 8): name, (0, 0, 4): "GO"}
    other = Event(0, 0, kinds.DMA, "write", iova=0x1000, size=64, data=bytes(range(64, 128)))
    found, _ = made_of([put(8, 0x1000, 8), put(0, 1), *dma, other], which)
    with Bench(found, kind="function") as bench:
        bench.memory.map(0x5000, 4096)
        bench.write(0, 8, (0x5000).to_bytes(8, "little"))
        bench.write(0, 0, (1).to_bytes(4, "little"))
        bench.settle()
        assert bench.memory.read(0x5000, 64) == bytes(range(64, 128))


TEXTS = [
    *(
        '"',
        "'",
        '"""',
        "\\",
        '\\"',
        "\n",
        "\r",
        "\u2028",
        "\x00",
        "{x}",
        "%s",
        "# x",
        '");exit(1)#',
        "\ud800",
        "",
        "é",
    ),
    '" + exit(1) + "',
]


def test_texts_of_a_recording_are_no_code() -> None:
    which = device(bar0=4096)
    which.names = {(0, 8 * number, 4): text for number, text in enumerate(TEXTS)}
    events = [event for number in range(len(TEXTS)) for event in (put(8 * number, 1), interrupt())]
    found, text = made_of(events, which)
    assert text.isascii() and "exit(1)" not in re.sub(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'', "", text)
    answers(found, events)


def test_a_large_bar_is_memory_also_with_names() -> None:
    which = device(bar0=1 << 36)
    which.regions[0].flags = MMAP
    which.names = {(0, 8, 4): "STATUS"}
    which.regions[9] = Region(9, (1 << 36) + 8, READ_WRITE, struct.pack("<HHIII", 2, 1, 0, 1, 1))
    _, text = made_of([put(8, 1)], which)
    assert "Memory(0x1000000000)" in text and "Layout" not in text
