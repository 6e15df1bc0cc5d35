# SPDX-License-Identifier: Apache-2.0
"""How sysfs behaves, whatever is in it: directories, attributes, links, inode numbers, notifications.

Here are the tree and the handlers of the namespace lane.  No class here knows a vGPU, a PCI function or VFIO.
"""
