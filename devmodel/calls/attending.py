# SPDX-License-Identifier: Apache-2.0
"""Who attends to calls: observers, which see them, and the listener, which steers them.

Whatever one of them does, the call goes on: the functions here log its exceptions.  To write one:
CONTRIBUTING.md, "Listening to calls".
Threads: any thread that makes a call, under that caller's locks.
"""

from __future__ import annotations

import logging
from typing import Protocol

from devmodel.calls.call import Call
from devmodel.calls.injection import NOTHING, Injection

log = logging.getLogger(__name__)


class Observer(Protocol):
    """Who sees calls.  Its methods run on any thread, the device lane included, and under the caller's locks:
    they are short, wait for nothing, take no lock of the lab, and neither add nor remove observers.  An
    exception is logged, once a kind, and the call goes on."""

    def began(self, call: Call) -> None:
        """The call is about to be made."""

    def ended(self, call: Call) -> None:
        """The call is over.  Comes once after each :meth:`began`, also when the observer has been removed
        meanwhile."""


Observers = tuple[Observer, ...]


class Listener(Protocol):
    """Who listens.  Its methods run on any thread, as those of an :class:`Observer`: they are short, wait for
    nothing, take no lock of the lab, and do not change who listens.  An exception is logged, and the call
    goes on without it."""

    def attends(self, call: Call) -> bool:
        """Whether :meth:`begin` and :meth:`end` are to be called for a call.  It has no effect, and may be
        asked twice.  A call that the listener does not attend to goes as if it were only observed: on the
        thread that makes it when nobody listens."""

    def begin(self, call: Call) -> Injection | None:
        """The call is about to be made: what happens to it?  None: nothing."""

    def end(self, call: Call) -> None:
        """The call is over, or was refused.  Comes once after each :meth:`begin`, also when another one
        listens now."""


def tell_begin(observers: Observers, call: Call) -> None:
    """The call is about to be made."""
    for observer in observers:
        try:
            observer.began(call)
        except Exception as error:
            _complain(observer, error, call)


def tell_end(observers: Observers, call: Call) -> None:
    """The call is over, for those that were told of its begin."""
    for observer in observers:
        try:
            observer.ended(call)
        except Exception as error:
            _complain(observer, error, call)
    call.error = None


def attends(listener: Listener, call: Call) -> bool:
    """Whether ``listener`` attends to the call."""
    try:
        return listener.attends(call)
    except Exception:
        log.exception("a listener failed to look at %s", call.name)
        return False


def begin(listener: Listener, call: Call) -> Injection:
    """What ``listener`` has happen to the call, :data:`NOTHING` if it has nothing happen."""
    try:
        return listener.begin(call) or NOTHING
    except Exception:
        log.exception("a listener failed at the begin of %s", call.name)
        return NOTHING


def end(listener: Listener, call: Call) -> None:
    """The call that ``listener`` has begun is over."""
    try:
        listener.end(call)
    except Exception:
        log.exception("a listener failed at the end of %s", call.name)


_complained: set[tuple[type, type]] = set()


def _complain(observer: Observer, error: Exception, call: Call) -> None:
    """Log an observer's failure. It fails at each call as a rule, so each kind is logged once."""
    kind = type(observer), type(error)
    if kind not in _complained:
        _complained.add(kind)
        log.error("an observer failed at %s", call.name, exc_info=error)
