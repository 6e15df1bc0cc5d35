# SPDX-License-Identifier: Apache-2.0
"""The trace of a lab for the time of a `with`: what programs and devices have done there.

A Trace is for one thread at a time.  docs/trace.md says what is in a record.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection
from types import TracebackType

from vfsfuse.api.directory import Directory
from vfsfuse.api.errors import LabError
from vfsfuse.api.files import Files
from vfsfuse.api.opening import Assignable
from vfsfuse.trace.filters import Filter
from vfsfuse.trace.reader import TraceReader
from vfsfuse.trace.record import Record, TraceError

PATIENCE = 10.0
"""Seconds that a silent server has for an answer."""
WAIT_SECONDS = 10.0
CLASSES = "sys/class/vgpu"
_NUMBERED = re.compile(r"vgpu\d+")


class Trace:
    """The trace from the moment on at which this is made.  As a context manager it is closed at the end;
    `records` and `text` stay."""

    def __init__(self, files: Files, filter: Filter, keep: int) -> None:
        """The server keeps the last `keep` records that have not been asked for.  Raises LabError if it does
        not answer."""
        self._records: list[Record] = []
        try:
            self._reader = TraceReader(files.root, filter, keep, PATIENCE)
        except TraceError as error:
            raise LabError(str(error)) from None
        files.opened.add(self)

    @property
    def records(self) -> list[Record]:
        """All records so far.  What has ended before this is asked is among them.  Raises LabError if the
        server does not answer."""
        try:
            self._records += self._reader.drain()
        except TraceError as error:
            raise LabError(str(error)) from None
        return list(self._records)

    def text(self) -> str:
        """All records so far, a line each, as `vfsfuse trace` prints them.  Raises LabError as `records`."""
        from vfsfuse.trace.text import Lines  # it loads the native extension

        lines = Lines()
        return "".join(f"{lines.line(record)}\n" for record in self.records)

    def wait(self, predicate: Callable[[Record], bool], timeout: float = WAIT_SECONDS) -> Record:
        """The first record for which `predicate` is true, also one that came before.

        `timeout` is in seconds.  Raises TimeoutError, or LabError if the lab ends meanwhile."""
        end = time.monotonic() + timeout
        for record in self.records:
            if predicate(record):
                return record
        while True:
            try:
                found = self._reader.next(max(0.0, end - time.monotonic()))
            except TraceError as error:
                raise LabError(str(error)) from None
            if found is not None:
                self._records.append(found)
                if predicate(found):
                    return found
            elif self._reader.ended:
                raise LabError("the lab has ended, or the trace is closed")
            else:
                raise TimeoutError(f"no such call within {timeout:g} seconds; there were:\n{self.text()}")

    def close(self) -> None:
        """Take what there is, and read no more.  May be called again."""
        if self._reader.is_ours and not self._reader.ended:
            with contextlib.suppress(TraceError):  # the server is gone or silent
                self._records += self._reader.drain()
        self._reader.close()

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def names_of(files: Files, devices: Collection[Directory | str]) -> list[str]:
    """What devices are called in the trace, with their groups, by which programs open them."""
    return [name for device in devices for name in _names(files, device)]


def _names(files: Files, device: Directory | str) -> list[str]:
    if isinstance(device, str):
        found = _numbered(files, device)
        return [device] if found is None else _names(files, found)
    group = device.group if isinstance(device, Assignable) else None
    return [device.name, *([f"group {group}"] if group is not None else [])]


def _numbered(files: Files, name: str) -> Assignable | None:
    """The vGPU that is called vgpu<N> in sys/class/vgpu."""
    if not _NUMBERED.fullmatch(name):
        return None
    classes = files.root / CLASSES
    paths = [classes / vendor / name for vendor in files.names(classes) if files.has(classes / vendor / name)]
    return Assignable(files, paths[0].resolve()) if paths else None
