# SPDX-License-Identifier: Apache-2.0
"""A call on a lab, as those who attend to it are told of it.

Threads: a call belongs to its maker.  Those who attend read it, on the same thread or on another that
makes the rest of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class CallKind(Enum):
    """What a call is."""

    IOCTL = "ioctl"
    REGION = "region"
    DMA = "dma"
    INTERRUPT = "interrupt"
    STORE = "store"
    LIFECYCLE = "lifecycle"
    OPEN = "open"
    RESET = "reset"
    DEVICE = "device"


@dataclass(slots=True, eq=False)
class Call:
    """One call.  ``subject`` is the device, group, container or directory that it is on; ``name`` is what is
    done: an ioctl's name, "read", "write", "create", an attribute's name.

    ``tid`` is the thread of the client that waits for it, 0 where none does or it is not known.  ``begun`` is
    when it began, as time.monotonic() says.  ``device`` is the :class:`devmodel.device.base.Device` that it
    is on, if it is on one.

    Once it is over, ``error`` says why it failed, or else ``result`` what it gave; ``after`` is the struct of
    an ioctl as the client finds it then.  ``error`` is None again when those who attend have been told: an
    exception keeps all that its frames use.

    ``fault`` has the names of the rules that have hit it (``Injection.rule``), ``delayed`` says that they
    only have it wait.  Observers find both set when it begins.

    ============= ========================= ========================================================
    kind          name                      arguments; result
    ============= ========================= ========================================================
    IOCTL         the ioctl's               "arg" (the number or pointer), "before" (bytes of the struct
                                            behind it: empty for none, and while nobody attends); an int
    REGION        "read", "write"           "region" (index), "offset", "size", for a write "data"; the
                                            bytes read, or the number of bytes written
    DMA           "read", "write"           "iova", "size", for a write "data" (the first 64 bytes,
                                            or 4 MiB while somebody records); the bytes read (as
                                            many of those read to a buffer), or None
    DMA           "pin"                     "iova", "count"; the pin
    INTERRUPT     that of the index (MSIX)  "vector"; None
    STORE         the attribute's           "data"; the number of bytes taken
    LIFECYCLE     the method's              "arguments"; what the method gives
    OPEN          "open", "close"           "path" in the mount; None
    RESET         "reset"                   none; None
    DEVICE        "describe"                what VFIO says of a device that a client begins to use
                                            (vfsfuse.vfio.described), while somebody records; None
    ============= ========================= ========================================================
    """

    kind: CallKind
    subject: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tid: int = 0
    device: Any = None
    begun: float = 0.0
    result: Any = None
    error: BaseException | None = None
    after: bytes = b""
    fault: str = ""
    delayed: bool = False
