# SPDX-License-Identifier: Apache-2.0
"""Which calls a rule hits: it numbers those that are its own, and decides by their numbers.

The decision about a number depends on the rule's name and keys alone, so threads that call at the same time
change nothing about it.  State: under the lock of each :class:`Counter`, which is taken after every other
one.  Any thread.
"""

from __future__ import annotations

import hashlib
import threading
import time

from vfsfuse.faults.rule import Rule


def chosen(seed: int, name: str, number: int, probability: float) -> bool:
    """Whether the rule ``name`` hits the call with this number, from 1 on, with this probability."""
    digest = hashlib.blake2b(f"{seed}:{name}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < probability * 2.0**64


class Counter:
    """The calls and the hits of one rule.  Calls before its time (``after``) are not counted."""

    __slots__ = (
        "_begin",
        "_every",
        "_lock",
        "_name",
        "_nth",
        "_probability",
        "_seed",
        "_times",
        "calls",
        "hits",
        "spent",
    )

    def __init__(self, rule: Rule) -> None:
        self._name, self._nth, self._every = rule.name, rule.get("nth", 0), rule.get("every", 0)
        self._times, self._seed = rule.get("times", 0), rule.get("seed", 0)
        self._probability: float | None = rule.get("probability")
        self._begin = time.monotonic() + rule.get("after", 0.0)
        self._lock = threading.Lock()
        self.calls = self.hits = 0
        self.spent = False
        """Whether it hits no call any more."""

    @property
    def waits(self) -> bool:
        """Whether its time has not come, or is over."""
        return self.spent or time.monotonic() < self._begin

    def hit(self) -> bool:
        """Count one call: does the rule hit it?"""
        if self.waits:
            return False
        with self._lock:
            if self.spent:
                return False
            self.calls += 1
            hits = self._chooses(self.calls)
            self.hits += hits
            self.spent = bool(self._nth and self.calls >= self._nth) or bool(
                self._times and self.hits >= self._times
            )
            return hits

    def _chooses(self, number: int) -> bool:
        return (
            (not self._nth or number == self._nth)
            and (not self._every or number % self._every == 0)
            and (self._probability is None or chosen(self._seed, self._name, number, self._probability))
        )

    @property
    def said(self) -> str:
        """The hits and calls so far, as the list of rules says them."""
        with self._lock:
            hits, calls = self.hits, self.calls
        return f"{hits} hit{'s' if hits != 1 else ''} of {calls} call{'s' if calls != 1 else ''}"
