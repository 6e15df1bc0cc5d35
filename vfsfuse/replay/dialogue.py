# SPDX-License-Identifier: Apache-2.0
"""The dialogue of one client with one replayed device: which place of the recording it is at.

A write or a SET_IRQS leads to the next stage (vfsfuse.replay.script).  Within a stage the reads of a place
give what was recorded, in order; the last value repeats.  Reads of what the stage has not are answered by
state (vfsfuse.replay.state).

A deed of the device is due when the client has made the reads that were made before it, or when it has made
none of them for as long as the deed took to come after the anchor.  Deeds without a call of the client
between them keep their distance in time.

An act that is not the next anchor is a divergence.  The dialogue goes on at the nearest place ahead that
fits, or at the next one if that is a write to the same register, or else stays where it is.  Acts that were
passed over and come later are taken then, with their deeds.

State: a Dialogue belongs to one device, and is used by one thread at a time.  Times are seconds of one clock
that the caller chooses.  No call raises, and each looks through a bounded part of the recording.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from vfsfuse.recording.recording import WRITE, Event
from vfsfuse.replay.divergences import Progress
from vfsfuse.replay.play import EMPTY, Due, StagePlay
from vfsfuse.replay.script import Act, IrqSet, Part, Place, Script, Stage, Written, act_of
from vfsfuse.replay.state import Learned, State
from vfsfuse.replay.texts import Names, access_text, event_text, irq_text
from vfsfuse.replay.translation import Translation

AHEAD = 64
"""Stages that are looked through for one that fits."""
MOST_MISSED = 1024
"""Stages that were passed over and are still waited for."""
MOST_UNKNOWN = 1024
"""Places that are told because the recording never reads them."""


class Report(Protocol):
    """Who is told of divergences.  Only the first one with a line and an ``at`` is news."""

    def __call__(self, line: int, expected: str, got: str, at: object = None) -> None: ...


class Next(NamedTuple):
    """What the device is to do now, or in how many seconds it is to ask again: None is after the next call
    of the client, or when it has done what it does."""

    deed: Event | None
    seconds: float | None = None


class Dialogue:
    """``progress`` counts the events that come as recorded."""

    __slots__ = (
        *("_doing", "_due", "_early", "_is_open", "_last_deed", "_missed", "_names", "_part", "_play"),
        *("_report", "_script", "_session", "_state", "_touched", "_translation", "_unknown", "progress"),
    )

    def __init__(
        self,
        script: Script,
        learned: Learned,
        report: Report,
        names: Names,
        translation: Translation,
        progress: Progress,
    ) -> None:
        self._script, self._report, self._names, self._translation = script, report, names, translation
        self._state = State(learned)
        self._part = self._session = -1
        self._is_open = False
        self._touched = False
        """Whether the client has done something since the part began."""
        self._unknown: set[Place] = set()
        self._play = StagePlay(EMPTY, 0.0)
        self._missed: dict[Place | IrqSet, list[Stage]] = {}
        self._early: set[int] = set()
        """Stages of this part whose SET_IRQS has come already."""
        self._due: deque[Due] = deque()
        self._doing: Due | None = None
        self._last_deed = 0.0
        self.progress = progress

    # ---- parts ----

    def opened(self, now: float) -> None:
        """The first client opens the device: the next part that begins so, or the first one again."""
        if not self._is_open:
            self.progress.open += 1
        self._is_open = True
        parts = self._script.parts
        if not (self._part == self._session >= 0 and not self._touched):
            ahead = (number for number in range(self._part + 1, len(parts)) if parts[number].opens)
            self._session = next(ahead, 0)
        self._begin(self._session, now)

    def closed(self) -> None:
        """The last client has closed it."""
        if not self._is_open:
            return
        self._leave("close")
        self.progress.open -= 1
        self._is_open = False
        self._forget_deeds()

    def reset(self, now: float) -> None:
        """It was reset.  A part in which the client has done nothing yet goes on."""
        self._forget_deeds()
        if not self._is_open:
            self._state.reset()
        elif not self._touched:
            self._begin(self._part, now)
        else:
            self._leave("reset")
            parts, following = self._script.parts, self._part + 1
            if following < len(parts) and not parts[following].opens:
                self._begin(following, now)
            else:
                self._state.reset()
                self._play.abandon()

    def _begin(self, number: int, now: float) -> None:
        self._part, self._touched = number, False
        self._state.reset()
        self._missed.clear()
        self._early.clear()
        self._forget_deeds()
        part = self._playing
        self._play = StagePlay(EMPTY if part is None else part.stages[0], now)
        self._due.extend(self._play.due())

    def _leave(self, got: str) -> None:
        """The part ends.  A write that the client has not made is a divergence."""
        part = self._playing
        if part is None or not self._touched:
            return
        start = self._play.stage.number + 1
        for number in range(start, min(start + AHEAD, len(part.stages))):
            anchor = part.stages[number].anchor
            if anchor is not None and anchor.kind == WRITE:
                self._report(anchor.line, event_text(self._names, anchor), got)
                return

    @property
    def _playing(self) -> Part | None:
        parts = self._script.parts
        return parts[self._part] if 0 <= self._part < len(parts) else None

    # ---- what the client does ----

    def read(self, place: Place, now: float) -> bytes:
        """The client reads: as many bytes as `place` has."""
        if not self._is_open:
            return self._state.held(place)
        self._touched = True
        answer = self._play.read(place, self._state, now)
        if answer.data is not None:
            self.progress.replayed += 1
            self._due.extend(self._play.due())
            return answer.data
        data = self._state.held(place, early=answer.waits)
        if not self._state.is_read(place):
            self._tell_unknown(place, data)
        return data

    def reads(self, place: Place) -> bool:
        """Whether the recording has a read of one of these bytes."""
        return self._state.is_read(place)

    def write(self, place: Place, data: bytes, now: float) -> None:
        """The client writes."""
        if self._is_open:
            self._act(Written(place, data), now)
        self._state.write(place, data)

    def set_irqs(self, asked: IrqSet, now: float) -> None:
        """The client has set interrupts up, or torn them down."""
        if self._is_open:
            self._act(asked, now)

    def _act(self, act: Act, now: float) -> None:
        self._touched = True
        expected = self._expected()
        if expected is not None and self._fits(expected, act):
            self._go(expected, now)
            self.progress.replayed += 1
            return
        if self._take_missed(act):
            return
        self._tell(expected, act)
        ahead = self._ahead(act)
        if ahead is not None and isinstance(act, IrqSet):
            self._early.add(ahead.number)
            self.progress.replayed += 1
        elif ahead is not None:
            self._miss(expected, ahead)
            self._go(ahead, now)
            self.progress.replayed += 1
        elif expected is not None and _is_same_register(expected, act):
            self._go(expected, now)
        elif isinstance(act, Written):
            self._play.overwrite(act.place)

    def _fits(self, stage: Stage, act: Act) -> bool:
        anchor = None if stage.anchor is None else act_of(stage.anchor)
        if not isinstance(anchor, Written) or not isinstance(act, Written):
            return anchor == act
        return anchor.place == act.place and self._translation.alike(anchor.data, act.data)

    def _expected(self) -> Stage | None:
        """The stage whose anchor is next, None at the end of the part."""
        part, number = self._playing, self._play.stage.number + 1
        while number in self._early:
            number += 1
        return part.stages[number] if part is not None and number < len(part.stages) else None

    def _ahead(self, act: Act) -> Stage | None:
        """The nearest stage ahead that the act leads to."""
        part, start = self._playing, self._play.stage.number + 1
        if part is None:
            return None
        near = (part.stages[number] for number in range(start, min(start + AHEAD, len(part.stages))))
        return next((each for each in near if each.number not in self._early and self._fits(each, act)), None)

    def _go(self, stage: Stage, now: float) -> None:
        self._due.extend(self._play.all_due())
        self._play.leave(self._state)
        self._play = StagePlay(stage, now)
        self._due.extend(self._play.due())

    def _miss(self, first: Stage | None, until: Stage) -> None:
        """The stages from `first` to the one before `until` are passed over."""
        part = self._playing
        if part is None or first is None:
            return
        for stage in part.stages[first.number : until.number]:
            if (
                stage.anchor is not None
                and len(self._missed) < MOST_MISSED
                and stage.number not in self._early
            ):
                self._missed.setdefault(_kind_of(act_of(stage.anchor)), []).append(stage)

    def _take_missed(self, act: Act) -> bool:
        """Take an act that was passed over.  Returns whether it is one."""
        for stage in self._missed.get(_kind_of(act), ())[:AHEAD]:
            if self._fits(stage, act):
                self._missed[_kind_of(act)].remove(stage)
                late = StagePlay(stage, 0.0)
                self._due.extend(each._replace(play=None) for each in late.all_due())
                late.leave(self._state)
                self.progress.replayed += 1
                return True
        return False

    # ---- what the device does ----

    def peek(self, now: float) -> Next:
        """What the device is to do next.  It does that by :meth:`begin` and :meth:`done`."""
        if self._doing is not None or not self._is_open:
            return Next(None)
        if not self._due:
            left = self._play.wait(now)
            if left is None or left > 0:
                return Next(None, left)
            self._due.append(self._play.expire())
            self._due.extend(self._play.due())
        head = self._due[0]
        left = self._last_deed + head.gap - now if head.gap else 0.0
        return Next(None, left) if left > 0 else Next(head.deed, 0.0)

    def begin(self) -> None:
        """The device does what :meth:`peek` has just given."""
        if self._due:
            self._doing = self._due.popleft()

    def done(self, deed: Event, now: float, as_recorded: bool = True) -> None:
        """The device has done it."""
        doing = self._doing
        if doing is None or doing.deed is not deed:
            return  # a reset came between
        self._doing, self._last_deed = None, now
        self.progress.replayed += as_recorded
        if doing.play is not None:
            doing.play.done(doing.item, now)
        self._due.extend(self._play.due())

    def _forget_deeds(self) -> None:
        self._due.clear()
        self._doing = None

    # ---- divergences ----

    def diverged(self, deed: Event, got: str) -> None:
        """A deed could not be done as recorded."""
        self._report(deed.line, event_text(self._names, deed), got)

    def _tell(self, expected: Stage | None, act: Act) -> None:
        if isinstance(act, Written):
            got = access_text(self._names, act.place, True, act.data)
        else:
            got = irq_text(act)
        self._report(*self._end_or(None if expected is None else expected.anchor), got)

    def _tell_unknown(self, place: Place, data: bytes) -> None:
        if place not in self._unknown and len(self._unknown) < MOST_UNKNOWN:
            self._unknown.add(place)
            expected = self._expected()
            following = self._play.next_item() or (None if expected is None else expected.anchor)
            got = f"{access_text(self._names, place, False, data)}, which the recording never reads"
            self._report(*self._end_or(following), got, at=place)

    def _end_or(self, event: Event | None) -> tuple[int, str]:
        """The line and the text of an event, or of the end of the part."""
        part = self._playing
        if event is None and part is not None:
            event = part.end
        line = event.line if event is not None else self._script.last if part is None else part.last
        return line, event_text(self._names, event)


def _kind_of(act: Act) -> Place | IrqSet:
    return act.place if isinstance(act, Written) else act


def _is_same_register(stage: Stage, act: Act) -> bool:
    anchor = None if stage.anchor is None else act_of(stage.anchor)
    return isinstance(anchor, Written) and isinstance(act, Written) and anchor.place == act.place
