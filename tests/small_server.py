# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse`, whose device memory is files in the folder $SMALL: for tests of a host that has no page left.

The folder is on a small tmpfs. A memfd has its pages from the whole host, which no test may use up.
"""

import os
import sys
import tempfile

from devmodel.region.backing import Backing
from vfsfuse.cli import main


def create(backing: Backing, name: str, size: int) -> int:
    fd, _ = tempfile.mkstemp(dir=os.environ["SMALL"], prefix=name)
    os.ftruncate(fd, size)
    return fd


if __name__ == "__main__":
    Backing._create = create  # type: ignore[method-assign, assignment]
    sys.exit(main())
