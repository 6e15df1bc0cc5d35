# SPDX-License-Identifier: Apache-2.0
"""The live view of `vfsfuse top`: the rates of a lab on a whole terminal, by rich.

The only module that imports rich, which an installation may lack: the command imports it when it needs it.
Single-threaded.  Whatever ends it, the terminal is as it was before.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vfsfuse.monitor.files import printable
from vfsfuse.monitor.rates import DeviceRates, Rates
from vfsfuse.monitor.tables import NONE, cut
from vfsfuse.monitor.topview import (
    DEVICE_HEADING,
    GPU_HEADING,
    RIGHT,
    device_cells,
    gpu_cells,
    notes,
    summary,
)

QUIT = b"qQ\x03\x04"
HELP = "q: quit"
GAP = 2
FEWER = ("PARENT", "TYPE", "MEMORY", "FAULTS/s", "IRQ/s", "VGPUS", "CALLS/s", "DMA/s")
"""Columns that a narrow terminal does without, the least important first."""
ENDING = (signal.SIGTERM, signal.SIGHUP)


def watch(shown: Iterable[Rates | None], count: int | None) -> None:
    """Show rates as they come, `count` times or until a key of QUIT.  None only says that time goes by.
    Raises what `shown` raises, with the terminal restored, and KeyboardInterrupt and SystemExit."""
    console = Console()
    live = Live(console=console, screen=True, auto_refresh=False)
    keyboard = _Keyboard()
    stop = _Stop(live, keyboard)
    with _signals(stop), keyboard, live:
        last, at = None, None
        for rates in shown:
            if keyboard.quits():
                return
            if stop.asked:
                stop.now()
                at = None
            size = console.size
            if rates is None and (last is None or size == at):
                continue
            if rates is not None and count is not None:
                count -= 1
            last, at = rates or last, size
            if last is not None:
                live.update(picture(last, size.width, size.height), refresh=True)
            if rates is not None and count == 0:
                return


def picture(rates: Rates, width: int, height: int) -> RenderableType:
    """The view, as it fits a terminal.  The busiest devices are the ones that are shown."""
    gpus = rates.gpus[: max(0, height // 3)]
    room = max(0, height - len(gpus) - 4 - len(list(notes(rates, 0))))
    shown = rates.devices[:room]
    parts = [_line(summary(rates), "bold"), _line(HELP, "dim")]
    if gpus:
        parts.append(_table(GPU_HEADING, [(gpu_cells(gpu), "") for gpu in gpus], width))
    if shown:
        rows = [(device_cells(row, rates.unseen), _style(row)) for row in shown]
        parts.append(_table(DEVICE_HEADING, rows, width))
    return Group(*parts, *(_line(line, "yellow") for line in notes(rates, len(shown))))


def _line(text: str, style: str) -> RenderableType:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _table(
    heading: Sequence[str], rows: Sequence[tuple[Sequence[str | None], str]], width: int
) -> RenderableType:
    """The columns that fit.  The last one gets what is left, and its text is cut."""
    texts = [[printable(cell or NONE) for cell in cells] for cells, _ in rows]
    made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="reverse")
    columns, room = _fitting(heading, texts, width)
    for number in columns:
        name = heading[number]
        right: Literal["left", "right"] = "right" if name in RIGHT.split() else "left"
        made.add_column(name, justify=right, no_wrap=True)
    for cells, (_, style) in zip(texts, rows, strict=True):
        shown = [*cells[:-1], cut(cells[-1], room)]
        made.add_row(*(Text(shown[number]) for number in columns), style=style)
    return made


def _fitting(heading: Sequence[str], texts: Sequence[Sequence[str]], width: int) -> tuple[list[int], int]:
    """The numbers of the columns that are shown, and how wide the last one may be.  Those of FEWER go first.
    Of the last column the heading has to fit."""
    widths = [max(map(len, column)) + GAP for column in zip(heading, *texts, strict=True)]
    widths[-1] = len(heading[-1])
    left = list(range(len(heading)))
    for name in FEWER:
        if sum(widths[number] for number in left) <= width:
            break
        left = [number for number in left if heading[number] != name]
    others = sum(widths[number] for number in left if number < len(heading) - 1)
    return left, max(len(heading[-1]), width - others)


def _style(row: DeviceRates) -> str:
    return "red" if row.faults else "dim" if row.is_idle else ""


class _Keyboard:
    """Standard input, if it is a terminal: keys come at once and are not shown."""

    def __init__(self) -> None:
        fd = sys.stdin.fileno() if sys.stdin is not None and not sys.stdin.closed else -1
        self._fd = fd if fd >= 0 and os.isatty(fd) else None
        self._before = None if self._fd is None else termios.tcgetattr(self._fd)

    def __enter__(self) -> _Keyboard:
        if self._fd is not None:
            tty.setcbreak(self._fd)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None and self._before is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def quits(self) -> bool:
        """Whether a key of QUIT was pressed, or the terminal is gone."""
        while self._fd is not None and select.select([self._fd], [], [], 0)[0]:
            pressed = os.read(self._fd, 64)
            if not pressed or any(key in QUIT for key in pressed):
                return True
        return False


class _Stop:
    """Job control: Ctrl-Z stops the process, with the terminal as it was before, until fg continues it."""

    def __init__(self, live: Live, keyboard: _Keyboard) -> None:
        self._live, self._keyboard = live, keyboard
        self.asked = False

    def ask(self, _number: int, _frame: FrameType | None) -> None:
        """The handler of SIGTSTP."""
        self.asked = True

    def now(self) -> None:
        """Stop, and return when the process is continued."""
        self.asked = False
        self._live.stop()
        self._keyboard.__exit__()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        self._keyboard.__enter__()
        self._live.start()


@contextlib.contextmanager
def _signals(stop: _Stop) -> Iterator[None]:
    """Let signals that end the process raise SystemExit, so that the terminal is restored."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in ENDING}
    before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, stop.ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
