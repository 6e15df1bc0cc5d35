# SPDX-License-Identifier: Apache-2.0
"""The pages that a device on a bench asks its client for, and the client's answers.

State: under a lock; the device asks on the trio thread, a test answers.  Source: devmodel.iommufd.faultqueue.
"""

import threading
from collections import deque

from devmodel.device.base import Device
from devmodel.device.pci import PciDevice
from devmodel.iommu.api import PageAnswer, PageRequest, PageResponse
from devmodel.pci.regs import ExtCapId
from vfsfuse.testing.errors import BenchError


class Pages:
    """The page requests of one device, oldest first, which the test answers by hand."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[PageRequest, PageAnswer]] = deque()

    @property
    def waiting(self) -> tuple[PageRequest, ...]:
        """The requests that have no answer yet."""
        with self._lock:
            return tuple(request for request, _ in self._waiting)

    def answer(self, response: PageResponse = PageResponse.SUCCESS) -> PageRequest:
        """Answer the oldest request, and return it.  The device goes on at the next call that lets it work.
        Raises :class:`BenchError` when there is none."""
        with self._lock:
            if not self._waiting:
                raise BenchError("the device asks for no pages")
            request, answer = self._waiting.popleft()
        answer(response)
        return request

    def opened(self, device: Device) -> None:
        """The client has opened the device, which may ask if it has the capability."""
        if isinstance(device, PciDevice) and device.config.has_extended(ExtCapId.PRI):
            device.dma.ask_pages = self._ask

    def closed(self, device: Device) -> None:
        """The client has closed the device: nobody answers any more."""
        device.dma.ask_pages = None
        while self.waiting:
            self.answer(PageResponse.INVALID)

    def _ask(self, request: PageRequest, answer: PageAnswer) -> None:
        with self._lock:
            self._waiting.append((request, answer))
