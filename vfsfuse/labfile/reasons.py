# SPDX-License-Identifier: Apache-2.0
"""What a model's code has raised, as a line for a person: the exception, the file and the line number.

State: none. Nothing here trusts the exception: its text may be long, broken or raise again.
"""

import traceback
from types import TracebackType

from vfsfuse.labfile.modules import FINDER

_LOADERS = ("importlib", "vfsfuse.labfile")
"""Modules that load a model, and are not to blame for it."""

MAX_TEXT = 200
"""Characters of an exception that are shown."""


def reason(error: BaseException) -> str:
    """The exception and its place: "SystemExit(3) at /lab/card.py:7"."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}({error.msg!r}) at {error.filename}:{error.lineno}"
    place = _place(error.__traceback__)
    return f"{_shown(error)} at {place}" if place else _shown(error)


def _place(trace: TracebackType | None) -> str:
    """The last line of a model's own code that ran, or else the last line of all."""
    lines = [
        (frame.f_globals.get("__name__"), frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(trace)
    ]
    lines = [line for line in lines if not str(line[0]).startswith(_LOADERS)]
    own = [line for line in lines if FINDER.is_own(str(line[0]))]
    return "".join(f"{file}:{number}" for _, file, number in (own or lines)[-1:])


def _shown(error: BaseException) -> str:
    try:
        text = repr(error)
    except BaseException:
        text = type(error).__name__
    return (text if text.isprintable() else text.encode("unicode_escape").decode())[:MAX_TEXT]
