# SPDX-License-Identifier: Apache-2.0
"""New bytes to read into, without the zeros and the copy that a bytearray costs.

State: none; any thread.  Source: the Python/C API, "Bytes Objects" and "MemoryView objects".
"""

from __future__ import annotations

import ctypes
from typing import Any

_PYBUF_WRITE = 0x200
new_bytes: Any = ctypes.pythonapi.PyBytes_FromStringAndSize
"""Called with None and a size, returns bytes with undefined content. The caller must fill all of them before
other code sees them."""
new_bytes.argtypes, new_bytes.restype = (ctypes.c_void_p, ctypes.c_ssize_t), ctypes.py_object
_address_of: Any = ctypes.pythonapi.PyBytes_AsString
_address_of.argtypes, _address_of.restype = (ctypes.py_object,), ctypes.c_void_p
_view_of: Any = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of.argtypes, _view_of.restype = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int), ctypes.py_object


def view_of(data: bytes) -> memoryview:
    """A writable view of the result of `new_bytes`.  The view must not outlive the bytes."""
    view: memoryview = _view_of(_address_of(data), len(data), _PYBUF_WRITE)
    return view
