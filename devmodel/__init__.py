# SPDX-License-Identifier: Apache-2.0
"""The emulation: a lab of devices, VFIO's rules for them, and the models of the devices. No files, no FUSE.

How data flows: ``lifecycle`` makes a lab from a description, whose devices are ``models``. A front end shows
them as it is told (``lifecycle``'s observer) and brings clients' calls as plain values: opens and
containers to ``vfio``, reads and writes to ``device``, which hands them to a ``region``. A model answers
with interrupts (``irq``, to a client's eventfd) and with DMA through the ``iommu`` of the client's
container, which reaches the client's memory by a :class:`devmodel.client.Client` that the front end gives.
``pci`` has configuration space, ``gpu`` the command engine of the vGPU model, ``calls`` the point at
which calls can be listened to, ``sdk`` all names that a model needs.

Imports look down: region, pci, irq, iommu, device, vfio, then gpu and lifecycle, then models, then sdk.
Besides the standard library only trio is imported; ioctl numbers and the ABI's structs are the front end's.

Errors meant for a client are ``OSError`` with the errno that the kernel gives; any other exception is a bug.

Locks are taken in this order, and never in another: ``Lab.lock``, ``Group.lock``, ``Container.lock``,
``Device.lock``, ``IoAddressSpace.lock``.
"""
