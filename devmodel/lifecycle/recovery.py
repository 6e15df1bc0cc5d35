# SPDX-License-Identifier: Apache-2.0
"""What the host does when a PCI function reports an error: it counts the error, tells the drivers of all
functions that are affected, resets the link after a fatal one, and tells udev how it went.

vfio-pci passes an error that was not corrected on to its client by the ERR interrupt.  A function without a
driver cannot take part, so that the recovery of all functions below the same port fails.

Threads: any, without a lock of the lab.  Source: Documentation/PCI/pci-error-recovery.rst,
Documentation/PCI/pcieaer-howto.rst, the order in which the kernel's error recovery does things.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from devmodel.device.base import Device
from devmodel.device.pci import PciDevice
from devmodel.lifecycle.bridge import Bridge
from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.later import Later
from devmodel.lifecycle.mdev import Mdev
from devmodel.pci.errors import Severity, log_error

BEGIN, SUCCESS, FAILURE = "BEGIN_RECOVERY", "SUCCESSFUL_RECOVERY", "FAILED_RECOVERY"
"""The values of ERROR_EVENT."""


class RecoveryObserver(Protocol):
    """Is told how a recovery goes. Lifecycle thread, under ``Lab.lock``."""

    def recovering(self, function: PciFunction, event: str) -> None:
        """The recovery of a function begins, has succeeded or has failed: one of :data:`BEGIN`,
        :data:`SUCCESS` and :data:`FAILURE`."""


class Recovery:
    """The error recovery of one lab."""

    def __init__(
        self,
        lock: threading.RLock,
        functions: dict[str, PciFunction],
        observer: RecoveryObserver,
        later: Later,
    ) -> None:
        self._lock, self._functions, self._observer, self._later = lock, functions, observer, later

    def report(self, function: PciFunction, severity: Severity) -> None:
        """The function reports an error.  Nothing happens if it is gone.  Raises ``OSError(ENODEV)`` when no
        lab is being served."""
        device = function.device
        with device.lock:
            device.check_present()
            bit = log_error(device.config, severity)
        if function.traits.aer:
            function.core.count_errors().reported(severity, bit)
        port = _root_port(function)
        if port is not None:
            port.core.count_errors().received(severity)
        if severity is not Severity.CORRECTED:
            self._recover(function, severity is Severity.FATAL)

    def report_vgpu(self, mdev: Mdev, severity: Severity) -> None:
        """A vGPU has an error: its registers say so, its client gets ERR unless the error was corrected, and
        the vGPU is reset if it was fatal.  It is no function of a bus, so the host counts and tells
        nothing."""
        device = mdev.device
        with device.lock:
            device.check_present()
            if isinstance(device, PciDevice):
                log_error(device.config, severity)
        if severity is not Severity.CORRECTED:
            device.tell_error()
        if severity is Severity.FATAL:
            reset_device(device)

    def _recover(self, function: PciFunction, fatal: bool) -> None:
        affected = _affected(function)
        for each in affected:
            made = opened_of(each)
            if made is not None:
                made.tell_error()
        recovered = all(each.driver is not None or isinstance(each, Bridge) for each in affected)
        if fatal:
            recovered = _reset_link(function, affected) and recovered
        self._later.after(0, lambda: self._tell(affected, SUCCESS if recovered else FAILURE))

    def _tell(self, functions: Sequence[PciFunction], outcome: str) -> None:
        with self._lock:
            there = [each for each in functions if self._functions.get(each.name) is each]
            begun = [each for each in there if each.driver is not None or isinstance(each, Bridge)]
            for event, told in ((BEGIN, begun), (outcome, there)):
                for each in told:
                    self._observer.recovering(each, event)


def reset_device(device: Device) -> None:
    """Reset a device as if it did so by itself, whether its client can reset it or not.  Raises
    ``OSError(ENODEV)`` once it is gone.  Any thread."""
    with device.lock:
        device.check_present()
        device.reset_now()


def reset_function(function: PciFunction) -> None:
    """The same for a function: its registers are as firmware left them, those of configuration space too.
    That of the vGPU as well that its host driver makes of it."""
    if function.made is not None:
        function.reset_whole()
    made = opened_of(function)
    if made is not None and made is not function.made:
        reset_device(made)


def _affected(function: PciFunction) -> list[PciFunction]:
    """The functions that take part in a recovery: all below the same port, or one on a root bus alone.  Of a
    port at the upper end of a link, those below it."""
    port = function if _is_downstream_port(function) else function.upstream
    return list(port.functions) if isinstance(port, Bridge) else [function]


def _is_downstream_port(function: PciFunction) -> bool:
    spec = function.spec.bridge if isinstance(function, Bridge) else None
    return spec is not None and spec.kind.is_downstream_port


def opened_of(function: PciFunction) -> Device | None:
    """The device that clients open of a function, if something has used it."""
    assigned = function.assigned
    made = None if assigned is None else getattr(assigned, "made", None)
    return made if isinstance(made, Device) else None


def _reset_link(function: PciFunction, affected: Sequence[PciFunction]) -> bool:
    """Reset what is below the port, or an integrated endpoint by its own reset.  Whether that can be done."""
    if not isinstance(function, Bridge) and function.upstream is None and not function.traits.flr:
        return False
    for each in affected:
        with suppress(OSError):  # it goes at this moment
            reset_function(each)
    return True


def _root_port(function: PciFunction) -> PciFunction | None:
    """The root port with error reporting that a function is below, or that it is; None without one."""
    ports = list(_ports(function))
    return ports[-1] if ports and ports[-1].traits.aer else None


def _ports(function: PciFunction) -> Iterator[Bridge]:
    each: PciFunction | None = function
    while each is not None:
        if isinstance(each, Bridge):
            yield each
        each = each.upstream
