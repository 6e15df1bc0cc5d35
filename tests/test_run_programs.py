# SPDX-License-Identifier: Apache-2.0
"""Programs that ask what kind of file they have open, under `vfsfuse run`: in C, Python and Perl, coreutils.

They find character devices where a machine has some, with the numbers that sysfs shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.labs import MountedLab
from tests.run_nodes import CHARACTER, REGULAR, Nodes, Said, others, outside, two_vgpus, ways
from tests.tool import need

Compile = Callable[..., Path]
LIKE = {"type": CHARACTER, "size": "0", "blocks": "0", "nlink": "1"}
"""What the members of every character device are."""
ANONYMOUS = {"type": "0", "perm": "600", "rdev": "0:0", "size": "0", "blocks": "0", "nlink": "1"}


@pytest.fixture(scope="module")
def nodes(lab: MountedLab) -> Iterator[Nodes]:
    with two_vgpus(lab) as made:
        yield made


@pytest.fixture(params=[(), ("-static",)], ids=["dynamic", "static"])
def client(request: pytest.FixtureRequest, compile_client: Compile) -> Path:
    return compile_client("stat_ways", *request.param)


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
    good = [way for (_, way), (_, members) in null.items() if members.get("type") == CHARACTER]
    assert {"fstat", "newfstatat", "statx"} < set(good)
    assert all(said[path, way].members["type"] == CHARACTER for path in numbers for way in good)


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


def test_all_other_files_are_what_they_are(nodes: Nodes, client: Path, tmp_path: Path) -> None:
    """Also those of the lab."""
    paths = others(nodes, tmp_path)
    said = ways(nodes.run(client, *paths))
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
device = fcntl.ioctl(group, 0x3B6A, bytearray(sys.argv[2].encode() + b"\\0"))
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
    script = 'for (@ARGV) { open(my $file, "+<", $_) or die; -c $file or die; }'
    assert nodes.run("perl", "-e", script, *nodes.numbers) == ""


def test_a_path_leads_to_a_regular_file(nodes: Nodes) -> None:
    """Unless an option says otherwise."""
    for path in nodes.numbers:
        assert nodes.run("stat", "--format=%F", path).startswith("regular ")
