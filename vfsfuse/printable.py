# SPDX-License-Identifier: Apache-2.0
"""Text for a terminal or a log: names of processes, paths and errors may be somebody else's.

No state; any thread.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with escapes for what a terminal would not show, such as a line feed or an escape sequence."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
