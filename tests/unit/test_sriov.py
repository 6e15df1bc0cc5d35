# SPDX-License-Identifier: Apache-2.0
"""SR-IOV without a mount: what virtual functions are and take, and that all of them or none come."""

import errno
import struct
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from devmodel.device.pci import PciDevice, PciRegion
from devmodel.device.tasks import TaskHost
from devmodel.lifecycle.binding import function_of
from devmodel.lifecycle.function import VFIO_PCI
from devmodel.lifecycle.functionmodels import as_hardware, lacks
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.physical import PhysicalFunction, VirtualFunction
from devmodel.lifecycle.spec import FunctionSpec, LabSpec, ParentSpec, TypeSpec, VfSpec
from devmodel.models.gpu import Vgpu
from devmodel.pci import regs
from devmodel.pci.capability import ExtendedCapability, alternative_routing
from devmodel.pci.config import ConfigSpace
from devmodel.pci.fields import Identity
from devmodel.pci.ids import ANY, PciId, parse_new_id, parse_pci_id
from devmodel.pci.regs import Command, ExtCapId, Reg
from devmodel.vfio.devicefile import DeviceFile
from tests.unit.clocks import Clock
from tests.unit.fakes import fails, function_spec, gpu_parent, parent_of
from tests.unit.test_lab import BDF, MIB, Recorder

TYPES = (TypeSpec("vgpu-4", "a quarter", Vgpu, memory=4 * MIB),)


def with_vfs(
    vfs: int = 4, name: str = BDF, model: type[PciDevice] = Vgpu, memory: int = 0, iommu: bool = True
) -> ParentSpec:
    """A GPU with such virtual functions, none with 0."""
    vf = VfSpec(vfs, model, memory) if vfs else None
    return gpu_parent(name, TYPES, 16 * MIB, slots=5, vf=vf, iommu=iommu)


GPU = with_vfs()
MODEL = Identity(0x1234, 0x4321, 0x1AF4, 0x1100, class_code=0x120000, irq_pin=1)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def lab(recorder: Recorder) -> Iterator[Lab]:
    recorder.lab = made = Lab(LabSpec((GPU,)), recorder)
    yield made
    made.close()


@pytest.fixture
def gpu(lab: Lab) -> PhysicalFunction:
    return function_of(lab.parents[BDF])


def at(name: str, vfs: int = 0) -> FunctionSpec:
    return function_spec(with_vfs(vfs, name))


def to_vfio(lab: Lab, gpu: PhysicalFunction) -> None:
    gpu.driver_override = VFIO_PCI
    lab.drivers.unbind(gpu, "vgpu")
    lab.drivers.attach(gpu)


def capability(gpu: PhysicalFunction) -> tuple[int, ...]:
    """Control, initial, total and enabled functions, offset, stride, device id."""
    place = gpu.device.config.extended(ExtCapId.SRIOV)
    return struct.unpack_from("<H2xHHH2xHH2xH", gpu.device.config.read(place + 8, 20))


# ---- extended capabilities ----


def config(*extended: ExtendedCapability, size: int = 4096) -> ConfigSpace:
    return ConfigSpace(MODEL, {}, (), size, extended)


def test_extended_capabilities_are_a_chain() -> None:
    other = ExtendedCapability(0x0B, b"abcde", b"\xff\x0f\0\0\0", version=2)
    space = config(alternative_routing(), other, ExtendedCapability(0x23, b"", b""))
    assert space.value(0x100, 4) == 0x0E | 1 << 16 | 0x108 << 20
    assert space.value(0x108, 4) == 0x0B | 2 << 16 | 0x114 << 20
    assert space.value(0x114, 4) == 0x23 | 1 << 16
    assert (space.read(0x10C, 5), space.extended(0x0B)) == (b"abcde", 0x108)
    space.write(0x100, bytes(4))
    space.write(0x10C, b"\xff" * 5)
    assert space.value(0x100, 2) == 0x0E
    assert space.read(0x10C, 5) == b"\xffocde"
    with pytest.raises(ValueError, match="no extended capability"):
        space.extended(0x10)


@pytest.mark.parametrize(
    ("size", "sizes"), [(256, [4]), (4096, [3841]), (4096, [1920, 1921]), (4096, [4092, 0])]
)
def test_extended_capabilities_have_to_fit(size: int, sizes: list[int]) -> None:
    caps = [ExtendedCapability(index, bytes(each), bytes(each)) for index, each in enumerate(sizes, 1)]
    with pytest.raises(ValueError, match="does not fit"):
        config(*caps, size=size)


def test_an_extended_capability_is_there_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        config(alternative_routing(), alternative_routing())


# ---- enabling and disabling ----


def test_the_capability_says_what_there_is(lab: Lab, gpu: PhysicalFunction) -> None:
    ari, enabled = regs.SRIOV_CTRL_ARI, regs.SRIOV_CTRL_VFE | regs.SRIOV_CTRL_MSE
    assert capability(gpu) == (ari, 4, 4, 0, 4, 1, 0x1111)
    lab.sriov.set_count(gpu, 3)
    assert capability(gpu) == (ari | enabled, 4, 4, 3, 4, 1, 0x1111)
    gpu.device.reset()
    gpu.device.write(PciRegion.CONFIG, gpu.device.config.extended(ExtCapId.SRIOV) + 8, bytes(16))
    assert capability(gpu)[0::3] == (ari | enabled, 3, 0x1111)
    lab.sriov.set_count(gpu, 0)
    assert capability(gpu) == (ari, 4, 4, 0, 4, 1, 0x1111)


def test_a_client_that_closes_leaves_the_capability_alone(lab: Lab, gpu: PhysicalFunction) -> None:
    """Its other registers are those of before the open; this one is the host's, who has changed it since."""
    to_vfio(lab, gpu)
    lab.vfio.enable_sriov = True
    hold = DeviceFile(gpu)
    lab.sriov.set_count(gpu, 3)
    hold.close()
    assert capability(gpu)[3] == 3
    hold = DeviceFile(gpu)
    lab.sriov.set_count(gpu, 0)
    hold.close()
    assert capability(gpu)[3] == 0


def test_virtual_functions_take_what_vgpus_take(lab: Lab, gpu: PhysicalFunction, recorder: Recorder) -> None:
    parent = parent_of(gpu)
    mdev = lab.create(parent.types["vgpu-4"], UUID(int=1))
    fails(errno.ENOSPC, lab.sriov.set_count, gpu, 4)
    lab.sriov.set_count(gpu, 3)
    assert (parent.memory_free, parent.slots_free) == (0, 1)
    fails(errno.ENOSPC, lab.create, parent.types["vgpu-4"], UUID(int=2))
    lab.sriov.set_count(gpu, 0)
    assert (parent.memory_free, parent.slots_free) == (12 * MIB, 4)
    lab.remove(mdev)
    names = ["0000:86:00.4", "0000:86:00.5", "0000:86:00.6"]
    assert [what for what in recorder.seen if what[1] in names] == [
        *(("added", name) for name in names),
        *(("removed", name) for name in names),
    ]


def test_counts_that_are_refused(lab: Lab, gpu: PhysicalFunction) -> None:
    fails(errno.ERANGE, lab.sriov.set_count, gpu, 5)
    lab.sriov.set_count(gpu, 0)
    lab.sriov.set_count(gpu, 2)
    lab.sriov.set_count(gpu, 2)
    for count in (1, 3, 4):
        fails(errno.EBUSY, lab.sriov.set_count, gpu, count)
    fails(errno.ERANGE, lab.sriov.set_count, gpu, 5)
    lab.drivers.unbind(gpu, "vgpu")
    fails(errno.ENOENT, lab.sriov.set_count, gpu, 1)
    lab.sriov.set_count(gpu, 0)


def test_a_function_without_sriov_has_none() -> None:
    spec = with_vfs(0)
    lab = Lab(LabSpec((spec,)), Recorder())
    fails(errno.ENODEV, lab.sriov.set_count, function_of(lab.parents[BDF]), 1)
    lab.close()


def test_all_or_none(lab: Lab, gpu: PhysicalFunction, recorder: Recorder) -> None:
    before = dict(lab.groups), dict(lab.drivers.functions), list(gpu.bus)
    seen = recorder.seen

    class Second(list[tuple[str, str]]):
        def append(self, item: tuple[str, str]) -> None:
            super().append(item)
            if item == ("added", "0000:86:00.5"):
                raise RuntimeError("the tree has no room")

    recorder.seen = Second()
    with pytest.raises(RuntimeError, match="no room"):
        lab.sriov.set_count(gpu, 4)
    recorder.seen = seen
    assert (lab.groups, lab.drivers.functions, gpu.bus) == before
    assert (gpu.vfs, parent_of(gpu).memory_free, parent_of(gpu).slots_free) == ([], 16 * MIB, 5)
    assert capability(gpu)[3] == 0
    lab.sriov.set_count(gpu, 4)
    assert [vf.group.number for vf in gpu.vfs] == [2, 3, 4, 5]


def test_a_virtual_function_in_use_keeps_them_all(lab: Lab, gpu: PhysicalFunction) -> None:
    lab.sriov.set_count(gpu, 3)
    for vf in gpu.vfs:
        vf.driver_override = VFIO_PCI
        lab.drivers.attach(vf)
    hold = DeviceFile(gpu.vfs[1])
    fails(errno.EBUSY, lab.sriov.set_count, gpu, 0)
    assert [vf.gone for vf in gpu.vfs] == [False] * 3
    assert capability(gpu)[3] == 3
    hold.close()
    vfs = gpu.vfs.copy()
    lab.sriov.set_count(gpu, 0)
    assert [vf.gone for vf in vfs] == [True] * 3 and gpu.vfs == []
    for vf in vfs:
        fails(errno.ENODEV, lambda vf=vf: vf.device.read(0, 0, 1))
    fails(errno.ENODEV, DeviceFile, vfs[1])


def test_a_driver_that_leaves_takes_vgpus_and_virtual_functions_with_it(
    lab: Lab, gpu: PhysicalFunction, recorder: Recorder
) -> None:
    """All or nothing: one of either kind that is held keeps them all."""
    mdev = lab.create(next(iter(parent_of(gpu).types.values())), UUID(int=1))
    lab.sriov.set_count(gpu, 2)
    vfs = gpu.vfs.copy()
    vfs[0].driver_override = VFIO_PCI
    lab.drivers.attach(vfs[0])
    seen = len(recorder.seen)
    for held in (DeviceFile(mdev), DeviceFile(vfs[0])):
        fails(errno.EBUSY, lab.drivers.unbind, gpu, "vgpu")
        assert (mdev.gone, vfs[0].gone, gpu.vfs, recorder.seen[seen:]) == (False, False, vfs, [])
        held.close()
    lab.drivers.unbind(gpu, "vgpu")
    assert recorder.seen[seen:] == [
        ("unbound", vfs[0].name),
        ("removed", vfs[0].name),
        ("removed", vfs[1].name),
        ("removed", mdev.name),
        ("unbound", gpu.name),
    ]
    assert not lab.mdevs and not gpu.vfs and capability(gpu)[3] == 0
    assert parent_of(gpu).memory_free == parent_of(gpu).spec.memory


def test_virtual_functions_of_a_function_that_is_no_parent() -> None:
    spec = replace(at(BDF, 4), parent=None)
    recorder = Recorder()
    recorder.lab = lab = Lab(LabSpec((), functions=(spec,)), recorder)
    function = lab.drivers.find(BDF)
    assert isinstance(function, PhysicalFunction) and function.parent is None and not lab.parents
    lab.sriov.set_count(function, 4)
    assert [vf.name for vf in function.vfs] == [f"0000:86:00.{number}" for number in range(4, 8)]
    lab.drivers.unbind(function, "vgpu")
    assert not function.vfs and function.driver is None
    lab.hotplug.remove(function)
    lab.hotplug.rescan("pci")
    assert lab.drivers.find(BDF).driver == "vgpu"
    lab.close()


def test_virtual_functions_of_one_bus_are_reset_together(lab: Lab, gpu: PhysicalFunction) -> None:
    lab.sriov.set_count(gpu, 2)
    assert gpu.bus == [gpu, *gpu.vfs] and gpu.vfs[0].bus is gpu.bus
    recorder = Recorder()
    recorder.lab = other = Lab(LabSpec((), functions=(at("0000:86:1f.4", 4),)), recorder)
    physical = other.drivers.find("0000:86:1f.4")
    assert isinstance(physical, PhysicalFunction)
    other.sriov.set_count(physical, 4)
    assert physical.bus == [physical]
    assert physical.vfs[0].bus == physical.vfs
    other.close()


# ---- what a virtual function is ----


@pytest.fixture
def vf(lab: Lab, gpu: PhysicalFunction) -> VirtualFunction:
    lab.sriov.set_count(gpu, 4)
    return gpu.vfs[2]


def test_a_virtual_function_has_no_intx_and_its_bars_behind_its_neighbours(
    gpu: PhysicalFunction, vf: VirtualFunction
) -> None:
    rows, physical = vf.device.resource_rows(), gpu.device.resource_rows()
    assert vf.device.identity == replace(Vgpu.identity, irq_pin=0)
    for index in vf.device.bar_map:
        size = vf.device.bar_map[index].size
        assert rows[index].start == physical[7 + index].start + 2 * size
        assert physical[7 + index].end - physical[7 + index].start + 1 == 4 * size
    assert vf.device.config.size == 4096
    assert vf.device.config.extended(ExtCapId.ARI) == 0x100


def test_its_memory_answers_whatever_the_command_register_says(vf: VirtualFunction) -> None:
    vf.device.write(PciRegion.CONFIG, Reg.COMMAND, bytes(2))
    assert vf.device.config.command == 0 and vf.device.undecoded == frozenset()
    vf.device.write(0, 0, b"memory")
    assert vf.device.read(0, 0, 6) == b"memory"


def test_it_is_no_bus_master_until_its_client_makes_it_one(vf: VirtualFunction) -> None:
    assert Command.MASTER not in vf.device.config.command
    vf.first_opened()
    assert not vf.device.may_dma()


@pytest.mark.parametrize("offset", range(0, 0x40, 3))
@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_what_the_hardware_lacks(offset: int, size: int) -> None:
    whole = bytearray(range(1, 129))
    whole[0:4], whole[0x10:0x28] = b"\xff" * 4, bytes(24)
    data = bytes(range(1, 129))[offset : offset + size]
    assert as_hardware(offset, data) == bytes(whole[offset : offset + size])
    assert lacks(offset) is (offset < 4 or 0x10 <= offset < 0x28)


# ---- drivers ----


def test_vfio_pci_has_the_functions_of_its_own(lab: Lab, gpu: PhysicalFunction) -> None:
    to_vfio(lab, gpu)
    fails(errno.ENOENT, lab.sriov.set_count, gpu, 1)
    lab.vfio.enable_sriov = True
    lab.sriov.set_count(gpu, 2)
    assert [(vf.driver, vf.driver_override) for vf in gpu.vfs] == [(VFIO_PCI, VFIO_PCI)] * 2
    hold = DeviceFile(gpu.vfs[1])
    fails(errno.EBUSY, lab.drivers.unbind, gpu, VFIO_PCI)
    assert (gpu.driver, gpu.gone, len(gpu.vfs)) == (VFIO_PCI, False, 2)
    hold.close()
    lab.drivers.unbind(gpu, VFIO_PCI)
    assert (gpu.vfs, gpu.vf_token, gpu.driver) == ([], None, None)


def test_the_bus_probes_only_if_it_may(lab: Lab, gpu: PhysicalFunction) -> None:
    lab.drivers.add_id(VFIO_PCI, PciId(0x1234, 0x1111))
    for bus, device, expected in ((True, True, 2), (False, True, 0), (True, False, 0)):
        lab.drivers.autoprobe, gpu.autoprobe = bus, device
        lab.sriov.set_count(gpu, 2)
        assert sum(vf.driver == VFIO_PCI for vf in gpu.vfs) == expected
        lab.sriov.set_count(gpu, 0)


def test_without_autoprobe_only_an_override_binds(lab: Lab, gpu: PhysicalFunction) -> None:
    gpu.autoprobe = False
    lab.sriov.set_count(gpu, 1)
    (vf,) = gpu.vfs
    lab.drivers.add_id(VFIO_PCI, PciId(0x1234, 0x1111))
    lab.drivers.attach(vf)
    assert vf.driver is None
    fails(errno.ENODEV, lab.drivers.bind, vf, VFIO_PCI)
    vf.driver_override = VFIO_PCI
    lab.drivers.attach(vf)
    assert vf.driver == VFIO_PCI


def test_without_iommu_there_is_none_for_virtual_functions(recorder: Recorder) -> None:
    recorder.lab = lab = Lab(LabSpec((with_vfs(iommu=False),)), recorder)
    gpu = function_of(lab.parents[BDF])
    lab.drivers.add_id(VFIO_PCI, PciId(0x1234, 0x1111))
    lab.sriov.set_count(gpu, 2)
    assert [(vf.group.noiommu, vf.driver) for vf in gpu.vfs] == [(True, None)] * 2
    fails(errno.EINVAL, lab.drivers.bind, gpu.vfs[0], VFIO_PCI)
    lab.vfio.enable_unsafe_noiommu_mode = True
    lab.drivers.attach(gpu.vfs[0])
    assert [vf.driver for vf in gpu.vfs] == [VFIO_PCI, None]
    lab.close()


def test_ids_given_to_a_driver(lab: Lab, vf: VirtualFunction) -> None:
    wrong, right = PciId(0x1234, 0x2222), PciId(0x1234, 0x1111)
    for identity in (wrong, right):
        lab.drivers.add_id(VFIO_PCI, identity)
        fails(errno.EEXIST, lab.drivers.add_id, VFIO_PCI, identity)
    assert vf.driver == VFIO_PCI
    lab.drivers.remove_id(VFIO_PCI, right)
    fails(errno.ENODEV, lab.drivers.remove_id, VFIO_PCI, right)
    assert vf.driver == VFIO_PCI
    lab.drivers.unbind(vf, VFIO_PCI)
    fails(errno.ENODEV, lab.drivers.bind, vf, VFIO_PCI)


def test_a_host_driver_takes_no_virtual_function(lab: Lab, vf: VirtualFunction) -> None:
    fails(errno.ENODEV, lab.drivers.bind, vf, "vgpu")
    vf.driver_override = "vgpu"
    fails(errno.ENODEV, lab.drivers.bind, vf, "vgpu")
    lab.drivers.attach(vf)
    assert vf.driver is None


def test_data_of_a_new_id_is_that_of_an_id_of_the_driver() -> None:
    ids = "1234 1111 1af4 1100 30000 ff0000"
    assert parse_new_id(ids) == parse_new_id(ids + " 0") == parse_pci_id(ids)
    with pytest.raises(ValueError, match="has data"):
        parse_new_id(ids + " 7")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1234 1111", PciId(0x1234, 0x1111)),
        ("0x1234 0X1111", PciId(0x1234, 0x1111)),
        ("1234\t1111\n", PciId(0x1234, 0x1111)),
        ("1234 1111 1af4 1100 30000 ff0000 7", PciId(0x1234, 0x1111, 0x1AF4, 0x1100, 0x30000, 0xFF0000)),
        ("1234 ffffffff", PciId(0x1234, ANY)),
        ("1234 1111 xyz 5", PciId(0x1234, 0x1111)),
        *((text, None) for text in ("", "1234", "1234:1111", "x 1111", "-1 1", "1234 123456789")),
    ],
)
def test_ids_as_text(text: str, expected: PciId | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="two hexadecimal numbers"):
            parse_pci_id(text)
    else:
        assert parse_pci_id(text) == expected


@pytest.mark.parametrize(
    ("identity", "matches"),
    [
        (PciId(0x1234, 0x4321), True),
        (PciId(ANY, ANY), True),
        (PciId(0x1234, 0x4321, 0x1AF4, 0x1100), True),
        (PciId(0x1234, 0x4321, ANY, 0x1101), False),
        (PciId(0x1234, 0x4322), False),
        (PciId(0x1235, 0x4321), False),
        (PciId(ANY, ANY, class_code=0x120000, class_mask=0xFF0000), True),
        (PciId(ANY, ANY, class_code=0x030000, class_mask=0xFF0000), False),
    ],
)
def test_what_an_id_means(identity: PciId, matches: bool) -> None:
    assert identity.matches(MODEL) is matches
    exact = PciId(0x1234, 0x4321, 0x1AF4, 0x1100, 0x120000, 0xFFFFFF)
    assert identity.covers(exact) is matches


# ---- any order ----


class Machine(RuleBasedStateMachine):
    """vGPUs, virtual functions and drivers of one GPU in any order: nothing is lost, nothing is twice."""

    @initialize(
        delay=st.sampled_from([0.0, 2.5]),
        driver=st.sampled_from([None, "vf"]),
        failing=st.sampled_from([frozenset(), frozenset({1, 2})]),
    )
    def start(self, delay: float, driver: str | None, failing: frozenset[int]) -> None:
        recorder, function = Recorder(), function_spec(GPU)
        assert function.vf is not None
        vf = replace(function.vf, delay=delay, driver=driver, failing=failing)
        spec = replace(GPU, hardware=replace(function, vf=vf))
        recorder.lab = self.lab = Lab(LabSpec((spec,)), recorder)
        self.gpu = function_of(self.lab.parents[BDF])
        self.holds: list[DeviceFile] = []
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(TaskHost, "begin", lambda host, task: self.clock.begin(task))
        self.patch.setattr(TaskHost, "end", lambda host, task: self.clock.end(task))

    @rule(count=st.integers(0, 5))
    def count(self, count: int) -> None:
        before, there = self.lab.sriov.count_of(self.gpu), list(self.gpu.vfs)
        try:
            self.lab.sriov.set_count(self.gpu, count)
        except OSError as error:
            assert error.errno in (errno.ERANGE, errno.ENOENT, errno.EBUSY, errno.ENOSPC)
            assert (self.lab.sriov.count_of(self.gpu), self.gpu.vfs) == (before, there)
        else:
            assert self.lab.sriov.count_of(self.gpu) == count
            assert len(self.gpu.vfs) == (0 if self.clock.tasks else count)

    @rule()
    def time_passes(self) -> None:
        count = self.lab.sriov.count_of(self.gpu)
        self.clock.strike()
        assert len(self.gpu.vfs) == self.lab.sriov.count_of(self.gpu) == count

    @rule()
    def removed_and_found(self) -> None:
        """Whatever was to come does not, and nothing of it is left."""
        if self.holds:
            return
        self.lab.hotplug.remove(self.gpu)
        assert not self.clock.tasks
        self.lab.hotplug.rescan("pci")
        self.gpu = function_of(self.lab.parents[BDF])

    @rule(number=st.integers(1, 5))
    def create(self, number: int) -> None:
        try:
            self.lab.create(parent_of(self.gpu).types["vgpu-4"], UUID(int=number))
        except OSError as error:
            assert error.errno in (errno.EEXIST, errno.ENOSPC, errno.ENODEV)

    @rule(number=st.integers(1, 5))
    def remove(self, number: int) -> None:
        if (UUID(int=number), 0) in self.lab.mdevs:
            self.lab.remove(self.lab.find(UUID(int=number)))

    @rule(index=st.integers(-1, 4), override=st.sampled_from([None, VFIO_PCI, "vgpu"]))
    def probe(self, index: int, override: str | None) -> None:
        functions = [*self.gpu.vfs, self.gpu]
        function = functions[index % len(functions)]
        function.driver_override = override
        self.lab.drivers.attach(function)

    @rule(index=st.integers(-1, 4))
    def unbind(self, index: int) -> None:
        functions = [*self.gpu.vfs, self.gpu]
        function = functions[index % len(functions)]
        try:
            self.lab.drivers.unbind(function, function.driver or "none")
        except OSError as error:
            assert error.errno in (errno.ENODEV, errno.EBUSY)

    @rule(index=st.integers(-1, 4))
    def hold(self, index: int) -> None:
        functions = [*self.gpu.vfs, self.gpu]
        try:
            self.holds.append(DeviceFile(functions[index % len(functions)]))
        except OSError as error:
            assert error.errno == errno.ENODEV

    @rule()
    def let_go(self) -> None:
        if self.holds:
            self.holds.pop().close()

    @rule(enabled=st.booleans())
    def enable_sriov(self, enabled: bool) -> None:
        self.lab.vfio.enable_sriov = enabled

    @invariant()
    def nothing_is_lost(self) -> None:
        parent, vfs = parent_of(self.gpu), self.gpu.vfs
        count = self.lab.sriov.count_of(self.gpu)
        assert len(vfs) == (0 if self.clock.tasks else count) and len(self.clock.tasks) <= 1
        assert capability(self.gpu)[3] == count
        used = len(parent.mdevs) + count
        assert parent.memory_free == 16 * MIB - used * 4 * MIB >= 0
        assert parent.slots_free == 5 - used
        functions = [self.gpu, *vfs]
        port = self.lab.ports["0000:86"]
        assert functions == self.gpu.bus
        assert set(self.lab.drivers.functions.values()) == {self.gpu, port, *vfs}
        assert all(not vf.probe_fails or vf.driver in (None, VFIO_PCI) for vf in vfs)
        groups = [each.group for each in (*functions, port, *parent.mdevs.values())]
        assert sorted(self.lab.groups) == sorted(group.number for group in groups)
        minors = [each.vfio_minor for each in functions if each.driver == VFIO_PCI]
        assert len(set(minors)) == len(minors) and None not in minors
        assert all(each.gone is (each.driver != VFIO_PCI) for each in functions)
        assert (self.gpu.vf_token is not None) is (self.gpu.driver == VFIO_PCI)

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
            self.lab.close()


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase
