# SPDX-License-Identifier: Apache-2.0
"""What a class of devices may override: hooks that do nothing by themselves.

Each says on which thread it runs, and under which lock: ``lock`` is that of the device.
"""


class Hooks:
    """The hooks of :class:`devmodel.device.base.Device`."""

    __slots__ = ()

    async def run(self) -> None:
        """For models: what the device does by itself. It runs on the trio thread from the first open to the
        last close; a reset ends it and starts it again."""

    def stopped(self) -> None:
        """For models with threads of their own: a reset begins, or the last client has closed the device.

        From now on the threads must touch nothing of the device. Runs under ``lock``, when tasks end too;
        must not wait for the threads.
        """

    def after_reset(self) -> None:
        """For models: what a reset does after each region's own reset. Runs under ``lock``."""

    def closed(self) -> None:
        """For models: let go of what the model holds, the device is gone. Runs once, under ``lock``."""

    def dma_unmap(self, iova: int, size: int) -> None:
        """For models that pin pages: unpin all pages of this range before returning.

        Called on the device lane or a thread that may wait, with no lock held. It must not wait for a DMA.
        """

    def may_dma(self) -> bool:
        """Whether the device may do DMA now. Any thread."""
        return True

    def sync_intx(self) -> None:
        """After a reset, under ``lock``: bring the interrupt line to what the registers say."""

    def irqs_asked(self, flags: int, index: int, start: int, count: int) -> None:
        """For models: a SET_IRQS has succeeded. Any thread, without ``lock``."""

    def irqs_set(self) -> None:
        """A client has set up interrupts, or torn them down: have the registers say which are on. Takes
        ``lock``."""
