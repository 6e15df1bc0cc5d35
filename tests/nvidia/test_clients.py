# SPDX-License-Identifier: Apache-2.0
"""Clients of VFIO on such vGPUs: by the group and by the device's own file, C programs and the engine."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.commands import run, vfsfuse
from tests.iommufd.client import Cdev, Iommufd
from tests.nvidia.host import LAB, SLOT, Host, Vf, host_of, wait_until_free
from tests.vfio.client import PAGE, Container, Group, fails
from tests.vfio.devices import group_device, opened
from tests.vfio.gpu_client import IOVA, Gpu, client_memory, fill, wait
from tests.waiting import settled, wait_for

Compile = Callable[..., Path]


@contextmanager
def gpu(vf: Vf, pages: int = 64) -> Iterator[Gpu]:
    """The vGPU by its group, with its engine on."""
    memory = client_memory(pages * PAGE)
    with opened(vf.host.lab, vf.group, vf.name) as device:
        device.container.map(IOVA, memory.address, memory.size)
        made = Gpu(device, memory)
        made.start()
        yield made
    memory.close()


def test_the_client_sees_the_vgpu_of_the_type(vfs: list[Vf]) -> None:
    for number, memory in ((14, 4 * SLOT), (11, SLOT)):
        with vfs[0].typed(number), opened(vfs[0].host.lab, vfs[0].group, vfs[0].name) as device:
            config = os.pread(device.device.fd, 64, 7 << 40)
            assert config[:4] == bytes.fromhex("34121111")
            assert config[0x2C:0x30] == bytes.fromhex("de10") + number.to_bytes(2, "little")
            os.pwrite(device.device.fd, b"end", memory - 3)
            assert os.pread(device.device.fd, 8, memory - 3) == b"end"
        settled(lambda: vfs[0].type)


def test_the_engine_works_and_is_shared(host: Host, vfs: list[Vf]) -> None:
    used = int((host.pf / "engine_time_us").read_text())
    with vfs[0].typed(14), vfs[1].typed(24):
        with gpu(vfs[0]) as light, gpu(vfs[1]) as heavy:
            for each, pattern in ((light, 0x11111111), (heavy, 0x22222222)):
                each.finish(fill(0, PAGE, pattern), fill(each.base, PAGE, pattern))
                assert each.video(0, 4) == each.system(0, 4) == pattern.to_bytes(4, "little")
            assert light.video(0, 4) != heavy.video(0, 4)
        for vf in vfs[:2]:
            wait_until_free(vf)
    assert int((host.pf / "engine_time_us").read_text()) > used


def test_what_the_lab_shows_of_a_vgpu(vfs: list[Vf]) -> None:
    vf = vfs[0]
    own = vf.path / "vgpu"
    assert not own.exists() and not (vf.path / "screen.png").exists()
    with vf.typed(24):
        shown = {
            name: (own / name).read_text() for name in ("vram_size", "engine_weight", "vram_used", "faults")
        }
        assert shown == {
            "vram_size": f"{4 * SLOT}\n",
            "engine_weight": "48\n",
            "vram_used": "0\n",
            "faults": "0\n",
        }
        (own / "engine_timeout_ms").write_text("5000")
        folder = os.open(own, os.O_RDONLY)
        with gpu(vf) as one:
            one.finish(fill(0, PAGE, 1))
            assert int((own / "vram_used").read_text()) == PAGE
        wait_until_free(vf)
        vf.set(0)
        assert os.listdir(folder) == [] and not own.exists()
        fails(errno.ENOENT, os.stat, "faults", dir_fd=folder)
        os.close(folder)
        vf.set(11)
        assert (own / "vram_size").read_text() == f"{SLOT}\n" and (
            own / "engine_timeout_ms"
        ).read_text() == "2000\n"
        assert (vf.path / "screen.png").is_file()


def test_a_screenshot_by_the_address_of_the_function(vfs: list[Vf]) -> None:
    vf, mount = vfs[0], ("--mount", str(vfs[0].host.lab.path))
    for command, *more in (("screenshot", "-"), ("surprise-remove",)):
        done = vfsfuse(command, *mount, vf.name, *more)
        assert done.returncode == 1 and f"{vf.name}: there is no such vGPU" in done.stderr
    with vf.typed(14):
        done = vfsfuse("screenshot", *mount, vf.name, "-")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "shows nothing" in done.stderr
        done = vfsfuse("surprise-remove", *mount, vf.name)
        assert done.returncode == 1 and "there is no such vGPU" in done.stderr


def test_a_client_that_hangs_the_engine_is_taken_off_it(vfs: list[Vf]) -> None:
    with vfs[0].typed(14):
        with gpu(vfs[0]) as one:
            one.queue(wait(one.fence_at, 99))
            wait_for(lambda: not one.idle)
            fails(errno.EBUSY, vfs[0].set, 0)
        wait_until_free(vfs[0])


def test_a_device_by_its_own_file(vfs: list[Vf]) -> None:
    vf = vfs[0]
    with vf.typed(14):
        with Iommufd(vf.host.lab.path) as iommufd, Cdev(vf.cdev) as device:
            number = device.bind(iommufd)
            assert number and device.attach(iommufd.ioas()) and device.config(0, 4) == 0x11111234
            fails(errno.EBUSY, vf.set, 0)
            with Cdev(vf.cdev) as other:
                fails(errno.EINVAL, other.bind, iommufd)
        wait_until_free(vf)


def test_an_own_file_that_was_opened_before_the_type(vfs: list[Vf]) -> None:
    vf = vfs[0]
    with Iommufd(vf.host.lab.path) as iommufd, Cdev(vf.cdev) as early:
        fails(errno.ENODEV, early.bind, iommufd)
        with vf.typed(14):  # an open file that is not bound keeps nobody from it
            fails(errno.ENODEV, early.bind, iommufd)
            with Cdev(vf.cdev) as device, Cdev(vf.cdev) as unbound:
                assert device.bind(iommufd)
                device.close()
                wait_until_free(vf)
                vf.set(0)
                fails(errno.ENODEV, unbound.bind, iommufd)
                vf.set(14)
                fails(errno.ENODEV, unbound.bind, iommufd)
                with Cdev(vf.cdev) as again:
                    assert again.bind(iommufd)
                wait_until_free(vf)


@needs.root("only root gives a file to another user")
def test_the_owner_of_a_file_stays_with_every_type(vfs: list[Vf]) -> None:
    vf = vfs[0]
    os.chmod(vf.cdev, 0o640)
    os.chown(vf.cdev, 12, 34)
    with vf.typed(14):
        shown = os.stat(vf.cdev)
        assert (oct(shown.st_mode & 0o777), shown.st_uid, shown.st_gid) == ("0o640", 12, 34)
    os.chown(vf.cdev, 0, 0)
    assert os.stat(vf.cdev).st_uid == 0


def test_a_group_that_is_open_without_its_device(vfs: list[Vf]) -> None:
    vf = vfs[0]
    with Container(vf.host.lab.path) as container, Group(vf.host.lab.path, vf.group) as group:
        assert group.flags == 1
        vf.set(14)
        group.set_container(container)
        container.set_iommu()
        vf.set(0)
        vf.set(24)
        device = group_device(vf.host.lab.path, group, vf.name)
        fails(errno.EBUSY, vf.set, 0)
        os.close(device)
        wait_until_free(vf)
        for name in ("", vf.name[:-1], vfs[1].name, f"{vf.name} "):
            fails(errno.ENODEV, group_device, vf.host.lab.path, group, name)


def test_a_client_that_is_killed_leaves_the_vgpu_free(vfs: list[Vf]) -> None:
    vf = vfs[0]
    code = "import sys, time; from tests.iommufd.bound import open_bound; open_bound(sys.argv[1])"
    code += "; print('up', flush=1); time.sleep(60)"
    with vf.typed(14):
        client = subprocess.Popen([sys.executable, "-c", code, vf.cdev], stdout=subprocess.PIPE, text=True)
        with client:
            assert client.stdout is not None and client.stdout.readline() == "up\n"
            fails(errno.EBUSY, vf.set, 0)
            client.kill()
        vf.set(0)  # the store waits for what a client that has ended still holds
        vf.set(14)


def test_the_iommufd_client_works(vfs: list[Vf], compile_client: Compile) -> None:
    with ExitStack() as stack:
        for vf in vfs[:2]:
            stack.enter_context(vf.typed(14))
        client = compile_client("iommufd_client")
        started = [subprocess.Popen([client, vf.host.lab.path / "dev", vf.vfio]) for vf in vfs[:2]]
        assert [each.wait(30) for each in started] == [0, 0]
        for vf in vfs[:2]:
            wait_until_free(vf)


@pytest.mark.parametrize("linking", [(), ("-static",)], ids=["dynamic", "static"])
def test_the_vfio_client_works_by_its_group(
    vfs: list[Vf], compile_client: Compile, linking: tuple[str, ...]
) -> None:
    vf = vfs[0]
    with vf.typed(14):
        client = compile_client("vfio_client", *linking)
        done = vfsfuse("run", "--mount", vf.host.lab.path, "--", client, vf.group, vf.name)
        assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "ok")
        wait_until_free(vf)


USERS = """\
import os, subprocess, sys, tempfile
from pathlib import Path
from tests.nvidia.host import host_of
with tempfile.TemporaryDirectory() as folder, host_of(Path(folder), count=2) as host:
    assert os.geteuid()
    vf = host.vf(1)
    vf.set(14)
    status = subprocess.run([sys.argv[1], host.lab.path / "dev", vf.vfio]).returncode
    vf.set(0)
    sys.exit(status)
"""


@needs.open_fuse
@needs.root("the other tests run as an ordinary user already")
def test_an_ordinary_user_has_such_a_host(compile_client: Compile) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        client = shutil.copy(compile_client("iommufd_client", "-static"), folder)
        done = run([sys.executable, "-m", "tests.ordinary_user", sys.executable, "-c", USERS, client])
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "ok")


def test_the_lab_file_says_what_clients_see(tmp_path: Path) -> None:

    text = LAB.replace(
        "instances = 16 }", "instances = 16, vendor = 0x10de, device = 0x2ab1, subsystem_device = 7 }"
    )
    with host_of(tmp_path, text=text, count=1) as host:
        vf = host.vf(0)
        with vf.typed(11), opened(host.lab, vf.group, vf.name) as device:
            config = os.pread(device.device.fd, 64, 7 << 40)
            assert (config[:4], config[0x2C:0x30]) == (bytes.fromhex("de10b12a"), bytes.fromhex("de100700"))
            device.device.close()
            wait_until_free(vf)
