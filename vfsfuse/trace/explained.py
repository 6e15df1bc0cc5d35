# SPDX-License-Identifier: Apache-2.0
"""The ways in which an ioctl's argument is explained: a struct, a number, a pointer to one thing.

A table row of `decodevfio` and `decodeiommufd` is one of these explainers.  State: none, constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from vfsfuse.trace.escaping import quoted_bytes
from vfsfuse.trace.forms import Form, Shown, decimal, fields, pointer
from vfsfuse.trace.structs import Layout, Tail, Way


@dataclass(frozen=True, slots=True)
class Explained:
    """What a call was given and what it gave back: as text for a line, and as values for JSON.

    The texts are empty where there is nothing to say."""

    given: str = ""
    returned: str = ""
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)


class Explainer(Protocol):
    """How the argument of an ioctl is explained."""

    def explain(self, arg: int, before: bytes, after: bytes, succeeded: bool) -> Explained:
        """`arg` is the argument, `before` and `after` what was behind it before and after the call; empty if
        it could not be read."""


def _alone(name: str, shown: Shown) -> Explained:
    return Explained(given=shown.text, before={name: shown.json})


@dataclass(frozen=True, slots=True)
class Nothing:
    """An ioctl without an argument.  A client that gives none leaves any number in its place."""

    def explain(self, arg: int, before: bytes, after: bytes, succeeded: bool) -> Explained:
        return Explained()


@dataclass(frozen=True, slots=True)
class Number:
    """An ioctl whose argument is a number, or an address of which nothing is known."""

    name: str
    form: Form

    def explain(self, arg: int, before: bytes, after: bytes, succeeded: bool) -> Explained:
        return _alone(self.name, self.form(arg))


@dataclass(frozen=True, slots=True)
class PointedInteger:
    """An ioctl whose argument points to an int: [5]."""

    name: str
    form: Form = decimal

    def explain(self, arg: int, before: bytes, after: bytes, succeeded: bool) -> Explained:
        if len(before) < 4:
            return _alone("arg", pointer(arg))
        shown = self.form(int.from_bytes(before[:4], "little", signed=True))
        return _alone(self.name, Shown(f"[{shown.text}]", shown.json))


@dataclass(frozen=True, slots=True)
class PointedText:
    """An ioctl whose argument points to a text, which ends with a 0."""

    name: str

    def explain(self, arg: int, before: bytes, after: bytes, succeeded: bool) -> Explained:
        if not before:
            return _alone("arg", pointer(arg))
        text = before.split(b"\0", 1)[0]
        return _alone(self.name, Shown(quoted_bytes(text), text.decode("utf-8", "backslashreplace")))


def nothing(data: bytes, values: Mapping[str, int]) -> Mapping[str, Shown]:
    """Of a struct that nothing follows."""
    return {}


def always(values: Mapping[str, int]) -> bool:
    """Of a struct that the call always writes back."""
    return True


@dataclass(frozen=True, slots=True)
class Struct:
    """An ioctl whose argument points to a struct, which begins with its size.

    Shown is what the client gives, and then what the call returns: the members that `layout` declares as
    returned, and each other member that has changed. A call that fails returns only what has changed.
    """

    layout: Layout
    given: Tail = nothing
    """What the client gives behind the struct."""
    returned: Tail = nothing
    """What the call returns behind the struct, such as a chain of capabilities."""
    answers: Callable[[Mapping[str, int]], bool] = always
    """Whether a call with these members returns any."""

    def explain(self, arg: int, before: bytes, after: bytes, succeeded: bool) -> Explained:
        size = int.from_bytes(before[:4], "little")
        before, after, there = before[: max(size, 4)], after[: max(size, 4)], len(before)
        if there < 4:
            return _alone("arg", pointer(arg))
        values = self.layout.values(before)
        given = self._given(before, values)
        returned = self._returned(before, after, values, succeeded and self.answers(values))
        texts = fields(given, complete=there >= min(size, self.layout.size)), fields(returned)
        return Explained(texts[0].text, texts[1].text if returned else "", texts[0].json, texts[1].json)

    def _given(self, data: bytes, values: Mapping[str, int]) -> dict[str, Shown]:
        return {**self.layout.shown(data, way=Way.GIVEN), **self.given(data, values)}

    def _returned(
        self, before: bytes, after: bytes, values: Mapping[str, int], answered: bool
    ) -> dict[str, Shown]:
        said = self.layout.shown(after, way=Way.RETURNED) if answered else {}
        if after == before:
            new = values
        else:
            new = self.layout.values(after)
            changed = {name for name in new if values.get(name) != new[name]}
            shown = self.layout.shown(after)
            said = {name: each for name, each in shown.items() if name in said or name in changed}
        return {**said, **(self.returned(after, new) if answered else {})}
