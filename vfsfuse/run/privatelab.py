# SPDX-License-Identifier: Apache-2.0
"""The lab server that `vfsfuse run` starts for one program, and ends with it.

Owned by the supervisor's main thread, in the outer namespace.  The server dies when the supervisor does, in
any way.  The supervisor passes on the server's stderr, so the server cannot hold the caller's terminal or
pipe open.  It goes into the log, or without a log to the caller until the program starts.  Why there is no
lab is told to the caller in any case, as words of `run`.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vfsfuse.run import namespace, syscalls

STOP_SECONDS = 5.0
"""Seconds that a server may take to end by itself."""

EXIT_EXPLAINED = 1
"""`vfsfuse mount` fails with this status after it has said why on stderr."""

_SAID, _PASSED_ON = b"vfsfuse: mount: ", b"vfsfuse: run: "
"""How its lines begin, and how the caller gets them."""

_RELAY_BYTES = 65536


class PrivateLab:
    """A server on namespace.STAGED_LAB, which the caller has staged, with the lab file `config` or the
    built-in lab, and with fault rules."""

    def __init__(self, config: str | None, log: str | None, faults: Sequence[str] = ()) -> None:
        self._log = log
        self._is_ready = self._has_explained = False
        self._sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if log else 2
        self._ready_fd, ready = os.pipe()
        self.stderr_fd, stderr = os.pipe()
        self._server = subprocess.Popen(
            _arguments(config, faults, "info" if log else "warning", ready),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=(ready,),
            env=_environment(),
            preexec_fn=syscalls.die_with_parent,  # noqa: PLW1509 (the supervisor has one thread yet)
        )
        os.close(ready)
        os.close(stderr)
        self.pidfd = os.pidfd_open(self._server.pid)
        """Readable once the server has ended."""

    def wait_ready(self, peer_fd: int) -> bool:
        """Wait until the tree answers (True) or the server fails (False).  Raises ConnectionResetError if
        `peer_fd` hangs up."""
        poll = select.poll()
        poll.register(peer_fd, 0)
        for fd in (self._ready_fd, self.stderr_fd):
            poll.register(fd, select.POLLIN)
        while True:
            events = dict(poll.poll())
            if self.stderr_fd in events and not self.relay():
                poll.unregister(self.stderr_fd)
            if peer_fd in events:
                raise ConnectionResetError("hung up before the lab was ready")
            if self._ready_fd in events:
                self._is_ready = os.read(self._ready_fd, 64) == b"ready\n"
                return self._is_ready

    def relay(self) -> bool:
        """Pass on the waiting text of `stderr_fd`.  False at its end."""
        text = os.read(self.stderr_fd, _RELAY_BYTES)
        _write(self._sink, text if self._is_ready else self._explain(text))
        return bool(text)

    def _explain(self, text: bytes) -> bytes:
        """Tell the caller what `text` says of why there is no lab.  Returns what the sink gets."""
        lines = text.splitlines(keepends=True)  # each was one write(2) of the server
        why = [line for line in lines if line.startswith(_SAID)]
        if not why:
            return text
        self._has_explained = True
        _write(2, b"".join(_PASSED_ON + line.removeprefix(_SAID) for line in why))
        return text if self._log else b"".join(line for line in lines if line not in why)

    def why_not_ready(self) -> str:
        """The way in which a server ended before it was ready.  Empty when the caller has been told."""
        status = self._end()
        if status == EXIT_EXPLAINED and self._has_explained:
            return ""
        how = _ending(status) + (f"; see {self._log}" if self._log else "")
        return f"the private lab did not start ({how})"

    def why_ended(self) -> str:
        """The way in which a server ended that was ready.  Once `pidfd` is readable."""
        how = _ending(self._end()) + (f"; see {self._log}" if self._log else "")
        return f"the server of the private lab has ended ({how}): its files fail from now on"

    def stop(self) -> None:
        """End the server, by force after STOP_SECONDS."""
        self._server.terminate()
        self._end()

    def _end(self) -> int:
        deadline = time.monotonic() + STOP_SECONDS
        while (left := deadline - time.monotonic()) > 0 and self._relay_within(left):
            pass  # a server with much output would wait for us in write(2)
        try:
            return self._server.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._server.kill()
            return self._server.wait()

    def _relay_within(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.stderr_fd], [], [], seconds)
        return bool(ready) and self.relay()


def _write(fd: int, text: bytes) -> None:
    with contextlib.suppress(OSError):  # a full disk or a closed pipe must not end the lab
        os.write(fd, text)


def _ending(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def _arguments(config: str | None, faults: Sequence[str], level: str, ready: int) -> list[str]:
    # -P: the current directory is the caller's, and may have a module with a name that the server imports.
    command = [sys.executable, "-P", "-m", "vfsfuse", "mount", "--foreground", "--log-level", level]
    options = ["--ready-fd", str(ready), *(["--config", config] if config else [])]
    rules = [f"--fault={rule}" for rule in faults]
    return [*command, *options, *rules, namespace.STAGED_LAB]


def _environment() -> dict[str, str]:
    """Our environment, with the directory of this package on the module path: it may be a checkout that is
    not installed."""
    here = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{here}" if path else here}
