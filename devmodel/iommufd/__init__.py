# SPDX-License-Identifier: Apache-2.0
"""iommufd: the objects behind /dev/iommu and the rules of its ioctls, on the address spaces of
devmodel.iommu.

What a VFIO device does with them is in devmodel.vfio. Source: <linux/iommufd.h>,
Documentation/userspace-api/iommufd.rst.
"""
