# SPDX-License-Identifier: Apache-2.0
"""Text of a trace that others have chosen, made safe for a terminal.

A client chooses its process' name, the data of stores and the names of devices; the server may be another
user's.  No character of theirs moves the cursor, changes a colour or reverses the direction of a line.
State: none.
"""

from __future__ import annotations

_QUOTED = {ord('"'): '\\"', ord("\n"): "\\n", ord("\t"): "\\t", ord("\r"): "\\r", 0: "\\0"}
_LONGEST = 64
"""Characters of a quoted text that are shown."""


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str) -> str:
    """`text` with an escape such as \\x1b for each character that is not printable, and \\\\ for a
    backslash."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join("\\\\" if each == "\\" else each if each.isprintable() else _escape(each) for each in text)


def word(text: str) -> str:
    """`printable`, with an escape for each space too: one column of a line.  "-" if there is nothing."""
    return printable(text).replace(" ", "\\x20") or "-"


def quoted(text: str) -> str:
    """`text` in double quotes, cut off after 64 characters."""
    if len(text) <= _LONGEST and text.isprintable() and "\\" not in text and '"' not in text:
        return f'"{text}"'
    shown = "".join(_QUOTED.get(ord(each)) or printable(each) for each in text[:_LONGEST])
    return f'"{shown}"' + ("..." if len(text) > _LONGEST else "")


def quoted_bytes(data: bytes) -> str:
    """Bytes that are text as a rule, in double quotes."""
    return quoted(data[: 4 * _LONGEST + 4].decode("utf-8", "backslashreplace"))
