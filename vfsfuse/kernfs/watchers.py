# SPDX-License-Identifier: Apache-2.0
"""Events for programs that watch files by inotify(7) or fanotify(7).

The kernel makes such an event when a system call creates or removes a name.  The names of a lab come and go
without one, so a system call is made for them, by a thread that nobody waits for (native/watchers.c).

    IN_CREATE, IN_DELETE    in dev/vfio and dev/vfio/devices, as in the kernel's devtmpfs
    IN_DELETE_SELF          of a device node, and of the directory of a device or a group

Nothing is done for what nobody watches: `watched` asks /proc.  That takes some milliseconds, so it is done
for all names that came or went meanwhile, and takes a twentieth of the time, or more after MOST_SECONDS.

*The directory's lock.*  A system call that creates or removes a name locks the directory, and whoever looks
a name up there waits for it.  A client that lists the directory into memory that waits would hold up that
call, and by it everybody.  So a `Gate` lets in either such a call or clients that have the directory open.
While a client has it open, the changes are kept for later.  IN_DELETE_SELF needs no lock: the kernel learns
in one lookup that the inode has no name, and forgets the name in another one.  A client that writes to a node
may hold the lock of the node, so what is removed is another inode, which no client knows.

*What is open in a directory that goes* keeps it in the kernel: the file `remove` itself, until its writer has
closed it.  The kernel then forgets neither of them, and tells nothing.  So it is done again, later and later,
while the directory is watched.

`tell` and the gates' other side belong to the trio thread, the rest to the thread `watchers`.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import trio

from devmodel.looks import looks
from ioctl_shim._native import ffi, lib
from vfsfuse.kernfs.kobject import Kobject
from vfsfuse.kernfs.tree import NameChange, Tree

MOST_KEPT = 4096
"""So many names are kept until watchers hear of them; beyond that the oldest are lost."""
SHARE = 20
"""The time between two looks for watchers is so many times the processor time of a look."""
MOST_SECONDS = 1.0
"""That time is no longer than this."""
CACHED_SECONDS = 0.1
"""A name may be cached for so long (`LINGER_NS`)."""
HELD_SECONDS = 0.05, 30.0
"""The time until the same is done again for a directory that is still watched: at first, and at most."""
GATE_SECONDS = 0.0005
MOST_TRIES = 200
"""An opendir(3) waits for a gate so many times GATE_SECONDS at most."""
MARK = re.compile(rb"^(?:inotify wd:\S+|fanotify) ino:([0-9a-f]+) sdev:([0-9a-f]+) ", re.MULTILINE)
"""A watched inode in /proc/PID/fdinfo/N."""
PIECE = 64 << 10
"""So many bytes of such a file are looked at in one go.  A user may have 200,000 marks, and nobody else runs
Python meanwhile."""
NOTIFIERS = ("anon_inode:inotify", "anon_inode:[fanotify]")


class Gate:
    """Lets in either clients that have a directory open, or the calls that lock it."""

    __slots__ = ("_busy", "_kept", "_lock", "_opened", "_when_free")

    def __init__(self, when_free: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._opened, self._busy = 0, False
        self._kept: deque[NameChange] = deque(maxlen=MOST_KEPT)
        self._when_free = when_free

    async def enter(self) -> None:
        """A client opens the directory.  Trio thread."""
        for _ in range(MOST_TRIES):
            if self._let_in():
                return
            await trio.sleep(GATE_SECONDS)
        with self._lock:
            self._opened += 1  # the call does not come back: nothing is won by waiting

    def _let_in(self) -> bool:
        with self._lock:
            self._opened += not self._busy
            return not self._busy

    def leave(self) -> None:
        """A client has closed it.  Trio thread."""
        with self._lock:
            self._opened -= 1
            free = not self._opened and bool(self._kept)
        if free:
            self._when_free()

    def begin(self, change: NameChange) -> bool:
        """Whether the call for `change` may be made now, until `end`.  Otherwise the change is kept."""
        with self._lock:
            self._busy = not self._opened
            if self._opened:
                self._kept.append(change)
            return self._busy

    def end(self) -> None:
        """The call is done."""
        self._busy = False

    def take(self) -> list[NameChange]:
        """The changes that were kept, oldest first."""
        with self._lock:
            kept = list(self._kept)
            self._kept.clear()
            return kept


class Held:
    """Directories that have gone, and that some process still watched at the last look."""

    def __init__(self) -> None:
        self.gone: list[NameChange] = []
        self.seconds: float | None = None
        """Until the next look for them; None when there are none."""

    def update(self, changes: Iterable[NameChange], inodes: set[int]) -> None:
        """`inodes` are watched; the kernel has been told since of these changes, and of those in `gone`."""
        first, most = HELD_SECONDS
        new = [change for change in changes if _is_directory_gone(change) and change.inode in inodes]
        before = first / 2 if new or self.seconds is None else self.seconds
        self.gone = [change for change in self.gone if change.inode in inodes] + new
        del self.gone[:-MOST_KEPT]
        self.seconds = min(2 * before, most) if self.gone else None


def _is_directory_gone(change: NameChange) -> bool:
    return not change.came and not change.directory.devtmpfs


class Watchers:
    """Tells the watchers of one mount what comes and goes in `tree`."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._mountpoint, self._st_dev = b"", 0
        self._told: deque[NameChange] = deque(maxlen=MOST_KEPT)
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._started = False
        self._gates: dict[int, Gate] = {}

    def mounted(self, mountpoint: str, st_dev: int) -> None:
        """The tree is mounted there: watchers hear of what comes and goes from now on."""
        self._mountpoint, self._st_dev = os.fsencode(os.path.abspath(mountpoint)), st_dev

    def gate_of(self, directory: Kobject) -> Gate:
        """The gate of a directory where names come and go as in devtmpfs.  Any thread."""
        with self._lock:
            return self._gates.setdefault(directory.number, Gate(self._wake.set))

    def tell(self, changes: Sequence[NameChange]) -> None:
        """Names have come or gone.  Trio thread; it does not wait."""
        if not changes or not self._st_dev:
            return
        self._told.extend(changes)
        self._wake.set()
        if not self._started:
            self._started = True
            with contextlib.suppress(RuntimeError):  # no thread can be had: watchers hear nothing
                threading.Thread(target=self._work, name="watchers", daemon=True).start()

    def _work(self) -> None:
        held = Held()
        while self._wake.wait(held.seconds) or held.gone:
            self._wake.clear()
            changes = [change for gate in list(self._gates.values()) for change in gate.take()]
            changes += (self._told.popleft() for _ in range(len(self._told)))
            began = time.thread_time()
            with looks:  # reading a link of /proc/PID/fd holds the client's file
                inodes = watched(self._st_dev)
            took = time.thread_time() - began
            if inodes:
                self._make([*held.gone, *changes], inodes)
            held.update(changes, inodes)
            time.sleep(min(took * SHARE, MOST_SECONDS))

    def _make(self, changes: Iterable[NameChange], inodes: set[int]) -> None:
        for change in changes:
            own = not change.came and change.inode in inodes
            last = self._last_place(change) if own else change
            if own:
                self._unlinked(last)
            if change.directory.devtmpfs and change.directory.inode in inodes:
                self._in_directory(change)
            if own:
                self._call(last, lib.LANE_LOOK)

    def _last_place(self, change: NameChange) -> NameChange:
        """The name by which the kernel learns that an entry is gone: that of a node, and for a directory one
        that never was, in the nearest directory that is still there.  A directory has one name in the kernel,
        so it loses the old one, which may be that of a new directory by now: whoever is there keeps it."""
        if change.directory.devtmpfs:
            return change
        directory, name = change.directory, f"{change.name}!"
        while directory.parent is not None and not self._tree.knows(directory):
            directory, name = directory.parent, f"{directory.name}!{name}"
        return change._replace(directory=directory, name=name)

    def _unlinked(self, change: NameChange) -> None:
        """Have the kernel know that the inode has no name any more: once it forgets the name, it tells."""
        for _ in range(2):
            if self._call(change, lib.LANE_LOOK, shown=change.inode) != 0:
                return
            time.sleep(CACHED_SECONDS)  # the kernel did not ask, because it had the name cached

    def _in_directory(self, change: NameChange) -> None:
        gate = self.gate_of(change.directory)
        if not gate.begin(change):
            return
        try:
            if change.came:
                self._call(change, lib.LANE_CREATE)
            else:
                self._call(change, lib.LANE_UNLINK, shown=self._tree.spare_inode())
        finally:
            gate.end()

    def _call(self, change: NameChange, call: int, shown: int = 0) -> int:
        """Make a system call on the name, with a lookup that finds the inode `shown`, which has no name any
        more.  Returns 1, 0 when the kernel did not look the name up, or a negative errno."""
        name = ffi.new("char[]", os.fsencode(change.name))
        directory = ffi.new("char[]", os.fsencode(change.directory.path))
        mountpoint = ffi.new("char[]", self._mountpoint)
        made = ffi.new("struct lane_change *")
        made.mountpoint, made.directory, made.name = mountpoint, directory, name
        made.st_dev, made.parent = self._st_dev, change.directory.inode
        made.call, made.shown = call, bool(shown)
        made.found.inode = shown or change.inode
        node = change.directory.devtmpfs
        made.found.mode = stat.S_IFREG | 0o600 if node else stat.S_IFDIR | 0o755
        made.found.size = change.directory.node_size if node else 0
        made.found.nlink = 0 if call == lib.LANE_LOOK else 1
        return int(lib.lane_make_change(made))


def watched(st_dev: int) -> set[int]:
    """The inode numbers of the file system `st_dev` that some process watches, as far as /proc shows them."""
    found: set[int] = set()
    sdev = os.major(st_dev) << 20 | os.minor(st_dev)
    for process in _numbers("/proc"):
        for fd in _numbers(f"/proc/{process}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{process}/fd/{fd}") in NOTIFIERS:
                    found.update(_marks(f"/proc/{process}/fdinfo/{fd}", sdev))
    return found


def _numbers(path: str) -> list[str]:
    try:
        return [name for name in os.listdir(path) if name.isdecimal()]
    except OSError:
        return []  # it has ended, or is another user's


def _marks(path: str, sdev: int) -> Iterator[int]:
    """The marks on our file system; those on others are passed over quickly."""
    ours, rest = b" sdev:%x " % sdev, b""
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            lines, newline, after = piece.rpartition(b"\n")
            lines, rest = (rest + lines, after) if newline else (b"", rest + after)
            if ours in lines:
                found = MARK.findall(lines)
                yield from (int(inode, 16) for inode, device in found if int(device, 16) == sdev)
