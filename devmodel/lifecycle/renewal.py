# SPDX-License-Identifier: Apache-2.0
"""New code for the models of a lab that runs: each device of such a model becomes a new one.

A device keeps its place, its names and its numbers, and loses its state as by a power cycle. One that a
client has open stays as it is until the last client has closed it. A physical function is renewed together
with its virtual functions and vGPUs, because their models hold its device.

State: the lifecycle thread's, under ``Lab.lock``.
Source: none; a kernel driver is reloaded by rmmod(8) and insmod(8), for which its devices are idle, too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from devmodel.device.base import Device
from devmodel.device.tasks import CODE_FAILED, TaskHost
from devmodel.lifecycle.binding import DriverCore, depending_on
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.hotplug import Hotplug
from devmodel.lifecycle.mdev import Mdev
from devmodel.lifecycle.physical import PhysicalFunction, Shape, VirtualFunction
from devmodel.lifecycle.renewalplan import Plan, Unfit, plan_of
from devmodel.lifecycle.resources import Share
from devmodel.lifecycle.spec import LabSpec, TypeSpec, exchange_model
from devmodel.lifecycle.sriov import SriovCore
from devmodel.lifecycle.vendor import VendorFramework, VendorVgpu, vgpu_of
from devmodel.vfio.group import Assignable

log = logging.getLogger(__name__)


class RenewalObserver(Protocol):
    """Is told of each device that becomes a new one. Lifecycle thread, under ``Lab.lock``."""

    def renewed(self, device: Assignable, change: Callable[[], None]) -> None:
        """Call ``change``, which gives ``device`` its new model, while nobody can find the old one. No client
        holds the device."""


@dataclass(slots=True)
class Outcome:
    """The names of the devices that are new, or become so when their clients close them (True)."""

    waits: dict[str, bool] = field(default_factory=dict)

    @property
    def now(self) -> list[str]:
        """Those that were renewed."""
        return [name for name, waits in self.waits.items() if not waits]

    @property
    def later(self) -> list[str]:
        """Those that are when their clients close them."""
        return [name for name, waits in self.waits.items() if waits]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What waits for its clients: the ``watched`` devices, and what it becomes then."""

    watched: tuple[Assignable, ...]
    watcher: Callable[[], None]
    become: _Become


_Become = Share | tuple[Shape, tuple[int, ...]] | None
"""What a device needs to become a new one: a mediated device its share, a physical function its shape and the
addresses of its BARs, another device nothing."""


class Renewals:
    """The renewals of one lab."""

    def __init__(
        self,
        lock: threading.RLock,
        hotplug: Hotplug,
        drivers: DriverCore,
        vendor: VendorFramework,
        sriov: SriovCore,
        observer: RenewalObserver,
        tasks: TaskHost,
    ) -> None:
        self._lock, self._hotplug, self._drivers, self._vendor = lock, hotplug, drivers, vendor
        self._sriov, self._observer, self._tasks = sriov, observer, tasks
        self._waiting: dict[Assignable, _Waiting] = {}

    # ---- before anything changes: any thread ----

    def plan(self, before: LabSpec, after: LabSpec) -> Plan:
        """As :func:`devmodel.lifecycle.renewalplan.plan_of`."""
        return plan_of(self._hotplug, before, after)

    # ---- the change: lifecycle thread ----

    def carry_out(self, plan: Plan) -> Outcome:
        """Make new devices as planned. Raises :class:`Unfit`, with nothing changed, when a vGPU has resources
        that the new model refuses."""
        with self._lock:
            shares = list(self._new_shares(plan))
            vgpus = [*self._exchange_types(plan)]
            heads: dict[Assignable, _Become] = {**dict.fromkeys(vgpus)}
            for mdev, share in shares:
                heads[mdev] = share
            heads |= self._exchange_functions(plan)
            outcome = Outcome()
            for head, become in heads.items():
                self._begin(head, become, outcome)
            return outcome

    def _new_shares(self, plan: Plan) -> Iterator[tuple[Mdev, Share]]:
        """The shares that vGPUs of new types have: their own, with the options of the new model."""
        for (parent, name), (model, share) in plan.types.items():
            found = self._hotplug.parents.get(parent)
            type_ = None if found is None else found.types[name]
            for mdev in () if type_ is None else type_.mdevs.values():
                changed = {
                    key: value
                    for key, value in mdev.share.options.items()
                    if value != mdev.type.share.options.get(key) and key in share.options
                }
                options = {**share.options, **changed}
                try:
                    model.validate(mdev.share.memory, options)
                except BaseException as error:
                    raise Unfit(mdev.name) from error
                yield mdev, replace(mdev.share, options=options)

    def _exchange_types(self, plan: Plan) -> Iterator[VendorVgpu]:
        """Have the types offer the new models. Yields the vGPUs of NVIDIA's framework that have one."""
        for (parent_name, name), (model, share) in plan.types.items():
            parent = self._hotplug.parents.get(parent_name)
            spec = self._spec_of(parent_name, name)
            exchange_model(spec, model)
            if parent is not None:
                parent.types[name].share = share
            for function in self._drivers.functions.values():
                vgpu = vgpu_of(function)
                if vgpu is not None and vgpu.type is spec:
                    yield vgpu

    def _exchange_functions(self, plan: Plan) -> dict[Assignable, _Become]:
        """Have functions be made of the new models. Returns those that are there, with what they become."""
        heads: dict[Assignable, _Become] = {}
        for name, new in plan.functions.items():
            spec = self._hotplug.specs[name]
            for each in (spec, None if spec.parent is None else spec.parent.hardware):
                if each is not None and new.model is not None:
                    exchange_model(each, new.model)
            if spec.vf is not None and new.vf_model is not None:
                exchange_model(spec.vf, new.vf_model)
            self._hotplug.assigned[name].give(new.addresses)
            function = self._drivers.functions.get(name)
            if not isinstance(function, PhysicalFunction):
                continue
            if new.whole or function in self._waiting:
                heads[function] = new.shape, new.places
            elif new.shape.layout is not None:
                function.relayout(new.shape.layout)
                heads |= dict.fromkeys(function.vfs)
        return heads

    def _spec_of(self, parent: str, name: str) -> TypeSpec:
        """The type of a parent, whether that is there now or not."""
        hardware = self._hotplug.specs.get(parent)
        shared = None if hardware is None else hardware.parent
        spec = self._hotplug.parents[parent].spec if shared is None else shared
        return next(each for each in spec.types if each.name == name)

    # ---- one device, with what has to be renewed together with it ----

    def _begin(self, head: Assignable, become: _Become, outcome: Outcome) -> None:
        self._forget(head)
        names = [_name(each) for each in _together(head)]
        waits = not self._renew(head, become)
        outcome.waits |= {name: waits or outcome.waits.get(name, False) for name in names}

    def _renew(self, head: Assignable, become: _Become) -> bool:
        """Renew a device now, or else when its clients have let go. Returns whether it is done."""
        devices = _together(head)
        try:
            done = all(_claim(each) for each in devices)
            for each in devices if done else ():
                beside = self._forget(each)
                own = _of(each) if beside is None else beside.become
                self._exchange(each, become if each is head else own)
            if done and isinstance(head, PhysicalFunction):
                self._tell(head, lambda: self._sriov.show_again(head))
        finally:
            for each in devices:
                _free(each)
        if not done:
            self._wait(head, devices, become)
        return done

    def _exchange(self, device: Assignable, become: _Become) -> None:
        old: list[Device | None] = []

        def change() -> None:
            if isinstance(device, Mdev) and isinstance(become, Share):
                old.append(device.renew(become))
            elif isinstance(device, VendorVgpu):
                old.append(device.retype(device.type))
            elif isinstance(device, VirtualFunction) and device.physical.layout is not None:
                layout = device.physical.layout
                old.append(device.renew(layout.model, layout.traits))
            elif isinstance(device, PhysicalFunction) and isinstance(become, tuple):
                old.append(device.reshape(*become))

        self._tell(device, lambda: self._observer.renewed(device, change))
        for each in old:
            if each is not None:
                each.close()

    def _tell(self, device: Assignable, step: Callable[[], None]) -> None:
        """Make a step that cannot be taken back: what fails in it is logged, and other devices are renewed as
        well."""
        try:
            step()
        except CODE_FAILED:
            log.exception("%s: its new model failed", device.name)

    def _wait(self, head: Assignable, devices: Sequence[Assignable], become: _Become) -> None:
        def watcher() -> None:
            self._tasks.soon(self._settle, head)

        self._waiting[head] = _Waiting(tuple(devices), watcher, become)
        held = False
        for each in devices:
            with each.group.lock:
                each.group.watch(watcher)
                each.renewal = len(devices) == 1
                held |= bool(each.open_count)
        if not held:  # its clients have let go just now
            watcher()

    def _settle(self, head: Assignable) -> None:
        """A client has let go of what waits for that, or of something beside it."""
        with self._lock:
            waiting = self._forget(head)
            if waiting is not None and self._is_there(head):
                self._renew(head, waiting.become)

    def _forget(self, head: Assignable) -> _Waiting | None:
        waiting = self._waiting.pop(head, None)
        if waiting is not None:
            for each in waiting.watched:
                with each.group.lock:
                    each.group.unwatch(waiting.watcher)
                    each.renewal = False
        return waiting

    def _is_there(self, head: Assignable) -> bool:
        if isinstance(head, PciFunction):
            return self._drivers.functions.get(head.name) is head and not head.vanished
        if isinstance(head, Mdev):
            return head.parent.mdevs.get(head.name) is head
        return isinstance(head, VendorVgpu) and head.function.vgpu is head


def _together(head: Assignable) -> list[Assignable]:
    """The device, and what is renewed with it; a physical function comes first."""
    return [*reversed(depending_on(head))] if isinstance(head, PhysicalFunction) else [head]


def _of(device: Assignable) -> _Become:
    """What a device becomes that is renewed because of another one."""
    return device.share if isinstance(device, Mdev) else None


def _claim(device: Assignable) -> bool:
    """Let nobody open the device, unless it is open. Returns whether it is not."""
    with device.group.lock:
        device.renewal = True
        return not device.open_count


def _free(device: Assignable) -> None:
    """Whoever wants to open the device may do so."""
    with device.group.lock:
        device.renewal = False
        device.group.let_go()


def _name(device: Assignable) -> str:
    return f"vgpu{device.minor}" if isinstance(device, Mdev) else device.name
