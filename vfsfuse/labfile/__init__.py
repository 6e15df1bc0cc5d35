# SPDX-License-Identifier: Apache-2.0
"""Lab files: TOML read into devmodel's LabSpec, with errors that a person can act on.

Here are the reader, its schema, the kinds of values, and the outline of a lab without a mount.  FUSE and the
tree do not belong here.
"""
