# SPDX-License-Identifier: Apache-2.0
"""Reloads without a mount: what stays in memory, what a model may change, and what waits for whom."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
import trio

from devmodel.calls.point import CallPoint
from devmodel.device.own import is_own
from devmodel.device.pci import PciDevice
from devmodel.lifecycle.function import VFIO_PCI
from devmodel.lifecycle.mdev import Mdev
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.vendor import vgpu_of
from devmodel.models.gpu import PhysicalGpu, Vgpu
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.lingering import Renewing
from tests.commands import ROOT
from vfsfuse.kernfs.tree import Tree
from vfsfuse.labfile.code import load_with_code
from vfsfuse.labfile.include import read_with_includes
from vfsfuse.labfile.modules import FINDER
from vfsfuse.labfile.reader import read
from vfsfuse.reload.reloader import NotReloaded, Reloader
from vfsfuse.views.labview import LabView

MODEL = """
from devmodel.sdk import Bar, DeviceAttribute, Identity, Memory, Option, PciDevice, express

NUMBER = 1


class Card(PciDevice):
    identity = Identity(0x10DE, 0xCA5D, 0x10DE, 1, class_code=0x088000)
    OPTIONS = {"weight": Option(1, 1, 8)}
    ATTRIBUTES = [DeviceAttribute("number", lambda card: NUMBER), DeviceAttribute("a/b", lambda card: Card)]

    def bars(self):
        return {0: Bar(Memory(8192)), 2: Bar(Memory(4096))}

    def capabilities(self):
        return [express()]
"""
PLAIN, OTHER = "0000:05:00.0", "0000:06:00.0"
GPU = "0000:86:00.0"
VENDOR = "0000:c1:00.0"
LAB = f"""
[models]
card = "card.py:Card"
base = "base.py:Card"

[parents.cards]
kind = "virtual"
driver = "card"
model = "card"
slots = 8
types.card-1 = {{ description = "a card" }}

[parents."{GPU}"]
kind = "gpu"
model = "card"
driver = "gpud"
memory = "64M"
vfs = 4
vf_model = "card"
types.vgpu-1 = {{ description = "a vGPU of vfsfuse's", memory = "8M" }}

[parents."{VENDOR}"]
kind = "gpu"
driver = "nvidia"
framework = "nvidia"
vendor = 0x10de
device = 0x2ab0
memory = "64M"
slots = 16
vfs = 2
vf.enabled = 2
types.nvidia-4 = {{ description = "a quarter", model = "card", memory = "16M", slots = 4 }}

[functions."{PLAIN}"]
model = "card"
driver = "cardd"
vfs = 4
vf = {{ model = "card", driver = "cardd", enabled = 2 }}

[functions."{OTHER}"]
model = "base"
driver = "cardd"
vfs = 4
vf = {{ model = "card", driver = "cardd", enabled = 2 }}
"""
Body = Callable[["Bench"], Awaitable[None]]


class Bench:
    """A lab with models of its own, and what reloads them."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "card.py"
        self.file.write_text(MODEL)
        (folder / "base.py").write_text(MODEL)
        (folder / "lab.toml").write_text(LAB)
        spec, self.code = load_with_code(folder / "lab.toml")
        self.view = LabView(spec, Tree(), CallPoint())
        self.lab = self.view.lab
        self.reloader = Reloader(self.view, self.code, self._publish)

    async def _publish(self) -> None:
        self.view.tree.take_changes()

    async def reload(self, *pairs: tuple[str, str]) -> str:
        """Replace texts of the model file, and reload it."""
        text = self.file.read_text()
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        self.file.write_text(text)
        return await self.reloader.reload()

    def create(self, parent: str = "cards", type_: str = "card-1", **overrides: str) -> Mdev:
        number = len(self.lab.mdevs) + 1
        return self.lab.create(self.lab.parents[parent].types[type_], UUID(int=number), overrides=overrides)

    def function(self, name: str) -> PhysicalFunction:
        found = self.lab.drivers.find(name)
        assert isinstance(found, PhysicalFunction)
        return found

    def number(self, device: PciDevice) -> object:
        """What the first attribute of a card shows."""
        return type(device).ATTRIBUTES[0].show(device)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[Body], None]]:
    """Runs a test with a bench on the trio thread."""
    bench = Bench(tmp_path)

    async def main(body: Body) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.lab.tasks.serve)
            await body(bench)
            nursery.cancel_scope.cancel()

    yield lambda body: trio.run(main, body)
    bench.view.close()
    FINDER.beside.clear()


def card_of(device: object) -> PciDevice:
    assert isinstance(device, PciDevice)
    return device


def test_old_classes_are_collected(run: Callable[[Body], None]) -> None:
    async def body(bench: Bench) -> None:
        old: list[weakref.ref[type]] = []
        plain, gpu = bench.function(PLAIN), bench.function(GPU)
        bench.lab.sriov.set_count(gpu, 2)
        vgpus = [bench.create(), bench.create(GPU, "vgpu-1")]
        vendor = vgpu_of(bench.function(VENDOR).vfs[0])
        assert vendor is not None
        bench.lab.vendor.set_type(vendor, 4)
        modules = len(sys.modules)
        for number in range(2, 52):
            await bench.reload((f"NUMBER = {number - 1}", f"NUMBER = {number}"))
            devices = [card_of(each.device) for each in (plain, *plain.vfs, gpu, *gpu.vfs, *vgpus, vendor)]
            for device in devices:
                if is_own(type(device)):
                    assert bench.number(device) == number
                    old.append(weakref.ref(type(device)))
            for mdev in vgpus:  # the tree has classes of its own for them
                bench.view.vgpus.directory(mdev)
            directories = [bench.view.functions.directory(each) for each in (plain, *plain.vfs, gpu)]
            assert all("number" in each.by_name for each in directories)
            del devices, device, directories
        assert len(old) == 50 * 8
        gc.collect()
        alive = {number for number, each in enumerate(old) if each() is not None}
        assert alive <= set(range(49 * 8, 50 * 8)), "only the last ones are"
        assert len(sys.modules) == modules

    run(body)


def test_failed_code_is_collected(run: Callable[[Body], None]) -> None:
    async def body(bench: Bench) -> None:
        bench.create()
        before = {id(each) for each in PciDevice.__subclasses__()}
        for _ in range(3):
            with pytest.raises(NotReloaded):
                await bench.reload(("NUMBER = 1\n", "NUMBER = 1\n1 / 0\n"))
            bench.file.write_text(MODEL.replace("8192", "16384"))
            with pytest.raises(NotReloaded, match="BAR 0 needs 16384 bytes, and has 8192 bytes"):
                await bench.reload()
            bench.file.write_text(MODEL)
        gc.collect()
        assert {id(each) for each in PciDevice.__subclasses__()} <= before

    run(body)


def test_built_in_models_stay(run: Callable[[Body], None]) -> None:
    async def body(bench: Bench) -> None:
        vendor = bench.function(VENDOR)
        device, vf = vendor.device, vendor.vfs[0].device
        assert isinstance(device, PhysicalGpu)
        await bench.reload()
        assert (vendor.device, vendor.vfs[0].device) == (device, vf)

    run(body)


def test_physical_function_is_renewed_with_its_vgpus(run: Callable[[Body], None]) -> None:
    async def body(bench: Bench) -> None:
        gpu, mdev = bench.function(GPU), bench.create(GPU, "vgpu-1")
        old = card_of(mdev.device)
        client = DeviceFile(mdev)
        said = await bench.reload(("NUMBER = 1", "NUMBER = 2"))
        assert said.endswith(f"2 when their clients close them: {GPU}, vgpu0")
        assert (bench.number(gpu.device), mdev.device) == (1, old)
        with closing(DeviceFile(mdev)):  # others may open it as well
            client.close()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.number(gpu.device) == 2
        assert isinstance(mdev.device, Vgpu) and mdev.device is not old

    run(body)


def test_open_waits_for_the_new_model(run: Callable[[Body], None]) -> None:
    async def body(bench: Bench) -> None:
        mdev = bench.create()
        client = DeviceFile(mdev)
        await bench.reload(("NUMBER = 1", "NUMBER = 2"))
        client.close()
        with pytest.raises(Renewing):
            DeviceFile(mdev)
        await trio.to_thread.run_sync(mdev.await_renewal, True)
        with closing(DeviceFile(mdev)):
            assert bench.number(card_of(mdev.device)) == 2

    run(body)


def test_removal_of_what_waits(run: Callable[[Body], None]) -> None:
    async def body(bench: Bench) -> None:
        mdev, plain = bench.create(), bench.function(PLAIN)
        bench.lab.drivers.unbind(plain, "cardd")
        plain.driver_override = VFIO_PCI
        bench.lab.drivers.attach(plain)
        clients = [DeviceFile(mdev), DeviceFile(plain)]
        assert "their clients close them: vgpu0, " in await bench.reload(("NUMBER = 1", "NUMBER = 2"))
        bench.lab.surprise_remove(mdev)
        bench.lab.hotplug.vanish_all((plain,))
        for client in clients:
            client.close()
        await trio.testing.wait_all_tasks_blocked()
        bench.lab.hotplug.rescan("pci")
        assert bench.number(bench.function(PLAIN).device) == 2
        assert await bench.reload() != ""

    run(body)


def test_virtual_functions_alone(run: Callable[[Body], None]) -> None:
    """The physical function stays as long as it shows the same of them."""

    async def body(bench: Bench) -> None:
        physical = bench.function(OTHER)
        virtual, device = physical.vfs[0], physical.device
        bench.file.write_text(MODEL.replace("NUMBER = 1", "NUMBER = 2"))
        said = await bench.reloader.reload(["card"])
        assert said == "6 devices are reloaded"
        assert (bench.number(virtual.device), bench.number(physical.device)) == (2, 1)
        assert physical.device is device
        bench.file.write_text(MODEL.replace("8192", "4096"))  # the SR-IOV capability says so
        said = await bench.reloader.reload(["card"])
        assert said == "7 devices are reloaded"
        assert physical.device is not device
        assert bench.lab.sriov.count_of(physical) == 2

    run(body)


def test_resources_of_a_vgpu_stay(run: Callable[[Body], None]) -> None:
    async def body(bench: Bench) -> None:
        changed, usual = bench.create(weight="3"), bench.create()
        await bench.reload(("Option(1, 1, 8)", "Option(2, 1, 8)"))
        assert (changed.share.options["weight"], usual.share.options["weight"]) == (3, 2)
        assert card_of(changed.device).options == {"weight": 3}
        with pytest.raises(NotReloaded, match="weight"):
            await bench.reload(("Option(2, 1, 8)", "Option(2, 1, 2)"))
        assert card_of(changed.device).options == {"weight": 3}
        await bench.reload(("Option(2, 1, 2)", "Option(2, 1, 4)"), ('"weight"', '"other"'))
        assert card_of(changed.device).options == {"other": 2}

    run(body)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_lab_file_can_be_read_twice(path: Path) -> None:
    """Reading it changes nothing of what it says."""
    source = read_with_includes(path)
    before = copy.deepcopy(source.content)
    first = read(source)
    assert source.content == before
    for one, other in zip(first.all_functions, read(source).all_functions, strict=True):
        assert (one.name, one.memory, one.net) == (other.name, other.memory, other.net)
