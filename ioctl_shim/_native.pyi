# SPDX-License-Identifier: Apache-2.0
"""The compiled extension: cffi gives no types, so its two names are Any here and typed where they are
used."""

from typing import Any

ffi: Any
lib: Any
