# SPDX-License-Identifier: Apache-2.0
"""Results of functions that are kept, so that each is computed once.

State: one table a function, and the list of all tables. Any thread; two threads may compute the same result
at once.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def memoized(most: int | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Keep the results of a function, ``most`` of them, by its arguments, which are hashable: also a class
    is, which the type of :func:`functools.cache` does not say."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        kept = lru_cache(most)(function)
        _tables.append(kept.cache_clear)
        return cast(Callable[P, R], kept)

    return decorate


_tables: list[Callable[[], None]] = []


@memoized(256)
def shared(data: bytes) -> bytes:
    """The same object for the same bytes: many devices of one kind have them."""
    return data


def forget() -> None:
    """Forget all results of all these functions: they would keep classes that are used no longer. Any
    thread."""
    for clear in _tables:
        clear()
