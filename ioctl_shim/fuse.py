# SPDX-License-Identifier: Apache-2.0
"""pyfuse3, imported in the one order that works: after this package has taken libfuse's symbols.

Everything of ours says `from ioctl_shim.fuse import pyfuse3`, so that no sorter of imports can get it wrong.
"""

import pyfuse3

__all__ = ["pyfuse3"]
