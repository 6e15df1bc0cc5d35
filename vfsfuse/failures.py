# SPDX-License-Identifier: Apache-2.0
"""A failure in one line: the device, the hook of its model, the exception, and the line of code.

Logs, the file `log` of a mount and the trace say it in these words.  Any thread; no state.  Nothing here
trusts an exception: its text may be long, have several lines, or raise again.
"""

from __future__ import annotations

import logging
import os
import sysconfig
from collections.abc import Iterator
from types import TracebackType

from vfsfuse.printable import printable

MOST_TEXT = 400
"""Characters of an exception that are shown."""
_FRAMEWORK = ("devmodel", "ioctl_shim", "vfsfuse")
_MODELS = ("devmodel.models", "devmodel.gpu")
_LIBRARY = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib"))


class Described(logging.Formatter):
    """Formats records as logging.Formatter, and adds to the message of one with an exception what failed.

    Names and texts in it may be a client's, and somebody reads it on a terminal.  So what is not printable is
    escaped, and a message has one line."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        error = _error_of(record)
        return printable(text if error is None else f"{text}: {said(error)}")


def headline(record: logging.LogRecord) -> str:
    """A record of a log in one line.  What is not printable is escaped."""
    error = _error_of(record)
    message = record.getMessage()
    if error is None:
        text = message
    else:
        text = said(error) if _hook(error.__traceback__) else f"{message}: {said(error)}"
    return printable(" ".join(text.split()))


def said(error: BaseException) -> str:
    """What has failed: "0000:86:00.0: Card.write raised ZeroDivisionError: division by zero (card.py:31)".
    Outside a model's code: "ValueError: no such unit (lab.py:80)"."""
    trace = error.__traceback__
    what, hook = text_of(error) + place(trace), _hook(trace)
    if hook:
        what = f"{hook} raised {what}"
    device = _device(trace)
    return f"{device}: {what}" if device else what


def text_of(error: BaseException) -> str:
    """An exception with its type, on one line."""
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = "(no text)"
    name = type(error).__name__
    return f"{name}: {text}"[:MOST_TEXT] if text else name


def place(trace: TracebackType | None) -> str:
    """File and line of the innermost frame in a model, as " (copier.py:31)"."""
    found = None
    for frame in _frames(trace):
        if found is None or _is_model(frame):
            found = frame
    return "" if found is None else f" ({_file(found).rpartition(os.sep)[2]}:{found.tb_lineno})"


def _error_of(record: logging.LogRecord) -> BaseException | None:
    """The exception of a record: of a group, the first one."""
    error = record.exc_info[1] if record.exc_info else None
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _hook(trace: TracebackType | None) -> str:
    """The function by which a model's code was entered, empty if it was not."""
    return next((each.tb_frame.f_code.co_qualname for each in _frames(trace) if _is_model(each)), "")


def _device(trace: TracebackType | None) -> str:
    """The name of the device in whose code it failed, by the variables of the frames."""
    from devmodel.device.base import Device

    for frame in reversed(list(_frames(trace))):
        for value in list(frame.tb_frame.f_locals.values()):
            if issubclass(type(value), Device):  # isinstance() may run code of the value
                return str(getattr(value, "name", ""))
    return ""


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _is_model(trace: TracebackType) -> bool:
    """Whether a frame is a model's: a built-in one's, or neither ours nor a library's."""
    module = str(trace.tb_frame.f_globals.get("__name__", ""))
    if module.startswith(_MODELS):
        return True
    return module.partition(".")[0] not in _FRAMEWORK and not _file(trace).startswith(_LIBRARY)


def _file(trace: TracebackType) -> str:
    return trace.tb_frame.f_code.co_filename
