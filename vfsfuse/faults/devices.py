# SPDX-License-Identifier: Apache-2.0
"""The names of a lab's devices, as fault rules know them.

Everything here looks names up in the lab's dictionaries, which takes no lock.  Any thread; no state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from devmodel.calls.call import Call, CallKind
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev
from devmodel.lifecycle.spec import LabSpec
from devmodel.lifecycle.vendor import vgpu_of

_DOMAIN = "0000:"
_UUID_LENGTH = 36
_MOST_NAME = 64
"""Bytes of a store that can name a device."""
_NUMBER = re.compile(r"vgpu[0-9]+", re.ASCII)
_NAME = re.compile(
    r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}.*|([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]",
    re.ASCII | re.DOTALL,
)
"""A UUID, also with an instance behind it, or a PCI address."""


class LabDevices:
    """The devices of one lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def names(self, call: Call) -> set[str]:
        """All names, in lower case, of the devices that a call is on."""
        if call.device is not None:
            return self._all(call.device.name)
        named = {each for text in _named(call) if self._is_name(text) for each in self._all(text)}
        if call.kind is CallKind.LIFECYCLE and call.name == "create":
            named.add(call.subject.lower())  # the type
        return named | {each for device in self._behind(call) for each in self._all(device)}

    def found(self, name: str) -> str:
        """The name of the directory of a device, which may be known by its number as vgpu<N>, or without its
        domain.  "" when there is none."""
        for each in (name, _DOMAIN + name, name.lower(), _DOMAIN + name.lower()):
            if self._find(each) is not None:
                return each
        if _NUMBER.fullmatch(name):
            for mdev in tuple(self._lab.by_name.values()):
                if name == f"vgpu{mdev.minor}":
                    return mdev.name
        return next((each for each in tuple(self._lab.by_name) if each.startswith(f"{name.lower()}-")), "")

    @property
    def spec(self) -> LabSpec:
        """The description of the lab."""
        return self._lab.spec

    def made(self, name: str) -> Any:
        """The model of the device with this directory, None if it has not been made or is not there."""
        found = self._find(name)
        return None if found is None else found.made

    def type_name(self, number: int) -> str:
        """The type of vGPU with this id in NVIDIA's framework."""
        for parent in self._lab.spec.parents:
            for spec in parent.types:
                if spec.number == number:
                    return spec.name
        return ""

    def _is_name(self, text: str) -> bool:
        """Whether a text is the name of a device, also of one that is not there yet."""
        return self._find(text) is not None or _NAME.fullmatch(text) is not None

    def _find(self, name: str) -> Any:
        return self._lab.by_name.get(name) or self._lab.drivers.functions.get(name)

    def _all(self, name: str) -> set[str]:
        """All names of a device with this directory; other texts have only their own."""
        names = {name.lower()}
        if len(name) > _UUID_LENGTH and name[_UUID_LENGTH] == "-":
            names.add(name[:_UUID_LENGTH].lower())
        if name.startswith(_DOMAIN):
            names.add(name[len(_DOMAIN) :])
        device = self._find(name)
        if isinstance(device, Mdev):
            names |= {f"vgpu{device.minor}", device.type.name.lower()}
        elif device is not None:
            vgpu = vgpu_of(device)
            if vgpu is not None and vgpu.type is not None:
                names.add(vgpu.type.name.lower())
        return names

    def _behind(self, call: Call) -> Iterator[str]:
        """The devices behind the file of dev/vfio that a call is on or opens: one, or those of a group."""
        head, _, last = call.subject.rpartition("/")
        if call.kind is CallKind.IOCTL:
            wanted = call.arguments.get("name")  # of VFIO_GROUP_GET_DEVICE_FD
            if wanted is not None:
                yield str(wanted)
            elif last.startswith("group "):
                yield from self._of_group(last.removeprefix("group "))
        elif call.kind is CallKind.OPEN and head == "dev/vfio/devices":
            yield from (each.name for each in self._everything() if last == f"vfio{each.vfio_minor}")
        elif call.kind is CallKind.OPEN and head == "dev/vfio":
            yield from self._of_group(last.removeprefix("noiommu-"))

    def _of_group(self, number: str) -> Iterator[str]:
        if number.isdecimal():
            yield from (each.name for each in self._everything() if each.group.number == int(number))

    def _everything(self) -> tuple[Any, ...]:
        return (*self._lab.by_name.values(), *self._lab.drivers.functions.values())


def _named(call: Call) -> Iterator[str]:
    """The texts of a call that can be names of devices."""
    yield from call.subject.split("/")
    if call.kind is CallKind.LIFECYCLE:
        yield from map(str, call.arguments.get("arguments") or ())
    elif call.kind is CallKind.STORE:
        data: bytes = call.arguments.get("data", b"")[:_MOST_NAME]
        written = data.decode("ascii", "replace").strip()
        yield from (written, written[:_UUID_LENGTH])  # a line of vgpu_create begins with a UUID
