# SPDX-License-Identifier: Apache-2.0
"""The base classes of device models, and what a model declares and uses: DMA, tasks, display, attributes.

No concrete model is here. Nothing here knows groups, containers or the lab.
"""
