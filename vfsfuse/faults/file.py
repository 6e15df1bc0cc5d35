# SPDX-License-Identifier: Apache-2.0
"""The file `faults` at the root of a mount: the fault rules of the lab, and how to change them.

A read gives all rules.  After a write through the same open file it gives the outcome of the last one: what
was changed, or why nothing was.  Opens, reads and writes come on the device lane; a thread that may wait
answers them.  No rule hits this file, so that rules can always be cleared.
"""

from __future__ import annotations

import errno
import logging

from devmodel.calls.call import Call, CallKind
from devmodel.calls.point import CallPoint
from ioctl_shim.callthreads import CallThreads
from ioctl_shim.lane import DeferringFile, Opened, OpenRequest, PendingRequest
from ioctl_shim.lanefile import errno_of
from vfsfuse.faults.commands import Unchanged, carry_out, listing
from vfsfuse.faults.rules import FaultRules
from vfsfuse.kernfs.kobject import DeviceNode

log = logging.getLogger(__name__)
NAME = "faults"


class FaultsFile(DeferringFile):
    """One open."""

    __slots__ = ("_calls", "_outcome", "_rules", "_text", "_threads")

    def __init__(self, rules: FaultRules, calls: CallPoint, threads: CallThreads) -> None:
        self._rules, self._calls, self._threads = rules, calls, threads
        self._outcome: bytes | None = None
        self._text = b""
        """What a reader is being given: the rules as they were when it began."""

    @classmethod
    def node(cls, rules: FaultRules, calls: CallPoint, threads: CallThreads) -> DeviceNode:
        """The file, which belongs to the user of the server."""

        def opener(request: OpenRequest) -> Opened:
            return Opened(cls(rules, calls, threads))

        return DeviceNode(NAME, 0o600, opener)

    def begin_read(self, pending: PendingRequest) -> None:
        self._threads.submit(lambda: self._read(pending), pending.tid)

    def begin_write(self, pending: PendingRequest, data: bytes) -> None:
        self._threads.submit(lambda: self._write(pending, bytes(data)), pending.tid)

    def _read(self, pending: PendingRequest) -> None:
        try:
            if self._outcome is not None:
                self._text = self._outcome
            elif not pending.offset:
                self._text = listing(self._rules).encode()
            pending.read(self._text[pending.offset : pending.offset + pending.size])
        except Exception as error:  # the client waits for an answer
            log.exception("the fault rules cannot be listed")
            pending.fail(errno_of(error))

    def _write(self, pending: PendingRequest, data: bytes) -> None:
        call = Call(CallKind.STORE, "", NAME, {"data": data}, pending.tid)
        try:
            outcome = self._calls.tell(call, lambda: carry_out(self._rules, data))
        except Unchanged as error:
            self._outcome = f"{error.strerror}\n".encode(errors="backslashreplace")
            pending.fail(error.errno or errno.EINVAL)
        except Exception as error:
            log.exception("the fault rules cannot be changed")
            pending.fail(errno_of(error))
        else:
            self._outcome = outcome.encode()
            pending.written(len(data))
