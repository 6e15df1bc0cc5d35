# SPDX-License-Identifier: Apache-2.0
"""What vGPUs take of their parent: shown, asked for, counted exactly, and given back, whoever asks when."""

from __future__ import annotations

import errno
import mmap
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.labs import MountedLab, Vgpu
from tests.snapshot import snapshot
from tests.vfio.client import DEVICE_GET_REGION_INFO, RegionInfo, fails, with_caps
from tests.waiting import comes_to

UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e04"
MIB = 1 << 20
TOTAL = 64 * MIB
LAB = """\
[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
slots = 12

[parents."0000:86:00.0".types]
small = { memory = "4M", weight = 8, frame_rate = 45, max_resolution = "1280x1024", description = "small" }
large = { memory = "16M", description = "a large one", instances = 3, slots = 2 }

[parents.screens]
kind = "virtual"
driver = "mbochs"
memory = "8M"
types.screen = { memory = "4M", description = "a screen" }
"""
SPARSE_MMAP = 1


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "lab.toml").write_text(LAB)
    with MountedLab(folder, "--config", str(folder / "lab.toml")) as lab:
        yield lab


@pytest.fixture(autouse=True)
def as_it_was(shared: MountedLab) -> Iterator[None]:
    before = snapshot(shared.path)
    yield
    comes_to(lambda: snapshot(shared.path), before)


def value(directory: Path, name: str) -> str:
    """An attribute's text, by one read(2): a second one, for the end, may find another value."""
    with open(directory / name, "rb", buffering=0) as file:
        text = file.read(4096).decode("ascii")
    assert text.endswith("\n")
    return text[:-1]


def number(directory: Path, name: str) -> int:
    text = value(directory, name)
    assert text.isdecimal() and str(int(text)) == text
    return int(text)


def shown(directory: Path) -> dict[str, str]:
    """What a type or a vGPU says of its share."""
    names = ("vram_size", "weight", "frame_rate", "max_resolution", "max_instances")
    return {name: value(directory, name) for name in names if (directory / name).exists()}


@contextmanager
def created(lab: MountedLab, what: str) -> Iterator[Vgpu]:
    (lab.gpu / "vgpu_create").write_text(f"{UUID}:0:{what}")
    with Vgpu(lab, f"{UUID}-0") as vgpu:
        yield vgpu


def type_dir(lab: MountedLab, name: str) -> Path:
    return lab.gpu.resolve() / "mdev_supported_types" / name


# ---- what is shown ----


def test_a_type_states_its_share(shared: MountedLab) -> None:
    assert shown(type_dir(shared, "small")) == {
        "vram_size": str(4 * MIB),
        "weight": "8",
        "frame_rate": "45",
        "max_resolution": "1280x1024",
    }
    assert shown(type_dir(shared, "large")) == {
        "vram_size": str(16 * MIB),
        "weight": "16",
        "frame_rate": "60",
        "max_instances": "3",
    }


def test_a_parent_counts_what_is_left(shared: MountedLab) -> None:
    def counts(directory: Path) -> list[int]:
        return [number(directory, name) for name in ("vram_total", "vram_free", "vgpus")]

    screens = shared.parent("screens")
    assert counts(shared.gpu) == [TOTAL, TOTAL, 0] and counts(screens) == [8 * MIB, 8 * MIB, 0]
    with shared.create("small"), shared.create("large"), shared.create("screen", "screens"):
        assert counts(shared.gpu) == [TOTAL, TOTAL - 20 * MIB, 2]
        assert counts(screens) == [8 * MIB, 4 * MIB, 1]


def test_a_vgpu_counts_the_pages_that_are_used(shared: MountedLab) -> None:
    with shared.create("large") as vgpu:
        names = ("vram_used", "pinned_pages", "dma_faults")
        assert [number(vgpu.path, name) for name in names] == [0, 0, 0]
        with open(vgpu.open(), "r+b", buffering=0) as device:
            os.pwrite(device.fileno(), b"x", 5 * MIB)
            assert number(vgpu.path, "vram_used") == mmap.PAGESIZE
            os.pwrite(device.fileno(), bytes(MIB), 0)
            assert number(vgpu.path, "vram_used") == MIB + mmap.PAGESIZE


# ---- what can be asked for ----


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("small", {}),
        ("small,vram=8M", {"vram_size": str(8 * MIB)}),
        ("small,vram=1M", {"vram_size": str(MIB)}),
        ("small,vram=3M", {"vram_size": str(3 * MIB)}),
        ("small,vram=64M", {"vram_size": str(64 * MIB)}),
        (f"small,vram={5 * MIB + 65536}", {"vram_size": str(5 * MIB + 65536)}),
        ("small,frame_rate=30", {"frame_rate": "30"}),
        ("small,weight=1", {"weight": "1"}),
        ("small,weight=1000", {"weight": "1000"}),
        ("small,max_resolution=640x480", {"max_resolution": "640x480"}),
        (
            "small,max_resolution=1920x1080,vram=20MiB,frame_rate=60",
            {"vram_size": str(20 * MIB), "frame_rate": "60", "max_resolution": "1920x1080"},
        ),
    ],
)
def test_a_vgpu_gets_more_or_less_than_its_type(
    shared: MountedLab, what: str, expected: dict[str, str]
) -> None:
    with created(shared, what) as vgpu:
        share = {**shown(type_dir(shared, "small")), **expected}
        weight = share.pop("weight")
        assert shown(vgpu.path) == share and value(vgpu.path, "engine_weight") == weight
        assert number(shared.gpu, "vram_free") == TOTAL - int(share["vram_size"])
        assert (vgpu.path / "mdev_type").resolve() == type_dir(shared, "small").resolve()


@pytest.mark.parametrize(
    "rest",
    [
        *(",", ",vram", ",vram=", ",=1", ",vram=1M,", ",,vram=1M", " ,vram=1M", ",vram=1M ", ",VRAM=1M"),
        *(",colour=1", ",vram=1Q", ",vram=-1", ",vram=1.5M", ",vram=x", ",vram=0", ",vram=65536"),
        *(",vram=1048577", ",vram=2T", ",vram=4G", ",vram=99999999999999999999", ",vram=4M,vram=4M"),
        *(",weight=0", ",weight=1001", ",weight=x", ",weight=0x10", ",weight=1,weight=1"),
        *(",frame_rate=0", ",frame_rate=29", ",frame_rate=61", ",frame_rate=x", ",frame_rate=4M"),
        *(",max_resolution=1920", ",max_resolution=1920x", ",max_resolution=0x0", ",max_resolution=640X480"),
        *(",max_resolution=399x300", ",max_resolution=99999x480", ",slots=1", ",instances=1", ",memory=1M"),
    ],
)
def test_what_cannot_be_is_einval(shared: MountedLab, rest: str) -> None:
    fails(errno.EINVAL, (shared.gpu / "vgpu_create").write_text, f"{UUID}:0:small{rest}")


def test_a_type_says_what_its_model_can_have(shared: MountedLab) -> None:
    with shared.create("screen", "screens"):
        pass
    fails(errno.EINVAL, (type_dir(shared, "small") / "create").write_text, f"{UUID},vram=4M")


def test_more_than_is_left_is_enospc(shared: MountedLab) -> None:
    create = shared.gpu / "vgpu_create"
    fails(errno.ENOSPC, create.write_text, f"{UUID}:0:small,vram=65M")
    with created(shared, "small,vram=61M"):
        for vram in ("4M", "64M", str(3 * MIB + 65536)):
            fails(errno.ENOSPC, create.write_text, f"{UUID}:1:small,vram={vram}")
        create.write_text(f"{UUID}:1:small,vram=3M")
        with Vgpu(shared, f"{UUID}-1"):
            assert number(shared.gpu, "vram_free") == 0
            fails(errno.ENOSPC, create.write_text, f"{UUID}:2:small,vram=1M")


def test_instances_count_whatever_each_has(shared: MountedLab) -> None:
    with ExitStack() as stack:
        for instance, vram in enumerate(("1M", "2M", "32M")):
            (shared.gpu / "vgpu_create").write_text(f"{UUID}:{instance}:large,vram={vram}")
            stack.enter_context(Vgpu(shared, f"{UUID}-{instance}"))
        fails(errno.ENOSPC, (shared.gpu / "vgpu_create").write_text, f"{UUID}:3:large,vram=1M")


def test_the_device_has_what_was_asked_for(shared: MountedLab) -> None:
    """Its BAR is a power of two; of that, what it has not got is nothing: all ones, and not to be mapped."""
    with created(shared, "small,vram=3M") as vgpu, open(vgpu.open(), "r+b", buffering=0) as device:
        fd = device.fileno()
        info, caps = with_caps(fd, DEVICE_GET_REGION_INFO, RegionInfo, index=0)
        assert info.size == 4 * MIB
        if info.flags & 4:
            ((_, _, body),) = [cap for cap in caps if cap[0] == SPARSE_MMAP]
            assert body[8:24] == (0).to_bytes(8, "little") + (3 * MIB).to_bytes(8, "little")
        assert int.from_bytes(os.pread(fd, 2, (2 << 40) + 0x514), "little") == 3 * MIB // 65536
        os.pwrite(fd, b"here" * 2, 3 * MIB - 4)
        assert os.pread(fd, 8, 3 * MIB - 4) == b"here" + b"\xff" * 4
        os.pwrite(fd, bytes(MIB), 3 * MIB)
        assert os.pread(fd, MIB, 3 * MIB) == b"\xff" * MIB
        assert number(vgpu.path, "vram_used") == mmap.PAGESIZE
        (vgpu.path / "resource0").read_bytes()


def test_a_resolution_is_limited_where_a_guest_sets_it_and_in_what_its_monitor_says(
    shared: MountedLab,
) -> None:
    with (
        created(shared, "small,vram=32M,max_resolution=1300x800,frame_rate=50") as vgpu,
        open(vgpu.open(), "r+b", buffering=0) as device,
    ):
        fd = device.fileno()
        dispi = (2 << 40) + 0x500
        for index, most in ((1, 1300), (2, 800)):
            os.pwrite(fd, (4000).to_bytes(2, "little"), dispi + 2 * index)
            assert int.from_bytes(os.pread(fd, 2, dispi + 2 * index), "little") == most
        edid = os.pread(fd, 128, 2 << 40)
        detailed = edid[54:72]
        across, down = (detailed[i] | (detailed[i + 2] & 0xF0) << 4 for i in (2, 5))
        blank = [detailed[i] | (detailed[i + 1] & 0x0F) << 8 for i in (3, 6)]
        clock = int.from_bytes(detailed[:2], "little") * 10_000
        assert (across, down) == (1280, 800)
        assert clock / ((across + blank[0]) * (down + blank[1])) == pytest.approx(50, abs=0.5)
        assert sum(edid) % 256 == 0


# ---- many at once ----

WORKER = """
import os, random, sys
top, seed = sys.argv[1], int(sys.argv[2])
random.seed(seed)
SIZES = [1 << 20, 3 << 20, 4 << 20, 9 << 20, 16 << 20]
mine = {}

def write(path, text):
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
        return 0
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)

def create(number):
    size, type_ = random.choice(SIZES), random.choice(("small", "small", "large"))
    name = f"00000000-0000-4000-8000-{seed:06x}{number:06x}"
    error = write(f"{top}/vgpu_create", f"{name}:0:{type_},vram={size}")
    if not error:
        mine[name] = (type_, size)
    return f"{error}:{type_}:{size}"

def remove(name):
    del mine[name]
    error = write(f"{top}/vgpu_destroy", f"{name}:0")
    assert error == 0, error

for number, line in enumerate(sys.stdin):
    command = line.strip()
    if command == "create":
        print(create(number), flush=True)
    elif command == "clear":
        for name in list(mine):
            remove(name)
        print("cleared", flush=True)
    else:
        refusals = set()
        for turn in range(int(command)):
            if mine and random.random() < 0.5:
                remove(random.choice(list(mine)))
            else:
                refusals.add(int(create(number * 1000 + turn).split(":")[0]))
        print(*sorted(refusals), flush=True)
"""


class Workers:
    """Processes that create and remove vGPUs, all at the same time."""

    def __init__(self, lab: MountedLab, count: int) -> None:
        pipe = subprocess.PIPE
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(lab.gpu), str(seed)], stdin=pipe, stdout=pipe, text=True
            )
            for seed in range(count)
        ]

    def tell(self, command: str) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{command}\n")
            process.stdin.flush()

    def hear(self) -> list[str]:
        answers = []
        for process in self.processes:
            assert process.stdout is not None
            answers.append(process.stdout.readline().strip())
        assert all(answers), "a worker has ended"
        return answers

    @property
    def ready(self) -> bool:
        """Whether all have something to say."""
        outs = [process.stdout for process in self.processes if process.stdout is not None]
        return len(select.select(outs, [], [], 0)[0]) == len(self.processes)

    def end(self) -> None:
        for process in self.processes:
            process.communicate(timeout=30)


@pytest.fixture
def workers(shared: MountedLab) -> Iterator[Workers]:
    made = Workers(shared, 12)
    yield made
    made.end()


SLOTS = {"small": 1, "large": 2}


def test_admission_is_exact(shared: MountedLab, workers: Workers) -> None:
    """Who was refused could not have been let in, and what was let in is what is missing."""
    for _ in range(6):
        workers.tell("create")
        workers.tell("create")
        answers = [line.split(":") for line in (*workers.hear(), *workers.hear())]
        let_in = [(type_, int(size)) for error, type_, size in answers if error == "0"]
        refused = [(type_, int(size)) for error, type_, size in answers if error == str(errno.ENOSPC)]
        assert len(let_in) + len(refused) == len(answers)
        free = number(shared.gpu, "vram_free")
        assert free == TOTAL - sum(size for _, size in let_in) >= 0
        slots = 12 - sum(SLOTS[type_] for type_, _ in let_in)
        large = 3 - sum(type_ == "large" for type_, _ in let_in)
        assert slots >= 0 and large >= 0 and number(shared.gpu, "vgpus") == len(let_in)
        for type_, size in refused:
            assert size > free or SLOTS[type_] > slots or (type_ == "large" and not large)
        workers.tell("clear")
        workers.hear()
        assert number(shared.gpu, "vram_free") == TOTAL


def test_nothing_is_exceeded_and_nothing_leaks_under_stress(shared: MountedLab, workers: Workers) -> None:
    before = snapshot(shared.path)
    looks = 0
    workers.tell("60")
    while not workers.ready:
        assert 0 <= number(shared.gpu, "vram_free") <= TOTAL
        for name, most in (("small", 12), ("large", 3)):
            assert 0 <= number(type_dir(shared, name), "available_instances") <= most
        looks += 1
    refusals = {int(text) for line in workers.hear() for text in line.split()}
    assert refusals == {0, errno.ENOSPC} and looks
    workers.tell("clear")
    workers.hear()
    comes_to(lambda: snapshot(shared.path), before)
    first = str(len(list((shared.path / "sys/kernel/iommu_groups").iterdir())))
    for _ in range(2):  # and the numbers start from the lowest again
        with shared.create("small") as vgpu:
            assert (vgpu.group, vgpu.vfio) == (first, "vfio0")
