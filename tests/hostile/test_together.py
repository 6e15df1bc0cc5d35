# SPDX-License-Identifier: Apache-2.0
"""Many hostile clients at once, what they leave in the server, and an ordinary user's own lab."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, vfsfuse
from tests.hostile.clients import Hostile
from tests.hostile.conftest import LAB, TYPE, Clients, Lab, Place, remove
from tests.labs import described
from tests.vfio.devices import Device

CALLS = [
    ["set-irqs"],
    ["set-container"],
    ["device-info", "-m", "shared"],
    ["device-info", "-m", "stored"],
    ["region-info", "-m", "locked"],
    ["set-irqs", "-d", "eventfd", "-n", "3", "-b", "20", "-m", "private"],
    ["group-status", "-m", "shared"],
    ["set-container", "-d", "container", "-m", "shared"],
    ["iommu-info", "-m", "stored"],
    ["map-dma", "-m", "shared"],
    ["unmap-bitmap", "-m", "shared"],
    ["dirty-bitmap", "-m", "stored"],
]
TIMES = 3
"""How many clients make each call."""
SECONDS = 1.0
OWN = "map-dma or MAP_DMA or test_mapping_it or GET_INFO or SET_CONTAINER or MSI-X or container or a_server"


def crowd(lab: Lab) -> None:
    """All calls at once: nobody else waits for any of them, and all end."""
    with ExitStack() as stack:
        clients: list[Hostile] = []
        for call, *options in CALLS * TIMES:
            made = lab.mounted.create(TYPE)
            stack.callback(remove, made)
            place = Place(made.group, made.vfio, made.name)
            clients.append(stack.enter_context(lab.hostile(place, call, *options)))
        for client in clients:
            client.wait_for_call()
        stalled = lab.everybody.stalled(SECONDS)
        outcomes = [client.release() for client in clients]
    assert not stalled, (
        f"{[client.held for client in clients]} are held, and so are these calls (s): {stalled}"
    )
    assert outcomes == ["EINVAL", "EBADFD", *["0"] * (len(CALLS) - 2)] * TIMES
    lab.leaks.check()


def test_many_at_once(hostile_lab: Lab) -> None:
    """The second time takes no more threads of the server than the first."""
    crowd(hostile_lab)
    threads = hostile_lab.leaks.threads
    crowd(hostile_lab)
    hostile_lab.leaks.check_threads(len(threads))


def test_a_client_is_killed_while_it_is_held(hostile_lab: Lab, vgpu: Place) -> None:
    """Its process ends with what it holds, and leaves nothing: the fixture looks for that."""
    with hostile_lab.hostile(vgpu, "device-info", "-m", "shared") as client:
        client.wait_for_call()
        client.process.kill()
        assert not hostile_lab.everybody.stalled()


END = 60.0
"""How long a lab may take to end, in seconds.  A client that is held is let go later."""


def read_error(device: Device) -> int:
    """The errno of reads, when they begin to fail."""
    end = time.monotonic() + 1.5 * END
    while time.monotonic() < end:
        try:
            device.config(0)
        except OSError as error:
            return error.errno or 0
        time.sleep(0.001)
    raise AssertionError("the server still answers")


@pytest.mark.parametrize("call", [["device-info", "-m", "shared"], ["dma-read", "-m", "shared"]])
def test_the_end_of_a_lab_while_a_call_is_held(hostile_lab: Lab, tmp_path: Path, call: list[str]) -> None:
    """The others get an error at once, although a thread of the server cannot end yet."""
    with described(tmp_path, LAB) as lab, ThreadPoolExecutor(1) as pool:
        clients = Clients(lab, hostile_lab.program, tmp_path)
        made, other = lab.create(TYPE), lab.create(TYPE)
        place, run = Place(made.group, made.vfio, made.name), call[0] == "dma-read"
        with Device(other.open()) as device, clients.hostile(place, *call, run=run) as client:
            client.wait_for_call()
            assert lab.server is not None
            lab.server.terminate()
            error = pool.submit(read_error, device)
            answered = wait([error], END).done
            client.let_go()
            assert error.result() in (errno.ECONNABORTED, errno.ENOTCONN)
        assert answered, f"{client.held} is held, and so is a read of another client"


@needs.abort
@pytest.mark.parametrize("lazy", [[], ["--lazy"]])
def test_a_server_that_is_killed_while_a_call_is_held(
    hostile_lab: Lab, tmp_path: Path, lazy: list[str]
) -> None:
    """The held thread keeps the connection open, so everybody waits for an answer until somebody unmounts."""
    mounted = described(tmp_path, LAB)
    mounted.api.umount_at_end = False
    with mounted as lab, ThreadPoolExecutor(1) as pool:
        clients = Clients(lab, hostile_lab.program, tmp_path)
        made, other = lab.create(TYPE), lab.create(TYPE)
        place = Place(made.group, made.vfio, made.name)
        with Device(other.open()) as device:
            with clients.hostile(place, "device-info", "-m", "shared") as client:
                client.wait_for_call()
                assert lab.server is not None
                lab.server.kill()
                error = pool.submit(read_error, device)
                waited = not wait([error], 0.3).done
                done = vfsfuse("umount", *lazy, lab.path)
                answered = wait([error], END).done
                client.let_go()
            assert waited and answered, (waited, done)
            assert error.result() in (errno.ECONNABORTED, errno.ENOTCONN)
            assert not os.path.ismount(lab.path)
        lab.server.wait()
        lab.server.returncode = 0  # it was killed: how it ended says nothing


@needs.open_fuse
@needs.root("all tests run as an ordinary user already")
def test_the_lab_of_an_ordinary_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Some of these tests again, by an ordinary user in a lab of their own."""
    command = [
        sys.executable,
        "-m",
        "tests.ordinary_user",
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
    ]
    command += ["-p", "no:cacheprovider", str(Path(__file__).parent), "-k", OWN]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
