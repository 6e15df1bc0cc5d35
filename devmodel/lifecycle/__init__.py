# SPDX-License-Identifier: Apache-2.0
"""The lab: which parents, PCI functions and vGPUs exist, how they come and go, and which drivers they have.

Everything here changes on the lifecycle thread (trio's), under ``Lab.lock``. No file and no path is here: a
front end observes the lab, and shows what it is told.
"""
