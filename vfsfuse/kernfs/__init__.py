# SPDX-License-Identifier: Apache-2.0
"""How sysfs behaves, whatever is in it: directories, attributes, symlinks, inode numbers, notifications.

Here are the tree of a mount and the handlers of the namespace lane.  What knows a vGPU, a PCI function or
VFIO is not here, but in vfsfuse/sysfs and vfsfuse/views.
"""
