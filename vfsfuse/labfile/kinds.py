# SPDX-License-Identifier: Apache-2.0
"""What a kind of value in a lab file is, and how new kinds are made.

``read`` of each kind raises ValueError, whose text tells a person the mistake and the remedy. The JSON schema
(json-schema.org, draft 7) accepts every value that ``read`` does.

State: none. vfsfuse.labfile.values and vfsfuse.labfile.hwvalues have the kinds themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Enum)
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A kind of value: ``read`` makes a value for the lab of one of TOML, ``json`` is its JSON schema."""

    read: Callable[[object], T]
    json: Json


def kind(**json: Any) -> Callable[[Callable[[object], T]], Kind[T]]:
    """Make a function that reads a value a kind with this JSON schema."""
    return lambda read: Kind(read, json)


def whole(value: object, hint: str = " (give one, such as 4)") -> int:
    """``value`` if it is a whole number. Raises ValueError with ``hint`` if not; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number{hint}")
    return value


def number_of(most: int, what: str, least: int = 0) -> Kind[int]:
    """Whole numbers from ``least`` to ``most``, called ``what`` in errors."""
    shown = f"{most:#x}" if not least and most > 255 else str(most)

    def read(value: object) -> int:
        number = whole(value, f" ({what})")
        if not least <= number <= most:
            raise ValueError(f"{number} is out of range ({what}: give {least} to {shown})")
        return number

    return Kind(read, {"type": "integer", "minimum": least, "maximum": most})


MAX_NUMBER = 2**31 - 1
"""The highest number of a group or a slot."""


def array_of(
    of: str, what: str, example: str, most: int = MAX_NUMBER, empty: bool = True
) -> Kind[tuple[int, ...]]:
    """Arrays of whole numbers from 0 to ``most``. ``of`` says in errors what they are, ``what`` what each is,
    ``example`` is one. ``empty`` is whether an array may have none."""
    shown = "or more" if most == MAX_NUMBER else f"to {most}"

    def read(value: object) -> tuple[int, ...]:
        if not isinstance(value, list) or not (value or empty):
            raise ValueError(f"{value!r} is not an array of {of} (write {example})")
        for number in value:
            if not 0 <= whole(number) <= most:
                raise ValueError(f"{number} is not the {what} (give 0 {shown})")
        return tuple(value)

    return Kind(read, {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": most}})


def choice(type_: type[E], what: str) -> Kind[E]:
    """The values of an enumeration."""
    named = {each.value: each for each in type_}
    listed = ", ".join(f'"{name}"' for name in named)

    def read(value: object) -> E:
        if not isinstance(value, str) or value not in named:
            raise ValueError(f"{value!r} is not {what} (give one of {listed})")
        return named[value]

    return Kind(read, {"enum": list(named)})


def either(no: str, yes: str) -> Kind[bool]:
    """One of two words: whether it is the second."""

    def read(value: object) -> bool:
        if value not in (no, yes):
            raise ValueError(f'{value!r} is neither "{no}" nor "{yes}" (give one of them)')
        return value == yes

    return Kind(read, {"enum": [no, yes]})


def as_text(original: Kind[Any]) -> Kind[str]:
    """A kind whose values are kept as texts."""

    def read(value: object) -> str:
        original.read(value)
        return str(value).replace(" ", "")

    return Kind(read, original.json)
