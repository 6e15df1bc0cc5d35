# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse`, with a listener or observers at the call point, which write each call to a file.

The file is named by LISTENER_LOG: a line of JSON for each call, when it is over.  A listener follows rules:
LISTENER_RULES has them as JSON, a list of objects with `name` and, if wanted, `delay` in seconds, `errno`,
and `holds`: so many calls hang until SIGRTMIN lets those go on that hang then.  The file named as
LISTENER_LOG with `.held` has one byte for each call that hangs or did.
OBSERVERS is the number of observers that are there from the start, all of which write to the file.  SIGUSR1
adds one more, SIGUSR2 removes the one that was added last.  With BROKEN, one more observer fails at each
call.  Calls wait long for what a client left in use (tests.patient_server).
"""

import errno
import itertools
import json
import os
import signal
import sys
import threading
from typing import Any

from devmodel.calls.call import Call
from devmodel.calls.injection import Hold, Injection
from devmodel.lifecycle.lab import Lab
from tests import patient_server
from vfsfuse.cli import main


class Recorder:
    """Numbers calls as they begin, and writes them as they end.  Any thread."""

    def __init__(self, file: int, rules: list[dict[str, Any]], number: int = 0) -> None:
        self._number, self._file = number, file
        self._rules = {rule["name"]: rule for rule in rules}
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._begun: dict[int, int] = {}
        self._holds: list[Hold] = []

    def began(self, call: Call) -> None:
        with self._lock:
            self._begun[id(call)] = next(self._numbers)

    def attends(self, call: Call) -> bool:
        return True

    def begin(self, call: Call) -> Injection:
        self.began(call)
        rule = self._rules.get(call.name, {})
        error = OSError(getattr(errno, rule["errno"]), "the test refuses it") if "errno" in rule else None
        return Injection(call.name, delay=float(rule.get("delay", 0)), hold=self._hold(rule), error=error)

    def _hold(self, rule: dict[str, Any]) -> Hold | None:
        with self._lock:
            if not rule.get("holds", 0):
                return None
            rule["holds"] -= 1
            self._holds.append(Hold())
            with open(os.environ["LISTENER_LOG"] + ".held", "ab") as held:
                held.write(b".")
            return self._holds[-1]

    def release(self) -> None:
        """Let the calls go on that hang.  Main thread."""
        for hold in self._holds.copy():
            hold.release()

    def end(self, call: Call) -> None:
        self.ended(call)

    def ended(self, call: Call) -> None:
        line = {
            "of": self._number,
            "number": self._begun.pop(id(call)),
            "kind": call.kind.value,
            "subject": call.subject,
            "name": call.name,
            "arguments": {key: _plain(value) for key, value in call.arguments.items()},
            "tid": call.tid,
            "device": getattr(call.device, "name", None),
            "after": call.after.hex(),
            "result": _plain(call.result),
            "errno": errno.errorcode[call.error.errno or 0] if isinstance(call.error, OSError) else None,
        }
        os.write(self._file, (json.dumps(line) + "\n").encode())


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value if isinstance(value, int | str) else None


class Broken:
    """An observer that fails at each call."""

    def began(self, call: Call) -> None:
        raise ZeroDivisionError

    def ended(self, call: Call) -> None:
        raise ValueError(call.name)


if __name__ == "__main__":
    patient_server.wait_long()
    file = os.open(os.environ["LISTENER_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    recorder = Recorder(file, json.loads(os.environ.get("LISTENER_RULES", "[]")))
    observers: list[Recorder] = []
    numbers = itertools.count(1)
    made = Lab.__init__

    def observe(lab: Lab) -> None:
        observers.append(Recorder(file, [], next(numbers)))
        lab.calls.observe(observers[-1])

    def unobserve(lab: Lab) -> None:
        if observers:
            lab.calls.unobserve(observers.pop())

    def listening(lab: Lab, *arguments: Any) -> None:
        made(lab, *arguments)
        if "LISTENER_RULES" in os.environ:
            lab.calls.listen(recorder)
        for _ in range(int(os.environ.get("OBSERVERS", "0"))):
            observe(lab)
        if "BROKEN" in os.environ:
            lab.calls.observe(Broken())
        signal.signal(signal.SIGUSR1, lambda *_: observe(lab))
        signal.signal(signal.SIGUSR2, lambda *_: unobserve(lab))
        signal.signal(signal.SIGRTMIN, lambda *_: recorder.release())

    Lab.__init__ = listening  # type: ignore[method-assign, assignment]
    sys.exit(main())
