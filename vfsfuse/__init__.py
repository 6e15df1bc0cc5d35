# SPDX-License-Identifier: Apache-2.0
"""vfsfuse: a virtual VFIO lab in a FUSE mount.

`vfsfuse mount` (`cli`) reads a lab file (`labfile`) and starts a server (`server`), which makes the lab
(devmodel) and its tree.  From then on data flows in three ways:

- A write to an attribute comes to the trio thread: `kernfs` finds the attribute, its store() in `sysfs` calls
  devmodel, devmodel tells its observer in `views`, and `views` changes the tree.
- A lookup, or a read of an attribute, comes to the device lane (ioctl_shim), which asks the same tree.
- An open, ioctl, read or write of a device file comes to the device lane, where `vfio` calls devmodel.

`vfsfuse run` (`run`) is a process of its own, which reaches the lab through the mount.
"""
