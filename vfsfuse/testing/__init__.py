# SPDX-License-Identifier: Apache-2.0
"""For tests of drivers and of device models: a bench for a model, and fixtures for pytest."""
