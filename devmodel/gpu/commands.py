# SPDX-License-Identifier: Apache-2.0
"""The commands of the engine: packets of 64 bytes, declared as structs, and what each of them does.

A packet is little-endian: opcode and flags, 32 bits each, then the fields of its command. A client writes the
packets, so no field is used before :meth:`GpuCommand.validate` and ``GraphicsMemory.check`` have checked it.
State: none. Source: docs/vgpu.md, "The engine".
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import ClassVar, Protocol

from devmodel.gpu.faults import EngineFault, ErrorCode
from devmodel.gpu.memory import SLICE_BYTES, SLICE_SPANS, CopySpan, GraphicsMemory

PACKET_SIZE = 64
_HEADER = struct.Struct("<II")
_WORD = 8
"""Bytes of the word that a fence writes and a wait reads."""
PitchedLines = tuple[int, int]
"""The place of lines: the address of the first, and the pitch."""


class Step(Enum):
    """The state of a command after a slice that was not its last."""

    MORE = 0
    WAITING = 1
    """The command waits for memory to change."""


class Completion(Protocol):
    """The calls that a command can make when it completes, under the device's lock."""

    def fence_reached(self, value: int, interrupt: bool) -> None:
        """All commands up to the fence ``value`` are done."""


class GpuCommand:
    """A decoded packet. Each step of the iterator from :meth:`execute` does one slice of the work."""

    __slots__ = ()
    OPCODE: ClassVar[int]
    FIELDS: ClassVar[struct.Struct]
    FLAGS: ClassVar[int] = 0
    """The flags that the command may have."""

    def validate(self) -> None:
        """Raise ValueError for invalid fields."""

    def execute(self, memory: GraphicsMemory) -> Iterator[Step]:
        """Execute the command. Raises :class:`EngineFault`."""
        yield from ()

    def complete(self, engine: Completion) -> None:
        """Called when the command is done, under the device's lock."""


@dataclass(frozen=True, slots=True)
class Nop(GpuCommand):
    """Do nothing."""

    OPCODE: ClassVar[int] = 0
    FIELDS: ClassVar[struct.Struct] = struct.Struct("<")
    flags: int


@dataclass(frozen=True, slots=True)
class Fill(GpuCommand):
    """Store ``pattern`` in ``height`` lines of ``width`` bytes, ``pitch`` bytes from one to the next."""

    OPCODE: ClassVar[int] = 1
    FIELDS: ClassVar[struct.Struct] = struct.Struct("<QIIII")
    flags: int
    target: int
    pitch: int
    width: int
    height: int
    pattern: int

    def validate(self) -> None:
        if (self.target | self.width | self.pitch) % 4:
            raise ValueError("a fill is of whole 32-bit words")
        _check_pitch(self.pitch, self.width, self.height)

    def execute(self, memory: GraphicsMemory) -> Iterator[Step]:
        if self.width and self.height:
            memory.check(self.target, _extent(self.pitch, self.width, self.height))
            for spans in _slices(self.width, self.height, (self.target, self.pitch), (0, self.pitch)):
                memory.fill(spans, self.pattern)
                yield Step.MORE


class _Copying(GpuCommand):
    """A base for commands that copy lines. If source and target overlap, the copy has the old source."""

    __slots__ = ()

    def _copy(
        self, memory: GraphicsMemory, width: int, height: int, target: PitchedLines, source: PitchedLines
    ) -> Iterator[Step]:
        if not (width and height):
            return
        sizes = [_extent(pitch, width, height) for _, pitch in (target, source)]
        memory.check(target[0], sizes[0])
        memory.check(source[0], sizes[1])
        distance = target[0] - source[0]
        overlap = -sizes[0] < distance < sizes[1]
        if overlap and target[1] != source[1] and height > 1:
            raise EngineFault(ErrorCode.BAD_COMMAND, target[0])
        for spans in _slices(width, height, target, source, overlap and distance > 0):
            memory.copy(spans)
            yield Step.MORE


@dataclass(frozen=True, slots=True)
class Copy(_Copying):
    """Copy ``size`` bytes."""

    OPCODE: ClassVar[int] = 2
    FIELDS: ClassVar[struct.Struct] = struct.Struct("<QQQ")
    flags: int
    target: int
    source: int
    size: int

    def execute(self, memory: GraphicsMemory) -> Iterator[Step]:
        return self._copy(memory, self.size, 1, (self.target, self.size), (self.source, self.size))


@dataclass(frozen=True, slots=True)
class Blit(_Copying):
    """Copy ``height`` lines of ``width`` bytes. If source and target overlap, their pitches must be equal."""

    OPCODE: ClassVar[int] = 3
    FIELDS: ClassVar[struct.Struct] = struct.Struct("<QQIIII")
    flags: int
    target: int
    source: int
    target_pitch: int
    source_pitch: int
    width: int
    height: int

    def validate(self) -> None:
        _check_pitch(self.target_pitch, self.width, self.height)
        _check_pitch(self.source_pitch, self.width, self.height)

    def execute(self, memory: GraphicsMemory) -> Iterator[Step]:
        target, source = (self.target, self.target_pitch), (self.source, self.source_pitch)
        return self._copy(memory, self.width, self.height, target, source)


class FenceFlag(IntFlag):
    """Flags of a fence."""

    INTERRUPT = 1


@dataclass(frozen=True, slots=True)
class Fence(GpuCommand):
    """When all commands before it are done, write the 64-bit ``value`` to memory and to the register, then
    interrupt."""

    OPCODE: ClassVar[int] = 4
    FIELDS: ClassVar[struct.Struct] = struct.Struct("<QQ")
    FLAGS: ClassVar[int] = int(FenceFlag.INTERRUPT)
    flags: int
    address: int
    value: int

    def validate(self) -> None:
        _check_word(self.address)

    def execute(self, memory: GraphicsMemory) -> Iterator[Step]:
        memory.write(self.address, self.value.to_bytes(_WORD, "little"))
        yield from ()

    def complete(self, engine: Completion) -> None:
        engine.fence_reached(self.value, bool(self.flags & FenceFlag.INTERRUPT))


@dataclass(frozen=True, slots=True)
class Wait(GpuCommand):
    """Wait until the 64-bit word at ``address`` is ``value`` or more."""

    OPCODE: ClassVar[int] = 5
    FIELDS: ClassVar[struct.Struct] = struct.Struct("<QQ")
    flags: int
    address: int
    value: int

    def validate(self) -> None:
        _check_word(self.address)

    def execute(self, memory: GraphicsMemory) -> Iterator[Step]:
        while int.from_bytes(memory.read(self.address, _WORD), "little") < self.value:
            yield Step.WAITING


COMMANDS: Mapping[int, type[GpuCommand]] = {
    command.OPCODE: command for command in (Nop, Fill, Copy, Blit, Fence, Wait)
}


def decode(packet: bytes, address: int) -> GpuCommand:
    """The command in a packet that was at ``address``. Raises :class:`EngineFault`, BAD_COMMAND."""
    opcode, flags = _HEADER.unpack_from(packet)
    kind = COMMANDS.get(opcode)
    if kind is None or flags & ~kind.FLAGS:
        raise EngineFault(ErrorCode.BAD_COMMAND, address)
    make: Callable[..., GpuCommand] = kind
    command = make(flags, *kind.FIELDS.unpack_from(packet, _HEADER.size))
    try:
        command.validate()
    except ValueError as error:
        raise EngineFault(ErrorCode.BAD_COMMAND, address) from error
    return command


def _check_pitch(pitch: int, width: int, height: int) -> None:
    if pitch < width and height > 1:
        raise ValueError(f"a pitch of {pitch} below the width of {width} bytes")


def _check_word(address: int) -> None:
    if address % _WORD:
        raise ValueError("not the address of a 64-bit word")


def _extent(pitch: int, width: int, height: int) -> int:
    return pitch * (height - 1) + width


def _slices(
    width: int, height: int, target: PitchedLines, source: PitchedLines, backward: bool = False
) -> Iterator[list[CopySpan]]:
    """The lines, as many at once as fit into a slice, from first to last or (``backward``) from last to
    first."""
    if target[1] == source[1] == width:
        width, height = width * height, 1
    rows = range(height)[:: -1 if backward else 1]
    if width > SLICE_BYTES:
        for row in rows:
            yield from _pieces(width, _line(row, target), _line(row, source), backward)
        return
    count = min(SLICE_SPANS, SLICE_BYTES // width)
    for first in range(0, height, count):
        yield [CopySpan(_line(row, target), _line(row, source), width) for row in rows[first : first + count]]


def _line(row: int, lines: PitchedLines) -> int:
    return lines[0] + row * lines[1]


def _pieces(width: int, target: int, source: int, backward: bool) -> Iterator[list[CopySpan]]:
    """The parts of a line that is larger than a slice."""
    for at in range(0, width, SLICE_BYTES)[:: -1 if backward else 1]:
        yield [CopySpan(target + at, source + at, min(SLICE_BYTES, width - at))]
