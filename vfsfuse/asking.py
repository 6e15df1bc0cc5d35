# SPDX-License-Identifier: Apache-2.0
"""Questions to a file system that may never answer, such as a mount whose server is stopped.

A system call on a FUSE mount waits for the server.  Once the server has read the request, not even SIGKILL
ends that wait, and a process with a waiting thread cannot end.  So a command does not ask by itself.  A child
process asks and sends the answer through a pipe.  When no answer comes in time, the child is killed and left
behind; it ends when the server answers or ends, or when the connection is aborted.

For single-threaded processes, because it forks.  Source: request_wait_answer() in fs/fuse/dev.c.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import IO, Any, NoReturn, TypeVar

T = TypeVar("T")

SECONDS = 1.5
"""Seconds that a command waits in all for answers that do not come.  It has to end within 2 s."""

_FLUSH_SECONDS = 0.05
"""An answer is sent on at the latest when the next one comes that many seconds after the last sending."""

_AGAIN_SECONDS = 0.5
_CHUNK = 1 << 16
_ANSWER, _END, _REFUSED, _FAILED, _BROKEN = range(5)


class NoAnswer(Exception):
    """No answer came in time."""


class Refusal(Exception):
    """The question has no answer.  str() is one line: the problem, its place, and a remedy."""


class Patience:
    """The time that one command has for questions.  It begins when the object is made."""

    __slots__ = ("_end",)

    def __init__(self, seconds: float = SECONDS) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left, never below 0."""
        return max(0.0, self._end - time.monotonic())

    def ask(
        self,
        question: Callable[[], T],
        go_on: Callable[[], bool] = lambda: False,
        keep: Sequence[int] = (),
    ) -> T:
        """What `question` returns in a child process.

        It returns None, bool, int, str, bytes, or tuples and lists of them.  Raises NoAnswer when the time is
        over, unless `go_on` tells then, and twice a second from then on, to wait longer.  Raises what the
        question raises: OSError or Refusal.  The child has no open files of the caller's but `keep`, which
        are above 2.
        """
        (answer,) = self._answers(lambda: [question()], self.left, go_on, keep)
        return answer

    def answers(
        self,
        question: Callable[[], Iterable[T]],
        go_on: Callable[[], bool] = lambda: False,
        seconds: float = SECONDS,
    ) -> Iterator[T]:
        """The items of `question` in a child process, as they come.

        Items and exceptions are as with `ask`.  Each item starts the time of so many `seconds` anew, because
        a question with many answers may take long.
        """
        return self._answers(question, lambda: seconds, go_on)

    def _answers(
        self,
        question: Callable[[], Iterable[T]],
        seconds: Callable[[], float],
        go_on: Callable[[], bool],
        keep: Sequence[int] = (),
    ) -> Iterator[T]:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            _answer(question, writer, keep)
        os.close(writer)
        may_wait = os.WNOHANG
        try:
            with os.fdopen(reader, "rb", buffering=0) as pipe:
                yield from _items(pipe, seconds, go_on)
            may_wait = 0
        finally:
            os.kill(child, signal.SIGKILL)  # a child that waits for a server goes on waiting
            with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
                os.waitpid(child, may_wait)


def _items(pipe: IO[bytes], seconds: Callable[[], float], go_on: Callable[[], bool]) -> Iterator[Any]:
    """The answers in `pipe`, until a frame says that there are no more."""
    unread = bytearray()
    while True:
        wait = seconds()
        while not select.select([pipe], [], [], wait)[0]:
            if not go_on():
                raise NoAnswer
            wait = _AGAIN_SECONDS
        part = pipe.read(_CHUNK)
        if not part:
            raise NoAnswer  # somebody has killed the child
        unread += part
        while (frame := _take_frame(unread)) is not None:
            kind, value = marshal.loads(frame)
            if kind == _END:
                return
            if kind != _ANSWER:
                _raise(kind, value)
            yield value


def _take_frame(unread: bytearray) -> bytes | None:
    """Take one frame off `unread`: 8 bytes of length, then the content."""
    size = 8 + int.from_bytes(unread[:8], "little")
    if len(unread) < size or len(unread) < 8:
        return None
    frame = bytes(unread[8:size])
    del unread[:size]
    return frame


def _raise(kind: int, value: tuple[int, str, str | None] | str) -> NoReturn:
    if kind == _FAILED:
        raise OSError(*value)
    raise Refusal(value) if kind == _REFUSED else RuntimeError(value)


def _answer(question: Callable[[], Iterable[object]], writer: int, keep: Sequence[int]) -> NoReturn:
    """Answer in the child, which never returns.  It keeps nothing else of the caller's open: whoever reads
    the caller's output would wait for a child that is left behind."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        stays = [2, *sorted({writer, *keep}), os.sysconf("SC_OPEN_MAX")]
        for one, following in pairwise(stays):
            os.closerange(one + 1, following)
        with os.fdopen(writer, "wb") as pipe, contextlib.suppress(BrokenPipeError):
            kind, value = _send_all(question, pipe)
            _send(pipe, kind, value)
    finally:
        os._exit(0)


def _send_all(question: Callable[[], Iterable[object]], pipe: IO[bytes]) -> tuple[int, object]:
    """Send the answers.  Returns how they ended, as a frame's kind and value."""
    sent = time.monotonic()
    try:
        for item in question():
            _send(pipe, _ANSWER, item)
            if (now := time.monotonic()) > sent + _FLUSH_SECONDS:
                sent = now
                pipe.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        return _FAILED, (error.errno, error.strerror, _text(error.filename))
    except Refusal as error:
        return _REFUSED, str(error)
    except Exception:
        import traceback

        return _BROKEN, traceback.format_exc()
    return _END, None


def _text(filename: object) -> str | None:
    return os.fsdecode(filename) if isinstance(filename, str | bytes) else None


def _send(pipe: IO[bytes], kind: int, value: Any) -> None:
    frame = marshal.dumps((kind, value))
    pipe.write(len(frame).to_bytes(8, "little") + frame)
