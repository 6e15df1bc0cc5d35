# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse`, with a listener at the call point: it writes each call to a file, and follows rules.

The file is named by LISTENER_LOG: a line of JSON for each call, when it is over.  LISTENER_RULES has rules as
JSON: a list of objects with `name` and, if wanted, `delay` in seconds and `errno`.
"""

import errno
import itertools
import json
import os
import sys
import threading
from typing import Any

from devmodel.callpoint import Call
from devmodel.lifecycle.lab import Lab
from vfsfuse.cli import main


class Recorder:
    """Numbers calls as they begin, and writes them as they end.  Any thread."""

    def __init__(self, path: str, rules: list[dict[str, Any]]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._rules = {rule["name"]: rule for rule in rules}
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._begun: dict[int, int] = {}

    def begin(self, call: Call) -> float:
        with self._lock:
            self._begun[id(call)] = next(self._numbers)
        rule = self._rules.get(call.name, {})
        if "errno" in rule:
            raise OSError(getattr(errno, rule["errno"]), "the test refuses it")
        return float(rule.get("delay", 0))

    def end(self, call: Call) -> None:
        line = {
            "number": self._begun.pop(id(call)),
            "kind": call.kind.value,
            "subject": call.subject,
            "name": call.name,
            "arguments": {key: _plain(value) for key, value in call.arguments.items()},
            "tid": call.tid,
            "result": _plain(call.result),
            "errno": errno.errorcode[call.error.errno or 0] if isinstance(call.error, OSError) else None,
        }
        os.write(self._file, (json.dumps(line) + "\n").encode())


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value if isinstance(value, int | str) else None


if __name__ == "__main__":
    recorder = Recorder(os.environ["LISTENER_LOG"], json.loads(os.environ.get("LISTENER_RULES", "[]")))
    made = Lab.__init__

    def listening(lab: Lab, *arguments: Any) -> None:
        made(lab, *arguments)
        lab.calls.listener = recorder

    Lab.__init__ = listening  # type: ignore[method-assign, assignment]
    sys.exit(main())
