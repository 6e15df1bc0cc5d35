# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse`, whose calls wait long for what a client left in use when it ended.

It is for tests in which that is closed in the end.  On a busy machine it may take longer than the half second
for which calls wait otherwise.
"""

import sys

from devmodel.lifecycle import removal
from devmodel.vfio import group, lingering
from vfsfuse.cli import main

SECONDS = 30.0
"""For so long."""


def wait_long() -> None:
    """Have the labs of this process do so."""
    for module in (lingering, group, removal):
        assert "PATIENCE" in vars(module)
        module.PATIENCE = SECONDS  # type: ignore[attr-defined]


if __name__ == "__main__":
    wait_long()
    sys.exit(main())
