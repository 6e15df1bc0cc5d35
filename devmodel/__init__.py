# SPDX-License-Identifier: Apache-2.0
"""Pure emulation: VFIO objects, the type1 IOMMU, PCI configuration space, vGPU lifecycle and device models.

No FUSE, no ioctl numbers, no struct layouts of the ABI: besides the standard library it has trio, on which
devices' tasks run. The one thing it asks of its user is a :class:`devmodel.client.Client`, through which it
reads and writes a client's memory.

Errors meant for a client are ``OSError`` with the errno the kernel gives; anything else is a bug.

Locks are taken in this order, and never the other way round: ``Lab.lock``, ``Group.lock``,
``Container.lock``, ``Device.lock``, ``Type1.lock``.
"""
