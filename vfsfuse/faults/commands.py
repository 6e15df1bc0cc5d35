# SPDX-License-Identifier: Apache-2.0
"""The lines that the file `faults` takes and gives: `add KEY=VALUE ...`, `clear [NAME...]`,
`release [NAME...]`, `list`, and one line for each rule.

Any thread that may wait; no state.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from vfsfuse.faults.rule import MOST_LINE, Rule, RuleError, parse_words, split
from vfsfuse.faults.rules import FaultRules

MOST_BYTES = 64 << 10
"""Bytes of one write."""
COMMANDS = ("add", "clear", "release", "list")


class Unchanged(OSError):
    """The rules are as they were.  The text says why: one line."""


@dataclass(slots=True)
class Orders:
    """What the lines of one write ask for."""

    added: list[Rule] = field(default_factory=list)
    cleared: list[str] | None = field(default_factory=list)
    """Names of rules; None: all."""
    released: list[str] | None = field(default_factory=list)
    lists: bool = False


def carry_out(rules: FaultRules, data: bytes) -> str:
    """Change the rules as the lines say, all or nothing: rules are cleared first, and added last.  Returns a
    line for each rule that was cleared, released or added: what was done, and the rule's name.  For `list`
    the lines of all rules follow.

    Raises Unchanged: EINVAL for what is no such line, or a rule that makes no sense; ENOENT for a name of no
    rule; EEXIST for a name that is taken; ENOSPC for too many rules.
    """
    try:
        orders = parse(data)
        done = rules.change(orders.added, orders.cleared, orders.released)
    except RuleError as error:
        raise Unchanged(errno.EINVAL, str(error)) from None
    except OSError as error:
        raise Unchanged(error.errno, error.strerror) from None
    named = {"cleared": done.cleared, "released": done.released, "added": done.added}
    said = "".join(f"{what} {name}\n" for what, names in named.items() for name in names)
    return said + listing(rules) if orders.lists else said


def parse(data: bytes) -> Orders:
    """What the lines of a write ask for.  Raises RuleError."""
    if len(data) > MOST_BYTES:
        raise RuleError("", f"{len(data)} bytes at once (write {MOST_BYTES} at most, in whole lines)")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RuleError("", f"not UTF-8 text (byte {error.start})") from None
    orders = Orders()
    for number, line in enumerate(text.split("\n"), 1):
        try:
            _parse_line(line, orders)
        except RuleError as error:
            where = f"line {number}: " if text.strip("\n").count("\n") else ""
            raise RuleError("", f"{where}{error}") from None
    return orders


def _parse_line(line: str, orders: Orders) -> None:
    if len(line) > MOST_LINE:
        raise RuleError("", f"the line has {len(line)} characters (give {MOST_LINE} at most)")
    words = split(line)
    if not words:
        return
    command, *rest = words
    if command == "add":
        orders.added.append(parse_words(rest))
    elif command == "clear":
        orders.cleared = _also(orders.cleared, rest)
    elif command == "release":
        orders.released = _also(orders.released, rest)
    elif command == "list" and not rest:
        orders.lists = True
    else:
        raise RuleError("", f"{command!r} is no command (write {', '.join(COMMANDS[:-1])} or {COMMANDS[-1]})")


def _also(names: list[str] | None, more: list[str]) -> list[str] | None:
    """These names and more of them, without which it is all rules."""
    return None if names is None or not more else names + more


def listing(rules: FaultRules) -> str:
    """All rules, one line each, in the words that `add` takes."""
    return "".join(f"{active.line}\n" for active in rules.listed())
