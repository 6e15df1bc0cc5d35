# SPDX-License-Identifier: Apache-2.0
"""How sysfs behaves, whatever is in it: directories, attributes, symlinks, inode numbers, notifications.

Here are the tree of a mount and the handlers of the namespace lane.  Nothing here knows a vGPU, a PCI
function or VFIO: those are in vfsfuse/sysfs and vfsfuse/views.
"""
