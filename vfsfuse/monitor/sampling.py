# SPDX-License-Identifier: Apache-2.0
"""What the devices of a lab have done so far, again and again: the totals behind the rates of `vfsfuse top`.

`samples` gives plain tuples, which a question can send (vfsfuse.asking), and None in between, so that
whoever waits knows that the lab answers.  `Sample.of` makes an object of one.  Looking costs the lab little:
files are read for devices that have a client or were called, and for the first MOST_IDLE others.

The totals of calls are those of the file `counters`, which counts while it is open here
(vfsfuse/observe/counters.py), the others those of attributes.  State: of one series of samples.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from vfsfuse.asking import Refusal
from vfsfuse.monitor import files
from vfsfuse.monitor.inventory import PULSE, check, class_vgpus
from vfsfuse.monitor.processes import Client, Place, clients

PULSE_SECONDS = 0.1
MOST_ACTIVE = 400
MOST_IDLE = 100
MOST_COUNTERS = 64 << 20
"""Bytes of a line of counters."""
COUNTED = (
    *("reads", "writes", "ioctls", "dma_reads", "dma_read_bytes", "dma_writes", "dma_write_bytes"),
    *("interrupts", "dma_faults", "resets"),
)
"""What is taken of a device's counters."""
_ATTRIBUTES = ("engine_time_us", "vram_used", "vram_size", "pinned_pages", "dma_faults", "faults")


class Gpu(NamedTuple):
    """A parent of vGPUs: microseconds of its engine, bytes of video memory; None where it has none."""

    name: str
    engine_us: int | None
    used: int | None
    memory: int | None
    vgpus: int | None


class Device(NamedTuple):
    """A vGPU, or a PCI function in use.  `counts` has the totals of COUNTED since the first sample, None
    while they are not told.  `clients` are pids and names of processes."""

    name: str
    device: str
    type: str | None
    parent: str | None
    engine_us: int | None
    used: int | None
    memory: int | None
    pinned: int | None
    dma_faults: int | None
    failed: int | None
    counts: tuple[int, ...] | None
    clients: tuple[tuple[int, str], ...]


class Sample(NamedTuple):
    """The totals at one moment: `seconds` of a clock that only goes forward.  `vgpus` is how many there are,
    `uncounted` says why calls are not counted, None if they are."""

    seconds: float
    gpus: tuple[Gpu, ...]
    devices: tuple[Device, ...]
    vgpus: int
    clients: int
    unseen: int
    uncounted: str | None

    @classmethod
    def of(cls, item: tuple[Any, ...]) -> Sample:
        """The sample that `samples` gave as a tuple."""
        plain = cls(*item)
        gpus, devices = [Gpu(*each) for each in plain.gpus], [Device(*each) for each in plain.devices]
        return plain._replace(gpus=tuple(gpus), devices=tuple(devices))


def samples(place: Place, seconds: float) -> Iterator[tuple[Any, ...] | None]:
    """A sample now, and then every so many seconds, without end.  Raises Refusal, and OSError when the server
    is gone."""
    with Counters(place.path) as counters:
        sampler = _Sampler(place, counters)
        while True:
            end = time.monotonic() + seconds
            yield from sampler.sample()
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(PULSE_SECONDS, left))
                yield None


class Counters:
    """The open file `counters` of a lab.  `reason` says why there is none."""

    def __init__(self, lab: str) -> None:
        self._fd = -1
        self.reason: str | None = None
        try:
            self._fd = os.open(f"{lab}/counters", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            self.reason = "calls are counted for the lab's own user alone"
        except FileNotFoundError:
            self.reason = "the lab's server is an older one, which counts no calls"

    def __enter__(self) -> Counters:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def read(self) -> dict[str, tuple[int, ...]]:
        """The totals of COUNTED for each device that was called.  Raises Refusal if they cannot be understood
        (the server may be another one than ours)."""
        if self._fd < 0:
            return {}
        line = bytearray()
        while not line.endswith(b"\n"):
            part = os.read(self._fd, 1 << 20)
            line += part
            if not part or len(line) > MOST_COUNTERS:
                raise Refusal("counters: the file ends within a line, or the line does not end")
        try:
            return {
                str(name): tuple(_count(counts[each]) for each in COUNTED)
                for name, counts in json.loads(line)["devices"].items()
            }
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Refusal("counters: this is no line of vfsfuse's") from None


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("no count")
    return value


class _Sampler:
    """Takes samples."""

    def __init__(self, place: Place, counters: Counters) -> None:
        self._lab, self._place, self._counters = place.path, place, counters
        self._gpus: dict[str, str] = {}
        """The directory of each parent."""
        self._looked: set[str] = set()
        """Functions that were looked at: whether they are parents."""
        self._names: dict[str, tuple[str, str]] = {}
        """The name of a mediated vGPU in sys/class/vgpu and its path there, by its name as a device."""

    def sample(self) -> Iterator[tuple[Any, ...] | None]:
        check(self._lab)
        yield from self._find_gpus()
        gpus = [self._gpu(name, path) for name, path in self._gpus.items()]
        seen, unseen = clients(self._place)
        now, counts = time.monotonic(), self._counters.read()
        holders = self._holders(seen)
        active = sorted({*holders, *counts} - {""}, key=files.in_order)[:MOST_ACTIVE]
        if any(not self._is_known(device) for device in active):
            yield from self._find_names()
        found = [self._device(device, counts.get(device), holders.get(device, [])) for device in active]
        places = self._class_places()
        vendor = [gpu for gpu in gpus if gpu.vgpus and self._is_vendor(gpu.name)]
        virtual = [path for gpu in vendor for path in self._virtual_functions(gpu.name)]
        others = list(_first([*places, *virtual], {*active}, MOST_IDLE))
        idle = [each for name, path in others if (each := self._idle(name, path)) and each.type]
        vgpus = len(places) + sum(gpu.vgpus or 0 for gpu in vendor)
        yield (
            *(now, tuple(map(tuple, gpus)), tuple(tuple(each) for each in (*found, *idle) if each)),
            *(vgpus, len(seen), unseen, self._counters.reason),
        )

    # ---- parents ----

    def _find_gpus(self) -> Iterator[None]:
        functions = files.names(f"{self._lab}/sys/bus/pci/devices")
        new = [name for name in functions if name not in self._looked]
        for number, name in enumerate(new, start=1):
            path = f"{self._lab}/sys/bus/pci/devices/{name}"
            if files.number(f"{path}/vgpus") is not None:
                self._gpus[name] = path
            if not number % PULSE:
                yield None
        self._looked = set(functions)
        for name in files.names(f"{self._lab}/sys/class/mdev_bus"):
            self._gpus.setdefault(name, f"{self._lab}/sys/class/mdev_bus/{name}")
        self._gpus = {name: path for name, path in self._gpus.items() if os.path.isdir(path)}

    def _gpu(self, name: str, path: str) -> Gpu:
        memory, free = files.number(f"{path}/vram_total"), files.number(f"{path}/vram_free")
        used = None if memory is None or free is None else max(0, memory - free)
        vgpus = files.number(f"{path}/vgpus")
        return Gpu(name, files.number(f"{path}/engine_time_us"), used, memory, vgpus)

    def _is_vendor(self, name: str) -> bool:
        return os.path.exists(f"{self._gpus[name]}/vgpu_placement")

    def _virtual_functions(self, name: str) -> list[str]:
        path = self._gpus[name]
        return [f"{path}/{link}" for link in files.names(path) if link.startswith("virtfn")]

    # ---- devices ----

    def _holders(self, seen: list[Client]) -> dict[str, list[tuple[int, str]]]:
        """The clients of each device."""
        found: dict[str, list[tuple[int, str]]] = {}
        for client in seen:
            for device in {device for file in client.files for device in self._devices_of(file)}:
                found.setdefault(device, []).append((client.pid, client.comm))
        return found

    def _devices_of(self, file: str) -> list[str]:
        """The devices that a client has by one of its files."""
        kind, _, name = file.partition("/")
        if kind == "vfio" and name.startswith("devices/"):
            led = files.target(f"{self._lab}/sys/class/vfio-dev/{name.removeprefix('devices/')}") or ""
            return led.split("/")[-3:-2]
        if kind == "vfio":
            return files.names(f"{self._lab}/sys/kernel/iommu_groups/{name.removeprefix('noiommu-')}/devices")
        return [kind] if name else []

    def _is_known(self, device: str) -> bool:
        """Whether the device's place is known: that of a mediated vGPU, or it is a function."""
        _, path = self._names.get(device, ("", ""))
        led = files.target(path) if path else None
        return device in self._looked or (led is not None and os.path.basename(led) == device)

    def _find_names(self) -> Iterator[None]:
        self._names = {}
        base = f"{self._lab}/sys/class/vgpu"
        vendor = next(iter(files.names(base)), "")
        for name, directory in class_vgpus(self._lab):
            if directory:
                self._names[os.path.basename(directory)] = name, f"{base}/{vendor}/{name}"
            else:
                yield None

    def _class_places(self) -> list[str]:
        """The paths of the mediated vGPUs in sys/class/vgpu."""
        base = f"{self._lab}/sys/class/vgpu"
        found = (f"{base}/{vendor}" for vendor in files.names(base))
        return [f"{place}/{name}" for place in found if os.path.isdir(place) for name in files.names(place)]

    def _device(
        self, device: str, counts: tuple[int, ...] | None, holding: list[tuple[int, str]]
    ) -> Device | None:
        name, path = self._names.get(device, (device, f"{self._lab}/sys/bus/pci/devices/{device}"))
        if counts is None and self._counters.reason is None:
            counts = (0,) * len(COUNTED)
        return self._read(name, device, path, counts, tuple(holding))

    def _idle(self, name: str, path: str) -> Device | None:
        device = files.target_name(path)
        counts = (0,) * len(COUNTED) if self._counters.reason is None else None
        return None if device is None else self._read(name, device, path, counts, ())

    def _read(
        self,
        name: str,
        device: str,
        path: str,
        counts: tuple[int, ...] | None,
        holding: tuple[tuple[int, str], ...],
    ) -> Device | None:
        """None if the device is gone."""
        fd = files.open_directory(path)
        if fd is None:
            return None
        try:
            type_, parent, inside = self._kind(device, fd)
            engine, used, memory, pinned, dma_faults, failed = (
                files.number(f"{inside}{each}", fd) for each in _ATTRIBUTES
            )
            return Device(
                *(name, device, type_, parent, engine, used, memory, pinned, dma_faults, failed),
                *(counts, holding),
            )
        finally:
            os.close(fd)

    def _kind(self, device: str, fd: int) -> tuple[str | None, str | None, str]:
        """The type and the parent of a device, and where the files of its share are."""
        physfn = files.target_name("physfn", fd)
        if physfn is not None:
            number = files.text("nvidia/current_vgpu_type", fd)
            return (number, physfn, "vgpu/") if number not in (None, "0") else (None, physfn, "")
        type_ = files.target("mdev_type", fd)  # ../mdev_supported_types/<type>
        if type_ is None:
            return None, None, ""
        parent = os.path.basename(os.path.dirname(os.path.realpath(f"/proc/self/fd/{fd}")))
        return os.path.basename(type_), parent, ""


def _first(places: list[str], active: set[str], most: int) -> Iterator[tuple[str, str]]:
    """The first places of vGPUs that are not active, each with its name: a virtual function's is its
    address."""
    found = 0
    for path in places[: most + len(active)]:
        device, name = files.target_name(path), os.path.basename(path)
        if device is not None and device not in active:
            found += 1
            yield device if name.startswith("virtfn") else name, path
        if found == most:
            return
