# SPDX-License-Identifier: Apache-2.0
"""Interrupts: what SET_IRQS sets up for each interrupt index, and the eventfds of clients.

A model triggers an interrupt, and a client's eventfd is signalled. Nothing here knows regions or devices.
"""
