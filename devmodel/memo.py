# SPDX-License-Identifier: Apache-2.0
"""Results of functions that are kept, so that each is computed once.

State: one table a function. Any thread; two threads may compute the same result at once.
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
        return cast(Callable[P, R], lru_cache(most)(function))

    return decorate
