# SPDX-License-Identifier: Apache-2.0
"""`mount --reload`: a look at the files of the models every so often, and a reload when they have changed.

A task on the trio thread.  The looks are on a worker thread, because a file system may take its time to
answer.
"""

from __future__ import annotations

from contextlib import suppress

import trio

from vfsfuse.reload.reloader import NotReloaded, Reloader

PAUSE = 0.25
"""Seconds between two looks."""


async def watch(reloader: Reloader) -> None:
    """Reload until cancelled.  The log has the outcomes.  What fails is tried again after the next change."""
    while True:
        await trio.sleep(PAUSE)
        if await trio.to_thread.run_sync(reloader.has_changed, abandon_on_cancel=True):
            with suppress(NotReloaded):
                await reloader.reload()
