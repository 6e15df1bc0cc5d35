# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run --stat-paths`: programs that ask what kind of file a path leads to find character devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.commands import vfsfuse
from tests.labs import MountedLab
from tests.ordinary_user import UID
from tests.qemu.guest import BUSYBOX, static_busybox
from tests.run_nodes import Nodes, Said, others, outside, two_vgpus, ways
from tests.tool import need

BY_PATH = ("--stat-paths",)


@pytest.fixture(scope="module")
def nodes(lab: MountedLab) -> Iterator[Nodes]:
    with two_vgpus(lab) as made:
        yield made


def test_all_other_files_are_what_they_are(
    nodes: Nodes, compile_client: Callable[..., Path], tmp_path: Path
) -> None:
    client, paths = compile_client("stat_ways"), others(nodes, tmp_path)
    said = ways(nodes.run(client, *paths, options=BY_PATH))
    assert said == {key: Said(told.errno, told.inside) for key, told in outside(client, *paths).items()}


@needs.root("asking as somebody else")
def test_a_directory_that_the_program_may_not_pass(nodes: Nodes, tmp_path: Path) -> None:
    """The supervisor may."""
    as_user = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
    assert nodes.run(*as_user, "test", "-c", "/dev/vfio/vfio", options=BY_PATH) == ""
    tmp_path.chmod(0o700)
    closed = tmp_path / "vfio"
    closed.symlink_to("/dev/vfio/vfio")
    ask = 'test -c "$0" || stat "$0"'
    assert nodes.run("sh", "-c", ask, closed, options=BY_PATH) == ""
    done = vfsfuse("run", *BY_PATH, "--mount", nodes.lab.path, "--", *as_user, "sh", "-c", ask, closed)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("Permission denied\n")


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
