# SPDX-License-Identifier: Apache-2.0
"""The Python API, for tests and tools: a lab and what is in it, as objects.

It reaches a lab through its mount, as any program does, and starts servers as a user would.  `import vfsfuse`
gives its names; nothing is imported until one is used.
"""
