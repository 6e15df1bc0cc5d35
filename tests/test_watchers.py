# SPDX-License-Identifier: Apache-2.0
"""Programs that watch device nodes and directories by inotify(7) hear what comes and goes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import VFSFUSE, vfsfuse
from tests.inotify import watching
from tests.labs import MountedLab, Vgpu
from tests.waiting import wait_for
from vfsfuse.kernfs import watchers

MTTY = "mtty-1", "mtty"


@pytest.fixture(autouse=True)
def settled(lab: MountedLab) -> None:
    settle(lab)


def settle(lab: MountedLab) -> None:
    """Watchers have heard of all that came and went before: a new one may hear of it too."""
    with watching(lab.path / "dev/vfio/devices") as watch:
        vgpu = lab.create(*MTTY)
        vgpu.remove()
        while watch.hear(1)[-1][1:] != ("IN_DELETE", vgpu.vfio):
            pass


def created(lab: MountedLab) -> Vgpu:
    """A vGPU, of whose nodes watchers have heard."""
    with watching(lab.path / "dev/vfio/devices") as watch:
        vgpu = lab.create(*MTTY)
        while watch.hear(1)[-1][1:] != ("IN_CREATE", vgpu.vfio):
            pass  # it may be about what came or went before
    return vgpu


@contextmanager
def directory_open(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_device_plugin_hears_of_nodes_in_dev_vfio(lab: MountedLab) -> None:
    nodes, devices = lab.path / "dev/vfio", lab.path / "dev/vfio/devices"
    with watching(nodes, devices) as watch:
        vgpu = lab.create(*MTTY)
        names = ((str(nodes), vgpu.group), (str(devices), vgpu.vfio))
        assert watch.hear(2) == [(path, "IN_CREATE", name) for path, name in names]
        vgpu.remove()
        assert watch.hear(2) == [(path, "IN_DELETE", name) for path, name in names]
        assert watch.silent()


def test_a_node_and_the_directories_of_a_device_hear_that_they_go(lab: MountedLab) -> None:
    vgpu = created(lab)
    own = (
        lab.path / "dev/vfio" / vgpu.group,
        vgpu.cdev,
        vgpu.path,
        lab.path / "sys/devices/virtual/vfio" / vgpu.group,
        lab.path / "sys/kernel/iommu_groups" / vgpu.group,
    )
    with watching(*own) as watch:
        assert watch.silent()
        vgpu.remove()
        assert sorted(watch.hear(len(own))) == sorted((str(path), "IN_DELETE_SELF", "") for path in own)
        assert watch.silent()
    assert [path for path in own if path.exists()] == []


def test_a_node_goes_with_the_driver_and_comes_back(lab: MountedLab) -> None:
    nodes, driver = lab.path / "dev/vfio", lab.path / "sys/bus/mdev/drivers/vfio_mdev"
    with created(lab) as vgpu, watching(nodes, nodes / vgpu.group) as watch:
        (driver / "unbind").write_text(vgpu.name)
        assert sorted(watch.hear(2)) == [
            (str(nodes), "IN_DELETE", vgpu.group),
            (str(nodes / vgpu.group), "IN_DELETE_SELF", ""),
        ]
        (driver / "bind").write_text(vgpu.name)
        assert watch.hear(1) == [(str(nodes), "IN_CREATE", vgpu.group)]


def test_a_virtual_function_hears_that_it_goes(lab: MountedLab) -> None:
    (lab.gpu / "sriov_numvfs").write_text("1")
    function = (lab.gpu / "virtfn0").resolve()
    with watching(function) as watch:
        (lab.gpu / "sriov_numvfs").write_text("0")
        assert watch.hear(1) == [(str(function), "IN_DELETE_SELF", "")]


@pytest.mark.parametrize("what", ["0000:86:00.0", "0000:00:01.0"])
def test_what_goes_together_is_heard_of_one_by_one(fresh_lab: MountedLab, what: str) -> None:
    """A function takes its vGPUs along, a root port all that is below it: the names above have gone too."""
    lab, vgpu = fresh_lab, fresh_lab.create()
    (lab.gpu / "sriov_numvfs").write_text("1")
    gpu = lab.gpu.resolve()
    own = [vgpu.path, vgpu.cdev, gpu / "mdev_supported_types", (gpu / "virtfn0").resolve(), gpu]
    if gpu.name != what:
        own += [gpu.parent / "pci_bus/0000:86", gpu.parent]
    settle(lab)
    with watching(*own) as watch:
        (lab.path / "sys/bus/pci/devices" / what / "remove").write_text("1")
        assert sorted(watch.hear(len(own))) == sorted((str(path), "IN_DELETE_SELF", "") for path in own)
        assert watch.silent()
    (lab.path / "sys/bus/pci/rescan").write_text("1")
    assert lab.gpu.resolve() == gpu and gpu.is_dir()


def test_who_is_in_a_new_directory_does_not_notice_the_old_one(fresh_lab: MountedLab) -> None:
    lab = fresh_lab
    gpu, rescan = lab.gpu.resolve(), lab.path / "sys/bus/pci/rescan"
    before = os.open(".", os.O_PATH)
    try:
        for _ in range(5):
            with watching(gpu) as old:
                (gpu / "remove").write_text("1")
                rescan.write_text("1")
                os.chdir(gpu)
                with watching(gpu) as new:
                    assert old.hear(1) == [(str(gpu), "IN_DELETE_SELF", "")]
                    assert new.silent() and os.getcwd() == str(gpu)
            os.fchdir(before)
    finally:
        os.fchdir(before)
        os.close(before)


def test_a_directory_in_which_a_file_is_open_is_heard_of_when_that_is_closed(fresh_lab: MountedLab) -> None:
    """Also when nothing else comes or goes."""
    gpu = fresh_lab.gpu.resolve()
    with watching(gpu) as watch:
        vendor = os.open(gpu / "vendor", os.O_RDONLY)
        try:
            (gpu / "remove").write_text("1")
            wait_for(lambda: f"{gpu.name}!" in os.readlink(f"/proc/self/fd/{vendor}"))
            assert watch.silent()
        finally:
            os.close(vendor)
        assert watch.hear(1) == [(str(gpu), "IN_DELETE_SELF", "")]
        assert watch.silent()


def test_the_marks_of_a_process_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / str(number) for number in range(200)]
    for file in files:
        file.touch()
    st_dev = tmp_path.stat().st_dev
    with watching(*files[:100], Path("/proc")):
        for size in (watchers.PIECE, 4096, 100, 7):
            monkeypatch.setattr(watchers, "PIECE", size)
            found = watchers.watched(st_dev)
            assert {file.stat().st_ino for file in files[:100]} <= found
            assert found.isdisjoint(file.stat().st_ino for file in files[100:])


def test_a_node_that_is_open_is_heard_of_when_it_is_closed(lab: MountedLab) -> None:
    vgpu = created(lab)
    node = lab.path / "dev/vfio" / vgpu.group
    fd = os.open(node, os.O_PATH)
    try:
        with watching(node, node.parent) as watch:
            vgpu.remove()
            assert watch.hear(1) == [(str(node.parent), "IN_DELETE", vgpu.group)]
            assert watch.silent()
            os.close(fd)
            assert watch.hear(1) == [(str(node), "IN_DELETE_SELF", "")]
            fd = -1
    finally:
        if fd >= 0:
            os.close(fd)


def test_every_event_of_many_is_heard_in_order(lab: MountedLab) -> None:
    nodes = lab.path / "dev/vfio"
    expected = []
    with watching(nodes) as watch:
        for _ in range(20):
            with lab.create(*MTTY) as vgpu:
                assert (nodes / vgpu.group).exists()
                expected.append((str(nodes), "IN_CREATE", vgpu.group))
            assert not (nodes / vgpu.group).exists()
            expected.append((str(nodes), "IN_DELETE", vgpu.group))
        assert watch.hear(len(expected)) == expected
        assert watch.silent()


def test_names_are_true_while_events_are_made(lab: MountedLab) -> None:
    """The answers that the kernel gets for the events are nobody else's."""
    nodes, ended = lab.path / "dev/vfio", threading.Event()
    wrong: list[str] = []
    there: list[Vgpu] = []

    def look() -> None:
        while not ended.is_set():
            for vgpu in list(there):
                if not (nodes / vgpu.group).exists() and vgpu in there:  # no later one with the same group
                    wrong.append(f"{vgpu.group} is not there")

    looker = threading.Thread(target=look)
    looker.start()
    try:
        with watching(nodes, nodes / "devices") as watch:
            for _ in range(30):
                vgpu = lab.create(*MTTY)
                there.append(vgpu)
                time.sleep(0.01)
                there.clear()
                vgpu.remove()
                assert not (nodes / vgpu.group).exists() and not vgpu.cdev.exists()
            assert len(watch.hear(120)) == 120
    finally:
        ended.set()
        looker.join()
    assert wrong == []


def test_events_wait_for_who_has_the_directory_open(lab: MountedLab) -> None:
    """Such a client may hold the directory's lock, and by an event everybody."""
    nodes = lab.path / "dev/vfio"
    with watching(nodes, nodes / "devices") as watch:
        with directory_open(nodes) as fd:
            vgpu = lab.create(*MTTY)
            assert watch.hear(1) == [(str(nodes / "devices"), "IN_CREATE", vgpu.vfio)]
            assert vgpu.group in os.listdir(fd)
            vgpu.remove()
            assert watch.hear(1) == [(str(nodes / "devices"), "IN_DELETE", vgpu.vfio)]
            assert watch.silent()
        assert watch.hear(2) == [(str(nodes), event, vgpu.group) for event in ("IN_CREATE", "IN_DELETE")]


def test_a_watcher_under_run_hears(lab: MountedLab) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tests.inotify import watching\n"
        "with watching(Path('/dev/vfio')) as watch:\n"
        "    print(flush=True)\n"
        "    print(*watch.hear(2), sep='\\n')\n"
    )
    command = [*VFSFUSE, "run", "--mount", str(lab.path), "--", sys.executable, "-c", script, os.getcwd()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None and program.stdout.readline() == "\n"
        vgpu = lab.create(*MTTY)
        vgpu.remove()
        heard = program.stdout.read().splitlines()
    assert heard == [str(("/dev/vfio", event, vgpu.group)) for event in ("IN_CREATE", "IN_DELETE")]


def test_unmounting_is_not_held_up_by_a_watcher(tmp_path: Path) -> None:
    with MountedLab(tmp_path) as lab, watching(lab.path / "dev/vfio") as watch:
        for _ in range(3):
            lab.create(*MTTY).remove()
            watch.hear(1)
        done = vfsfuse("umount", lab.path)
        assert (done.returncode, done.stderr) == (0, "")
