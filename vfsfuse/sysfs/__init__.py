# SPDX-License-Identifier: Apache-2.0
"""What is in the lab's sysfs: a class for each kind of directory, which declares the attributes in it.

One module is one kernel subsystem.  Which directories exist, and where, is in vfsfuse/views; a directory asks
its surroundings only through the protocol `View` (sysfs/lab.py).  How attributes behave is in vfsfuse/kernfs.
"""
