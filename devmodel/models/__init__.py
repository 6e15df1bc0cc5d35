# SPDX-License-Identifier: Apache-2.0
"""The device models that come with vfsfuse, each a class on devmodel.device.

A model may use all packages below this one.  Code outside imports only the registry.
"""
