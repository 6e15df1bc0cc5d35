# SPDX-License-Identifier: Apache-2.0
"""The fault rules of one lab: who listens at its call point while there are some.

``attends`` and ``begin`` run on any thread, the pump too, and under the caller's locks: they read a tuple of
rules that is never changed, and count under the lock of one rule.  Rules come and go under a lock of their
own, which is taken before all others and never by a call.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from devmodel.calls.call import Call, CallKind
from devmodel.calls.injection import Hold, Injection
from devmodel.calls.latecalls import Entry, LateCalls
from devmodel.calls.point import CallPoint
from vfsfuse.faults.conditions import Conditions
from vfsfuse.faults.counting import Counter
from vfsfuse.faults.devices import LabDevices
from vfsfuse.faults.effects import Change, change_of, error_of, register_at, together
from vfsfuse.faults.inlab import LabNames
from vfsfuse.faults.keys import OF_VFS
from vfsfuse.faults.matching import Matcher
from vfsfuse.faults.places import Index
from vfsfuse.faults.rule import MOST_RULES, Rule, RuleError, is_pattern
from vfsfuse.observe.clients import Clients

log = logging.getLogger(__name__)
MOST_SHOWN = 20
"""Registers, or rules, that an error names."""
AGAIN_SECONDS = 0.1
"""Seconds between two looks whether a rule that happens by itself may do so."""


Names = Sequence[str] | None
"""Names of rules, or ALL."""
ALL = None
"""All rules."""


class Changed(NamedTuple):
    """The names of the rules that were added, cleared and released, and the rules that were added."""

    added: Sequence[str]
    cleared: Sequence[str]
    released: Sequence[str]
    rules: Sequence[Rule]


class Act(Protocol):
    """What makes an action happen to a device."""

    def __call__(self, what: str, value: object, device: str) -> Callable[[], None]:
        """What is to be called for the action ``what``, one of ``keys.ACTIONS``. Any thread, under any
        lock."""


class Active:
    """A rule of a lab, with what it has done so far."""

    __slots__ = ("condition", "counter", "entry", "hold", "matcher", "rule")

    def __init__(self, rule: Rule, matcher: Matcher) -> None:
        self.rule, self.matcher, self.counter = rule, matcher, Counter(rule)
        self.condition: str = rule.get("while", "")
        self.hold = Hold()
        """What its calls hang at; another one after each release."""
        self.entry: Entry | None = None
        """When it happens by itself."""

    @property
    def line(self) -> str:
        """The rule with its hits, as a line of the file `faults`."""
        held = self.hold.held
        return f"{self.rule.line}  # {self.counter.said}{f', {held} held' if held else ''}"

    def renew(self) -> Hold:
        """Have calls hang at another hold from now on.  The result is the one so far, which lets its calls
        go when it is released.  One thread at a time: no call may hang at a hold that nobody knows."""
        hold, self.hold = self.hold, Hold()
        return hold


class FaultRules:
    """The fault rules of one lab."""

    def __init__(self, calls: CallPoint, devices: LabDevices, act: Act) -> None:
        self._calls, self._devices, self._act = calls, devices, act
        self._lock = threading.Lock()
        self._active: dict[str, Active] = {}
        self._index = Index((), devices)
        self._conditions, self._clients, self._late = Conditions(), Clients(), LateCalls("fault-timers")

    # ---- rules come and go: any thread that may wait ----

    def add(self, *rules: Rule) -> Sequence[Rule]:
        """Add rules, all or none.  Returns them with their names.

        Raises RuleError for one that makes no sense in this lab, ``OSError``: EEXIST for a name that is
        taken, ENOSPC when there would be too many.
        """
        return self.change(rules, (), ()).rules

    def change(self, add: Sequence[Rule], clear: Names, release: Names) -> Changed:
        """Clear and release rules by their names, and add others, all or nothing.  ALL are those that there
        are at that moment.  Raises as :meth:`add`, and ENOENT for a name of no rule."""
        with self._using(add), self._lock:
            leaving, released = self._find(clear), self._find(release)
            added = self._add(add, leaving)
            holds = [each.renew() for each in released]
            holds += [each.hold for each in leaving]  # also for a call that such a rule is about to hit
        for hold in holds:
            hold.release()
        cleared, let_go = ([each.rule.name for each in those] for those in (leaving, released))
        return Changed([rule.name for rule in added], cleared, let_go, added)

    def clear(self, *names: str) -> None:
        """Take these rules away, or all of them.  What they hold goes on.  Raises ``OSError(ENOENT)``."""
        self.change((), names or ALL, ())

    def release(self, *names: str) -> None:
        """Let the calls go on that these rules hold, or all rules.  Raises ``OSError(ENOENT)``."""
        self.change((), (), names or ALL)

    def listed(self) -> Sequence[Active]:
        """All rules, in the order in which they were added.  Any thread."""
        return tuple(self._active.values())

    @property
    def names(self) -> Sequence[str]:
        """The names of all rules.  Any thread."""
        return tuple(self._active)

    def _find(self, names: Names) -> list[Active]:
        if names is ALL:
            return [*self._active.values()]
        for name in names:
            if name not in self._active:
                raise OSError(errno.ENOENT, f"{name}: there is no such rule ({self._there()})")
        return [self._active[name] for name in dict.fromkeys(names)]

    def _there(self) -> str:
        names = list(self._active)
        more = ", ..." if len(names) > MOST_SHOWN else ""
        return f"there are {', '.join(names[:MOST_SHOWN])}{more}" if names else "there are none"

    @contextlib.contextmanager
    def _using(self, rules: Sequence[Rule]) -> Iterator[None]:
        """The files that rules wait for are looked for, which may take long, so nobody waits for it.  After
        an error they are not needed."""
        with contextlib.ExitStack() as undo:
            for path in filter(None, (rule.get("while") for rule in rules)):
                try:
                    self._conditions.use(path)
                except OSError as error:
                    why = f"{error.strerror} (give a path on a disk of this machine)"
                    raise RuleError("while", why) from None
                undo.callback(self._conditions.leave, path)
            yield
            undo.pop_all()

    def _add(self, rules: Sequence[Rule], leaving: Sequence[Active]) -> Sequence[Rule]:
        gone = {each.rule.name for each in leaving}
        active = {name: each for name, each in self._active.items() if name not in gone}
        if len(active) + len(rules) > MOST_RULES:
            raise OSError(errno.ENOSPC, f"there can be {MOST_RULES} rules (clear some)")
        taken = {*active, *(rule.name for rule in rules)}
        free = (name for number in itertools.count(1) if (name := f"fault{number}") not in taken)
        names, added = LabNames(self._devices.spec), list[Active]()
        for rule in rules:
            if rule.name in active:
                raise OSError(errno.EEXIST, f"{rule.name}: there is such a rule (give another name)")
            named = rule if rule.name else rule.named(next(free))
            names.check(named)
            self._check_register(named)
            active[named.name] = one = Active(named, Matcher(named, self._devices, self._clients))
            added.append(one)
        self._set(active)
        for each in leaving:
            self._left(each)
        for each in added:
            if each.rule.is_timed:
                self._await(each)
        return [each.rule for each in added]

    def _set(self, active: dict[str, Active]) -> None:
        """Have these rules in the place of those that there are."""
        self._active = active
        self._index = Index(((each, each.rule) for each in active.values()), self._devices)
        listens = self._calls.listener is self
        if bool(active) is not listens:
            self._calls.listen(self if active else None)

    def _left(self, active: Active) -> None:
        if active.condition:
            self._conditions.leave(active.condition)
        if active.entry is not None:
            self._late.forget(active.entry)

    def _check_register(self, rule: Rule) -> None:
        """Refuse a register that its device does not have."""
        pattern, name = rule.get("register"), rule.get("device", "")
        if pattern is None or not name or is_pattern(pattern):
            return
        device = self._devices.made(self._devices.found(name))
        if device is None:
            return  # without its model, nobody knows its registers
        known = [
            register.name
            for region in device.regions
            if region is not None and region.names is not None
            for register in region.names
        ]
        if pattern not in known:
            there = ", ".join(known[:MOST_SHOWN]) + (", ..." if len(known) > MOST_SHOWN else "")
            raise RuleError(
                "register", f"{name} has no register {pattern} (it has {there or 'none with a name'})"
            )

    # ---- calls: any thread, under any lock ----

    def attends(self, call: Call) -> bool:
        """Whether a rule may hit the call."""
        return any(
            not each.counter.waits and self._holds(each) and each.matcher.matches(call)
            for each in self._index.of(call)
        )

    def begin(self, call: Call) -> Injection | None:
        """What happens to the call; None: nothing."""
        hits = [
            each
            for each in self._index.of(call)
            if self._holds(each) and each.matcher.matches(call) and each.counter.hit()
        ]
        return self._injection(hits, call) if hits else None

    def end(self, call: Call) -> None:
        """The call is over."""

    def _holds(self, active: Active) -> bool:
        return not active.condition or self._conditions.holds(active.condition)

    def _injection(self, hits: Sequence[Active], call: Call) -> Injection:
        made = Injection(rule=",".join(each.rule.name for each in hits))
        changes: list[Change] = []
        afters: list[Callable[[], None]] = []
        for each in hits:
            rule = each.rule
            made.delay += rule.get("delay", 0.0)
            made.drop |= rule.get("drop", False)
            if rule.get("hang") and made.hold is None:
                made.hold = each.hold
            made.error = made.error or error_of(rule, call)
            if rule.get("duplicate"):
                made.times = 2
            change = change_of(rule, register_at(rule, each.matcher, call))
            if change is not None:
                changes.append(change)
            afters += self._actions(rule, call)
            for what in OF_VFS:
                if what in rule.keys:  # the function that is about to appear takes this into account
                    self._act(what, rule.keys[what], call.subject)()
        if changes:
            made.change = together(changes)
        if afters:
            made.after = lambda: _call_all(afters)
        return made

    def _actions(self, rule: Rule, call: Call) -> list[Callable[[], None]]:
        if not rule.actions:
            return []
        on = call.device
        name = rule.get("device", "")
        device = self._devices.found(name) if on is None else str(on.name)
        if not device:  # the call may be its creation
            return [lambda: self._act_by_name(rule, name)]
        return self._acts(rule, device)

    def _acts(self, rule: Rule, device: str) -> list[Callable[[], None]]:
        return [self._act(what, rule.keys[what], device) for what in rule.actions]

    def _act_by_name(self, rule: Rule, name: str) -> None:
        """Have actions happen to a device that was not there when the call began."""
        device = self._devices.found(name)
        if device:
            _call_all(self._acts(rule, device))

    # ---- rules that happen by themselves ----

    def _await(self, active: Active) -> None:
        active.entry = self._late.add(active.rule.keys["after"], lambda: self._happen(active))

    def _happen(self, active: Active) -> None:
        """The time of a rule has come.  The thread of the timers."""
        if self._active.get(active.rule.name) is not active:
            return
        if not self._holds(active):
            active.entry = self._late.add(AGAIN_SECONDS, lambda: self._happen(active))
            return
        rule, device = active.rule, self._devices.found(active.rule.keys["device"])
        if not device:
            log.warning("fault rule %s: there is no device %s", rule.name, rule.keys["device"])
        elif active.counter.hit():
            acts = self._acts(rule, device)
            told = {"arguments": rule.actions}
            call = Call(CallKind.LIFECYCLE, device, "fault", told, fault=rule.name)
            self._calls.tell(call, lambda: _call_all(acts))


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()
