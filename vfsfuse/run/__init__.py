# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run`: what a process is given so that it finds a lab at /sys and /dev/vfio.

Here are namespaces, the seccomp supervisor and the private lab of a run.  No tree, no device model: all of
them are reached through the mount, as any other program reaches them.
"""
