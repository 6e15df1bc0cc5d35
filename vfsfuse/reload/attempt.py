# SPDX-License-Identifier: Apache-2.0
"""One reading of models' code, on a thread of its own: the lab goes on, however long the code takes.

State: the thread's until it has ended; `give_up` may come at any time.  Source: PyThreadState_SetAsyncExc of
CPython's C API, which ends a loop in Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from vfsfuse.labfile.modules import FINDER, Again

T = TypeVar("T")
SECONDS = 10
"""How long models may take to be imported."""


class GivenUp(BaseException):
    """Ends the code of an import that nobody waits for any more."""


class CodeEnded(Exception):
    """The code has raised something that is no Exception, its ``__cause__``."""


class Attempt(Generic[T]):
    """Calls `work`.  `again` has the modules that it imports again."""

    def __init__(self, work: Callable[[], T], again: Again) -> None:
        self._work, self.again = work, again
        self._token, self._done = trio.lowlevel.current_trio_token(), trio.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._lock, self._ended = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)

    async def result(self, seconds: float = SECONDS) -> T:
        """What `work` returns; raises what it raises.  TimeoutError, with a text, when it takes too long.
        Trio thread.  After any error the old modules are back."""
        try:
            self._thread.start()
            with trio.move_on_after(seconds) as waiting:
                await self._done.wait()
            if waiting.cancelled_caught:
                raise TimeoutError(f"the import has not ended after {seconds:g} s{self._place()}")
            if isinstance(self._error, Exception):
                raise self._error
            if self._error is not None:  # on this thread it would end the lab
                raise CodeEnded from self._error
            return self._result.pop()
        except BaseException:
            self.again.undo()
            self._end()
            raise
        finally:
            self._error = None  # its traceback has the new classes

    def _run(self) -> None:
        with contextlib.suppress(GivenUp):
            try:
                self._result.append(self._work())
            except BaseException as error:  # also SystemExit: the code is not ours
                self._error = error
            with self._lock:
                self._ended = True
        with contextlib.suppress(trio.RunFinishedError):  # the lab has ended
            self._token.run_sync_soon(self._done.set)

    def _place(self) -> str:
        """Where the thread is in the code of a model."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        for each, line in traceback.walk_stack(frame) if frame is not None else ():
            if FINDER.is_own(str(each.f_globals.get("__name__"))):
                return f": it is at {each.f_code.co_filename}:{line}"
        return ""

    def _end(self) -> None:
        """End the work, if it is in Python.  What waits in a system call ends after that."""
        with self._lock:
            if not self._ended and self._thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread.ident), ctypes.py_object(GivenUp)
                )
