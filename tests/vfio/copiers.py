# SPDX-License-Identifier: Apache-2.0
"""A lab of devices that do DMA, and numbers of their registers. The copier (examples/copier.py) reads and
writes its client's memory; the holder (models/holder.py) pins some of it.
"""

from __future__ import annotations

from pathlib import Path

from tests.commands import ROOT

LAB = f"""\
[models]
copier = "{ROOT}/examples/copier.py:Copier"
holder = "{Path(__file__).parent}/models/holder.py:Holder"

[parents.copiers]
kind = "virtual"
driver = "copier"
slots = 8
types.copier-1 = {{ description = "copies" }}

[parents.holders]
kind = "virtual"
driver = "holder"
slots = 8
types.holder-1 = {{ description = "holds" }}

[parents."0000:86:00.0"]
kind = "gpu"
driver = "copier"
model = "copier"
types.none = {{ description = "none", model = "mtty", instances = 1 }}
"""
COPY, DONE, FAULT = 1, 1, 2
PIN, UNPIN, STORE = 1, 2, 3
COMMAND_REGISTER, DECODE, MASTER = 4, 3, 4
GPU = "0000:86:00.0"
