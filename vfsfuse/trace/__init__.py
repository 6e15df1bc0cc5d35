# SPDX-License-Identifier: Apache-2.0
"""The trace of a lab as its readers see it: records, filters, decoded structs, lines of text, summaries.

Nothing here imports the tree, the device models or the server.  The server's side is in `vfsfuse.observe`.
"""
