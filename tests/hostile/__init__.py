# SPDX-License-Identifier: Apache-2.0
"""Hostile clients: what one client holds up holds up nobody else.

`clients` starts the C client tests/clients/hostile_fuse.c, `bystander` is everybody else, `conftest` has the
lab.  A test is a row of a table: what is handed in where, and what the call returns in the end.
"""
