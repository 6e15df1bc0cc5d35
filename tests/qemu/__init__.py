# SPDX-License-Identifier: Apache-2.0
"""Acceptance: Debian's QEMU, Debian's kernel and its stock drivers drive the lab's devices."""
