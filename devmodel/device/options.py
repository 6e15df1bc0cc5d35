# SPDX-License-Identifier: Apache-2.0
"""The options of a device model, which a lab file may set: whole numbers and lines of text.

State: none, all are values.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a model, a whole number that a lab file may set: its default and inclusive bounds."""

    default: int
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class TextOption:
    """An option of a model that is a line of text.

    All of the text matches the regular expression ``pattern``; ``hint`` shows a right one in the error, such
    as "write 00-11-22". A ``path`` names a file: one in a lab file begins at the lab file's folder, and the
    model gets the whole path.
    """

    default: str = ""
    pattern: str = ".*"
    hint: str = ""
    path: bool = False

    def check(self, key: str, value: str) -> None:
        """Raise ValueError when option ``key`` cannot be ``value``."""
        if not value.isprintable() or re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"option {key!r} cannot be {value!r}" + (f" ({self.hint})" if self.hint else ""))
