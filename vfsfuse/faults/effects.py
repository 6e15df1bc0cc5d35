# SPDX-License-Identifier: Apache-2.0
"""What a rule makes of a call that it hits: an errno, other data.

Pure functions: any thread, under any lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from devmodel.calls.call import Call, CallKind
from vfsfuse.faults import plausible
from vfsfuse.faults.matching import Matcher
from vfsfuse.faults.rule import Rule
from vfsfuse.faults.values import PLAUSIBLE

Change = Callable[[bytes], bytes]
"""Gives data of the same length."""


def error_of(rule: Rule, call: Call) -> OSError | None:
    """The error with which a rule has the call fail; None if it has it made."""
    number = rule.get("errno")
    if number is None:
        return None
    if number == PLAUSIBLE:
        number = plausible.failures(call)[0]
    return OSError(number, os.strerror(number))


def register_at(rule: Rule, matcher: Matcher, call: Call) -> tuple[int, int] | None:
    """Where in the data of an access the register of a rule begins, and its bytes."""
    if "register" not in rule.keys or call.kind is not CallKind.REGION:
        return None
    register = matcher.register_of(call)
    return None if register is None else (register.offset - call.arguments["offset"], register.width)


def change_of(rule: Rule, register: tuple[int, int] | None) -> Change | None:
    """What becomes of the data of a call. ``register`` is where the register that a rule names begins in the
    data, which may be before them, and its bytes; None: all the data are meant."""
    value, flip = rule.get("value"), rule.get("flip", 0)
    if value is None and not flip:
        return None

    def change(data: bytes) -> bytes:
        start, width = (0, len(data)) if register is None else register
        whole = (1 << 8 * width) - 1
        old = int.from_bytes(data, "little")
        place = old << -8 * start if start < 0 else old >> 8 * start
        new = ((place if value is None else value) ^ flip) & whole
        return _put(data, start, new.to_bytes(width, "little"))

    return change


def _put(data: bytes, start: int, part: bytes) -> bytes:
    """``data`` with ``part`` at ``start``, as far as it lies in it."""
    if start < 0:
        start, part = 0, part[-start:]
    part = part[: len(data) - start]
    return data[:start] + part + data[start + len(part) :]


def together(changes: Sequence[Change]) -> Change:
    """The changes one after the other."""

    def change(data: bytes) -> bytes:
        for each in changes:
            data = each(data)
        return data

    return change
