# SPDX-License-Identifier: Apache-2.0
"""iommufd ioctl by ioctl, against a real mount from real processes."""
