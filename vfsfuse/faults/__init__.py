# SPDX-License-Identifier: Apache-2.0
"""Fault rules: what is to happen to which calls, and when.

A rule is made of keys, which a lab file, the file `faults` of a mount, the command line and Python have in
common.  What a call is, and who makes it, is known below (devmodel.calls); what a rule is for, above.
"""
