# SPDX-License-Identifier: Apache-2.0
"""One mounted lab, from mount(2) to the last reply: the trio main loop beside the device lane's pump.

`serve` is called once a process, on its main thread, before any other thread exists.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from devmodel.calls.point import CallPoint
from devmodel.lifecycle.spec import LabSpec, RemovalPolicy, SpecError
from ioctl_shim._native import lib
from ioctl_shim.fuse import pyfuse3
from ioctl_shim.lane import OBSERVED, STEERED, Lane
from ioctl_shim.signals import NotedSignals
from vfsfuse import ending, mounts, unmounted
from vfsfuse.caughtstderr import caught_stderr
from vfsfuse.faults.actions import Actions
from vfsfuse.faults.devices import LabDevices
from vfsfuse.faults.file import FaultsFile
from vfsfuse.faults.rule import RuleError, parse_line
from vfsfuse.faults.rules import FaultRules
from vfsfuse.kernfs.inodes import Inodes, LaneInodes
from vfsfuse.kernfs.operations import Operations
from vfsfuse.kernfs.steeredstores import SteeredStores
from vfsfuse.kernfs.tree import Tree
from vfsfuse.kernfs.xattr import source
from vfsfuse.labfile.code import LabCode
from vfsfuse.ownfolder import OwnFolder
from vfsfuse.reload.file import ReloadFile
from vfsfuse.reload.reloader import Reloader
from vfsfuse.reload.watch import watch
from vfsfuse.requirements import mend_lab_mount
from vfsfuse.scheduling import lengthen_time_slice
from vfsfuse.views.labview import LabView

log = logging.getLogger(__name__)
SWITCH_INTERVAL = 0.0001
"""Seconds that the device lane waits for the GIL while the trio thread is busy.  With Python's default of
0.005 a read during an `ls` of 3,000 vGPUs took 523 us (p99 982), with this value 217 us (p99 469)."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class MountError(Exception):
    """The lab cannot be mounted.  str() is one line: why, and what to do about it."""


def mount_options() -> set[str]:
    """The mount options.  A tree that root mounts is for everybody, under the modes it shows.  Any other tree
    is for its user alone."""
    options = {f"fsname={source()}", "subtype=vfsfuse", "default_permissions"}
    return options | {"allow_other"} if os.geteuid() == 0 else options


def _allow_descriptors() -> None:
    """Raise the limit of open files, because every interrupt vector of a client needs one (MSI-X has
    2048)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(
    spec: LabSpec,
    code: LabCode,
    mountpoint: str,
    ready: Callable[[], None],
    end_fd: int | None = None,
    watched: bool = False,
    folder: OwnFolder | None = None,
) -> None:
    """Mount the lab at `mountpoint` and serve it until it is unmounted, a signal of ENDING comes, or `end_fd`
    can be read.

    `code` are the models of its own; with `watched` they are reloaded when their files change.  `ready` is
    called on the trio thread when the tree answers through the kernel.  `folder` is for files of the lab, and
    is removed at the end.  Raises MountError when mounting fails.
    """
    _allow_descriptors()
    lib.shim_keep_memory()
    signals = NotedSignals(ENDING)  # early, because one must not leave a dead mount
    tree = Tree()
    inodes = Inodes(tree, spec.cache, os.geteuid(), os.getegid(), spec.removal is RemovalPolicy.WAIT)
    calls = CallPoint()
    operations = Operations(inodes, calls, _no_folder if folder is None else folder.path)
    view = LabView(spec, tree, calls)
    view.stores.tasks.publish = view.lab.later.publish = operations.publish
    reloader = Reloader(view, code, operations.publish)
    tree.add(tree.root, ReloadFile.node(reloader, view.lab.tasks))
    rules = FaultRules(calls, LabDevices(view.lab), Actions(view.lab))
    _add_rules(rules, spec)
    tree.add(tree.root, FaultsFile.node(rules, calls, view.services.threads))
    tree.take_changes()
    openings = view.openings
    lane = Lane(openings.open, LaneInodes(inodes, view.lab.lock), view.services.threads, openings.observing)
    stores = SteeredStores(tree, view.lab.tasks, view.stores.tasks, operations.store)
    lane.attended.steer_store = stores.steer
    calls.join(partial(_attend, calls, lane, inodes))
    _mount(operations, mountpoint)
    try:
        lane.start()
        _speed_up()
        if end_fd is not None:
            ending.end_with(end_fd, mountpoint)
        trio.run(_Server(operations, view, lane, mountpoint, ready, reloader, watched).run, signals)
    finally:
        signals.ignore()
        calls.close()
        pyfuse3.close(unmount=_is_ours(mountpoint))
        lane.stop()
        view.close()
        if folder is not None:
            folder.remove()


def _speed_up() -> None:
    """Set up this thread and the interpreter for serving.  To be called after the lane has started, so that
    the pump does not get the longer time slice: the pump should serve other clients before the one that it
    has just answered."""
    gc.freeze()  # collections skip all objects so far, which are most of the server's
    gc.enable()
    sys.setswitchinterval(SWITCH_INTERVAL)
    lengthen_time_slice()


def _add_rules(rules: FaultRules, spec: LabSpec) -> None:
    """The fault rules that hold from the start.  Raises SpecError."""
    try:
        rules.add(*map(parse_line, spec.faults))
    except (RuleError, OSError) as error:
        why = error if isinstance(error, RuleError) else error.strerror
        raise SpecError(f"{spec.source}: faults: {why}") from error


def _attend(calls: CallPoint, lane: Lane, inodes: Inodes) -> None:
    """Somebody comes or goes who observes or listens."""
    listens = calls.listener is not None
    inodes.steered = listens
    lane.attend((OBSERVED if calls.observers else 0) | (STEERED if listens else 0))


def _no_folder() -> str:
    raise FileNotFoundError(errno.ENOENT, "this lab has no folder")


def _mount(operations: Operations, mountpoint: str) -> None:
    """Mount the lab by libfuse, or raise MountError."""
    try:
        with caught_stderr() as stderr:
            pyfuse3.init(operations, mountpoint, mount_options())
    except RuntimeError as error:
        mend = mend_lab_mount()
        raise MountError((stderr.line or str(error)) + (f" ({mend})" if mend else "")) from error


def _is_ours(mountpoint: str) -> bool:
    """Whether the lab is what is mounted at `mountpoint`.  After a lazy unmount it may be another one."""
    found = [mount for mount in mounts.table() if mount.path == mountpoint]
    return bool(found) and found[-1].source == source()


@dataclass(frozen=True)
class _Server:
    """The tasks beside pyfuse3's; all on the trio thread."""

    operations: Operations
    view: LabView
    lane: Lane
    mountpoint: str
    ready: Callable[[], None]
    reloader: Reloader
    watched: bool
    announced: trio.Event = field(default_factory=trio.Event)

    async def run(self, signals: NotedSignals) -> None:
        signals.resume()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.view.lab.tasks.serve)
            nursery.start_soon(self._end_on_signal, signals, nursery.cancel_scope)
            nursery.start_soon(self._announce)
            if self.watched:
                nursery.start_soon(watch, self.reloader)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()
        log.info("unmounted")

    async def _end_on_signal(self, signals: NotedSignals, scope: trio.CancelScope) -> None:
        await trio.lowlevel.wait_readable(signals.reader)
        log.info("%s: ending", signal.Signals(os.read(signals.reader, 1)[0]).name)
        # a thread of this process that waits for an answer of its own could not end, even by SIGKILL
        await self.announced.wait()
        self.view.lab.calls.close()
        pyfuse3.terminate()
        scope.cancel()

    async def _announce(self) -> None:
        # from another thread, because this one has to answer the stat(2)
        root = await trio.to_thread.run_sync(os.stat, self.mountpoint)
        self.view.mounted(self.lane, root.st_dev)
        self.operations.watchers.mounted(self.mountpoint, root.st_dev)
        await trio.to_thread.run_sync(os.listdir, os.path.join(self.mountpoint, "sys"))
        log.info("mounted at %s, pid %d", self.mountpoint, os.getpid())
        unmounted.end_when_unmounted(root.st_dev, source(), self.view.lab.calls.close)
        self.ready()
        self.announced.set()
