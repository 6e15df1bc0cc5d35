# SPDX-License-Identifier: Apache-2.0
"""A machine's PCI functions as a lab file: readers of sysfs and of lspci's text, and the writer.

Nothing here needs a lab, a mount or a model. Of devmodel it imports pci only.
"""
