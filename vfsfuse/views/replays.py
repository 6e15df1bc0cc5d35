# SPDX-License-Identifier: Apache-2.0
"""The recordings that a lab replays: the file `replay` at the root, which says how that goes, and who tells
them where the clients map memory.

The file is there in labs with the model "replay".  It has a line of JSON for each recording.  While it is
open, the log has no divergences.  Threads: reads
come on the device lane; calls are told on any thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from devmodel.calls.call import Call, CallKind
from devmodel.calls.point import CallPoint
from devmodel.device.pci import PciDevice
from devmodel.lifecycle.spec import LabSpec
from ioctl_shim.lane import DeferringFile, Opened, OpenRequest, PendingRequest
from vfsfuse.kernfs.kobject import DeviceNode
from vfsfuse.kernfs.tree import Tree
from vfsfuse.replay.model import ReplayDevice
from vfsfuse.replay.replayed import Replay
from vfsfuse.replay.translation import MAPS, UNMAPS, mapped, unmapped

NAME = "replay"
MODE = 0o400
"""It tells of the doings of all users, as the file `log`."""


def add_replays(tree: Tree, spec: LabSpec, calls: CallPoint) -> None:
    """Add the file, if the lab replays recordings."""
    replays = list(dict.fromkeys(_replays(spec)))
    if not replays:
        return
    if any(replay.has_maps for replay in replays):
        calls.observe(_Maps(replays))

    def opener(request: OpenRequest) -> Opened:
        return Opened(_ReplayFile(replays))

    tree.add(tree.root, DeviceNode(NAME, MODE, opener))


def _replays(spec: LabSpec) -> Iterator[Replay]:
    for model in _models(spec):
        if model is not None and issubclass(model, ReplayDevice):
            yield model.PLAYED.replay


def _models(spec: LabSpec) -> Iterator[type[PciDevice] | None]:
    for parent in spec.parents:
        yield from (each.model for each in parent.types)
    for function in spec.all_functions:
        yield function.model


class _ReplayFile(DeferringFile):
    """One open.  A read at 0 gives what is true then, and further reads the rest of it."""

    __slots__ = ("_replays", "_text")

    def __init__(self, replays: Sequence[Replay]) -> None:
        self._replays, self._text = replays, b""
        for replay in replays:
            replay.divergences.read_by(1)

    def begin_read(self, pending: PendingRequest) -> bytes:
        if not pending.offset:
            self._text = b"".join(map(_line, self._replays))
        return self._text[pending.offset : pending.offset + pending.size]

    def release(self) -> None:
        for replay in self._replays:
            replay.divergences.read_by(-1)


def _line(replay: Replay) -> bytes:
    found = replay.divergences
    said = {
        "recording": found.origin,
        "summary": found.summary,
        "count": found.count,
        "open": found.open,
        "unused": found.unused,
        "divergences": found.lines,
    }
    return f"{json.dumps(said)}\n".encode()


class _Maps:
    """An observer of the call point."""

    def __init__(self, replays: Sequence[Replay]) -> None:
        self._replays = replays

    def began(self, call: Call) -> None:
        """Nothing is known of it yet."""

    def ended(self, call: Call) -> None:
        if call.kind is not CallKind.IOCTL or call.error is not None:
            return
        if call.name in MAPS:
            now = mapped(call.name, call.after or call.arguments["before"])
            if now is not None:
                for replay in self._replays:
                    replay.translation.map(now)
        elif call.name in UNMAPS:
            gone = unmapped(call.name, call.arguments["before"])
            if gone is not None:
                for replay in self._replays:
                    replay.translation.unmap(gone)
