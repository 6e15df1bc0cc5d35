# SPDX-License-Identifier: Apache-2.0
"""Acceptance: the machines of examples/ as unmodified programs see and use them."""
