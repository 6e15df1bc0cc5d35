# SPDX-License-Identifier: Apache-2.0
"""The calls on a lab: what is told of each one, who attends to it, what happens to it.

:mod:`devmodel.calls.point` is the point that every call passes.  The other modules are its parts, and every
room above may use them.  None of them knows what a call does: its maker passes that.
"""
