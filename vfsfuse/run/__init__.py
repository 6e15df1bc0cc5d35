# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run`: starts a program that finds a lab at /sys and /dev/vfio.

Here are the namespaces, the seccomp supervisor and the private lab of a run.  The tree and the device models
are not used from here: `run` reaches them through the mount, as any other program does.
"""
