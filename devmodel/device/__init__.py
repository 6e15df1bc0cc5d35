# SPDX-License-Identifier: Apache-2.0
"""A device as models build on it: regions, interrupts, tasks, DMA, display, attributes.

Here are the base classes.  No concrete model, no group, no lab.
"""
