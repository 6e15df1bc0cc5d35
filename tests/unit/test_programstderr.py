# SPDX-License-Identifier: Apache-2.0
"""How a flood of lines is counted (vfsfuse.run.programstderr)."""

from __future__ import annotations

from vfsfuse.run.programstderr import LONGEST, MOST, SHORTEST, Flood


def said(flood: Flood, lines: int, now: float) -> int:
    """How many of so many lines are admitted at one moment."""
    count = 0
    for _ in range(lines):
        if flood.admits(now):
            count += 1
        else:
            flood.more += 1
    return count


def test_a_few_lines_are_all_said() -> None:
    flood = Flood()
    assert [said(flood, MOST, 100 + SHORTEST * number) for number in range(5)] == [MOST] * 5
    assert flood.seconds_left(200) is None


def test_the_others_are_told_at_the_end_of_the_while() -> None:
    flood = Flood()
    assert said(flood, MOST + 5, 100) == MOST
    assert flood.seconds_left(100) == SHORTEST
    assert said(flood, 3, 100 + 5 * SHORTEST) == 0, "before the others are told, nothing else is said"
    assert flood.end_while(100 + 5 * SHORTEST) == 8


def test_a_flood_that_goes_on_is_told_of_less_often() -> None:
    flood, now, lengths = Flood(), 100.0, []
    for _ in range(9):
        said(flood, 100, now)
        left = flood.seconds_left(now)
        assert left is not None
        lengths.append(left)
        now += left
        flood.end_while(now)
    assert lengths == [1, 2, 4, 8, 16, 32, 60, 60, 60] and lengths[-1] == LONGEST
    assert said(flood, MOST, now) == MOST
    said(flood, MOST + 1, now + LONGEST)
    assert flood.seconds_left(now + LONGEST) == SHORTEST, "it was quiet for a while"
