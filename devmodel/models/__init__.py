# SPDX-License-Identifier: Apache-2.0
"""The device models that come with vfsfuse, each a class on devmodel.device.

A model may use any room below this one.  Nothing but the registry is imported from outside.
"""
