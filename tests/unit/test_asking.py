# SPDX-License-Identifier: Apache-2.0
"""Questions in a child process: what they answer, and when they are given up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vfsfuse.asking import NoAnswer, Patience, Refusal


@pytest.mark.parametrize("answer", [None, 0, "\udcff", b"\0" * 3_000_000, ("a", [1, b"2"])])
def test_an_answer_arrives_as_it_is(answer: object) -> None:
    assert Patience().ask(lambda: answer) == answer


def test_a_question_is_asked_in_another_process_that_has_ended_afterwards() -> None:
    child = Patience().ask(os.getpid)
    assert child != os.getpid() and not Path(f"/proc/{child}").exists()


def test_who_asks_has_no_files_but_those_that_it_keeps() -> None:
    def open_there() -> list[bool]:
        return [Path(f"/proc/self/fd/{fd}").exists() for fd in (*first, *second)]

    first, second = os.pipe(), os.pipe()
    assert Patience().ask(open_there) == 4 * [False]
    assert Patience().ask(open_there, keep=[second[1], first[1]]) == [False, True, False, True]
    for fd in (*first, *second):
        os.close(fd)


def missing() -> None:
    os.stat("/no/such/file")


def refused() -> None:
    raise Refusal("it is not there (look elsewhere)")


@pytest.mark.parametrize(
    ("question", "kind", "text"),
    [
        (missing, FileNotFoundError, "No such file or directory: '/no/such/file'"),
        (refused, Refusal, "it is not there"),
        (lambda: 1 / 0, RuntimeError, "ZeroDivisionError"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), NoAnswer, "^$"),
    ],
)
def test_what_a_question_raises(question: Callable[[], object], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        Patience().ask(question)


def test_a_question_is_given_up_in_time() -> None:
    patience, began = Patience(0.3), time.monotonic()
    with pytest.raises(NoAnswer):
        patience.ask(lambda: time.sleep(3600))
    with pytest.raises(NoAnswer):  # the time is that of all questions together
        patience.ask(lambda: time.sleep(3600))
    assert time.monotonic() - began >= 0.3 and patience.left() == 0


def test_who_goes_on_gets_a_late_answer(tmp_path: Path) -> None:
    asked = tmp_path / "asked"

    def late() -> int:
        while not asked.exists():
            time.sleep(0.01)
        return 7

    def go_on() -> bool:
        asked.touch()
        return True

    assert Patience(0.1).ask(late, go_on) == 7


def test_who_goes_on_once_may_give_up_later() -> None:
    told = [True, False]
    with pytest.raises(NoAnswer):
        Patience(0.1).ask(lambda: time.sleep(60), lambda: told.pop(0))
    assert not told


def test_each_answer_of_many_starts_the_time_anew() -> None:
    """All of them take twice that time."""
    seconds = 4.0

    def slowly() -> Iterator[int]:
        for number in range(5):
            time.sleep(seconds / 2.5)
            yield number
        time.sleep(3600)

    heard = []
    with pytest.raises(NoAnswer):
        for number in Patience(0).answers(slowly, seconds=seconds):
            heard.append(number)
    assert heard[:4] == [0, 1, 2, 3]


def test_a_child_keeps_nothing_of_the_caller_open() -> None:
    reader, writer = os.pipe()
    kept = Patience().ask(lambda: [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)])
    assert kept == ["/dev/null"] * 3
    with pytest.raises(OSError, match="Bad file descriptor"):
        Patience().ask(lambda: os.write(writer, b"x"))
    os.close(reader)
    os.close(writer)
