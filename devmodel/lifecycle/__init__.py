# SPDX-License-Identifier: Apache-2.0
"""The lab: which parents, functions and vGPUs exist, how they come and go, and which driver has them.

Everything here changes on the trio thread under ``Lab.lock``.  No file, no path: a view
observes the lab.
"""
