# SPDX-License-Identifier: Apache-2.0
"""The table of a run, on the terminal and in docs/robustness.md."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from tests.stress.campaign import Run
from tests.stress.setting import Setting

BEGIN, END = "<!-- begin: ./tests/stress.sh --document -->", "<!-- end -->"


def _row(run: Run, seconds: float) -> str:
    by = run.bystander
    stall = f"{by.longest_ms:.0f} ms, {by.asked} ({by.control_ms:.0f} ms)"
    faults = len(run.report.faults)
    result = "passed" if not faults else f"**{faults} fault{'s' if faults > 1 else ''}**"
    return f"| {run.name} | {run.figures or 'ended early'} | {stall} | {seconds:.0f} s | {result} |"


def table(setting: Setting, runs: list[tuple[Run, float]]) -> list[str]:
    """Markdown: what was run, a row for each campaign, and what was left out."""
    who = "root" if setting.root else "an ordinary user"
    how = ", with AddressSanitizer and UBSan" if setting.sanitized else ""
    where = f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} processors"
    lines = [
        f"`./tests/stress.sh {setting.seconds:g} --seed {setting.seed}`, run by {who}{how}; {where}.",
        "",
        "| campaign | what was done | longest stall of another client (of a tmpfs) | time | result |",
        "| --- | --- | --- | --- | --- |",
        *(_row(run, seconds) for run, seconds in runs),
    ]
    left_out = [f"- {run.name}: {text}" for run, _ in runs for text in run.left_out]
    return [*lines, "", "Left out:", "", *left_out] if left_out else lines


def document(path: Path, lines: list[str]) -> None:
    """Put the table between the two marks of the document."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text("\n".join([before + BEGIN, "", *lines, "", END]) + after)
