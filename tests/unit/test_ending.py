# SPDX-License-Identifier: Apache-2.0
"""The look of a server at the process that it belongs to."""

from __future__ import annotations

import os
import threading

from vfsfuse.ending import _is_being_killed

OWNERS = 300


def test_owner_may_end_during_a_look() -> None:
    """The thread that looks must not end with an exception: the server would stay."""
    for _ in range(OWNERS):
        reader, writer = os.pipe()
        pid = os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)])
        os.close(reader)
        ended = threading.Event()

        def reap(pid: int = pid, ended: threading.Event = ended) -> None:
            os.waitpid(pid, 0)
            ended.set()

        threading.Thread(target=reap).start()
        os.close(writer)
        while not ended.is_set():
            assert not _is_being_killed(pid)
