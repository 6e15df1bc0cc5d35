# SPDX-License-Identifier: Apache-2.0
"""The directories of the lab's sysfs, one module a kernel subsystem; each class declares its attributes."""
