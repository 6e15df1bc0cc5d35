# SPDX-License-Identifier: Apache-2.0
"""The fault rules of a bench: they are about the DMA of its device.

A bench has rules whose effect depends on the calls alone, so that the same test has the same result: virtual
time knows no delay of a fault rule, and the client's accesses and interrupts are the test's own.  State:
belongs to the thread that makes the bench; the rules themselves are in vfsfuse.faults.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypedDict, Unpack

from devmodel.lifecycle.lab import Lab
from vfsfuse.faults.devices import LabDevices
from vfsfuse.faults.rule import Rule
from vfsfuse.faults.rules import Active, FaultRules


class DmaRule(TypedDict, total=False):
    """The keys of a rule on a bench: docs/faults.md says what each means."""

    name: str
    dma: Literal["read", "write", "pin", "any"]
    iova: str | int
    nth: int
    every: int
    probability: float
    seed: int
    times: int
    errno: str | int
    value: int
    flip: int
    drop: bool
    duplicate: bool


class BenchFault:
    """A fault rule of a bench."""

    def __init__(self, faults: BenchFaults, active: Active) -> None:
        self._faults, self._active = faults, active
        self.name = active.rule.name

    def __repr__(self) -> str:
        return f"<BenchFault {self._active.line}>"

    @property
    def calls(self) -> int:
        """How many calls there were that it is about, until it could hit no more."""
        return self._active.counter.calls

    @property
    def hits(self) -> int:
        """How many of these calls it has hit."""
        return self._active.counter.hits

    def remove(self) -> None:
        """Remove it.  May be called again."""
        self._faults.discard(self.name)


class BenchFaults(Mapping[str, BenchFault]):
    """The rules of a bench, by name."""

    def __init__(self, lab: Lab) -> None:
        self._rules = FaultRules(lab.calls, LabDevices(lab), _no_action)

    def add(self, **rule: Unpack[DmaRule]) -> BenchFault:
        """Add a rule about DMA.  Raises ValueError for a rule that makes no sense, or that a bench cannot
        have."""
        for key in rule:
            if key not in DmaRule.__annotations__:
                known = ", ".join(DmaRule.__annotations__)
                raise ValueError(f"{key}: a bench has rules about DMA, without time (keys are {known})")
        if "dma" not in rule:
            raise ValueError("a rule of a bench is about DMA (give dma: read, write, pin or any)")
        try:
            (added,) = self._rules.add(Rule.of(rule))
        except OSError as error:
            raise ValueError(error.strerror) from None
        return self[added.name]

    def clear(self) -> None:
        """Remove all rules."""
        self._rules.clear()

    def discard(self, name: str) -> None:
        """Remove a rule, if it is there."""
        try:
            self._rules.clear(name)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def __getitem__(self, name: str) -> BenchFault:
        for active in self._rules.listed():
            if active.rule.name == name:
                return BenchFault(self, active)
        raise KeyError(f"there is no fault rule {name} (there is {', '.join(self) or 'none'})")

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules.names)

    def __len__(self) -> int:
        return len(self._rules.names)


def _no_action(what: str, value: object, device: str) -> Callable[[], None]:
    raise NotImplementedError(what)  # `add` takes no rule that acts on a device
