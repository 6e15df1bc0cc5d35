# SPDX-License-Identifier: Apache-2.0
"""`python -m vfsfuse`."""

import sys

from vfsfuse.cli import main

sys.exit(main())
