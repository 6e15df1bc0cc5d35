# SPDX-License-Identifier: Apache-2.0
"""The command engine of a vGPU: its ring, its graphics address space, and the engine that all vGPUs share.

docs/vgpu.md describes it for those who write drivers. From the client's side inwards: ``registers``,
``ring`` and ``engine`` (under the device's lock), ``worker`` (a thread for each vGPU that has work),
``commands`` and ``memory`` (what it does), ``gtt`` and ``shadow`` (translation), ``scheduler`` and ``shares``
(whose turn it is).
"""
