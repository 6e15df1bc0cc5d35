# SPDX-License-Identifier: Apache-2.0
"""The recording of a lab for the time of a `with`: the dialogue of programs with VFIO devices.

A LabRecording is for one thread at a time.  docs/recording.md says what is in it.
"""

from __future__ import annotations

import contextlib
import os
from types import TracebackType

from vfsfuse.api.errors import LabError
from vfsfuse.api.files import Files
from vfsfuse.api.tracing import PATIENCE
from vfsfuse.recording.collecting import KEEP, TRACE_KINDS, Collector, wishes
from vfsfuse.recording.recording import Event, RecordedDevice, Recording, RecordingError
from vfsfuse.trace.filters import Filter
from vfsfuse.trace.reader import TraceReader
from vfsfuse.trace.record import TraceError


class LabRecording:
    """A recording from the moment on at which this is made.  As a context manager it is closed at the end;
    what it has stays."""

    def __init__(self, files: Files, shows_mmap: bool = False, keep: int = KEEP) -> None:
        """The server keeps the last `keep` records that have not been asked for.  Raises LabError if it does
        not answer."""
        self._collector = Collector(shows_mmap=shows_mmap)
        try:
            self._reader = TraceReader(
                files.root, Filter(kinds=TRACE_KINDS), keep, PATIENCE, wishes(shows_mmap)
            )
        except TraceError as error:
            raise LabError(str(error)) from None
        files.opened.add(self)

    @property
    def recording(self) -> Recording:
        """What is recorded so far.  Raises LabError if the server does not answer, or if calls are missing:
        the server keeps a million of them, and 128 MiB, for whoever asks so rarely."""
        try:
            self._take()
            return self._collector.recording()
        except (TraceError, RecordingError) as error:
            raise LabError(str(error)) from None

    @property
    def devices(self) -> list[RecordedDevice]:
        """The devices so far.  Raises LabError as `recording`."""
        return self.recording.devices

    @property
    def events(self) -> list[Event]:
        """The events so far, in the order in which they began.  Raises LabError as `recording`."""
        return self.recording.events

    def text(self) -> str:
        """The file of the recording so far.  Raises LabError as `recording`."""
        from vfsfuse.recording.writing import lines  # it loads the native extension

        return "".join(f"{line}\n" for line in lines(self.recording))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recording so far to a file.  Raises LabError as `recording`, and OSError."""
        from vfsfuse.recording.writing import write

        write(self.recording, path)

    def close(self) -> None:
        """Take what there is, and record no more.  May be called again."""
        if self._reader.is_ours and not self._reader.ended:
            with contextlib.suppress(TraceError, RecordingError):  # the next question says why
                self._take()
        self._reader.close()

    def _take(self) -> None:
        for record in self._reader.drain():
            self._collector.add(record)

    def __enter__(self) -> LabRecording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
