# SPDX-License-Identifier: Apache-2.0
"""The files of a mount, as rows: the source of docs/sysfs.md.

`rows` takes them from the declarations, `places` has those that views make.  Documentation only: nothing at
run time imports it.
"""
