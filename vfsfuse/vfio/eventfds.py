# SPDX-License-Identifier: Apache-2.0
"""Eventfds of a request: descriptor numbers of the client as devmodel's Eventfd.  Device lane.

native/eventfd.c signals one, and never waits for the client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from devmodel.irq.eventfd import Eventfd
from ioctl_shim._native import lib
from ioctl_shim.client import Caller


def borrow(client: Caller, number: int) -> Eventfd:
    """The client's eventfd `number`.  Raises OSError: EBADF for no descriptor, EINVAL for another kind of
    file."""
    return Eventfd(client.borrow_eventfd(number), lib.shim_signal)


@contextmanager
def lender(client: Caller) -> Iterator[Callable[[int], Eventfd]]:
    """`borrow` for many descriptors of one client.  It looks the process up once, even for 2048 vectors."""
    with client.lending_eventfds() as lend:
        yield lambda number: Eventfd(lend(number), lib.shim_signal)
