# SPDX-License-Identifier: Apache-2.0
"""Who may have a group of several functions: drivers, containers and iommufds against a small model, in every
order that a search finds."""

from __future__ import annotations

import errno
import threading
import time

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from devmodel.iommu.api import Extension
from devmodel.iommufd.context import Context
from devmodel.lifecycle.function import VFIO_PCI
from devmodel.lifecycle.iommugroup import IommuGroup
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.spec import FunctionSpec, LabSpec
from devmodel.models.plain import PlainSpec, plain_model
from devmodel.vfio.cdev import CdevFile
from devmodel.vfio.container import Container
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.groupfile import GroupFile, open_group
from tests.unit.fakes import fails
from tests.unit.test_lab import Recorder

HOSTS = {"0000:01:00.0": "gfx", "0000:01:00.1": "snd", "0000:01:00.2": "pci-stub"}
NAMES = st.sampled_from(tuple(HOSTS))


class Viability(RuleBasedStateMachine):
    """Three functions of one device, whose host drivers do DMA, but for one."""

    @initialize(begin=st.lists(st.sampled_from((None, VFIO_PCI, VFIO_PCI, "host")), min_size=3, max_size=3))
    def start(self, begin: list[str | None]) -> None:
        model = plain_model(PlainSpec())
        recorder = Recorder()
        functions = tuple(FunctionSpec(name, model, driver) for name, driver in HOSTS.items())
        recorder.lab = self.lab = Lab(LabSpec((), functions=functions), recorder)
        self.functions = {name: self.lab.drivers.functions[name] for name in HOSTS}
        (group,) = {function.group for function in self.functions.values()}
        assert isinstance(group, IommuGroup)
        self.group = group
        self.drivers: dict[str, str | None] = dict(HOSTS)
        self.container, self.contexts = Container(), (Context(), Context())
        self.file: GroupFile | None = None
        self.joined = self.revoked = False
        self.devices: dict[str, DeviceFile] = {}
        self.cdevs: dict[str, tuple[CdevFile, Context]] = {}
        for name, driver in zip(HOSTS, begin, strict=True):
            if driver != "host":
                self.unbind(name)
            if driver == VFIO_PCI:
                self.bind_vfio(name)

    # ---- the model ----

    @property
    def host_users(self) -> int:
        return sum(driver in ("gfx", "snd") for driver in self.drivers.values())

    @property
    def open(self) -> bool:
        """Whether the group's file is in use, or a device of it."""
        return self.file is not None and not self.revoked

    @property
    def owner(self) -> object:
        if self.joined and not self.revoked:
            return self.container
        return next((context for _, context in self.cdevs.values()), None)

    @property
    def driven(self) -> set[str]:
        return {name for name, driver in self.drivers.items() if driver == VFIO_PCI}

    # ---- drivers ----

    @rule(name=NAMES)
    def bind_host(self, name: str) -> None:
        function, host = self.functions[name], HOSTS[name]
        function.driver_override = None
        if self.drivers[name] is not None:
            fails(errno.EBUSY, self.lab.drivers.bind, function, host)
        elif host != "pci-stub" and self.owner is not None:
            fails(errno.EBUSY, self.lab.drivers.bind, function, host)
            fails(errno.EINVAL, self.lab.drivers.attach, function)
        else:
            self.lab.drivers.bind(function, host)
            self.drivers[name] = host

    @rule(name=NAMES)
    def bind_vfio(self, name: str) -> None:
        function = self.functions[name]
        function.driver_override = VFIO_PCI
        if self.drivers[name] is not None:
            fails(errno.EBUSY, self.lab.drivers.bind, function, VFIO_PCI)
        else:
            self.lab.drivers.bind(function, VFIO_PCI)
            self.drivers[name] = VFIO_PCI

    @rule(name=NAMES)
    def unbind(self, name: str) -> None:
        function, driver = self.functions[name], self.drivers[name]
        if driver is None:
            fails(errno.ENODEV, self.lab.drivers.unbind, function, HOSTS[name])
        elif name in self.devices or name in self.cdevs:
            fails(errno.EBUSY, self.lab.drivers.unbind, function, driver)
        else:
            self.lab.drivers.unbind(function, driver)
            self.drivers[name] = None
            if driver == VFIO_PCI and not self.driven:
                self.revoked = self.file is not None

    @rule(name=NAMES)
    def remove_and_find_again(self, name: str) -> None:
        if name in self.devices or name in self.cdevs:
            fails(errno.EBUSY, self.lab.hotplug.remove, self.functions[name])
            return
        was_driven = bool(self.driven)
        self.lab.hotplug.remove(self.functions[name])
        self.drivers[name] = None
        if was_driven and not self.driven:
            self.revoked = self.file is not None
        self.lab.hotplug.rescan("pci")
        found = self.functions[name] = self.lab.drivers.functions[name]
        if HOSTS[name] == "pci-stub" or self.owner is None:
            self.drivers[name] = HOSTS[name]
        assert found.group is self.group and len(self.group.members) == len(HOSTS)

    # ---- containers ----

    @precondition(lambda self: self.file is None)
    @rule()
    def open_group(self) -> None:
        if not self.driven:
            fails(errno.ENODEV, open_group, self.group)
        elif self.cdevs:
            fails(errno.EBUSY, open_group, self.group)
        else:
            self.file = open_group(self.group)

    @precondition(lambda self: self.open)
    @rule()
    def set_container(self) -> None:
        assert self.file is not None
        if self.joined:
            fails(errno.EINVAL, self.file.set_container, self.container)
        elif self.host_users:
            fails(errno.EPERM, self.file.set_container, self.container)
        else:
            self.file.set_container(self.container)
            self.container.set_iommu(Extension.TYPE1V2)
            self.joined = True

    @precondition(lambda self: self.open and self.joined)
    @rule()
    def unset_container(self) -> None:
        assert self.file is not None
        if self.devices:
            fails(errno.EBUSY, self.file.unset_container)
        else:
            self.file.unset_container()
            self.joined = False

    @precondition(lambda self: self.open)
    @rule(name=NAMES)
    def get_device(self, name: str) -> None:
        assert self.file is not None
        if name in self.devices:
            return
        if name not in self.driven:
            fails(errno.ENODEV, DeviceFile.named, self.file, name)
        elif not self.joined:
            fails(errno.EINVAL, DeviceFile.named, self.file, name)
        else:
            self.devices[name] = DeviceFile.named(self.file, name)

    @rule(name=NAMES)
    def close_device(self, name: str) -> None:
        if name in self.devices:
            self.devices.pop(name).close()

    @precondition(lambda self: self.file is not None and not self.devices)
    @rule()
    def close_group(self) -> None:
        assert self.file is not None
        self.file.close()
        self.file, self.joined, self.revoked = None, False, False

    # ---- iommufds ----

    @rule(name=NAMES, which=st.integers(0, 1))
    def bind_iommufd(self, name: str, which: int) -> None:
        if name not in self.driven or name in self.cdevs:
            return
        context, file = self.contexts[which], CdevFile(self.functions[name])
        if self.open:
            fails(errno.EBUSY, file.bind, None, lambda: context)
        elif self.host_users or self.owner not in (None, context):
            fails(errno.EPERM, file.bind, None, lambda: context)
        else:
            file.bind(None, lambda: context)
            self.cdevs[name] = (file, context)
            return
        file.close()

    @rule(name=NAMES)
    def close_cdev(self, name: str) -> None:
        if name in self.cdevs:
            self.cdevs.pop(name)[0].close()

    # ---- what always holds ----

    @invariant()
    def drivers_are_as_the_model_says(self) -> None:
        assert {name: each.driver for name, each in self.functions.items()} == self.drivers
        assert {device.name for device in self.group.devices} == self.driven

    @invariant()
    def a_group_has_one_owner(self) -> None:
        assert self.group.host_users == self.host_users
        assert not (self.owner is not None and self.host_users)
        assert self.group.domain is self.owner

    @invariant()
    def the_status_tells_it(self) -> None:
        if self.file is None:
            return
        if self.revoked:
            fails(errno.ENODEV, self.file.status)
        else:
            assert self.file.status() == (self.joined or not self.host_users, self.joined)

    def teardown(self) -> None:
        for device in self.devices.values():
            device.close()
        for file, _ in self.cdevs.values():
            file.close()
        if self.file is not None:
            self.file.close()
        assert not self.group.holders and self.group.opened is None and not self.container.groups
        self.lab.close()


TestViability = Viability.TestCase
TestViability.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_a_driver_and_a_client_never_both_have_a_group() -> None:
    """A driver that binds and a client that joins race for it."""
    model, recorder = plain_model(PlainSpec()), Recorder()
    specs = tuple(FunctionSpec(name, model, driver) for name, driver in HOSTS.items())
    recorder.lab = lab = Lab(LabSpec((), functions=specs), recorder)
    gpu, audio = (lab.drivers.functions[name] for name in tuple(HOSTS)[:2])
    group, container = gpu.group, Container()
    for function in (gpu, audio):
        lab.drivers.unbind(function, HOSTS[function.name])
    gpu.driver_override = VFIO_PCI
    lab.drivers.bind(gpu, VFIO_PCI)
    file, ended = open_group(group), threading.Event()
    won, wrong = {"driver": 0, "client": 0}, list[str]()

    def client() -> None:
        while not ended.is_set():
            try:
                file.set_container(container)
            except OSError as error:
                if error.errno != errno.EPERM:
                    wrong.append(str(error))
                continue
            won["client"] += 1
            if group.host_users:
                wrong.append("a driver has it, too")
            file.unset_container()

    thread = threading.Thread(target=client)
    thread.start()
    end = time.monotonic() + 0.5
    while time.monotonic() < end or not (wrong or all(won.values())):
        try:
            lab.drivers.bind(audio, "snd")
        except OSError as error:
            assert error.errno == errno.EBUSY
            continue
        won["driver"] += 1
        with group.lock:
            assert group.domain is None
        lab.drivers.unbind(audio, "snd")
    ended.set()
    thread.join()
    file.close()
    lab.close()
    assert not wrong and all(won.values())
