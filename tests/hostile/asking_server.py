# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.hostile.asking_server FOLDER`, under `vfsfuse run --stat-paths`: a FUSE server that is
under the filter itself, and asks what a node of the lab is before each of its answers.

Its file system is mounted on FOLDER.  Whoever looks its names up waits for it, and it waits for the
supervisor; names have "vfio" in them, so the supervisor looks them up, too.  A name with "held" is not
answered until others have had their answers.  Says "ok" at the end.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import threading

import pyfuse3
import trio

from vfsfuse.run import syscalls

NODE = "/dev/vfio/vfio"
ROUNDS, THREADS = 20, 8
FILE = 2


def ask() -> None:
    found = os.stat(NODE)
    assert stat.S_ISCHR(found.st_mode)
    assert found.st_rdev == os.makedev(10, 196)


class AskingServer(pyfuse3.Operations):
    """A folder in which each name is a file.  A byte in `held` says that a lookup waits for `release`."""

    def __init__(self, held: int, release: int) -> None:
        super().__init__()
        self._held, self._release = held, release
        self._released = False

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        ask()
        if b"held" in name and not self._released:  # the kernel looks up what the supervisor has looked up
            os.write(self._held, b"h")
            await trio.to_thread.run_sync(os.read, self._release, 1)
            self._released = True
        return await self.getattr(FILE, ctx)

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        ask()
        if inode not in (pyfuse3.ROOT_INODE, FILE):
            raise pyfuse3.FUSEError(errno.ENOENT)
        made = pyfuse3.EntryAttributes()
        made.st_ino = inode
        made.st_mode = stat.S_IFREG | 0o644 if inode == FILE else stat.S_IFDIR | 0o755
        made.entry_timeout = made.attr_timeout = 0
        return made


def serve(folder: str, held: int, release: int) -> None:
    pyfuse3.init(AskingServer(held, release), folder, {"fsname=asking"})
    trio.run(pyfuse3.main)


def look_up(path: str) -> None:
    assert stat.S_ISREG(os.stat(path).st_mode)


def use(folder: str, held: int, release: int) -> None:
    """What programs do with the file system while it is there."""

    def often() -> None:
        for _ in range(ROUNDS):
            look_up(f"{folder}/vfio")
            ask()

    threads = [threading.Thread(target=often) for _ in range(THREADS)]
    holding = threading.Thread(target=look_up, args=(f"{folder}/vfio-held",))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    holding.start()
    os.read(held, 1)  # from here on the kernel lets nobody else look up a name in the folder
    for _ in range(ROUNDS):
        ask()
    os.write(release, b"r")
    holding.join()


def main(folder: str) -> None:
    held, release = os.pipe(), os.pipe()
    server = os.fork()
    if not server:
        syscalls.die_with_parent()
        serve(folder, held[1], release[0])
        os._exit(0)
    signal.alarm(150)
    try:
        while not os.path.ismount(folder):
            pass
        use(folder, held[0], release[1])
    finally:
        syscalls.detach(folder)
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
