# SPDX-License-Identifier: Apache-2.0
"""vfsfuse: a virtual VFIO lab in a FUSE mount."""
