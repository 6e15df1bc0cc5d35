# SPDX-License-Identifier: Apache-2.0
"""A lab without a mount that fault rules are about, and calls as the call point tells of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from devmodel.calls.call import Call, CallKind
from devmodel.lifecycle.lab import Lab, Observer
from vfsfuse.faults.devices import LabDevices
from vfsfuse.faults.rules import FaultRules
from vfsfuse.labfile.reader import load


class Nobody:
    """An observer of a lab that nobody looks at."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The built-in lab, without a mount."""
    lab = Lab(load(), cast(Observer, Nobody()))
    yield lab
    lab.close()


@pytest.fixture
def actions() -> list[tuple[str, object, str]]:
    """What actions have happened: what, its value, and the device."""
    return []


@pytest.fixture
def rules(lab: Lab, actions: list[tuple[str, object, str]]) -> Iterator[FaultRules]:
    def act(what: str, value: object, device: str) -> Callable[[], None]:
        return lambda: actions.append((what, value, device))

    rules = FaultRules(lab.calls, LabDevices(lab), act)
    yield rules
    rules.clear()


def hit(rules: FaultRules, call: Call) -> str:
    """The names of the rules that hit a call."""
    attended = rules.attends(call)
    injection = rules.begin(call)
    rules.end(call)
    assert injection is None or attended
    return "" if injection is None else injection.rule


def ioctl(name: str, subject: str = "container", **more: Any) -> Call:
    return Call(CallKind.IOCTL, subject, name, {"arg": 0, "before": b""}, more.pop("tid", 1), **more)


def region(name: str, index: int, offset: int, size: int, device: Any = None) -> Call:
    told: dict[str, Any] = {"region": index, "offset": offset, "size": size}
    if name == "write":
        told["data"] = bytes(size)
    return Call(CallKind.REGION, getattr(device, "name", "x"), name, told, 1, device)


def dma(name: str, iova: int, size: int) -> Call:
    told = {"iova": iova, "count": size} if name == "pin" else {"iova": iova, "size": size}
    return Call(CallKind.DMA, "x", name, told)


def store(path: str, data: bytes = b"1") -> Call:
    subject, _, name = path.rpartition("/")
    return Call(CallKind.STORE, subject, name, {"data": data}, 1)


def lifecycle(name: str, subject: str, *arguments: str) -> Call:
    return Call(CallKind.LIFECYCLE, subject, name, {"arguments": list(arguments)}, 1)


def opening(path: str) -> Call:
    return Call(CallKind.OPEN, path, "open", {"path": path}, 1)


def interrupt(name: str, vector: int) -> Call:
    return Call(CallKind.INTERRUPT, "x", name, {"vector": vector})


UUID = "c0ffee00-0000-4000-8000-000000000001"
