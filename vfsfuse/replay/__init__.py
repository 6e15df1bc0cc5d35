# SPDX-License-Identifier: Apache-2.0
"""Devices that answer as a recording says: what a client does is compared with the recorded dialogue.

Most of it is pure logic: a script of what the device does, the place where a client is in it, the answers.
Nothing here knows lab files, the server or the tree.
"""
