# SPDX-License-Identifier: Apache-2.0
"""The recorder of a machine with real VFIO: the tracer of a program, which makes a recording of its calls.

`recorder` has the steps, from the start of the program to its recording.  Nothing here knows of a lab.
"""
