# SPDX-License-Identifier: Apache-2.0
"""Errors that a PCI Express function reports: how bad they are, what its registers say of them, and the
kernel's counters of them.

State: the registers are under the device's lock; an ErrorCounts has a lock of its own, which is taken after
every other.  Source: PCI Express Base 4.0 chapters 6.2 and 7.8.4, <linux/pci_regs.h> (PCI_ERR_*),
Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats and the names that the kernel's AER driver prints.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

from devmodel.pci import regs
from devmodel.pci.config import ConfigSpace
from devmodel.pci.regs import CapId, ExtCapId


class Severity(StrEnum):
    """How bad an error is: hardware has corrected it, a transaction failed, or the link cannot be trusted any
    more."""

    CORRECTED = "corrected"
    NONFATAL = "nonfatal"
    FATAL = "fatal"


CORRECTABLE: Mapping[int, str] = MappingProxyType(
    {
        **{0: "RxErr", 6: "BadTLP", 7: "BadDLLP", 8: "Rollover"},
        **{12: "Timeout", 13: "NonFatalErr", 14: "CorrIntErr", 15: "HeaderOF"},
    }
)
"""The correctable errors, by their bits in the status register."""
UNCORRECTABLE: Mapping[int, str] = MappingProxyType(
    {
        **{0: "Undefined", 4: "DLP", 5: "SDES", 12: "TLP", 13: "FCP", 14: "CmpltTO", 15: "CmpltAbrt"},
        **{16: "UnxCmplt", 17: "RxOF", 18: "MalfTLP", 19: "ECRC", 20: "UnsupReq", 21: "ACSViol"},
        **{22: "UncorrIntErr", 23: "BlockedTLP", 24: "AtomicOpBlocked", 25: "TLPBlockedErr"},
        **{26: "PoisonTLPBlocked", 27: "DMWrReqBlocked", 28: "IDECheck", 29: "MisIDETLP", 30: "PCRC_CHECK"},
        31: "TLPXlatBlocked",
    }
)
"""The others; from bit 27 on as Linux 6.18 has them."""
TOTALS: Mapping[Severity, str] = MappingProxyType(
    {
        Severity.CORRECTED: "TOTAL_ERR_COR",
        Severity.NONFATAL: "TOTAL_ERR_NONFATAL",
        Severity.FATAL: "TOTAL_ERR_FATAL",
    }
)
_DEVSTA: Mapping[Severity, int] = MappingProxyType(
    {
        Severity.CORRECTED: regs.EXP_DEVSTA_CED,
        Severity.NONFATAL: regs.EXP_DEVSTA_NFED,
        Severity.FATAL: regs.EXP_DEVSTA_FED,
    }
)
_RECEIVER_ERROR = 0
_USUAL: Sequence[int] = (14, 4, 12, 18, 20, 5)
"""Uncorrectable errors of which the first with the right severity happens: a completion timeout is not fatal
as a rule, an error of the data link protocol is."""


def log_error(config: ConfigSpace, severity: Severity) -> int:
    """Log an error in the registers, whatever their masks are; the result is its bit in the AER status
    register.  Under the device's lock."""
    express = config.find(CapId.EXP)
    if express:
        _set(config, express + regs.EXP_DEVSTA, 2, _DEVSTA[severity])
    place = config.extended(ExtCapId.AER) if config.has_extended(ExtCapId.AER) else None
    if severity is Severity.CORRECTED:
        if place is not None:
            _set(config, place + regs.AER_COR_STATUS, 4, 1 << _RECEIVER_ERROR)
        return _RECEIVER_ERROR
    fatal = regs.AER_SEVER_DEFAULT
    if place is not None:
        fatal = config.value(place + regs.AER_UNCOR_SEVER, 4)
    wanted = severity is Severity.FATAL
    bit = next((each for each in _USUAL if bool(fatal >> each & 1) is wanted), _USUAL[wanted])
    if place is not None:
        if not config.value(place + regs.AER_UNCOR_STATUS, 4):
            control = config.value(place + regs.AER_CAP, 4) & ~regs.AER_CAP_FEP
            config.store(place + regs.AER_CAP, 4, control | bit)
        _set(config, place + regs.AER_UNCOR_STATUS, 4, 1 << bit)
    return bit


def _set(config: ConfigSpace, offset: int, width: int, bits: int) -> None:
    config.store(offset, width, config.value(offset, width) | bits)


class ErrorCounts:
    """The errors that one function has reported, and the messages that a root port got.  Any thread."""

    __slots__ = ("_errors", "_lock", "_messages")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: Counter[tuple[Severity, int]] = Counter()
        self._messages: Counter[Severity] = Counter()

    def reported(self, severity: Severity, bit: int) -> None:
        """The function has reported the error of this bit."""
        with self._lock:
            self._errors[severity, bit] += 1

    def received(self, severity: Severity) -> None:
        """The root port got the message of an error."""
        with self._lock:
            self._messages[severity] += 1

    def messages(self, severity: Severity) -> int:
        """How many such messages a root port got."""
        return self._messages[severity]

    def text(self, severity: Severity) -> str:
        """The lines of ``aer_dev_correctable``, ``aer_dev_nonfatal`` or ``aer_dev_fatal``."""
        names = CORRECTABLE if severity is Severity.CORRECTED else UNCORRECTABLE
        lines = [f"{name} {self._errors[severity, bit]}" for bit, name in names.items()]
        total = sum(self._errors[severity, bit] for bit in names)
        return "\n".join([*lines, f"{TOTALS[severity]} {total}"])


NO_ERRORS = ErrorCounts()
"""Of functions that have reported nothing."""
