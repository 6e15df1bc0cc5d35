# SPDX-License-Identifier: Apache-2.0
"""I/O address spaces, and the APIs through which clients fill them: type1, and no IOMMU at all.

Device models use what ``dmaspace`` declares. Struct layouts, ioctl numbers and descriptors do not live here.
"""
