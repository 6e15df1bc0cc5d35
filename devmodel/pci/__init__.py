# SPDX-License-Identifier: Apache-2.0
"""Configuration space: registers, capabilities, BARs, ids and addresses of PCI functions.

Values and regions. Nothing here knows devices, VFIO or the lab.
"""
