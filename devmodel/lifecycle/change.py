# SPDX-License-Identifier: Apache-2.0
"""Lifecycle changes pass the call point: a decorator of the methods that make them.

Threads: the trio thread, within a store.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from devmodel.calls.call import Call, CallKind
from devmodel.calls.point import CallPoint
from devmodel.calls.stores import client_of_store

T = TypeVar("T")
S = TypeVar("S", bound="HasCalls")
A = TypeVar("A")
P = ParamSpec("P")


class HasCalls(Protocol):
    """What makes lifecycle changes."""

    @property
    def calls(self) -> CallPoint:
        """The call point of its lab."""


def lifecycle_change(
    function: Callable[Concatenate[S, A, P], T],
) -> Callable[Concatenate[S, A, P], T]:
    """Decorator of a method that makes a lifecycle change: what it changes is its first argument.

    For the trio thread, within a store.
    """

    @functools.wraps(function)
    def change(self: S, changed: A, /, *arguments: P.args, **named: P.kwargs) -> T:
        calls = self.calls
        if not calls.attended:
            return function(self, changed, *arguments, **named)
        subject = str(getattr(changed, "name", changed))
        said = [*map(str, arguments), *(f"{key}={value}" for key, value in named.items())]
        call = Call(CallKind.LIFECYCLE, subject, function.__name__, {"arguments": said}, client_of_store())
        return calls.run_locked(call, lambda: function(self, changed, *arguments, **named))

    return change
