# SPDX-License-Identifier: Apache-2.0
"""New bytes for a DMA to fill, without the zeros and the copy that a bytearray costs.

State: none; any thread. Source: the Python/C API, "Bytes Objects" and "MemoryView objects".
"""

import ctypes
from typing import Any

_PYBUF_WRITE = 0x200
_new_bytes: Any = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.argtypes, _new_bytes.restype = (ctypes.c_void_p, ctypes.c_ssize_t), ctypes.py_object
_address_of: Any = ctypes.pythonapi.PyBytes_AsString
_address_of.argtypes, _address_of.restype = (ctypes.py_object,), ctypes.c_void_p
_view_of: Any = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of.argtypes, _view_of.restype = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int), ctypes.py_object


def blank(size: int) -> tuple[bytes, memoryview]:
    """``size`` bytes (1 or more) of any content, and a view to fill them by: all of them, before anybody sees
    any. The view must not outlive the bytes."""
    data = _new_bytes(None, size)
    return data, _view_of(_address_of(data), size, _PYBUF_WRITE)
