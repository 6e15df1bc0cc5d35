# SPDX-License-Identifier: Apache-2.0
"""Virtual time: the clock of the tasks on a bench, which stands still unless the bench moves it.

State: the time, which the bench's trio thread changes. Any thread may read it.
Source: trio's "Reference: the core" (Clock).
"""

import math

from trio.abc import Clock

_LONG = 10.0**6
TOLERANCE = 1e-9
"""Seconds by which the end of a wait is moved for a deadline right behind it: 10 sleeps of 0.1 seconds are
over when 1.0 second is, whatever the sum of floats is."""


class VirtualClock(Clock):
    """``now`` is the time in seconds since the bench was made."""

    def __init__(self) -> None:
        self.now = 0.0

    def start_clock(self) -> None:
        """For trio."""

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """How long trio may sleep: until something else wakes it, because time does not pass by itself."""
        return 0.0 if deadline <= self.now else _LONG

    def pass_time(self, left: float, end: float) -> bool:
        """Move to the next deadline, which is ``left`` seconds away, or to ``end`` if that is earlier. False
        if it is ``end`` already."""
        if self.now >= end:
            return False
        at = max(self.now + left, math.nextafter(self.now, math.inf))
        self.now = at if at <= end + TOLERANCE else end
        return True
