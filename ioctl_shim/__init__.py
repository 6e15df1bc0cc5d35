# SPDX-License-Identifier: Apache-2.0
"""The native edge: what a FUSE server in Python cannot do by itself, in C (native/) and in Python over it.

How data flows: one thread, the pump, reads every request from /dev/fuse. It answers accesses of memory and
of stored registers in C (``pumped``), calls ``lane`` for other requests on device files, and leaves the rest
to pyfuse3, on trio's thread. For an ioctl it fetches the client's struct as the row in ``abi`` says, calls
the handler, and puts the struct back. ``client`` is the process that made a request: its memory, and copies
of its descriptors. ``pinned`` is client memory that a device holds. ``seccomp`` traps system calls for
`vfsfuse run`. The package contains no emulation.

Import this package before pyfuse3. The extension replaces libfuse symbols (native/interpose.c), and a symbol
binds only once, when pyfuse3 is loaded.
"""

from __future__ import annotations

import os
import sys


def _load() -> None:
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        from ioctl_shim import _native  # noqa: F401  (loaded for its symbols)
    finally:
        sys.setdlopenflags(flags)


_load()
