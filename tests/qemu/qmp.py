# SPDX-License-Identifier: Apache-2.0
"""QMP, QEMU's monitor in JSON. Source: QEMU's docs/interop/qmp-spec."""

from __future__ import annotations

import json
from typing import Any

from tests.qemu.channel import Channel

SECONDS = 300


class Qmp:
    """A monitor; `events` are those that came before the last answer, in order."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.events: list[dict[str, Any]] = []

    def negotiate(self) -> None:
        """Take the greeting, and leave the mode in which only capabilities can be negotiated."""
        assert "QMP" in self._message()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """What `command` returns; raises AssertionError when QEMU says that it failed."""
        request = {"execute": command, "arguments": arguments}
        self._channel.send(json.dumps(request).encode() + b"\n", SECONDS)
        while "event" in (answer := self._message()):
            self.events.append(answer)
        assert "return" in answer, f"{command} {arguments}: {answer}"
        return answer["return"]

    def hand(self, name: str, descriptor: int) -> None:
        """Give QEMU a copy of `descriptor`, under `name`."""
        self._channel.send_descriptor(descriptor, SECONDS)
        self.execute("getfd", fdname=name)

    def wait(self, event: str, **data: object) -> None:
        """Wait for an event with `data` among what it says; those before it are dropped."""
        while True:
            happened = self.events.pop(0) if self.events else self._message()
            if happened["event"] == event and data.items() <= happened["data"].items():
                return

    def monitor(self, line: str) -> str:
        """What the human monitor prints for `line`."""
        return str(self.execute("human-monitor-command", **{"command-line": line}))

    def _message(self) -> dict[str, Any]:
        message = json.loads(self._channel.read_until(b"\n", SECONDS))
        assert isinstance(message, dict)
        return message
