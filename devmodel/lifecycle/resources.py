# SPDX-License-Identifier: Apache-2.0
"""Resources: the share of its parent that a vGPU takes, and how a line of ``vgpu_create`` changes it.

State: none, all are values. Every error is ValueError, which an attribute answers with EINVAL.
Source: the vGPU RFC of 2016, whose ``vgpu_create`` may give a vGPU "more or less resources" than others.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from devmodel.lifecycle.spec import TypeSpec

MAX_SIZE = 1 << 40
"""Largest size of anything in a lab, in bytes."""

SIZE = re.compile(r"([0-9]{1,15}) ?([KMGT]?)(?:iB|B)?", re.ASCII)
_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_COUNT = re.compile(r"[0-9]{1,10}", re.ASCII)
RESOLUTION = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)


class Resolution(NamedTuple):
    """Pixels across and down."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Share:
    """One vGPU's share: ``memory`` (bytes) and ``slots`` of its parent, and the ``options`` of its model.

    Options that this module knows: ``weight`` on the engine, ``frame_rate`` in Hz, ``max_width`` and
    ``max_height`` in pixels.
    """

    memory: int
    slots: int
    options: Mapping[str, int]

    @classmethod
    def of(cls, spec: TypeSpec) -> "Share":
        """The share that the type gives."""
        return cls(spec.memory, spec.slots, spec.model.with_defaults(spec.options))

    def changed(self, spec: TypeSpec, overrides: Mapping[str, str]) -> "Share":
        """This share with ``overrides``, texts by key of :data:`OVERRIDES`, for a vGPU of type ``spec``.

        Raises ValueError for an unknown key, a bad text, and a share that the model cannot have.
        """
        made = self
        for key, text in overrides.items():
            if key not in OVERRIDES:
                raise ValueError(f"no resource {key!r} (known: {', '.join(OVERRIDES)})")
            made = OVERRIDES[key](made, text)
        spec.model.validate(made.memory, made.options)
        return made

    @property
    def max_resolution(self) -> Resolution | None:
        """The largest resolution that the vGPU shows. None for one without a limit, or without a display."""
        found = Resolution(self.options.get("max_width", 0), self.options.get("max_height", 0))
        return found if all(found) else None

    def with_options(self, **options: int) -> "Share":
        """This share with some options replaced."""
        return replace(self, options={**self.options, **options})


def parse_size(text: str) -> int:
    """Bytes with or without a unit: "268435456", "256M", "256 MiB"."""
    match = SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not a whole number (a number of bytes, or "256M")')
    size = int(match[1]) << _SHIFTS[match[2]]
    if size > MAX_SIZE:
        raise ValueError(f"{text!r} is out of range (at most 1T)")
    return size


def parse_resolution(text: str) -> Resolution:
    """Pixels as "1920x1080"."""
    match = RESOLUTION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a resolution (such as 1920x1080)")
    return Resolution(int(match[1]), int(match[2]))


def parse_count(text: str) -> int:
    """A whole number in decimal digits."""
    if _COUNT.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def resolution_options(resolution: Resolution) -> dict[str, int]:
    """The options of a model that limit its display to ``resolution``."""
    return {"max_width": resolution.width, "max_height": resolution.height}


OVERRIDES: Mapping[str, Callable[[Share, str], Share]] = {
    "vram": lambda share, text: replace(share, memory=parse_size(text)),
    "weight": lambda share, text: share.with_options(weight=parse_count(text)),
    "frame_rate": lambda share, text: share.with_options(frame_rate=parse_count(text)),
    "max_resolution": lambda share, text: share.with_options(**resolution_options(parse_resolution(text))),
}
"""How each key that a line of ``vgpu_create`` may have changes a share."""
