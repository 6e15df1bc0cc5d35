# SPDX-License-Identifier: Apache-2.0
"""One mounted lab, from mount(2) to the last reply: the trio main loop beside the device lane's pump.

`serve` is called once a process, on its main thread, before any other thread exists.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable

import trio

from devmodel.spec import LabSpec
from ioctl_shim.fuse import pyfuse3
from ioctl_shim.lane import Lane
from vfsfuse.labview import LabView
from vfsfuse.operations import Operations
from vfsfuse.tree import Tree

log = logging.getLogger(__name__)
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def mount_options() -> set[str]:
    """As root the tree is everybody's, under the modes it shows; as a user it is that user's alone."""
    options = {"fsname=vfsfuse", "subtype=vfsfuse", "default_permissions"}
    return options | {"allow_other"} if os.geteuid() == 0 else options


def _allow_descriptors() -> None:
    """As many descriptors as we may have: every interrupt vector of every client is one (MSI-X has 2048)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(spec: LabSpec, mountpoint: str, ready: Callable[[], None]) -> None:
    """Mount the lab at `mountpoint` and serve it until it is unmounted or a signal of ENDING comes.

    `ready` is called on the trio thread once the tree answers through the kernel.  Raises RuntimeError when
    mounting fails (libfuse has said why on stderr).
    """
    _allow_descriptors()
    tree = Tree()
    operations = Operations(tree, spec.cache, os.geteuid(), os.getegid())
    view = LabView(spec, tree)
    lane = Lane(view.open)
    pyfuse3.init(operations, mountpoint, mount_options())
    try:
        lane.start()
        trio.run(_main, operations, view, lane, mountpoint, ready)
    finally:
        pyfuse3.close(unmount=True)
        view.close()


async def _main(
    operations: Operations, view: LabView, lane: Lane, mountpoint: str, ready: Callable[[], None]
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal)
        nursery.start_soon(_announce, view, lane, mountpoint, ready)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()
    log.info("unmounted")


async def _end_on_signal() -> None:
    # what the receiver puts back when it is done: a second signal must not cut short the unmounting
    for ending in ENDING:
        signal.signal(ending, signal.SIG_IGN)
    with trio.open_signal_receiver(*ENDING) as signals:
        async for number in signals:
            log.info("%s: ending", signal.Signals(number).name)
            pyfuse3.terminate()


async def _announce(view: LabView, lane: Lane, mountpoint: str, ready: Callable[[], None]) -> None:
    # from another thread: this one has to answer the question
    root = await trio.to_thread.run_sync(os.stat, mountpoint)
    view.mounted(lane, root.st_dev)
    await trio.to_thread.run_sync(os.listdir, os.path.join(mountpoint, "sys"))
    log.info("mounted at %s, pid %d", mountpoint, os.getpid())
    ready()
