# SPDX-License-Identifier: Apache-2.0
"""The tree as anybody may look at it: ls, find, cat and tree over it all, and sysfs' rules for its files."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.commands import run, vfsfuse
from tests.labs import MountedLab, Vgpu
from tests.snapshot import PAGE_SIZE, is_attribute, walk
from tests.tool import need

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"
GPU = "sys/bus/pci/devices/0000:86:00.0"
TYPE = f"{GPU}/mdev_supported_types/vgpu-8"
MODELS = {"vgpu-8": "0000:86:00.0", "mtty-2": "mtty", "mdpy-vga": "mdpy", "mbochs-small": "mbochs"}

WRITE_ONLY = (
    *("create", "remove", "surprise_remove", "vgpu_create", "vgpu_destroy", "vgpu_shutdown", "vgpu_start"),
    *("bind", "unbind", "drivers_probe", "new_id", "remove_id", "sriov_vf_msix_count", "rescan"),
)
MODES = {
    **dict.fromkeys(WRITE_ONLY, 0o200),
    **dict.fromkeys(("config", "driver_override", "drivers_autoprobe", "uevent"), 0o644),
    **dict.fromkeys(("enable_unsafe_noiommu_mode", "engine_timeout_ms", "port0", "port1"), 0o644),
    **dict.fromkeys(("control", "async", "autosuspend_delay_ms"), 0o644),
    **dict.fromkeys(("dma_entry_limit", "enable_sriov", "sriov_numvfs", "sriov_drivers_autoprobe"), 0o644),
    **dict.fromkeys(("allow_unsafe_interrupts", "disable_hugepages", "resource_alignment"), 0o644),
    **dict.fromkeys(("enable", "numa_node", "msi_bus", "broken_parity_status", "d3cold_allowed"), 0o644),
    **dict.fromkeys((f"resource{index}_wc" for index in range(6)), 0o600),
    **{"reset_method": 0o644, "reset": 0o200, "reset_subordinate": 0o200},
    **dict.fromkeys(("nointxmask", "disable_idle_d3", "type"), 0o644),
    **dict.fromkeys((*(f"resource{index}" for index in range(6)), "rom", "vpd"), 0o600),
}
"""Modes of files in sys/ by name, but for the uevent of what is no device and remove of a PCI function; every
other one is 0444."""
NO_DEVICES = re.compile(r".*/sys/(bus/\w+|bus/\w+/drivers/[\w.-]+|module/\w+)")
"""Directories of buses, drivers and modules."""

SAMPLES = {
    "mtty": ("mtty-1", "mtty-2"),
    "mdpy": ("mdpy-vga", "mdpy-xga", "mdpy-hd"),
    "mbochs": ("mbochs-small", "mbochs-medium", "mbochs-large"),
}
NO_EVENTS = (
    *("\n", "\0", " add", "add ", "ADD", "adding", "add\nadd", "add\n\n", "junk", "\xff", f"add {UUID[:-1]}"),
    *(f"add {UUID} A", f"add {UUID} A=", f"add {UUID} =1", f"add {UUID}  A=1", f"add {UUID} A=b-c"),
)
TYPE_FILES = ("name", "description", "device_api", "available_instances", "create", "devices/")
VGPU_FILES = (
    *("vgpu_uuid", "vgpu_group_id", "iommu_group@", "subsystem@", "driver@", "mdev_type@", "remove"),
    *("config", "resource", "resource0", "resource2", "uevent", "vendor", "device", "class", "vfio-dev/"),
)
GPU_FILES = (
    *(
        "vgpu_supported_types",
        "vgpu_create",
        "vgpu_destroy",
        "mdev_supported_types/",
        "driver@",
        "subsystem@",
    ),
    *("vendor", "device", "class", "irq", "subsystem_vendor", "subsystem_device", "revision", "modalias"),
    *("config", "resource", "resource0", "resource2", "uevent", "driver_override", "iommu_group@"),
)
PLACES = (
    *("sys/class/vgpu/vgpu_start", "sys/class/vgpu/vgpu_shutdown", "sys/class/vgpu/vfsfuse@"),
    *("sys/class/mdev_bus/0000:86:00.0@", "sys/bus/pci/devices/0000:86:00.0@", "sys/bus/mdev/devices/"),
    *("sys/bus/mdev/drivers/vfio_mdev/", "sys/bus/pci/drivers/vfio-pci/", "sys/kernel/iommu_groups/0/"),
    *("sys/module/vfio/", "sys/module/vfio_pci/", "sys/module/vfio-pci@", "dev/vfio/vfio", "dev/iommu"),
    "dev/vfio/devices/",
    *(f"{GPU}/{name}" for name in GPU_FILES),
    *(f"{GPU}/mdev_supported_types/vgpu-{n}/{name}" for n in (1, 2, 4, 8) for name in TYPE_FILES),
    *(f"sys/class/mdev_bus/{parent}@" for parent in SAMPLES),
    *(
        f"sys/devices/virtual/{parent}/{parent}/mdev_supported_types/{type_}/{name}"
        for parent, types in SAMPLES.items()
        for type_ in types
        for name in TYPE_FILES
    ),
)


@pytest.fixture(scope="module")
def vgpus(lab: MountedLab) -> Iterator[dict[str, Vgpu]]:
    """One device of each model, by its type's name."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(lab.create(name, parent)) for name, parent in MODELS.items()}


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def failure(action: Callable[[], object]) -> int | None:
    """The errno that `action` fails with, None when it does not."""
    try:
        action()
    except OSError as error:
        return error.errno
    return None


# ---- all of it ----


@pytest.mark.parametrize(
    "command", ["ls -lR .", "ls -laR --color=always .", "find . -ls", "tree .", "du -a ."]
)
def test_listing_everything_works_and_says_nothing_on_stderr(
    lab: MountedLab, vgpus: dict[str, Vgpu], command: str
) -> None:
    need(command.split(maxsplit=1)[0])
    done = run(["sh", "-c", f"cd {lab.path} && {command}"])
    assert (done.returncode, done.stderr) == (0, "")
    assert all(vgpu.name in done.stdout for vgpu in vgpus.values())


def test_a_listing_begins_with_the_directory_and_the_one_above(lab: MountedLab) -> None:
    for path in (lab.path, lab.gpu.resolve(), lab.gpu.resolve() / "power", lab.path / "dev/vfio"):
        listed = subprocess.run(["ls", "-afi", path], capture_output=True, text=True, check=True).stdout
        first, second, *rest = (line.split() for line in listed.splitlines())
        above = path if path == lab.path else path.parent
        assert first == [str(path.stat().st_ino), "."]
        assert second == [str((lab.path.parent if path == lab.path else above).stat().st_ino), ".."]
        assert sorted(name for _, name in rest) == sorted(each.name for each in path.iterdir())


def test_every_readable_attribute_can_be_read(lab: MountedLab, vgpus: dict[str, Vgpu]) -> None:
    others = r"config\|resource[0-9]\|resource[0-9]_wc\|rom\|screen.png\|autosuspend_delay_ms"
    command = rf"find sys -type f -perm /444 ! -regex '.*/\({others}\)' -exec cat {{}} +"
    done = run(["sh", "-c", f"cd {lab.path} && {command}"])
    assert (done.returncode, done.stderr) == (0, "")
    assert all(vgpu.name in done.stdout for vgpu in vgpus.values())


def test_an_attribute_is_a_line_of_text_in_a_page(lab: MountedLab, vgpus: dict[str, Vgpu]) -> None:
    readable = [entry for entry in walk(lab.path) if is_attribute(entry) and entry.stat().st_mode & 0o444]
    assert len(readable) > 100
    for entry in readable:
        if entry.name == "autosuspend_delay_ms":
            continue
        text = Path(entry.path).read_text()
        assert entry.stat().st_size == PAGE_SIZE, entry.path
        assert len(text) <= PAGE_SIZE and text.isascii(), entry.path
        assert text.endswith("\n") or not text, entry.path
        assert entry.name in ("resource", "uevent", "vgpu_supported_types") or text.count("\n") <= 1, (
            entry.path
        )


def test_modes_are_those_of_sysfs(lab: MountedLab, vgpus: dict[str, Vgpu]) -> None:
    functions = os.listdir(lab.path / "sys/bus/pci/devices")
    for entry in walk(lab.path / "sys"):
        found = entry.stat(follow_symlinks=False)
        expected = 0o777 if entry.is_symlink() else 0o755 if entry.is_dir() else MODES.get(entry.name, 0o444)
        if entry.name == "remove" and Path(entry.path).parent.name in functions:
            expected = 0o220
        if entry.name == "uevent" and NO_DEVICES.fullmatch(os.path.dirname(entry.path)):
            expected = 0o200
        assert (oct(stat.S_IMODE(found.st_mode)), entry.path) == (oct(expected), entry.path)
        assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())


def test_device_files_are_roots_and_the_container_is_everybodys(
    lab: MountedLab, vgpus: dict[str, Vgpu]
) -> None:
    files = {entry.path: entry.stat() for entry in walk(lab.path / "dev") if entry.is_file()}
    assert len(files) == 2 + 2 * len(vgpus)
    for path, found in files.items():
        assert stat.S_ISREG(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == (0o666 if path.endswith("/vfio/vfio") else 0o600), path


@pytest.mark.parametrize("place", PLACES)
def test_the_place_is_there_and_of_its_kind(lab: MountedLab, place: str) -> None:
    path = lab.path / place.rstrip("/@")
    kind = {"/": stat.S_IFDIR, "@": stat.S_IFLNK}.get(place[-1], stat.S_IFREG)
    assert stat.S_IFMT(path.lstat().st_mode) == kind


@pytest.mark.parametrize("name", VGPU_FILES)
def test_a_vgpu_shows(vgpus: dict[str, Vgpu], name: str) -> None:
    path = vgpus["vgpu-8"].path / name.rstrip("/@")
    kind = {"/": stat.S_IFDIR, "@": stat.S_IFLNK}.get(name[-1], stat.S_IFREG)
    assert stat.S_IFMT(path.lstat().st_mode) == kind


def test_inode_numbers_are_one_each_and_directories_count_their_links(
    lab: MountedLab, vgpus: dict[str, Vgpu]
) -> None:
    seen: dict[int, str] = {}
    for entry in walk(lab.path):
        found = os.lstat(entry.path)
        assert seen.setdefault(found.st_ino, entry.path) == entry.path
        assert (entry.inode(), found.st_dev) == (found.st_ino, lab.path.stat().st_dev)
        subdirs = (
            sum(below.is_dir(follow_symlinks=False) for below in os.scandir(entry)) if entry.is_dir() else 0
        )
        assert found.st_nlink == (2 + subdirs if stat.S_ISDIR(found.st_mode) else 1), entry.path


def test_symlinks_are_relative_and_lead_to_something_in_the_mount(
    lab: MountedLab, vgpus: dict[str, Vgpu]
) -> None:
    links = [entry for entry in walk(lab.path) if entry.is_symlink()]
    assert len(links) > 40
    for entry in links:
        target = os.readlink(entry.path)
        assert not target.startswith("/") and not entry.stat(follow_symlinks=False).st_size
        assert Path(entry.path).resolve(strict=True).is_relative_to(lab.path.resolve()), entry.path


def test_vfsfuse_tree_is_the_real_listing(lab: MountedLab, vgpus: dict[str, Vgpu]) -> None:
    done = vfsfuse("tree", lab.path)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first == str(lab.path)
    assert lines == [told(lab.path, entry) for entry in walk(lab.path)]


def told(top: Path, entry: os.DirEntry[str]) -> str:
    """The line of `vfsfuse tree` for `entry`."""
    last = [
        max(os.listdir(above)) == name
        for above, name in (
            (part.parent, part.name) for part in reversed([Path(entry.path), *Path(entry.path).parents])
        )
        if above.is_relative_to(top)
    ]
    indent = "".join("    " if is_last else "│   " for is_last in last[:-1]) + (
        "└── " if last[-1] else "├── "
    )
    if entry.is_symlink():
        return f"{indent}{entry.name} -> {os.readlink(entry.path)}"
    if entry.is_dir():
        return f"{indent}{entry.name}/"
    return f"{indent}{entry.name} [{stat.S_IMODE(entry.stat().st_mode):04o}]"


def test_vfsfuse_tree_stops_at_a_depth(lab: MountedLab) -> None:
    assert (
        vfsfuse("tree", "--depth", "1", lab.path).stdout
        == f"{lab.path}\n├── counters [0400]\n├── dev/\n├── faults [0600]\n├── log [0400]\n"
        "├── reload [0600]\n├── sys/\n├── trace [0600]\n└── uevents [0444]\n"
    )


def test_statvfs_answers(lab: MountedLab) -> None:
    found = os.statvfs(lab.path / "sys")
    assert (found.f_bsize, found.f_namemax) == (PAGE_SIZE, 255)
    assert run(["df", lab.path]).returncode == 0


# ---- opening ----


@pytest.mark.parametrize(
    "flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND]
)
@pytest.mark.parametrize("name", ["irq", "mdev_supported_types/vgpu-8/available_instances", "resource"])
def test_even_root_cannot_open_a_read_only_attribute_to_write(lab: MountedLab, name: str, flags: int) -> None:
    assert failure(lambda: os.open(lab.gpu / name, flags)) == errno.EACCES


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
@pytest.mark.parametrize("name", ["vgpu_create", "vgpu_destroy", "mdev_supported_types/vgpu-8/create"])
def test_even_root_cannot_open_a_write_only_attribute_to_read(lab: MountedLab, name: str, flags: int) -> None:
    assert failure(lambda: os.open(lab.gpu / name, flags)) == errno.EACCES


def test_changing_the_mode_gives_an_attribute_no_store(lab: MountedLab) -> None:
    path = lab.gpu / "modalias"
    path.chmod(0o644)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert failure(lambda: os.open(path, os.O_WRONLY)) == errno.EACCES
    finally:
        path.chmod(0o444)


@needs.root("only root's mount is open to other users")
@pytest.mark.parametrize(
    ("shell", "allowed"),
    [
        ("cat {gpu}/vendor", True),
        ("cat {vgpu}/vgpu_uuid", True),
        ("true <> {lab}/dev/vfio/vfio", True),
        ("true <> {lab}/dev/iommu", False),
        ("echo 1 > {vgpu}/remove", False),
        ("echo add > {gpu}/uevent", False),
        (f"echo {UUID} > {{lab}}/{TYPE}/create", False),
        ("head -c1 {vgpu}/resource0", False),
        ("true > {vgpu}/config", False),
        ("true <> {cdev}", False),
        ("true <> {lab}/dev/vfio/{group}", False),
        ("rm {gpu}/vendor", False),
    ],
)
def test_what_another_user_may(lab: MountedLab, vgpus: dict[str, Vgpu], shell: str, allowed: bool) -> None:
    vgpu = vgpus["vgpu-8"]
    command = shell.format(gpu=lab.gpu, lab=lab.path, vgpu=vgpu.path, cdev=vgpu.cdev, group=vgpu.group)
    # a folder of pytest's is root's alone: enter the mount before the user is changed
    within = command.replace(str(lab.path), ".")
    done = run(["sh", "-c", f'cd {lab.path} && exec {" ".join(NOBODY)} sh -c "{within}"'])
    assert (done.returncode == 0) is allowed, done.stderr
    assert allowed or "Permission denied" in done.stderr or "cannot open" in done.stderr


# ---- reading and writing ----


@pytest.mark.parametrize("name", ["vgpu_supported_types", "resource", "vendor"])
def test_a_read_at_an_offset_gives_that_part(lab: MountedLab, name: str) -> None:
    whole = (lab.gpu / name).read_bytes()
    with opened(lab.gpu / name, os.O_RDONLY) as fd:
        assert b"".join(os.pread(fd, 1, offset) for offset in range(len(whole))) == whole
        assert os.pread(fd, PAGE_SIZE, 3) == whole[3:]
        assert [os.pread(fd, 10, offset) for offset in (len(whole), PAGE_SIZE, 1 << 40)] == [b"", b"", b""]
        assert os.read(fd, 2) + os.read(fd, PAGE_SIZE) + os.read(fd, PAGE_SIZE) == whole


def test_an_open_attribute_shows_what_is_true_now(lab: MountedLab) -> None:
    with opened(lab.path / TYPE / "available_instances", os.O_RDONLY) as fd:
        before = int(os.pread(fd, 16, 0))
        with lab.create("vgpu-8"):
            assert int(os.pread(fd, 16, 0)) == before - 1
        assert int(os.pread(fd, 16, 0)) == before


def test_one_text_is_read_to_its_end_whatever_becomes_of_the_attribute(lab: MountedLab) -> None:
    path = lab.gpu / "driver_override"
    try:
        path.write_text("short")
        with opened(path, os.O_RDONLY) as fd, opened(path, os.O_RDONLY) as other:
            assert os.read(fd, 3) == b"sho" and os.read(other, PAGE_SIZE) == b"short\n"
            path.write_text("longer than that")
            assert os.read(fd, 2) + os.read(fd, PAGE_SIZE) + os.read(fd, PAGE_SIZE) == b"rt\n"
            assert os.read(other, PAGE_SIZE) == b""  # or cat would show "short" and the rest of the other
            assert os.pread(fd, PAGE_SIZE, 3) == b"ger than that\n"  # elsewhere, it is what is true now
            os.lseek(other, 0, os.SEEK_SET)
            assert os.read(other, 6) + os.read(other, PAGE_SIZE) == b"longer than that\n"
    finally:
        path.write_text("\n")


def test_a_file_that_is_gone_has_no_end(lab: MountedLab) -> None:
    vgpu = lab.create("vgpu-8")
    with opened(vgpu.path / "vgpu_uuid", os.O_RDONLY) as fd, opened(vgpu.path / "vgpu_uuid", 0) as other:
        assert len(os.read(fd, PAGE_SIZE)) == 37 and len(os.read(other, 7)) == 7
        vgpu.remove()
        with pytest.raises(OSError, match="No such device"):
            os.read(fd, PAGE_SIZE)
        assert len(os.read(other, PAGE_SIZE)) == 30  # as the kernel, which has it in its buffer
        with pytest.raises(OSError, match="No such device"):
            os.pread(other, PAGE_SIZE, 0)


def test_programs_that_copy_files_get_the_text(lab: MountedLab, tmp_path: Path) -> None:
    source, copy = lab.gpu / "vgpu_supported_types", tmp_path / "copy"
    shutil.copyfile(source, copy)  # by sendfile(2)
    assert copy.read_text() == source.read_text()
    assert run(["cp", source, copy]).stderr == ""
    assert copy.read_text() == source.read_text()
    assert source.stat().st_size == PAGE_SIZE


@pytest.mark.parametrize(
    "flags", [0, os.O_TRUNC, os.O_APPEND, os.O_CREAT | os.O_TRUNC, os.O_CREAT | os.O_APPEND]
)
def test_a_store_ignores_how_the_file_was_opened(lab: MountedLab, flags: int) -> None:
    path = lab.gpu / "driver_override"
    with opened(path, os.O_WRONLY | flags) as fd:
        assert os.write(fd, b"vfio-pci\n") == 9
        assert path.read_text() == "vfio-pci\n"
        assert os.write(fd, b"vgpu") == 4  # at offset 9, or at the end: the whole value all the same
        assert path.read_text() == "vgpu\n"
        assert os.pwrite(fd, b"\n", 1 << 30) == 1
    assert path.read_text() == "(null)\n"


@pytest.mark.parametrize("text", [b"\n", b"\0", b"\n\0"])
def test_driver_override_is_cleared_by(lab: MountedLab, text: bytes) -> None:
    path = lab.gpu / "driver_override"
    path.write_bytes(b"vfio-pci")
    path.write_bytes(text)
    assert path.read_text() == "(null)\n"


def test_driver_override_takes_the_first_line_and_no_page(lab: MountedLab) -> None:
    path = lab.gpu / "driver_override"
    path.write_bytes(b"vfio-pci\nof two\n")
    assert path.read_text() == "vfio-pci\n"
    assert failure(lambda: path.write_bytes(b"x" * (PAGE_SIZE - 1))) == errno.EINVAL
    assert path.read_text() == "vfio-pci\n"
    path.write_bytes(b"\n")


def test_a_write_takes_a_page_at_most(lab: MountedLab) -> None:
    with opened(lab.path / "sys/bus/pci/drivers_autoprobe", os.O_WRONLY) as fd:  # any text but 0 turns it on
        assert os.write(fd, b"1" * (PAGE_SIZE + 1000)) == PAGE_SIZE
    line = f"{UUID}:0:vgpu-8\n".encode()
    with opened(lab.gpu / "vgpu_create", os.O_WRONLY) as fd:
        assert failure(lambda: os.write(fd, b" " * PAGE_SIZE + line)) == errno.EINVAL
    assert not (lab.gpu / f"{UUID}-0").exists()


@pytest.mark.parametrize(
    "text", ["add", "change\n", "remove", f"bind {UUID}", f"add {UUID.upper()} A=1 B2=c\n"]
)
def test_uevent_takes_an_action(lab: MountedLab, text: str) -> None:
    (lab.gpu / "uevent").write_text(text)


@pytest.mark.parametrize("text", NO_EVENTS)
def test_uevent_refuses(lab: MountedLab, text: str) -> None:
    assert failure(lambda: (lab.gpu / "uevent").write_bytes(text.encode("latin-1"))) == errno.EINVAL


def test_uevent_tells_of_the_device(lab: MountedLab, vgpus: dict[str, Vgpu]) -> None:
    assert "DRIVER=vgpu\nPCI_CLASS=30000\nPCI_ID=1234:86F0\n" in (lab.gpu / "uevent").read_text()
    assert "PCI_SLOT_NAME=0000:86:00.0\n" in (lab.gpu / "uevent").read_text()
    assert (vgpus["vgpu-8"].path / "uevent").read_text() == "DRIVER=vfio_mdev\n"


# ---- what cannot be done here ----

REFUSED: dict[str, tuple[int, Callable[[Path], object]]] = {
    "mkdir": (errno.EPERM, lambda gpu: os.mkdir(gpu / "new")),
    "rmdir": (errno.EPERM, lambda gpu: os.rmdir(gpu / "mdev_supported_types/vgpu-8/devices")),
    "unlink": (errno.EPERM, lambda gpu: os.unlink(gpu / "vendor")),
    "unlink a link": (errno.EPERM, lambda gpu: os.unlink(gpu / "driver")),
    "create": (errno.EACCES, lambda gpu: os.open(gpu / "new", os.O_CREAT | os.O_WRONLY)),
    "create what is there": (errno.EEXIST, lambda gpu: os.open(gpu / "irq", os.O_CREAT | os.O_EXCL)),
    "symlink": (errno.EPERM, lambda gpu: os.symlink("vendor", gpu / "new")),
    "link": (errno.EPERM, lambda gpu: os.link(gpu / "vendor", gpu / "new")),
    "mkfifo": (errno.EPERM, lambda gpu: os.mkfifo(gpu / "new")),
    "rename": (errno.EPERM, lambda gpu: os.rename(gpu / "vendor", gpu / "new")),
    "rename onto": (errno.EPERM, lambda gpu: os.rename(gpu / "vendor", gpu / "device")),
    "setxattr": (errno.EOPNOTSUPP, lambda gpu: os.setxattr(gpu / "uevent", "user.x", b"1")),
    "getxattr": (errno.ENODATA, lambda gpu: os.getxattr(gpu / "vendor", "user.x")),
    "ioctl": (errno.ENOTTY, lambda gpu: write_only(gpu, lambda fd: fcntl.ioctl(fd, 0x3B64))),
    "a name too long": (errno.ENAMETOOLONG, lambda gpu: os.stat(gpu / ("x" * 5000))),
    "a name not UTF-8": (errno.ENOENT, lambda gpu: os.stat(os.fsencode(gpu) + b"/\xff")),
    "a name in a file": (errno.ENOTDIR, lambda gpu: os.stat(gpu / "vendor/x")),
    "list a file": (errno.ENOTDIR, lambda gpu: os.listdir(gpu / "vendor")),
    "open a directory to write": (errno.EISDIR, lambda gpu: os.open(gpu, os.O_WRONLY)),
}


def write_only(gpu: Path, action: Callable[[int], object]) -> None:
    with opened(gpu / "driver_override", os.O_WRONLY) as fd:
        action(fd)


@pytest.mark.parametrize("what", REFUSED)
def test_sysfs_refuses_to(lab: MountedLab, what: str) -> None:
    before = sorted(os.listdir(lab.gpu))
    expected, action = REFUSED[what]
    assert failure(lambda: action(lab.gpu)) == expected
    assert sorted(os.listdir(lab.gpu)) == before


def test_truncating_and_touching_change_nothing(lab: MountedLab) -> None:
    path = lab.gpu / "driver_override"
    os.truncate(path, 0)
    os.utime(path, (1, 1))
    assert (path.stat().st_size, path.read_text()) == (PAGE_SIZE, "(null)\n")


def test_the_list_of_an_open_directory_is_read_anew_when_rewound(lab: MountedLab) -> None:
    with opened(lab.mdevs, os.O_RDONLY | os.O_DIRECTORY) as fd:
        before = set(os.listdir(fd))
        with lab.create("vgpu-8") as vgpu:
            assert set(os.listdir(fd)) == before | {vgpu.name}
        assert set(os.listdir(fd)) == before


def test_a_listing_in_small_pieces_has_every_name_once(lab: MountedLab) -> None:
    names = []
    with opened(lab.gpu, os.O_RDONLY | os.O_DIRECTORY) as fd:
        while rows := getdents(fd, 100):
            assert len(rows) < 5
            names += rows
    assert sorted(names) == sorted(os.listdir(lab.gpu))


def getdents(fd: int, size: int) -> list[str]:
    """The names of one getdents64(2) with a buffer of `size` bytes."""
    libc, buffer = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(size)
    end = libc.getdents64(fd, buffer, size)
    assert end >= 0, os.strerror(ctypes.get_errno())
    at, names = 0, []
    while at < end:
        length = int.from_bytes(buffer.raw[at + 16 : at + 18], "little")
        names.append(os.fsdecode(buffer.raw[at + 19 : at + length].split(b"\0")[0]))
        at += length
    return [name for name in names if name not in (".", "..")]


def test_readers_of_one_attribute_at_once_all_get_it(lab: MountedLab) -> None:
    text = (lab.gpu / "vgpu_supported_types").read_text()
    command = ["sh", "-c", f"for i in $(seq 50); do cat {lab.gpu}/vgpu_supported_types; done"]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    assert [reader.communicate()[0] for reader in readers] == [text * 50] * 8
    assert re.fullmatch(r"(vgpu-\d: .+\n){4}", text)


def test_attributes_are_shown_while_vgpus_come_and_go(lab: MountedLab) -> None:
    free = int((lab.path / TYPE / "available_instances").read_text())
    seen: set[tuple[int, str]] = set()
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            free_now = int((lab.path / TYPE / "available_instances").read_text())
            seen.add((free_now, (lab.gpu / "vgpu_supported_types").read_text()))

    text = (lab.gpu / "vgpu_supported_types").read_text()
    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    rounds = 0
    try:
        while rounds < 50 or len(seen) < 2:  # on a busy machine a reader may miss a life
            rounds += 1
            with lab.create("vgpu-8") as vgpu:
                assert (vgpu.path / "vgpu_uuid").read_text() == f"{vgpu.name}\n"
    finally:
        ended.set()
        for reader in readers:
            reader.join()
    assert seen == {(free, text), (free - 1, text)}
