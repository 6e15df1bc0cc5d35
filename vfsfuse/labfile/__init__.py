# SPDX-License-Identifier: Apache-2.0
"""Lab files: TOML read into devmodel's LabSpec, with errors that a person can act on.

Here are the reader, its schema and the kinds of values.  FUSE and the making of devices do not belong here.
"""
