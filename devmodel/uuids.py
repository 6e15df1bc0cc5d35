# SPDX-License-Identifier: Apache-2.0
"""UUIDs as the kernel's attributes and VFIO's names take them: parsed strictly.

State: none. Source: uuid_parse() of the kernel, which takes 8-4-4-4-12 hexadecimal digits and nothing else.
"""

import re
from uuid import UUID

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def parse_uuid(text: str) -> UUID:
    """The UUID that is written to an attribute: in either case, with at most one newline after it.

    Raises ValueError for anything else.
    """
    return parse_uuid_field(text.removesuffix("\n"))


def parse_uuid_field(text: str) -> UUID:
    """The UUID that is one field of a longer line: in either case, with nothing after it.

    Raises ValueError for anything else.
    """
    if _UUID.fullmatch(text) is None:
        raise ValueError(f"not a UUID: {text!r}")
    return UUID(text)
