# SPDX-License-Identifier: Apache-2.0
"""The files at the root of a mount by which programs observe a lab: what clients do, and how often.

Observers of the call point (devmodel.calls) collect it, and the files give it to whoever reads them.  The
readers of a trace use `vfsfuse.trace`.
"""
