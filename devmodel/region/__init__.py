# SPDX-License-Identifier: Apache-2.0
"""Regions of a device: memory, read-only images and registers, and the memfd behind memory.

The lowest folder: nothing here knows PCI, interrupts or devices.
"""
