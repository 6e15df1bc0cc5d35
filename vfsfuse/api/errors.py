# SPDX-License-Identifier: Apache-2.0
"""The exception of the Python API.  No state."""

from __future__ import annotations


class LabError(Exception):
    """A lab cannot be mounted, joined or ended, or its server has gone.

    str() is what a person reads: the lines of the server, such as all errors of a lab file.  `log` is what
    the server has logged, empty where nothing is known of it.  Errors of single calls are not of this class:
    a store that the lab refuses is the OSError that it is for every program, with its errno and the path.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log
