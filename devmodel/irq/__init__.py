# SPDX-License-Identifier: Apache-2.0
"""Interrupts: what SET_IRQS sets up for each index, and the eventfds of clients.

A model raises, a client's eventfd hears.  Nothing here knows regions, PCI or devices.
"""
