# SPDX-License-Identifier: Apache-2.0
"""What <linux/vfio.h> names and what becomes of each name here: the source of docs/vfio.md.

Documentation only: nothing at run time imports it.
"""
