# SPDX-License-Identifier: Apache-2.0
"""Here only because cffi_modules has no other way in; all metadata is in setup.cfg."""

from setuptools import setup

setup(cffi_modules=["ioctl_shim/_build.py:ffibuilder"])
