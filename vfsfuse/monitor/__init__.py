# SPDX-License-Identifier: Apache-2.0
"""What is in a mounted lab and what it does, for `vfsfuse list` and `vfsfuse top`.

Here live readers of a lab's files and of /proc, rates, and how both are shown.  Everything is read as any
program reads it: nothing here imports the server.  Functions that read the lab ask its server, so a command
calls them as a question (vfsfuse.asking).
"""
