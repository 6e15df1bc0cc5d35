# SPDX-License-Identifier: Apache-2.0
"""What the unit tests share: an assertion about errnos, and a client whose memory is a dictionary."""

import errno
from collections.abc import Callable

import pytest

TOP = 2**64


def fails(number: int, call: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Assert that the call raises OSError with this errno."""
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


class FakeClient:
    """A process whose memory is a dictionary of bytes; ``limit`` is where it ends."""

    def __init__(self, tgid: int = 1, limit: int = TOP) -> None:
        self.tgid = tgid
        self.limit = limit
        self.bytes: dict[int, int] = {}

    def read(self, vaddr: int, size: int) -> bytes:
        self._check(vaddr, size)
        return bytes(self.bytes.get(vaddr + i, 0) for i in range(size))

    def write(self, vaddr: int, data: bytes) -> None:
        self._check(vaddr, len(data))
        self.bytes.update(enumerate(data, vaddr))

    def _check(self, vaddr: int, size: int) -> None:
        if vaddr + size > self.limit:
            raise OSError(errno.EFAULT, "no such memory")
