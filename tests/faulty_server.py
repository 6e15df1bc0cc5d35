# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse`, with faults in it: for tests of what a handler that fails does to its caller and to the mount.

An attribute (trio thread) and the reads and writes of config (device lane) raise what no handler may.
"""

import sys
from typing import NoReturn

from devmodel.lifecycle.mdev import MdevType
from devmodel.pci.config import ConfigSpace
from vfsfuse.cli import main

FAULT = "a fault that the test put there"


def fail(*_: object) -> NoReturn:
    raise ZeroDivisionError(FAULT)


if __name__ == "__main__":
    MdevType.description = property(fail)  # type: ignore[assignment]
    ConfigSpace.read = ConfigSpace.write = fail  # type: ignore[method-assign, assignment]
    sys.exit(main())
