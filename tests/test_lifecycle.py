# SPDX-License-Identifier: Apache-2.0
"""vGPUs come and go by every face of the tree: at once, in all places, whole or not at all."""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import ROOT, run
from tests.descriptors import mappings, open_files
from tests.labs import MountedLab, Vgpu
from tests.snapshot import snapshot
from tests.waiting import settled

GPU = "0000:86:00.0"
MIB = 1 << 20
GPU_SIZES = {"vgpu-1": 256, "vgpu-2": 128, "vgpu-4": 64, "vgpu-8": 32}
TYPES = (
    *((GPU, name) for name in GPU_SIZES),
    *(("mtty", name) for name in ("mtty-1", "mtty-2")),
    *(("mdpy", name) for name in ("mdpy-vga", "mdpy-xga", "mdpy-hd")),
    *(("mbochs", name) for name in ("mbochs-small", "mbochs-medium", "mbochs-large")),
)
UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"
OTHER = "0f0e0d0c-0b0a-4908-8706-050403020100"

GPU_PATH = "sys/bus/pci/devices/0000:86:00.0"
BAD_REMOVE = ("x", "yes", "1x", " 1", "-1", "1 ", "1\n\n", "\n", "0x", "08", "\xff", "9" * 30)
BAD_UUIDS = (
    *("\n", "x", UUID[:-1], UUID + "0", UUID.replace("-", ""), "{" + UUID + "}", f"urn:uuid:{UUID}"),
    *(f" {UUID}", f"{UUID} ", f"{UUID}\n\n", f"\n{UUID}", f"{UUID}\0x", UUID.replace("6", "g", 1)),
    *(UUID.replace("6", "\u0666", 1), f"{UUID}\n{OTHER}", f"../{UUID}", "\xff" * 36, "a" * 5000),
)
BAD_INSTANCES = ("", "-1", "+1", " 0", "0 ", "0x0", "1.0", "2147483648", "9" * 40, "a", "\u0660")
BAD_TYPES = (
    "",
    "vgpu-3",
    "VGPU-4",
    "vgpu-4 ",
    " vgpu-4",
    "mtty-1",
    "../vgpu-4",
    "vgpu-4/",
    "vgpu-4:",
    "vgpu-4\0x",
)
BAD_CREATE = (
    *(f"{bad}:0:vgpu-4" for bad in BAD_UUIDS),
    *(f"{UUID}:{bad}:vgpu-4" for bad in BAD_INSTANCES),
    *(f"{UUID}:0:{bad}" for bad in BAD_TYPES),
    *(UUID, f"{UUID}:0", f"{UUID}:vgpu-4", f"{UUID};0;vgpu-4", f"{UUID}:0:vgpu-4:extra", ":::", "::"),
    *(f"{UUID}:0:vgpu-4\n\n", f"{UUID}:0:vgpu-4\n{OTHER}:0:vgpu-4\n", f"\n{UUID}:0:vgpu-4"),
)
BAD_DESTROY = (
    *(f"{bad}:0" for bad in BAD_UUIDS),
    *(f"{UUID}:{bad}" for bad in BAD_INSTANCES),
    *(UUID, f"{UUID}:0:vgpu-4", f"{UUID}:0\n\n"),
)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """The built-in lab, whose names the kernel may cache for a day."""
    folder = tmp_path_factory.mktemp("cached")
    text, changes = re.subn(
        r"(?m)^cache = .*", "cache = 86400", (ROOT / "vfsfuse/labfile/lab.toml").read_text()
    )
    assert changes == 1
    (folder / "lab.toml").write_text(text)
    with MountedLab(folder, "--config", str(folder / "lab.toml")) as mounted:
        yield mounted


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails leaves nothing for the next one to stumble over."""
    yield
    for name in {"lab", "cached"} & set(request.fixturenames):
        mounted: MountedLab = request.getfixturevalue(name)
        for left in os.listdir(mounted.mdevs):
            Vgpu(mounted, left).remove()


@contextmanager
def refused(number: int, lab: MountedLab | None = None) -> Iterator[None]:
    """What is done within fails with errno `number`, and changes nothing in `lab`."""
    before = snapshot(lab.path) if lab else None
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]
    assert lab is None or snapshot(lab.path) == before


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def types_of(lab: MountedLab, parent: str) -> Path:
    return lab.parent(parent) / "mdev_supported_types"


def available(lab: MountedLab, parent: str = GPU) -> dict[str, int]:
    """available_instances of each type of `parent`."""
    folder = types_of(lab, parent)
    return {
        name: int((folder / name / "available_instances").read_text()) for name in sorted(os.listdir(folder))
    }


# ---- every face ----


@dataclass(frozen=True)
class Face:
    """A way to create and to remove `identity`: what is written where, below the parent's directory."""

    create: Callable[[MountedLab, str], None]
    remove: Callable[[MountedLab, str], None]
    name: str


def vgpu_create(lab: MountedLab, identity: str) -> None:
    (lab.gpu / "vgpu_create").write_text(f"{identity}:0:vgpu-4\n")


def mdev_create(lab: MountedLab, identity: str) -> None:
    (types_of(lab, GPU) / "vgpu-4/create").write_text(f"{identity}\n")


def vgpu_destroy(lab: MountedLab, identity: str) -> None:
    (lab.gpu / "vgpu_destroy").write_text(f"{identity}:0\n")


def mdev_remove(lab: MountedLab, identity: str) -> None:
    (next(lab.mdevs.glob(f"{identity}*")) / "remove").write_text("1\n")


FACES = {
    f"{create.__name__} {remove.__name__}": Face(create, remove, name)
    for create, name in ((vgpu_create, f"{UUID}-0"), (mdev_create, UUID))
    for remove in (vgpu_destroy, mdev_remove)
}


def places(vgpu: Vgpu, parent: Path, type_name: str) -> list[Path]:
    """Everywhere a vGPU is seen."""
    top = vgpu.lab.path
    number = next(
        name for name in os.listdir(top / "sys/class/vgpu/vfsfuse")
        if (top / "sys/class/vgpu/vfsfuse" / name).resolve() == vgpu.path
    )  # fmt: skip
    group = top / "sys/kernel/iommu_groups" / vgpu.group
    return [
        *(vgpu.path, vgpu.path / "vgpu_uuid", vgpu.path / "config", vgpu.path / "vfio-dev" / vgpu.vfio),
        *(top / "sys/class/vgpu/vfsfuse" / number, top / "sys/class/vfio-dev" / vgpu.vfio),
        *(top / "sys/bus/mdev/devices" / vgpu.name, top / "sys/bus/mdev/drivers/vfio_mdev" / vgpu.name),
        *(group, group / "devices" / vgpu.name, top / "dev/vfio" / vgpu.group, vgpu.cdev),
        *(parent / vgpu.name, parent / "mdev_supported_types" / type_name / "devices" / vgpu.name),
    ]


def seen(paths: list[Path]) -> set[Path]:
    """Which of `paths` are there: for us, for a listing, and for another process, which must all agree."""
    here = {path for path in paths if os.path.lexists(path)}
    listed = {path for path in paths if path.parent.is_dir() and path.name in os.listdir(path.parent)}
    told = run(["stat", "--printf=%n\\n", *paths]).stdout.splitlines()
    assert here == listed == {Path(line) for line in told}
    return here


@pytest.mark.parametrize("face", FACES.values(), ids=FACES)
def test_a_vgpu_appears_and_vanishes_everywhere_at_once(cached: MountedLab, face: Face) -> None:
    """Three times under the same name and numbers, with everything looked at in between."""
    paths: list[Path] = []
    before = snapshot(cached.path)
    for _ in range(3):
        assert seen(paths) == set()
        face.create(cached, UUID)
        vgpu = Vgpu(cached, face.name)
        paths = paths or places(vgpu, cached.gpu, "vgpu-4")
        assert seen(paths) == set(paths)
        face.remove(cached, UUID)
        assert seen(paths) == set()
        assert snapshot(cached.path) == before


def test_directories_count_their_links_at_once(cached: MountedLab) -> None:
    def links() -> list[int]:
        return [path.stat().st_nlink for path in (cached.gpu, cached.path / "sys/kernel/iommu_groups")]

    before = links()
    with cached.create():
        assert links() == [count + 1 for count in before]
    assert links() == before


@pytest.mark.parametrize(("parent", "type_name"), TYPES)
def test_every_type_of_every_parent_makes_devices(cached: MountedLab, parent: str, type_name: str) -> None:
    before = snapshot(cached.path)
    with cached.create(type_name, parent) as vgpu:
        paths = places(vgpu, cached.parent(parent), type_name)
        assert seen(paths) == set(paths)
        assert (vgpu.path / "mdev_type").resolve() == types_of(cached, parent) / type_name
        assert (vgpu.path / "iommu_group/devices" / vgpu.name).resolve() == vgpu.path
        assert (vgpu.path / "vgpu_group_id").read_text() == f"{vgpu.group}\n"
        assert (vgpu.path / "vgpu_uuid").read_text() == f"{vgpu.name}\n"
        assert Path(os.path.realpath(vgpu.path / "subsystem")) == cached.path / "sys/bus/mdev"
        assert len((vgpu.path / "config").read_bytes()) == 256
    assert seen(paths) == set()
    assert snapshot(cached.path) == before


def test_instances_of_one_uuid_are_devices_of_their_own(lab: MountedLab) -> None:
    with ExitStack() as stack:
        for instance in (0, 1, 7):
            (lab.gpu / "vgpu_create").write_text(f"{UUID}:{instance}:vgpu-8")
            vgpu = stack.enter_context(Vgpu(lab, f"{UUID}-{instance}"))
            assert (vgpu.path / "vgpu_instance").read_text() == f"{instance}\n"
        assert len({Vgpu(lab, name).group for name in os.listdir(lab.mdevs)}) == 3


def test_a_uuid_in_capitals_is_the_same_uuid(lab: MountedLab) -> None:
    mdev_create(lab, UUID.upper())
    with Vgpu(lab, UUID), refused(errno.EEXIST):
        mdev_create(lab, UUID)


def test_numbers_are_used_again_lowest_first(lab: MountedLab) -> None:
    def numbers(vgpu: Vgpu) -> tuple[str, str, Path]:
        return (
            vgpu.group,
            vgpu.vfio,
            next(path for path in places(vgpu, lab.gpu, "vgpu-8") if "class/vgpu" in str(path)),
        )

    vgpus = [lab.create() for _ in range(4)]
    first = [numbers(vgpu) for vgpu in vgpus]
    for index in (2, 0):
        vgpus[index].remove()
    for index in (0, 2):
        vgpus[index] = lab.create()
        assert numbers(vgpus[index]) == first[index]
    for vgpu in vgpus:
        vgpu.remove()


def test_a_vm_is_started_and_shut_down_whole(lab: MountedLab) -> None:
    (lab.gpu / "vgpu_create").write_text(f"{UUID}:0:vgpu-8")
    (lab.gpu / "vgpu_create").write_text(f"{UUID}:1:vgpu-4")
    (lab.gpu / "vgpu_create").write_text(f"{OTHER}:0:vgpu-8")
    with Vgpu(lab, f"{UUID}-0") as one, Vgpu(lab, f"{UUID}-1") as two, Vgpu(lab, f"{OTHER}-0") as other:
        for face, online in (
            ("vgpu_start", "1"),
            ("vgpu_start", "1"),
            ("vgpu_shutdown", "0"),
            ("vgpu_shutdown", "0"),
        ):
            (lab.path / "sys/class/vgpu" / face).write_text(f"{UUID}\n")
            assert [(vgpu.path / "online").read_text().strip() for vgpu in (one, two, other)] == [
                online,
                online,
                "0",
            ]


# ---- what is refused changes nothing ----


def answers(path: Path, texts: Iterable[str]) -> dict[str, str]:
    """What a write of each of `texts` to `path` ends in, where that is not EINVAL."""
    found = {}
    for text in texts:
        try:
            path.write_bytes(text.encode("utf-8" if "\xff" not in text else "latin-1"))
            found[text] = "taken"
        except OSError as error:
            found[text] = errno.errorcode[error.errno or 0]
    return {text: answer for text, answer in found.items() if answer != "EINVAL"}


@pytest.mark.parametrize(
    ("face", "texts"),
    [
        (f"{GPU_PATH}/vgpu_create", BAD_CREATE),
        (f"{GPU_PATH}/vgpu_destroy", BAD_DESTROY),
        (f"{GPU_PATH}/mdev_supported_types/vgpu-4/create", BAD_UUIDS),
        ("sys/devices/virtual/mtty/mtty/mdev_supported_types/mtty-1/create", BAD_UUIDS),
        ("sys/class/vgpu/vgpu_start", BAD_UUIDS),
        ("sys/class/vgpu/vgpu_shutdown", BAD_UUIDS),
        (f"{GPU_PATH}/{OTHER}-0/remove", BAD_REMOVE),
    ],
)
def test_what_is_malformed_is_einval(lab: MountedLab, face: str, texts: tuple[str, ...]) -> None:
    with ExitStack() as stack:
        for line in (f"{OTHER}:0:vgpu-8", f"{UUID}:3:vgpu-8"):
            (lab.gpu / "vgpu_create").write_text(line)
            stack.enter_context(Vgpu(lab, "-".join(line.split(":")[:2])))
        before = snapshot(lab.path)
        assert answers(lab.path / face, texts) == {}
        assert snapshot(lab.path) == before


def test_remove_takes_a_number_and_zero_removes_nothing(lab: MountedLab) -> None:
    for text in ("1", "1\n", "2", "+1", "0x10", "010"):
        vgpu = lab.create()
        (vgpu.path / "remove").write_text("0\n")
        assert vgpu.path.exists()
        (vgpu.path / "remove").write_text(text)
        assert not vgpu.path.exists()


@pytest.mark.parametrize("face", ["vgpu_destroy", "vgpu_start", "vgpu_shutdown"])
def test_a_vgpu_that_is_not_there_is_enodev(lab: MountedLab, face: str) -> None:
    path = lab.gpu / face if face == "vgpu_destroy" else lab.path / "sys/class/vgpu" / face
    with refused(errno.ENODEV, lab):
        path.write_text(f"{UUID}:0" if face == "vgpu_destroy" else UUID)


def test_the_gpu_does_not_destroy_another_parents_device(lab: MountedLab) -> None:
    with lab.create("mtty-1", "mtty") as vgpu, refused(errno.EINVAL, lab):
        (lab.gpu / "vgpu_destroy").write_text(f"{vgpu.name}:0")


TAKEN: dict[str, Callable[[MountedLab], object]] = {
    "vgpu_create": lambda lab: vgpu_create(lab, UUID),
    "vgpu_create of another type": lambda lab: (lab.gpu / "vgpu_create").write_text(f"{UUID}:0:vgpu-8"),
    "vgpu_create with zeros": lambda lab: (lab.gpu / "vgpu_create").write_text(f"{UUID}:00:vgpu-8"),
    "create": lambda lab: mdev_create(lab, UUID),
    "create of another type": lambda lab: (types_of(lab, GPU) / "vgpu-8/create").write_text(UUID),
    "create of another parent": lambda lab: (types_of(lab, "mtty") / "mtty-1/create").write_text(UUID),
}


@pytest.mark.parametrize("second", TAKEN)
@pytest.mark.parametrize("first", ["vgpu_create", "create", "create of another parent"])
def test_a_uuid_and_instance_that_exist_are_eexist(lab: MountedLab, first: str, second: str) -> None:
    TAKEN[first](lab)
    with Vgpu(lab, UUID if "vgpu" not in first else f"{UUID}-0"), refused(errno.EEXIST, lab):
        TAKEN[second](lab)


# ---- room ----


def test_available_instances_count_the_memory_that_is_left(lab: MountedLab) -> None:
    used, vgpus = 0, []

    def check() -> None:
        free = 256 - used
        assert available(lab) == {name: free // size for name, size in GPU_SIZES.items()}

    check()
    for type_name in ("vgpu-8", "vgpu-2", "vgpu-4", "vgpu-8"):
        vgpus.append((lab.create(type_name), GPU_SIZES[type_name]))
        used += GPU_SIZES[type_name]
        check()
    for type_name in GPU_SIZES:
        with refused(errno.ENOSPC, lab):
            (types_of(lab, GPU) / type_name / "create").write_text(UUID)
        with refused(errno.ENOSPC, lab):
            (lab.gpu / "vgpu_create").write_text(f"{UUID}:0:{type_name}")
    for vgpu, size in vgpus:
        vgpu.remove()
        used -= size
        check()


@pytest.mark.parametrize(
    ("parent", "create", "expected"),
    [
        ("mtty", [], {"mtty-1": 24, "mtty-2": 12}),
        ("mtty", ["mtty-1"], {"mtty-1": 23, "mtty-2": 11}),
        ("mtty", ["mtty-2"] * 11 + ["mtty-1"], {"mtty-1": 1, "mtty-2": 0}),
        ("mdpy", ["mdpy-vga", "mdpy-hd", "mdpy-xga"], {"mdpy-hd": 1, "mdpy-vga": 1, "mdpy-xga": 1}),
        ("mdpy", ["mdpy-vga"] * 4, {"mdpy-hd": 0, "mdpy-vga": 0, "mdpy-xga": 0}),
        ("mbochs", [], {"mbochs-large": 4, "mbochs-medium": 16, "mbochs-small": 64}),
        ("mbochs", ["mbochs-small"] * 13, {"mbochs-large": 3, "mbochs-medium": 12, "mbochs-small": 51}),
    ],
)
def test_the_samples_count_as_the_kernels_do(
    lab: MountedLab, parent: str, create: list[str], expected: dict[str, int]
) -> None:
    with ExitStack() as stack:
        for type_name in create:
            stack.enter_context(lab.create(type_name, parent))
        assert available(lab, parent) == expected
        for type_name in (name for name, left in expected.items() if not left):
            with refused(errno.ENOSPC, lab):
                (types_of(lab, parent) / type_name / "create").write_text(UUID)


def all_at_once(commands: list[str]) -> list[str]:
    """Run each in a shell, held back until all are ready; their stderr, empty for those that succeed."""
    shells = [
        subprocess.Popen(
            ["bash", "-c", f"read go; {command}"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    for shell in shells:
        assert shell.stdin is not None
        shell.stdin.write("go\n")
    return [shell.communicate()[1] for shell in shells]


def test_sixteen_processes_share_out_eight_eighths(lab: MountedLab) -> None:
    uuids = [str(uuid.uuid4()) for _ in range(16)]
    before = snapshot(lab.path)
    said = all_at_once([f"echo {name} > {types_of(lab, GPU)}/vgpu-8/create" for name in uuids])
    made = [name for name, text in zip(uuids, said, strict=True) if not text]
    assert len(made) == 8 and sorted(os.listdir(lab.mdevs)) == sorted(made)
    assert all("No space left" in text for text in said if text)
    assert set(available(lab).values()) == {0}
    said = all_at_once([f"echo 1 > {lab.gpu}/{name}/remove" for name in made])
    assert said == [""] * 8
    assert snapshot(lab.path) == before


def test_of_those_who_want_one_name_one_gets_it_and_one_takes_it_away(lab: MountedLab) -> None:
    before = snapshot(lab.path)
    said = all_at_once([f"echo {UUID} > {types_of(lab, GPU)}/vgpu-8/create"] * 8)
    assert sorted(said)[0] == "" and all("File exists" in text for text in sorted(said)[1:])
    said = all_at_once([f"echo 1 > {lab.gpu}/{UUID}/remove"] * 8)
    assert sorted(said)[0] == "" and all("No such " in text for text in sorted(said)[1:])
    assert snapshot(lab.path) == before


# ---- devices in use ----


@pytest.mark.parametrize("remove", [mdev_remove, vgpu_destroy])
def test_a_device_that_is_held_open_is_ebusy(
    lab: MountedLab, remove: Callable[[MountedLab, str], None]
) -> None:
    mdev_create(lab, UUID)
    vgpu = Vgpu(lab, UUID)
    with opened(vgpu.cdev) as fd:
        copy = os.dup(fd)
        with refused(errno.EBUSY, lab):
            remove(lab, UUID)
    with refused(errno.EBUSY, lab):
        remove(lab, UUID)
    os.close(copy)
    remove(lab, UUID)
    assert not vgpu.path.exists()


def test_a_killed_client_lets_go(lab: MountedLab) -> None:
    with lab.create() as vgpu:
        command = ["sh", "-c", f"exec 3<>{vgpu.cdev} 4<>{lab.path}/dev/vfio/{vgpu.group}; echo; read forever"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdout is not None and client.stdout.readline() == b"\n"
            with refused(errno.EBUSY, lab):
                vgpu.remove()
            client.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_the_group_is_for_one_client_and_the_device_goes_on(lab: MountedLab, flags: int) -> None:
    with lab.create() as vgpu, opened(lab.path / "dev/vfio" / vgpu.group, flags), refused(errno.EBUSY, lab):
        os.open(lab.path / "dev/vfio" / vgpu.group, os.O_RDWR)


def test_open_files_of_a_removed_vgpu_are_enodev(cached: MountedLab) -> None:
    vgpu = cached.create()
    names = ("vgpu_uuid", "uevent", "vendor", f"vfio-dev/{vgpu.vfio}/dev", "config", "resource0", "resource2")
    with ExitStack() as stack:
        reading = [stack.enter_context(opened(vgpu.path / name, os.O_RDONLY)) for name in names]
        writing = [
            stack.enter_context(opened(vgpu.path / name, os.O_WRONLY))
            for name in ("remove", "uevent", "config", "resource0")
        ]
        folder = stack.enter_context(opened(vgpu.path, os.O_RDONLY | os.O_DIRECTORY))
        for fd in reading:
            assert os.pread(fd, 4, 0)
        vgpu.remove()
        for fd in reading:
            with refused(errno.ENODEV):
                os.pread(fd, 4, 0)
        for fd in writing:
            with refused(errno.ENODEV):
                os.pwrite(fd, b"1", 0)
        with refused(errno.ENOENT):
            os.open("vgpu_uuid", os.O_RDONLY, dir_fd=folder)


def test_a_process_within_a_removed_vgpu_finds_nothing(cached: MountedLab) -> None:
    vgpu = cached.create()
    script = "ls; echo ready; read go; ls; cat vgpu_uuid vendor; echo 1 > remove; cd ..; ls -d vgpu_create"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["sh", "-c", script], cwd=vgpu.path, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as shell:
        assert shell.stdout is not None
        while (line := shell.stdout.readline()) != "ready\n":
            assert line
        vgpu.remove()
        out, error = shell.communicate("go\n")
    assert out in ("", "vgpu_create\n")
    assert error.count("vgpu_uuid: ") == error.count("vendor: ") == 1


def test_the_same_name_again_is_another_device(cached: MountedLab) -> None:
    """Nothing of the old one shows through, in the kernel's caches or ours."""
    mdev_create(cached, UUID)
    with opened(Vgpu(cached, UUID).path / "vgpu_uuid", os.O_RDONLY) as old:
        inode = os.fstat(old).st_ino
        (Vgpu(cached, UUID).path / "resource0").write_bytes(b"old")
        mdev_remove(cached, UUID)
        (types_of(cached, GPU) / "vgpu-8/create").write_text(UUID)
        with Vgpu(cached, UUID) as vgpu:
            assert (vgpu.path / "mdev_type").resolve().name == "vgpu-8"
            assert (vgpu.path / "vgpu_uuid").stat().st_ino != inode
            assert (vgpu.path / "resource0").stat().st_size == 32 * MIB
            with opened(vgpu.path / "resource0") as fd:
                assert os.pread(fd, 3, 0) == bytes(3)
            with refused(errno.ENODEV):
                os.pread(old, 4, 0)


LISTER = """
import os, sys
top, stays = sys.argv[1:]
print(flush=True)
while os.read(0, 1):
    for _ in range(20):
        names = os.listdir(top)
        assert names.count(stays) == 1 and len(names) == len(set(names)), names
"""


def test_listing_while_devices_come_and_go_misses_nothing(lab: MountedLab) -> None:
    with lab.create() as stays:
        command = [sys.executable, "-c", LISTER, str(lab.mdevs), stays.name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as lister:
            assert lister.stdin is not None and lister.stdout is not None and lister.stdout.readline()
            for _ in range(50):
                lister.stdin.write(b"x")
                lister.stdin.flush()
                with lab.create(), lab.create("vgpu-4"):
                    pass
            lister.stdin.close()
            assert lister.wait() == 0


# ---- drivers ----


def test_what_the_host_driver_shows_goes_and_comes_with_it(cached: MountedLab) -> None:
    before = snapshot(cached.path)
    driver = cached.path / "sys/bus/pci/drivers/vgpu"
    gone = [
        cached.gpu / name
        for name in ("vgpu_create", "mdev_supported_types", "mdev_supported_types/vgpu-8", "driver")
    ]
    gone += [cached.path / "sys/class/mdev_bus" / GPU, driver / GPU]
    with opened(types_of(cached, GPU) / "vgpu-8/available_instances", os.O_RDONLY) as fd:
        assert seen(gone) == set(gone)
        vgpu = cached.create()
        with opened(vgpu.cdev), refused(errno.EBUSY, cached):
            (driver / "unbind").write_text(GPU)
        (driver / "unbind").write_text(GPU)
        assert seen(gone) == set() and not vgpu.path.exists()
        with refused(errno.ENODEV):
            os.pread(fd, 4, 0)
    (driver / "bind").write_text(GPU)
    assert seen(gone) == set(gone)
    assert snapshot(cached.path) == before


# ---- for long ----


LIVES = 200


def resources(pid: int) -> tuple[int, ...]:
    """Descriptors, mappings of files, all mappings, and KiB of memory of process `pid`."""
    held = settled(lambda: (open_files(pid), *mappings(pid)))
    status = Path(f"/proc/{pid}/status").read_text()
    (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
    return *held, int(kib)


def test_two_hundred_lives_leave_nothing(fresh_lab: MountedLab) -> None:
    lab = fresh_lab

    def live(count: int) -> None:
        for parent, type_name in itertools.islice(itertools.cycle(TYPES), count):
            with lab.create(type_name, parent) as vgpu:
                (vgpu.path / "config").read_bytes()
                with open(vgpu.open(), "rb", buffering=0) as device:
                    assert len(os.pread(device.fileno(), 4, 7 << 40)) == 4

    live(50)
    before, (fds, files, maps, kib) = snapshot(lab.path), resources(lab.pid)
    live(LIVES)
    assert snapshot(lab.path) == before
    after = resources(lab.pid)
    assert after[0] <= fds and after[1] <= files and after[2] < maps + LIVES / 10
    assert after[3] <= kib + 4096
