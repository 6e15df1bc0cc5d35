# SPDX-License-Identifier: Apache-2.0
"""How the lab's devices appear in the tree, one module a kind of device; views.labview puts them together.

All belong to the trio thread but where they say otherwise.
"""
