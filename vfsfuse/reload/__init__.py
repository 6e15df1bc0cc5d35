# SPDX-License-Identifier: Apache-2.0
"""New code for the models of a mounted lab: reading it, the file by which clients ask for that, and the watch
on the files of the models.

What then happens to the devices is in devmodel.lifecycle.renewal.  No command belongs here (vfsfuse/cli).
"""
