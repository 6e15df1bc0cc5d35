# SPDX-License-Identifier: Apache-2.0
"""The native edge: the device lane, the VFIO ABI, and the client's memory and file descriptors.

Import this package before pyfuse3: its extension takes four libfuse symbols first (native/interpose.c), and a
symbol binds once, when pyfuse3 is loaded.
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
