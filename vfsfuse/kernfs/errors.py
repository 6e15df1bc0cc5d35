# SPDX-License-Identifier: Apache-2.0
"""What pyfuse3's handlers answer when something goes wrong.  No state; trio thread."""

from __future__ import annotations

import errno
import logging
from types import TracebackType

from ioctl_shim.fuse import pyfuse3
from ioctl_shim.lanefile import answer_of

log = logging.getLogger(__name__)


class errors:
    """Turn exceptions into what pyfuse3 answers: OSError to its errno, anything else to EIO with a
    traceback."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            log.debug("%s: %s", self._what, error)
            raise pyfuse3.FUSEError(answer_of(error)) from error
        if isinstance(error, Exception) and not isinstance(error, pyfuse3.FUSEError):
            log.exception("%s failed", self._what)
            raise pyfuse3.FUSEError(errno.EIO) from error
