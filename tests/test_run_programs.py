# SPDX-License-Identifier: Apache-2.0
"""Programs that ask what kind of file they have, under `vfsfuse run`: C, Python, Perl, shells, coreutils,
findutils, busybox.  They find character devices where a machine has some, with the numbers that sysfs shows.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import needs
from tests.commands import ROOT, run, vfsfuse
from tests.labs import MountedLab, Vgpu
from tests.qemu.guest import BUSYBOX, static_busybox
from tests.tool import need

Compile = Callable[..., Path]
REGULAR, CHARACTER, NO_TYPE = f"{stat.S_IFREG:o}", f"{stat.S_IFCHR:o}", "0"
BY_PATH = ("--stat-paths",)
LIKE = {"type": CHARACTER, "size": "0", "blocks": "0", "nlink": "1"}
"""What the members of every character device are."""
ANONYMOUS = {"type": NO_TYPE, "perm": "600", "rdev": "0:0", "size": "0", "blocks": "0", "nlink": "1"}


class Nodes(NamedTuple):
    """Two vGPUs of a lab, one for its own file, the other for its group."""

    lab: MountedLab
    alone: Vgpu
    grouped: Vgpu

    @property
    def numbers(self) -> Mapping[str, str]:
        """The `dev` of each node that sysfs shows, by its path."""
        root = self.lab.path / "sys"
        shown = {
            "/dev/vfio/vfio": root / "class/misc/vfio",
            "/dev/iommu": root / "class/misc/iommu",
            f"/dev/vfio/{self.grouped.group}": root / "class/vfio" / self.grouped.group,
            f"/dev/vfio/devices/{self.alone.vfio}": root / "class/vfio-dev" / self.alone.vfio,
        }
        return {path: (folder / "dev").read_text().strip() for path, folder in shown.items()}

    def run(self, *command: str | Path, options: tuple[str, ...] = ()) -> str:
        """What a program says that ends well."""
        done = vfsfuse("run", *options, "--mount", self.lab.path, "--", *command)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def python(self, script: str, *arguments: str, options: tuple[str, ...] = ()) -> None:
        """A script that has to end well."""
        assert self.run(sys.executable, "-c", script, *arguments, options=options) == ""


@pytest.fixture(scope="module")
def nodes(lab: MountedLab) -> Iterator[Nodes]:
    with lab.create() as alone, lab.create() as grouped:
        yield Nodes(lab, alone, grouped)


class Said(NamedTuple):
    """What the C client got, asking in one way: an errno's name or "OK", and the members."""

    errno: str
    members: dict[str, str]

    @property
    def inside(self) -> dict[str, str]:
        """The members as they are under `run`, where an ordinary user is called 0."""
        own = {"uid": str(os.geteuid()), "gid": str(os.getegid())}
        return {key: "0" if own.get(key) == value else value for key, value in self.members.items()}


def ways(output: str) -> dict[tuple[str, str], Said]:
    """What the C client has said, by the file and the way in which it asked."""
    found = {}
    for line in output.splitlines():
        file, way, errno, *members = line.split()
        found[file, way] = Said(errno, dict(member.split("=") for member in members))
    return found


def outside(client: Path, *paths: str) -> dict[tuple[str, str], Said]:
    """What it says outside of any run."""
    done = run(["env", "-C", ROOT, client, *paths])
    assert (done.returncode, done.stderr) == (0, "")
    return ways(done.stdout)


@pytest.fixture(params=[(), ("-static",)], ids=["dynamic", "static"])
def client(request: pytest.FixtureRequest, compile_client: Compile) -> Path:
    return compile_client("stat_client", *request.param)


def test_c_finds_character_devices(nodes: Nodes, client: Path) -> None:
    """However the call is made.  A call that is wrong gets the errno that a character device gives here."""
    numbers, null = nodes.numbers, outside(client, "/dev/null")
    bare = {path: f"{nodes.lab.path}{path}" for path in numbers}
    before, said = outside(client, *bare.values()), ways(nodes.run(client, *numbers))
    assert len(said) == len(numbers) * len(null)
    for (path, way), (errno, members) in said.items():
        expected = before[bare[path], way].inside
        if expected.get("type") == REGULAR:
            expected |= LIKE | {"rdev": numbers[path]}
        assert (errno, members) == (null["/dev/null", way].errno, expected), (path, way)
    shown = [path for (path, _), (_, members) in said.items() if members.get("type") == CHARACTER]
    assert {path: shown.count(path) for path in numbers} == dict.fromkeys(numbers, 17)


def test_a_device_of_a_group_is_an_anonymous_inode(nodes: Nodes, client: Path) -> None:
    null = outside(client, "/dev/null")
    names = f"/dev/vfio/vfio,/dev/vfio/{nodes.grouped.group},{nodes.grouped.name}"
    said = ways(nodes.run(client, names))
    assert said["device", "fstat"].members.items() >= ANONYMOUS.items()
    for (_, way), (errno, members) in said.items():
        assert errno == null["/dev/null", way].errno, way
        if null["/dev/null", way].members.get("type") == CHARACTER:
            ignored = ("uid", "gid", "ino", "dev")
            assert {key: members[key] for key in members if key not in ignored} == ANONYMOUS, way


@pytest.mark.parametrize("options", [(), BY_PATH], ids=["descriptors", "paths"])
def test_all_other_files_are_what_they_are(
    nodes: Nodes, client: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Also those of the lab."""
    (tmp_path / "file").write_text("text")
    others = [tmp_path, tmp_path / "file", Path("/dev/null"), Path("/proc/version"), nodes.lab.path]
    others += [nodes.lab.gpu / name for name in ("vendor", "config", "resource", "sriov_numvfs")]
    others += [nodes.lab.path / name for name in ("dev", "dev/vfio", "uevents")]
    paths = [str(path) for path in others if os.access(path, os.R_OK)]
    said = ways(nodes.run(client, *paths, options=options))
    assert said == {key: Said(told.errno, told.inside) for key, told in outside(client, *paths).items()}


IN_PYTHON = """
import os, stat, sys
for path, number in zip(sys.argv[1::2], sys.argv[2::2]):
    with open(path, "rb", buffering=0) as file:
        copy = os.open(f"/proc/self/fd/{file.fileno()}", os.O_PATH)
        for found in (os.fstat(file.fileno()), os.stat(file.fileno()), os.fstat(copy)):
            assert stat.S_ISCHR(found.st_mode), path
            assert f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" == number, path
            assert (found.st_size, found.st_blocks) == (0, 0), path
        os.close(copy)
"""


def test_python_finds_character_devices(nodes: Nodes) -> None:
    nodes.python(IN_PYTHON, *(word for row in nodes.numbers.items() for word in row))


MAPPED = """
import fcntl, mmap, os, stat, struct, sys
container, group = (os.open(f"/dev/vfio/{name}", os.O_RDWR) for name in ("vfio", sys.argv[1]))
fcntl.ioctl(group, 0x3B68, struct.pack("i", container))
fcntl.ioctl(container, 0x3B66, 3)
device = fcntl.ioctl(group, 0x3B6A, sys.argv[2].encode() + b"\\0")
assert stat.S_IFMT(os.fstat(device).st_mode) == 0
assert os.fstat(device).st_size == 0
info = bytearray(struct.pack("=IIIIQQ", 32, 0, 0, 0, 0, 0))
fcntl.ioctl(device, 0x3B6C, info)
_, flags, _, _, size, offset = struct.unpack("=IIIIQQ", info)
assert flags == 7, flags
os.pwrite(device, b"from a write", offset + size - 4096)
with mmap.mmap(device, size, offset=offset) as region:
    assert region[size - 4096 : size - 4084] == b"from a write"
    region[:4] = b"mmap"
assert os.pread(device, 4, offset) == b"mmap"
"""


@needs.passthrough
def test_the_mmap_module_of_python_maps_a_region(nodes: Nodes) -> None:
    """It refuses a regular file that is shorter than what is mapped."""
    with nodes.lab.create("mbochs-small", "mbochs") as vgpu:
        nodes.python(MAPPED, vgpu.group, vgpu.name)


def test_stat_says_what_its_input_is(nodes: Nodes) -> None:
    for path, number in nodes.numbers.items():
        said = nodes.run("sh", "-c", f'exec stat --format="%F %Hr:%Lr %s" - <"{path}"')
        assert said == f"character special file {number} 0\n"


def test_perl_finds_character_devices(nodes: Nodes) -> None:
    need("perl")
    script = 'open(my $file, "+<", $_) && -c $file || die $_ for @ARGV'
    assert nodes.run("perl", "-e", script, *nodes.numbers) == ""


def test_a_path_leads_to_a_regular_file(nodes: Nodes) -> None:
    """Unless an option says otherwise."""
    for path in nodes.numbers:
        assert nodes.run("stat", "--format=%F", path).startswith("regular ")


SHELLS = ("bash", "dash", "busybox")


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_find_character_devices_by_path(nodes: Nodes, shell: str) -> None:
    words = [shell, "sh"] if shell == "busybox" else [shell]
    need(words[0])
    script = """
        for path; do
            test -c "$path" && ! [ -f "$path" ] && test -r "$path" || echo "$path"
            exec 3<"$path"
            test -c /dev/fd/3 && test -c /proc/self/fd/3 || echo "$path as a descriptor"
        done
        ! [ -c /dev/vfio ] && [ -d /dev/vfio ] || echo /dev/vfio
        cd /dev/vfio && [ -c vfio ] && [ -c ../iommu ] && [ -c ./vfio ] || echo "relative paths"
    """
    assert nodes.run(*words, "-c", script, shell, *nodes.numbers, options=BY_PATH) == ""


def test_coreutils_find_character_devices_by_path(nodes: Nodes) -> None:
    for path, number in nodes.numbers.items():
        said = nodes.run("stat", "--format=%F %Hr:%Lr", path, options=BY_PATH)
        assert said == f"character special file {number}\n"
    listed = nodes.run("ls", "-l", "/dev/vfio", options=BY_PATH)
    assert [line for line in listed.splitlines() if line.startswith("c") and " 10, 196 " in line]
    assert len([line for line in listed.splitlines() if line.startswith("-")]) == 0


@pytest.fixture(params=["/usr/bin/find", "busybox"])
def find(request: pytest.FixtureRequest) -> list[str]:
    if request.param != "busybox":
        need(request.param, "findutils")
        return [request.param]
    static_busybox()
    return [str(BUSYBOX), "find"]


def test_find_finds_character_devices(nodes: Nodes, find: list[str]) -> None:
    found = nodes.run(*find, "/dev/vfio", "/dev/iommu", "-type", "c", options=BY_PATH)
    assert set(nodes.numbers) <= set(found.splitlines())
    assert nodes.run(*find, "/dev/vfio", "/dev/iommu", "-type", "f", options=BY_PATH) == ""


def test_a_static_busybox_finds_character_devices(nodes: Nodes) -> None:
    static_busybox()
    for path, number in nodes.numbers.items():
        major, minor = map(int, number.split(":"))
        said = nodes.run(BUSYBOX, "stat", "-c", "%F %t:%T", path, options=BY_PATH)
        assert said == f"character special file {major:x}:{minor:x}\n"
    said = nodes.run(BUSYBOX, "ls", "-l", "/dev/vfio/vfio", options=BY_PATH)
    assert said.startswith("crw-rw-rw-")
    assert "10, 196" in said


PATHS_IN_PYTHON = """
import os, stat, sys
for path, number in zip(sys.argv[1::2], sys.argv[2::2]):
    folder, name = os.path.split(path)
    below = os.open(folder, os.O_PATH)
    link = f"/tmp/vfsfuse-{os.getpid()}"
    os.symlink(path, link)
    try:
        again = os.stat(name, dir_fd=below), os.stat(f"{folder}/./{name}")
        for found in (os.stat(path), os.lstat(path), *again):
            assert stat.S_ISCHR(found.st_mode), path
            assert f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" == number, path
        assert stat.S_ISLNK(os.lstat(link).st_mode)
    finally:
        os.unlink(link)
"""


def test_python_finds_character_devices_by_path(nodes: Nodes) -> None:
    words = [word for row in nodes.numbers.items() for word in row]
    nodes.python(PATHS_IN_PYTHON, *words, options=BY_PATH)
