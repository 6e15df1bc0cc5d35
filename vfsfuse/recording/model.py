# SPDX-License-Identifier: Apache-2.0
"""Writes a first device model from a recording: `vfsfuse model FILE > model.py`.

The model is code of the SDK (docs/models.md), for people to go on with: the shape of the device, its
registers with the values that they had first, and for each register whose writes the device reacted to a hook
that does the same again.  A recording may be anybody's, so every text of it is quoted.  State: none.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from vfsfuse.recording import recording as kinds
from vfsfuse.recording.layouting import INDENT, Call, Expression, imported, laid_out, quoted
from vfsfuse.recording.reactions import Account, Dma, Place, Reaction
from vfsfuse.recording.recording import RecordedDevice, Recording, RecordingError, region_name
from vfsfuse.recording.shape import BarCode, Shape, data_code, shape_of

CLASS = "Recorded"
MOST_VALUES = 8
"""Written values that a hook tells apart."""
MOST_DMA = 16
"""DMA that a hook does."""
MOST_DATA = 256
"""Bytes of data that are written into the code."""
MOST_PLAYED = 256
"""Values of a register that the code plays."""
_SDK_NAMES = re.compile(
    r"\b(?:Bar|Capability|DeviceRegion|ExtendedCapability|Identity|Layout|LinkSpeed|Memory|MsixBar|PciDevice|Register|"
    r"Registers|Rom|express|msi|msix|power_management|vendor)\b(?=[\](.)])"
)
"""Names of the SDK where code uses them."""
_TAKEN = re.compile(r"self|data[0-9]*|bytes")
"""Names that the code of a task uses itself."""
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def model(recording: Recording, name: str = "") -> str:
    """The code of a model of the device `name`, by default of the only one.  Raises RecordingError."""
    device = _chosen(recording, name)
    events = list(recording.of_device(recording.devices.index(device)))
    shape = shape_of(device, events)
    layouts = [bar.index for bar in shape.bars if bar.registers]
    others = [index for index in range(kinds.CONFIG_REGION) if index not in layouts]
    return _Writer(recording, device, shape, Account(device, events, others)).text()


def _chosen(recording: Recording, name: str) -> RecordedDevice:
    if name:
        try:
            return recording.device_named(name)
        except KeyError as error:
            raise RecordingError(str(error.args[0])) from None
    if not recording.devices:
        raise RecordingError("no device is in this recording")
    if len(recording.devices) > 1:
        there = ", ".join(device.name for device in recording.devices)
        raise RecordingError(f"there are several devices, so choose one by --device: {there}")
    return recording.devices[0]


class Code(NamedTuple):
    """What a hook does for one value: its statements, and those of the task that it starts, with the task's
    parameters and what they get."""

    hook: tuple[str, ...]
    task: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


class _Writer:
    """The text of one model."""

    def __init__(self, recording: Recording, device: RecordedDevice, shape: Shape, account: Account) -> None:
        self._recording, self._device, self._shape, self._account = recording, device, shape, account
        self._idents = _idents(account.in_order)
        self._constants: list[tuple[str, tuple[int, ...]]] = []
        self._hooks = dict(self._reactions())
        self._played = account.played

    def text(self) -> str:
        body = "\n".join([*self._class(), *self._layouts()])
        names = sorted(set(_SDK_NAMES.findall(_STRING.sub("", body))), key=_import_order)
        imports = "\n".join(imported("devmodel.sdk", names))
        return f"{self._head()}\n{imports}\n\n\n{body.rstrip()}\n"

    # ---- the parts ----

    def _head(self) -> str:
        identity = self._shape.identity
        what = f"{identity[0][2:].lower()}:{identity[1][2:].lower()}"
        said = f'"""A first model of the device {what}, written from a recording by `vfsfuse model`.'
        lines = [
            said,
            "",
            "It does what the recording has, and no more.  Each change of a register, each interrupt",
            "and each DMA is ascribed to the last write before it, which may be wrong.",
        ]
        if self._account.unasked:
            lines.append(
                f"The device did {self._account.unasked} things before the first write: they are missing."
            )
        lines += ['"""', ""]
        return "\n".join(lines)

    def _class(self) -> Iterator[str]:
        yield f"class {CLASS}(PciDevice):"
        yield from laid_out(INDENT, Call("identity = Identity(", self._shape.identity))
        yield from self._bars()
        yield from self._lists()
        if self._played:
            yield from _PLAY
        for place in self._played:
            yield from self._next(place)
        for place, codes in self._hooks.items():
            yield from self._hook(place, codes)
        yield ""

    def _bars(self) -> Iterator[str]:
        yield ""
        yield f"{INDENT}def bars(self) -> dict[int, Bar]:"
        body = INDENT * 2
        for bar in self._shape.bars:
            region = bar.region._replace(head=f"self.{bar.attribute} = {bar.region.head}")
            yield from laid_out(body, region)
        if self._played:
            yield f"{body}self.played: dict[str, int] = {{}}"
        items = [
            Call(f"{bar.index}: Bar(", [f"self.{bar.attribute}", *bar.flags]) for bar in self._shape.bars
        ]
        yield from laid_out(body, Call("return {", items, "}"))

    def _lists(self) -> Iterator[str]:
        listed = (
            ("capabilities", "Capability", self._shape.capabilities),
            ("extended_capabilities", "ExtendedCapability", self._shape.extended),
            ("device_regions", "DeviceRegion", self._shape.own),
        )
        for name, kind, items in listed:
            if items:
                yield ""
                yield f"{INDENT}def {name}(self) -> list[{kind}]:"
                yield from laid_out(INDENT * 2, Call("return [", items, "]"))

    def _next(self, place: Place) -> Iterator[str]:
        values = self._played[place][:MOST_PLAYED]
        constant = f"{self._idents[place]}_reads".upper()
        yield ""
        yield f"{INDENT}def next_{self._idents[place]}(self) -> int:"
        yield from laid_out(INDENT * 2, Call("return self.play(", [quoted(self._idents[place]), constant]))
        self._constants.append((constant, values))

    def _hook(self, place: Place, codes: Sequence[tuple[int | None, Code]]) -> Iterator[str]:
        ident = self._idents[place]
        tasks: list[tuple[str, Code]] = []
        yield ""
        yield f"{INDENT}def wrote_{ident}(self, value: int) -> None:"
        for number, (value, code) in enumerate(codes):
            inner = INDENT * 2
            if value is not None:
                yield f"{inner}{'el' if number else ''}if value == 0x{value:X}:"
                inner += INDENT
            for line in code.hook:
                yield f"{inner}{line}"
            if code.task:
                task = f"follow_{ident}" + ("" if len(codes) == 1 else f"_{value or 0:x}")
                yield from laid_out(inner, Call("self.start(", [f"self.{task}", *code.arguments]))
                tasks.append((task, code))
        for task, code in tasks:
            yield ""
            parameters = ["self", *(f"{each}: int" for each in code.parameters)]
            yield from laid_out(INDENT, Call(f"async def {task}(", parameters, ") -> None:"))
            for line in code.task:
                yield f"{INDENT * 2}{line}"

    def _layouts(self) -> Iterator[str]:
        for constant, values in self._constants:
            yield ""
            yield from laid_out("", Call(f"{constant} = (", [f"0x{each:X}" for each in values]))
        for bar in self._shape.bars:
            if bar.registers:
                yield ""
                yield from self._layout(bar)

    def _layout(self, bar: BarCode) -> Iterator[str]:
        places = [place for place in self._account.in_order if place.region == bar.index]
        size = self._device.regions[bar.index].size
        if not places:
            yield f"{region_name(bar.index)} = Layout(0x{size:X}, [])"
            return
        yield f"{region_name(bar.index)} = Layout("
        yield f"{INDENT}0x{size:X},"
        yield f"{INDENT}["
        for place in places:
            yield from laid_out(INDENT * 2, Call("Register(", self._register(place)), ",")
        yield f"{INDENT}],"
        yield ")"

    def _register(self, place: Place) -> list[str]:
        items = [f"0x{place.offset:02X}", str(place.width), quoted(place.name)]
        if reset := self._account.resets.get(place, 0):
            items.append(f"reset=0x{reset:X}")
        if place in self._account.read and place not in self._account.written:
            items.append("rw_mask=0")
        if place in self._played:
            items.append(f"on_read={CLASS}.next_{self._idents[place]}")
        if place in self._hooks:
            items.append(f"on_write={CLASS}.wrote_{self._idents[place]}")
        return items

    # ---- reactions ----

    def _reactions(self) -> Iterator[tuple[Place, list[tuple[int | None, Code]]]]:
        """The registers with hooks, each with what it does for which values; None for all."""
        by_place: dict[Place, dict[int, list[Code]]] = {}
        for reaction in self._account.reactions:
            by_place.setdefault(reaction.place, {}).setdefault(reaction.value, []).append(
                self._code(reaction)
            )
        for place, values in by_place.items():
            usual = {value: _most_common(codes) for value, codes in values.items()}
            acting = {value: code for value, code in usual.items() if code.hook or code.task}
            if not acting:
                continue
            if (len(usual) > 1 and len(set(usual.values())) == 1) or len(acting) > MOST_VALUES:
                yield place, [(None, _most_common(list(acting.values())))]
            else:
                yield place, list(acting.items())

    def _code(self, reaction: Reaction) -> Code:
        changes = [
            f"{self._at(place)} = 0x{value:X}" for place, value in sorted(reaction.changes.items(), key=_key)
        ]
        ends = ("self.set_intx(False)",) if reaction.ends_intx else ()
        after = (*changes, *dict.fromkeys(filter(None, map(_interrupt, reaction.interrupts))))
        if not reaction.dma:
            return Code((*ends, *after))
        names: dict[str, str] = {}
        task = [line for lines in self._transfers(reaction.dma[:MOST_DMA], names) for line in lines]
        if len(reaction.dma) > MOST_DMA:
            task.append(f"# the recording has {len(reaction.dma) - MOST_DMA} transfers more")
        if after:
            task += ["with self.locked():", *(f"{INDENT}{line}" for line in after)]
        return Code(ends, tuple(task), tuple(names), tuple(names.values()))

    def _transfers(self, found: Sequence[Dma], names: dict[str, str]) -> Iterator[Iterable[str]]:
        """The statements of each DMA.  `names` gets the parameters that they need."""
        written = [each.event.data for each in found if each.event.name == "write"]
        read: dict[bytes, str] = {}
        for each in found:
            iova, size = self._iova(each, names), self._count(each, names)
            data = each.event.data
            if each.event.name == "write":
                yield self._inner("await self.dma.write(", [iova, read.get(data) or _literal(each)])
            elif data and data in written:
                read[data] = name = "data" if not read else f"data{len(read) + 1}"
                yield self._inner(f"{name} = await self.dma.read(", [iova, size])
            else:
                yield self._inner("await self.dma.read(", [iova, size])

    def _inner(self, head: str, items: list[Expression]) -> Iterable[str]:
        body = INDENT * 2
        return [line.removeprefix(body) for line in laid_out(body, Call(head, items))]

    def _iova(self, dma: Dma, names: dict[str, str]) -> str:
        if not dma.base:
            return f"0x{dma.event.iova:X}"
        parts = [self._parameter(place, names) for place in dma.base]
        address = parts[0] if len(parts) == 1 else f"({parts[0]} | {parts[1]} << 32)"
        if dma.ahead:
            return f"{address} + 0x{dma.ahead:X}"
        return address.removeprefix("(").removesuffix(")")

    def _count(self, dma: Dma, names: dict[str, str]) -> str:
        return str(dma.event.size) if dma.count is None else self._parameter(dma.count, names)

    def _parameter(self, place: Place, names: dict[str, str]) -> str:
        name = self._idents[place]
        name = f"{name}_" if keyword.iskeyword(name) or _TAKEN.fullmatch(name) else name
        names[name] = self._at(place)
        return name

    def _at(self, place: Place) -> str:
        return f"self.{region_name(place.region).lower()}[{quoted(place.name)}]"


_PLAY = [
    "",
    f"{INDENT}def play(self, name: str, values: tuple[int, ...]) -> int:",
    f'{INDENT * 2}"""The values of the recording, one a read; the last one again and again."""',
    f"{INDENT * 2}place = self.played.get(name, 0)",
    f"{INDENT * 2}self.played[name] = place + 1",
    f"{INDENT * 2}return values[min(place, len(values) - 1)]",
    "",
    f"{INDENT}def after_reset(self) -> None:",
    f"{INDENT * 2}self.played.clear()",
]


def _key(change: tuple[Place, int]) -> tuple[int, int]:
    return change[0].region, change[0].offset


def _interrupt(event: kinds.Event) -> str:
    if event.name in ("MSI", "MSIX"):
        return f"self.interrupt({event.vector})"
    return "self.set_intx(True)" if event.name == kinds.INTERRUPTS[0] else ""


def _literal(dma: Dma) -> Expression:
    data = dma.event.data.ljust(min(dma.event.size, kinds.MOST_DATA), b"\0")
    short = data_code(data)
    return short if len(data) <= MOST_DATA or isinstance(short, str) else f"bytes({len(data)})"


def _most_common(codes: Sequence[Code]) -> Code:
    """The one that comes most often; of several the one that comes first."""
    return Counter(codes).most_common(1)[0][0]


def _idents(places: Sequence[Place]) -> Mapping[Place, str]:
    """A part of an identifier for each register."""
    found: dict[Place, str] = {}
    taken: set[str] = set()
    for place in places:
        name = re.sub(r"\W+", "_", place.name, flags=re.ASCII).strip("_").lower() or f"reg_{place.offset:x}"
        if name[0].isdecimal():
            name = f"reg_{name}"
        if name in taken:
            name = f"{region_name(place.region).lower()}_{name}"
        while name in taken:
            name += f"_{place.offset:x}"
        taken.add(name)
        found[place] = name
    return found


def _import_order(name: str) -> tuple[bool, str]:
    """Classes before functions, as ruff sorts them."""
    return name[0].islower(), name
