# SPDX-License-Identifier: Apache-2.0
"""pyfuse3, imported in the one order that works: after this package has taken libfuse's symbols.

All modules of this project use `from ioctl_shim.fuse import pyfuse3`, so that a tool that sorts imports
cannot break the order.
"""

import pyfuse3

__all__ = ["pyfuse3"]
