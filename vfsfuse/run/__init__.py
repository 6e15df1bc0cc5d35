# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run`: starts a program that finds a lab at /sys and /dev/vfio.

Here are the namespaces, the seccomp supervisor and the private lab of a run.  This package does not import
the tree or the device models: `run` reaches them through the mount, as any other program does.
"""
