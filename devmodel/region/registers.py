# SPDX-License-Identifier: Apache-2.0
"""Register regions: a model declares registers, and an access of any size at any offset works as on a
little-endian bus.

State: a region belongs to one device, and is touched only under that device's lock. Hooks run under it too.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from devmodel.region.names import RegisterNames
from devmodel.region.region import Region, StoredBytes, WholeAccess


@dataclass(frozen=True, slots=True)
class Register:
    """One little-endian register: ``offset`` and ``width`` in bytes.

    ``rw_mask`` has the bits that a write changes: all unless given, none for a read-only register.
    ``w1c_mask`` has the bits that writing 1 clears and writing 0 leaves, whether they are in ``rw_mask`` or
    not. ``on_read`` is called with the owner; a read gives what it returns instead of the stored value.
    ``on_write`` is called with the owner and the new stored value, after a write that touches any byte of the
    register.
    """

    offset: int
    width: int
    name: str
    reset: int = 0
    rw_mask: int = -1
    w1c_mask: int = 0
    on_read: Callable[[Any], int] | None = None
    on_write: Callable[[Any, int], None] | None = None

    @property
    def mask(self) -> int:
        """All its bits."""
        return (1 << 8 * self.width) - 1

    @property
    def end(self) -> int:
        """Offset of the first byte after the register."""
        return self.offset + self.width


class Layout:
    """The registers of a region. A model declares them once, for all its devices."""

    __slots__ = ("_starts", "by_name", "image", "names", "native", "plain", "registers", "size", "wholes")

    def __init__(self, size: int, registers: Iterable[Register]) -> None:
        """``size`` is in bytes. Raises ValueError for registers that overlap or lie outside."""
        self.size = size
        self.registers: Sequence[Register] = sorted(registers, key=lambda register: register.offset)
        self.by_name = {register.name: register for register in self.registers}
        self._starts = [register.offset for register in self.registers]
        self.names = RegisterNames(self.registers)
        self.image = self._power_on()
        self.plain = self._without_hook()
        """One byte for each of the region's: 1 where a read gives what is stored."""
        self.wholes = {register.offset: _whole_access(register) for register in self.registers}
        """What an access of a whole register does, by the register's offset."""
        self.native = [whole for whole in self.wholes.values() if _is_natural(whole)]
        """Those of registers that a processor accesses by one instruction."""

    def within(self, offset: int, size: int) -> Sequence[Register]:
        """The registers that share a byte with ``size`` bytes at ``offset``."""
        first = max(bisect_right(self._starts, offset) - 1, 0)
        if self.registers and self.registers[first].end <= offset:
            first += 1
        return self.registers[first : bisect_right(self._starts, offset + size - 1)]

    def _power_on(self) -> bytes:
        image, end = bytearray(self.size), 0
        for register in self.registers:
            if register.offset < end or register.end > self.size:
                raise ValueError(f"register {register.name} overlaps another or the end of its region")
            end = register.end
            image[register.offset : end] = register.reset.to_bytes(register.width, "little")
        return bytes(image)

    def _without_hook(self) -> bytes:
        plain = bytearray(b"\1") * self.size
        for register in self.registers:
            if register.on_read is not None:
                plain[register.offset : register.end] = bytes(register.width)
        return bytes(plain)


class Registers(Region):
    """A region of registers. An access is split at their boundaries, and bytes between registers read 0.

    A front end may read a register that has no ``on_read`` by one load and without the device's lock, unless
    a subclass has a :meth:`read` of its own.
    """

    __slots__ = ("_bytes", "_layout", "_owner")

    def __init__(self, layout: Layout, owner: object = None) -> None:
        """``owner``, usually the device, is what the hooks are called with."""
        super().__init__(layout.size)
        self._layout = layout
        self._owner = owner
        self._bytes = bytearray(layout.image)

    @property
    def stored(self) -> StoredBytes | None:
        layout, own = self._layout, type(self)
        if own.read is not Registers.read:
            return None
        wholes = layout.native if own.write is Registers.write else ()
        return StoredBytes(self._bytes, layout.plain, wholes, self._owner)

    @property
    def names(self) -> RegisterNames | None:
        return self._layout.names

    def __getitem__(self, name: str) -> int:
        register = self._layout.by_name[name]
        return int.from_bytes(self._bytes[register.offset : register.end], "little")

    def __setitem__(self, name: str, value: int) -> None:
        register = self._layout.by_name[name]
        self._bytes[register.offset : register.end] = _encode(value, register.width)

    def read(self, offset: int, size: int) -> bytes:
        whole = self._layout.wholes.get(offset)
        if whole is None or whole.width != size:
            return self._read_parts(offset, size)
        if whole.on_read is None:
            return bytes(self._bytes[offset : offset + size])
        return _encode(whole.on_read(self._owner), size)

    def write(self, offset: int, data: bytes) -> None:
        whole = self._layout.wholes.get(offset)
        if whole is None or whole.width != len(data):
            self._write_parts(offset, data)
            return
        value, end = int.from_bytes(data, "little"), offset + len(data)
        if whole.changed + 1 != 1 << 8 * whole.width:
            stored = int.from_bytes(self._bytes[offset:end], "little") & ~whole.changed
            value = (stored | value & whole.changed) & ~(value & whole.cleared)
            data = value.to_bytes(whole.width, "little")
        self._bytes[offset:end] = data
        if whole.on_write is not None:
            whole.on_write(self._owner, value)

    def reset(self) -> None:
        self._bytes[:] = self._layout.image

    def _read_parts(self, offset: int, size: int) -> bytes:
        out = self._bytes[offset : offset + size]
        for register in self._layout.within(offset, size):
            if register.on_read is not None:
                value = _encode(register.on_read(self._owner), register.width)
                first, last = max(offset, register.offset), min(offset + size, register.end)
                out[first - offset : last - offset] = value[first - register.offset : last - register.offset]
        return bytes(out)

    def _write_parts(self, offset: int, data: bytes) -> None:
        for register in self._layout.within(offset, len(data)):
            first, last = max(offset, register.offset), min(offset + len(data), register.end)
            shift = 8 * (first - register.offset)
            written = int.from_bytes(data[first - offset : last - offset], "little") << shift
            self._store(register, written, (1 << 8 * (last - first)) - 1 << shift)

    def _store(self, register: Register, written: int, touched: int) -> None:
        """Write to ``register``: ``touched`` has the bits of the bytes that the access has, ``written`` their
        new values."""
        changed = register.rw_mask & ~register.w1c_mask & touched
        value = (self[register.name] & ~changed) | (written & changed)
        value &= ~(written & register.w1c_mask & touched)
        self[register.name] = value
        if register.on_write is not None:
            register.on_write(self._owner, value)


def _whole_access(register: Register) -> WholeAccess:
    mask = register.mask
    cleared = register.w1c_mask & mask
    changed = register.rw_mask & mask & ~cleared
    return WholeAccess(register.offset, register.width, changed, cleared, register.on_read, register.on_write)


def _is_natural(whole: WholeAccess) -> bool:
    return whole.width in (1, 2, 4, 8) and whole.offset % whole.width == 0


def _encode(value: int, width: int) -> bytes:
    return (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
