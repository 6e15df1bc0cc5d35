# SPDX-License-Identifier: Apache-2.0
"""Where the functions of a machine are, and what follows from that: pure functions of addresses and bridges.

Nothing here knows a device, a driver or a lab.
"""
