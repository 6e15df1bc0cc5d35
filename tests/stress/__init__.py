# SPDX-License-Identifier: Apache-2.0
"""Campaigns against a mounted lab: `./tests/stress.sh`, described in docs/robustness.md.

A campaign starts servers and hostile clients, counts their calls, and reports faults. C programs make the
calls. The modules here mount labs, start the programs, watch the server and judge. pytest collects none of
them.
"""
