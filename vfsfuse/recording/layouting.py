# SPDX-License-Identifier: Apache-2.0
"""Expressions of Python, laid out as ruff and black do it, so that a model that is written is formatted.

State: none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

WIDTH = 88
"""Columns of a line, as ruff and black have them unless they are told otherwise."""
INDENT = "    "


class Call(NamedTuple):
    """Something with items in brackets: a call, a list, a tuple."""

    head: str
    items: Sequence[str | Call | Text]
    tail: str = ")"

    @property
    def flat(self) -> str:
        """It in one line."""
        comma = "," if self.is_tuple and len(self.items) == 1 else ""
        return f"{self.head}{', '.join(map(flat, self.items))}{comma}{self.tail}"

    @property
    def is_tuple(self) -> bool:
        return self.head.endswith(" = (") or self.head == "("

    @property
    def is_literal(self) -> bool:
        """Whether it is a list, a dict or a tuple, which has a line for each item if it has several."""
        return self.head.endswith(("[", "{")) or self.is_tuple


class Text(NamedTuple):
    """A literal in double quotes, in several parts if it is long."""

    parts: Sequence[str]

    @property
    def flat(self) -> str:
        """It in one line."""
        return quoted("".join(self.parts))


Expression = str | Call | Text


def flat(expression: Expression) -> str:
    """It in one line."""
    return expression if isinstance(expression, str) else expression.flat


def laid_out(indent: str, expression: Expression, suffix: str = "") -> Iterator[str]:
    """The lines of an expression, which `suffix` follows."""
    one = f"{indent}{flat(expression)}{suffix}"
    if len(one) <= WIDTH or isinstance(expression, str):
        yield one
        return
    if isinstance(expression, Text):
        yield from (f"{indent}{quoted(part)}" for part in expression.parts)
        return
    if not expression.items:
        yield one
        return
    inside = indent + INDENT
    items = ", ".join(map(flat, expression.items))
    yield f"{indent}{expression.head}"
    if not expression.is_literal and len(inside) + len(items) <= WIDTH:
        yield f"{inside}{items}"
    else:
        for item in expression.items:
            yield from laid_out(inside, item, "" if isinstance(item, Text) else ",")
    yield f"{indent}{expression.tail}{suffix}"


def imported(module: str, names: Sequence[str]) -> Iterator[str]:
    """The lines of an import."""
    one = f"from {module} import {', '.join(names)}"
    if len(one) <= WIDTH:
        yield one
    else:
        yield f"from {module} import ("
        yield from (f"{INDENT}{name}," for name in names)
        yield ")"


def quoted(text: str) -> str:
    """A text as a literal in ASCII, in double quotes unless it has some itself."""
    if '"' not in text or "'" in text:
        return json.dumps(text)
    return "'" + '"'.join(json.dumps(part)[1:-1] for part in text.split('"')) + "'"
