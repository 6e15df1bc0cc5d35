# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse`, on a machine that is so busy that the pump stands still for $LATE seconds whenever it releases a
file of a device, a group or a container.

The watchdog has another pump go on meanwhile.
"""

import os
import sys
import time

from ioctl_shim.lane import Lane
from vfsfuse.cli import main

SECONDS = 0.1
"""More than the watchdog lets pass, and less than calls wait for it."""
NEVER = 100_000.0
"""A release that takes so long does not end."""
release = Lane._on_release


def release_late(lane: Lane, token: int) -> None:
    time.sleep(float(os.environ["LATE"]))
    release(lane, token)


if __name__ == "__main__":
    Lane._on_release = release_late  # type: ignore[method-assign, assignment]
    sys.exit(main())
