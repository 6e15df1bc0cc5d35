# SPDX-License-Identifier: Apache-2.0
"""What a trace adds up to: counts and times by call as strace -c has them, registers, DMA, interrupts,
fault rules.

A `Summary` belongs to the thread that reads the trace.  It keeps a bounded number of rows, whatever names a
client makes up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from vfsfuse.trace.decode import ioctl_name, number_of, text_of
from vfsfuse.trace.escaping import printable, word
from vfsfuse.trace.record import Record
from vfsfuse.trace.telling import access_name, parts_of, region_name, seconds

_MOST_ROWS = 10_000
"""Rows of a table that are kept.  Everything beyond is counted in one more row."""
MOST_SHOWN = 20
"""Rows of a table that a text shows, the greatest first."""
_OTHERS = "(others)"


@dataclass(slots=True)
class CallRow:
    """Calls of one name: how many, how many failed, and the seconds that all of them took."""

    name: str
    calls: int = 0
    errors: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class RegisterRow:
    """Accesses of a register through a region of a device."""

    subject: str
    region: str
    register: str
    reads: int = 0
    writes: int = 0


@dataclass(slots=True)
class InterruptRow:
    """Interrupts that a device has sent by one vector."""

    subject: str
    name: str
    vector: int
    count: int = 0


@dataclass(slots=True)
class FaultRow:
    """A fault rule: how many calls it has hit."""

    rule: str
    hits: int = 0


@dataclass(slots=True)
class DeviceRow:
    """A device, group or container: calls on it, its DMA in bytes, and its interrupts."""

    subject: str
    calls: int = 0
    errors: int = 0
    dma_read_bytes: int = 0
    dma_write_bytes: int = 0
    dma_faults: int = 0
    interrupts: int = 0


R = TypeVar("R", CallRow, RegisterRow, InterruptRow, FaultRow, DeviceRow)


class _Rows(dict[tuple[Any, ...], R], Generic[R]):
    """Rows by their first members."""

    def __init__(self, make: Callable[..., R], others: tuple[Any, ...]) -> None:
        super().__init__()
        self._make: Callable[..., R] = make
        self._others = others

    def of(self, *key: Any) -> R:
        """The row with these members."""
        if key not in self and len(self) >= _MOST_ROWS:
            key = self._others
        if key not in self:
            self[key] = self._make(*key)
        return self[key]


def call_name(record: Record) -> str:
    """The name by which a call is counted: that of an ioctl, "BAR0 read", "DMA write", "store remove"."""
    if record.kind == "ioctl":
        return ioctl_name(record.name)
    if record.kind in ("store", "interrupt"):
        return f"{record.kind} {word(record.name)}"
    if record.kind in ("region", "dma"):
        return access_name(record)
    return parts_of(record).what


@dataclass(slots=True)
class Summary:
    """The sums of a trace.  Calls that are under way count when they have ended."""

    calls: _Rows[CallRow] = field(default_factory=lambda: _Rows(CallRow, (_OTHERS,)))
    registers: _Rows[RegisterRow] = field(
        default_factory=lambda: _Rows(RegisterRow, (_OTHERS, _OTHERS, _OTHERS))
    )
    interrupts: _Rows[InterruptRow] = field(
        default_factory=lambda: _Rows(InterruptRow, (_OTHERS, _OTHERS, 0))
    )
    faults: _Rows[FaultRow] = field(default_factory=lambda: _Rows(FaultRow, (_OTHERS,)))
    devices: _Rows[DeviceRow] = field(default_factory=lambda: _Rows(DeviceRow, (_OTHERS,)))
    lost: int = 0
    """Records that the server has dropped."""
    _unfinished: set[int] = field(default_factory=set)

    def add(self, record: Record) -> None:
        """Count a record.  Nothing in it makes this raise."""
        if record.kind == "lost":
            self.lost += max(0, number_of(record, "count") or 0)
            return
        if record.duration is None and record.kind != "mmap":
            if len(self._unfinished) < _MOST_ROWS:
                self._unfinished.add(record.number)
            return
        self._unfinished.discard(record.number)
        failed = bool(record.errno or record.error)
        row, device = self.calls.of(call_name(record)), self.devices.of(record.subject)
        row.calls, device.calls = row.calls + 1, device.calls + 1
        row.errors, device.errors = row.errors + failed, device.errors + failed
        whole = row.seconds + seconds(record.duration)
        row.seconds = whole if math.isfinite(whole) else row.seconds  # a time that cannot be
        for rule in record.rules:
            self.faults.of(rule).hits += 1
        if (count := _COUNTS.get(record.kind)) is not None:
            count(self, record, device)

    def _count_register(self, record: Record, device: DeviceRow) -> None:
        if register := text_of(record, "register"):
            region = region_name(number_of(record, "region"))
            row = self.registers.of(record.subject, region, register)
            row.reads += record.name == "read"
            row.writes += record.name == "write"

    def _count_dma(self, record: Record, device: DeviceRow) -> None:
        size = max(0, number_of(record, "size") or 0)
        if record.errno or record.error:
            device.dma_faults += 1
        elif record.name == "read":
            device.dma_read_bytes += size
        elif record.name == "write":
            device.dma_write_bytes += size

    def _count_interrupt(self, record: Record, device: DeviceRow) -> None:
        if record.errno:
            return
        device.interrupts += 1
        self.interrupts.of(record.subject, record.name, number_of(record, "vector") or 0).count += 1

    def as_json(self) -> dict[str, Any]:
        """The sums as an object for `json.dumps`: docs/trace.md lists the keys."""
        return {
            "calls": [asdict(row) for row in self._sorted_calls()],
            "registers": [asdict(row) for row in self._sorted_registers()],
            "devices": [asdict(row) for row in self.devices.values()],
            "interrupts": [asdict(row) for row in self._sorted_interrupts()],
            "faults": [asdict(row) for row in self._sorted_faults()],
            "lost": self.lost,
            "unfinished": len(self._unfinished),
        }

    def table(self) -> str:
        """The sums as text, without a line break at its end: the calls as strace -c has them, then the
        registers that were used most, DMA, interrupts and fault rules."""
        parts = [_calls_table(self._sorted_calls())]
        registers = self._sorted_registers()
        if registers:
            parts.append(_table(("reads", "writes", "register"), map(_register_cells, registers)))
        moved = [row for row in self.devices.values() if _dma_cells(row)[:3] != ("0", "0", "0")]
        if moved:
            parts.append(_table(("DMA read", "DMA written", "faults", "device"), map(_dma_cells, moved)))
        interrupts = self._sorted_interrupts()
        if interrupts:
            parts.append(_table(("interrupts", "vector"), map(_interrupt_cells, interrupts)))
        faults = self._sorted_faults()
        if faults:
            parts.append(_table(("hits", "fault rule"), [(str(row.hits), word(row.rule)) for row in faults]))
        if self._unfinished:
            parts.append(f"calls still under way: {len(self._unfinished)}")
        if self.lost:
            parts.append(f"{self.lost:,} records were lost and are not counted: the reader was slow")
        return "\n\n".join(parts)

    def _sorted_calls(self) -> list[CallRow]:
        return sorted(self.calls.values(), key=lambda row: (-row.seconds, -row.calls, row.name))

    def _sorted_registers(self) -> list[RegisterRow]:
        return sorted(self.registers.values(), key=lambda row: -(row.reads + row.writes))

    def _sorted_interrupts(self) -> list[InterruptRow]:
        return sorted(self.interrupts.values(), key=lambda row: -row.count)

    def _sorted_faults(self) -> list[FaultRow]:
        return sorted(self.faults.values(), key=lambda row: (-row.hits, row.rule))


_COUNTS: dict[str, Callable[[Summary, Record, DeviceRow], None]] = {
    "region": Summary._count_register,
    "dma": Summary._count_dma,
    "interrupt": Summary._count_interrupt,
}
"""By kind of record: what is counted besides the call."""


def _register_cells(row: RegisterRow) -> tuple[str, ...]:
    name = f"{word(row.subject)} {word(row.region)} {printable(row.register)}"
    return str(row.reads), str(row.writes), name


def _dma_cells(row: DeviceRow) -> tuple[str, ...]:
    return str(row.dma_read_bytes), str(row.dma_write_bytes), str(row.dma_faults), word(row.subject)


def _interrupt_cells(row: InterruptRow) -> tuple[str, ...]:
    return str(row.count), f"{word(row.subject)} {word(row.name)} {row.vector}"


def _calls_table(rows: Sequence[CallRow]) -> str:
    """The table of strace -c: all calls, and their sum."""
    total = CallRow("total")
    for row in rows:
        total.calls, total.errors = total.calls + row.calls, total.errors + row.errors
        total.seconds += row.seconds
    heads = ("% time", "seconds", "usecs/call", "calls", "errors", "call")
    cells = [_call_cells(row, total.seconds) for row in (*rows, total)]
    return _table(heads, cells, most=None, sums=True)


def _call_cells(row: CallRow, whole: float) -> tuple[str, ...]:
    share = 100 * row.seconds / whole if whole else 100.0 if row.name == "total" else 0.0
    mean = f"{row.seconds * 1e6 / row.calls:.0f}" if row.calls else "0"
    errors = str(row.errors) if row.errors else ""
    return f"{share:.2f}", f"{row.seconds:.6f}", mean, str(row.calls), errors, row.name


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], most: int | None = MOST_SHOWN, sums: bool = False
) -> str:
    """A table whose last column is text, and whose others are numbers.  With `sums`, a rule is above the last
    row."""
    cells = list(rows)
    hidden = len(cells) - most if most is not None and len(cells) > most else 0
    shown = cells[:most]
    widths = [max(len(head), 6, *(len(row[i]) for row in shown)) for i, head in enumerate(heads)]
    lines = [_row(heads, widths), " ".join("-" * width for width in widths)]
    lines += [_row(row, widths) for row in shown]
    if sums:
        lines.insert(-1, lines[1])
    if hidden:
        lines.append(f"... and {hidden} more")
    return "\n".join(lines)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = (cell.rjust(width) for cell, width in zip(cells[:-1], widths, strict=False))
    return " ".join([*numbers, cells[-1]])
