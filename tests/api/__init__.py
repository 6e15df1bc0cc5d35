# SPDX-License-Identifier: Apache-2.0
"""The Python API: labs, the objects in them, and the VFIO client."""
