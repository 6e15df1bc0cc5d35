# SPDX-License-Identifier: Apache-2.0
"""Every other client of a lab: a process that does what clients do, and says how long each call took.

`python -m tests.hostile.bystander LAB PARENT TYPE CONTROL` makes vGPUs of its own in the lab that is mounted
at LAB.  For each line "SECONDS" on stdin it works for so long and prints a line of JSON: the longest time of
each call in seconds, also of a call that is still under way (`STUCK` seconds after the end at most).  Calls
that begin with "control" are made in another lab, mounted at CONTROL.  They show how busy the machine is.

Each `Client` has a thread, so a call that is stuck keeps no other client from its calls.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.labs import Vgpu
from tests.vfio.client import (
    DEVICE_GET_INFO,
    PAGE,
    READ,
    WRITE,
    Container,
    DeviceInfo,
    Group,
    ioctl,
)
from tests.vfio.devices import MSIX, NONE, TRIGGER, Device, Opened, group_device, signals
from tests.vfio.gpu_client import Gpu, client_memory, copy

PAUSE = 0.003
"""Seconds between two calls of a client."""
STUCK = 0.6
IOVA = 1 << 30
Calls = dict[str, Callable[[], object]]


class Client:
    """A thread that makes `calls`, one after the other, while `busy` is set."""

    def __init__(self, name: str, calls: Calls) -> None:
        self.calls = {f"{name}: {what}": call for what, call in calls.items()}
        self.worst: dict[str, float] = {}
        self.under_way: tuple[str, float] | None = None
        self.busy = threading.Event()
        self.failed: Exception | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            for what, call in itertools.cycle(self.calls.items()):
                self.busy.wait()
                begin = time.monotonic()
                self.under_way = (what, begin)
                call()
                self.under_way = None
                self._took(what, time.monotonic() - begin)
                time.sleep(PAUSE)
        except Exception as error:
            self.failed = error

    def _took(self, what: str, seconds: float) -> None:
        self.worst[what] = max(seconds, self.worst.get(what, 0.0))

    def result(self) -> dict[str, float]:
        """The longest times since the last result.  Raises what a call raised."""
        if self.failed is not None:
            raise self.failed
        under_way, result = self.under_way, self.worst
        if under_way is not None:
            what, begin = under_way
            result[what] = max(time.monotonic() - begin, result.get(what, 0.0))
        self.worst = {}
        return result


class Place:
    """The vGPUs of one parent in the lab at `path`, with what tests.labs' Vgpu asks of a lab."""

    def __init__(self, path: Path, parent: str, type_name: str) -> None:
        self.path, self.type_name = path, type_name
        self.mdevs = path / "sys/bus/mdev/devices"
        self.gpu = (path / "sys/class/mdev_bus" / parent).resolve()

    def create(self) -> Vgpu:
        name = str(uuid.uuid4())
        (self.gpu / "mdev_supported_types" / self.type_name / "create").write_text(name)
        return Vgpu(self, name)  # type: ignore[arg-type]

    def create_and_destroy(self) -> None:
        """Through the RFC's face, as somebody who looks at it in between."""
        identity = uuid.uuid4()
        (self.gpu / "vgpu_create").write_text(f"{identity}:0:{self.type_name}\n")
        assert f"{identity}-0" in os.listdir(self.mdevs)
        (self.gpu / "vgpu_destroy").write_text(f"{identity}:0\n")
        assert not (self.mdevs / f"{identity}-0").exists()


def look(vgpu: Vgpu) -> Calls:
    """What `cat` and `ls` do, also in a directory that everybody's vGPUs come and go in."""
    group, mdevs = vgpu.path / "iommu_group", vgpu.lab.mdevs
    return {
        "read an attribute": (vgpu.path / "mdev_type/available_instances").read_text,
        "stat": lambda: os.stat(vgpu.path / "vfio-dev"),
        "readlink": lambda: os.readlink(group),
        "list a directory": lambda: os.listdir(vgpu.path),
        "list all vGPUs": lambda: os.listdir(mdevs),
        "look for a name": lambda: os.path.exists(mdevs / str(uuid.uuid4())),
    }


def use_file(vgpu: Vgpu) -> Calls:
    """Opens of a device's file."""

    def use() -> None:
        with Device(vgpu.open()) as device:
            device.ioctl(DEVICE_GET_INFO, DeviceInfo())
            assert device.config(0) == 0x1234

    return {"open, bind, ask, read and close a device": use}


class Holder:
    """An open vGPU with a container, an interrupt and an engine."""

    def __init__(self, vgpu: Vgpu) -> None:
        self.container, self.group = Container(vgpu.lab.path), Group(vgpu.lab.path, vgpu.group)
        self.group.set_container(self.container)
        self.container.set_iommu()
        self.device = Device(group_device(vgpu.lab.path, self.group, vgpu.name))
        self.memory, self.event = client_memory(16 * PAGE, "private"), os.eventfd(0, os.EFD_CLOEXEC)
        opened = Opened(self.container, self.group, self.device, vgpu.name)
        self.gpu = Gpu(opened, self.memory)
        self.container.map(self.gpu.iova, self.memory.address, self.memory.size)
        self.gpu.start()

    def interrupt(self) -> None:
        self.device.eventfds(MSIX, TRIGGER, 0, self.event)
        self.device.irqs(MSIX, NONE | TRIGGER, 0, 1)
        assert signals(self.event)
        self.device.tear_down(MSIX)

    def map(self) -> None:
        self.container.map(IOVA, self.memory.address, PAGE, READ | WRITE)
        assert self.container.unmap(IOVA, PAGE) == PAGE

    def read(self) -> None:
        assert ioctl(self.device.fd, DEVICE_GET_INFO, ctypes.byref(DeviceInfo())) == 0
        assert self.device.config(0) == 0x1234

    def draw(self) -> None:
        self.gpu.finish(copy(0, self.gpu.base, 64))


def join(vgpu: Vgpu) -> Calls:
    """A group that joins and leaves a container."""
    container, group = Container(vgpu.lab.path), Group(vgpu.lab.path, vgpu.group)

    def once() -> None:
        group.set_container(container)
        group.unset_container()

    return {"SET_CONTAINER": once}


def clients(lab: Place, control: Place) -> list[Client]:
    holder, other = Holder(lab.create()), control.create()
    return [
        Client("tree", look(lab.create())),
        Client("device file", use_file(lab.create())),
        Client("device", {"ask and read": holder.read, "SET_IRQS and interrupt": holder.interrupt}),
        Client("container", {"MAP_DMA and UNMAP_DMA": holder.map}),
        Client("engine", {"a copy": Holder(lab.create()).draw}),
        Client("group", join(lab.create())),
        Client("parent", {"vgpu_create and vgpu_destroy": lab.create_and_destroy}),
        Client("control", {**look(other), **use_file(other), "create": control.create_and_destroy}),
    ]


def measure(everybody: list[Client], seconds: float) -> dict[str, float]:
    """Let everybody work for so long, then wait for the calls under way."""
    for client in everybody:
        client.result()
        client.busy.set()
    time.sleep(seconds)
    for client in everybody:
        client.busy.clear()
    end = time.monotonic() + STUCK
    while any(client.under_way for client in everybody) and time.monotonic() < end:
        time.sleep(0.005)
    return {what: seconds for client in everybody for what, seconds in client.result().items()}


def main() -> None:
    path, parent, type_name, control = sys.argv[1:]
    everybody = clients(Place(Path(path), parent, type_name), Place(Path(control), parent, type_name))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(everybody, float(line))), flush=True)
    os._exit(0)  # a client may be stuck


if __name__ == "__main__":
    main()
