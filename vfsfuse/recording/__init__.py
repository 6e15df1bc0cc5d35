# SPDX-License-Identifier: Apache-2.0
"""Recordings: the dialogue of a program with VFIO devices, as values, as a file of text, as a device model.

Nothing here imports the server or the tree.  docs/recording.md describes the file.
"""
