# SPDX-License-Identifier: Apache-2.0
"""The labs of the pytest plugin, and what a failed test tells of them.

Each lab is traced by a reader that keeps the last records, and that is read only when a test fails.  A lab
that lives longer than a test tells of that test alone.

State: owned by pytest's thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vfsfuse.api.lab import Lab
from vfsfuse.trace.reader import TraceReader
from vfsfuse.trace.record import TraceError
from vfsfuse.trace.text import Lines

KEPT = 2000
"""Records that each lab keeps for a test that fails."""

LABS = pytest.StashKey["Labs"]()
"""Where pytest's configuration has the labs of the process."""

_LOG_LINES = 60

_MARKER_OPTIONS = {"trace", "strict", "options", "log_level", "faults"}


def marked(marker: pytest.Mark | None, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The lab and the options that a marker `vfio_lab` asks for. `folder` is where a relative path begins.

    Raises pytest.UsageError for a marker that is wrong."""
    if marker is None:
        return None, {}
    unknown = marker.kwargs.keys() - _MARKER_OPTIONS - {"config"}
    if unknown or len(marker.args) > 1 or (marker.args and "config" in marker.kwargs):
        wrong = f"no option {sorted(unknown)[0]!r}" if unknown else "one lab at most"
        raise pytest.UsageError(f"the marker vfio_lab takes {wrong} (pytest --markers explains it)")
    options = {**marker.kwargs}
    config = options.pop("config", None) if not marker.args else marker.args[0]
    if isinstance(config, str) and "\n" not in config:
        config = Path(config)
    return folder / config if isinstance(config, Path) else config, options


@dataclass(eq=False)
class _Watched:
    """A lab, the reader of its trace, and the place in its log at which the test began."""

    lab: Lab
    trace: TraceReader | None
    log_from: int = 0

    def begin_test(self) -> None:
        self.log_from = len(self.lab.log)
        if self.trace is not None:
            with contextlib.suppress(TraceError):  # a test before has ended the lab
                self.trace.drain()

    def sections(self, most: int) -> Iterator[tuple[str, str]]:
        """The titles and texts of a report: the last `most` lines of the trace, and the log."""
        yield from self.calls(most)
        log = self.lab.log[self.log_from :].splitlines()
        if log:
            yield f"log of {self.lab.path}", "\n".join(log[-_LOG_LINES:])

    def calls(self, most: int) -> Iterator[tuple[str, str]]:
        """The section with the last calls, if there are any."""
        if self.trace is not None and (told := self._last_calls(most)):
            yield f"last calls on {self.lab.path}", told

    def _last_calls(self, most: int) -> str:
        assert self.trace is not None
        try:
            records = self.trace.drain()
        except TraceError as error:
            return str(error)
        lines = Lines()
        # A call is told when it is over. In the order of their begin, a cause comes before its effect.
        told = [lines.line(record) for record in sorted(records, key=lambda record: record.number)]
        earlier = [f"({len(told) - most} earlier records)"] if len(told) > most else []
        return "\n".join([*earlier, *told[max(0, len(told) - most) :]])


class Labs:
    """The labs of a pytest process. `folder` makes an empty folder for a lab. A report shows the last `lines`
    of the trace of each."""

    def __init__(self, folder: Callable[[], Path], lines: int) -> None:
        self._folder, self._lines = folder, lines
        self._watched: list[_Watched] = []
        self._over: list[tuple[str, str]] = []
        """What labs tell that have ended by an exception in their `with`, before there is a report."""

    @contextlib.contextmanager
    def make(self, config: Any = None, *, trace: bool = True, **options: Any) -> Iterator[Lab]:
        """A lab that is mounted within the block. Raises as :class:`Lab`."""
        options.setdefault("strict", True)
        options.setdefault("at", self._folder() / "mnt")
        with contextlib.ExitStack() as stack:
            lab = stack.enter_context(Lab(config, **options))
            reader = stack.enter_context(TraceReader(lab.path / "trace", keep=KEPT)) if trace else None
            watched = _Watched(lab, reader)
            self._watched.append(watched)
            stack.callback(self._watched.remove, watched)
            try:
                yield lab
            except BaseException:
                self._over += watched.sections(self._lines)
                raise
            if "Traceback" in lab.log:
                self._over += watched.calls(self._lines)  # the end of a strict lab fails, and tells its log

    def begin_test(self) -> None:
        """A test begins: what the labs tell from now on is its own."""
        self._over.clear()
        for watched in self._watched:
            watched.begin_test()

    def sections(self) -> Iterator[tuple[str, str]]:
        """What a report of a failure shows: a title and a text, for each lab that tells something."""
        yield from self._over
        for watched in self._watched:
            yield from watched.sections(self._lines)
