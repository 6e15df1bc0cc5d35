# SPDX-License-Identifier: Apache-2.0
"""bench/results.png: the medians of one run as bars on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bench.cases import CASES, FLOOR, KERNEL, LXCFS, OURS, UMOCKDEV, Case
from bench.measure import PINNED
from bench.samples import Key, Results
from bench.targets import US

SHOWN = (
    *("read-hook", "write-hook", "read-plain", "read-memory", "read-config", "ioctl-struct", "ioctl-value"),
    *("attr-read", "attr-write", "lookup", "interrupt"),
)
COLOURS: Mapping[str, str] = {
    OURS: "#1f6f8b",
    FLOOR: "#9aa5ab",
    KERNEL: "#6b8e4e",
    LXCFS: "#d08c3f",
    UMOCKDEV: "#a5484b",
}
OTHER = "#9aa5ab"
WIDTH, LABELS, BAR, GAP, TOP = 1200, 430, 22, 14, 70
LEAST, MOST = 1.0, 400.0
TEXT, GRID = "#20262a", "#dde2e5"
TITLE = "Microseconds for one call, client and server on one core (median, less is better)"
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 400)


def _bars(results: Results) -> list[tuple[Case, list[tuple[str, float]]]]:
    found = []
    for case in CASES:
        medians = [(subject, results.median(Key(case.key, subject, PINNED))) for subject in case.runs]
        known = [(subject, median / case.per / US) for subject, median in medians if median is not None]
        if case.key in SHOWN and known:
            found.append((case, known))
    return found


def _x(microseconds: float) -> float:
    share = math.log(max(microseconds, LEAST) / LEAST) / math.log(MOST / LEAST)
    return LABELS + min(share, 1) * (WIDTH - LABELS - 130)


def draw(path: Path, results: Results) -> None:
    """Draw the chart of the runs on one processor."""
    bars = _bars(results)
    height = TOP + sum(len(known) * BAR + GAP for _, known in bars) + 30
    image = Image.new("RGB", (WIDTH, height), "white")
    pen, font, head = ImageDraw.Draw(image), ImageFont.load_default(15), ImageFont.load_default(20)
    pen.text((20, 14), TITLE, TEXT, head)
    for tick in TICKS:
        pen.line([(_x(tick), TOP - 8), (_x(tick), height - 20)], GRID)
        pen.text((_x(tick), TOP - 26), str(tick), TEXT, font, anchor="ma")
    y = TOP
    for case, known in bars:
        pen.text((LABELS - 12, y + len(known) * BAR / 2), case.title, TEXT, font, anchor="rm")
        for subject, spent in known:
            pen.rectangle([LABELS, y + 2, _x(spent), y + BAR - 3], COLOURS.get(subject, OTHER))
            pen.text((_x(spent) + 6, y + BAR / 2), f"{spent:.1f}  {subject}", TEXT, font, anchor="lm")
            y += BAR
        y += GAP
    image.save(path)
