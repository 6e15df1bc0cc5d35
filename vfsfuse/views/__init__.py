# SPDX-License-Identifier: Apache-2.0
"""Which directories and files a lab has, and where: the lab's devices as a tree, one module a kind of device.

views.labview puts them together and is the lab's observer.  All of them belong to the trio thread, except
where they say otherwise.  The content of a directory is not here but in vfsfuse/sysfs, and the behaviour of a
device file in vfsfuse/vfio.
"""
