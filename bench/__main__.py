# SPDX-License-Identifier: Apache-2.0
"""Runs all cases, vfsfuse and its peers in turn, and writes RESULTS.md and results.png.

    python -m bench BUILD [--quick] [--output FOLDER]

BUILD is the folder of the programs that bench/run.sh compiles. --quick runs one repetition, for work on the
benchmark. Without --output the results go to bench/, and the README and docs/performance.md quote them.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from bench.cases import BY_KEY, CASES, CLIENTS, NEIGHBOURS
from bench.chart import draw
from bench.counts import system_calls
from bench.explain import Explainer
from bench.machine import STARTS, Machine, start_all
from bench.measure import measure, plan
from bench.quote import update
from bench.report import Report
from bench.samples import Results
from bench.servers import ROOT, say
from bench.targets import missed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("build", type=Path, help="the folder of the compiled programs")
    parser.add_argument("--quick", action="store_true", help="one repetition instead of several")
    parser.add_argument("--output", type=Path, default=ROOT / "bench", help="where RESULTS.md goes")
    parser.add_argument(
        "--only", action="append", default=[], choices=[*BY_KEY, CLIENTS], help=argparse.SUPPRESS
    )
    parser.add_argument("--calls", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def needed(only: Collection[str]) -> Collection[str]:
    """The servers that the cases `only` use. All servers if `only` is empty."""
    words = [text for case in CASES if case.key in only for text in case.runs.values()]
    words += NEIGHBOURS.values() if CLIENTS in only else []
    names = {name for text in words for name in re.findall(r"\{([a-z]+)", text)}
    of_lab = {"device", "mappable", "board", "container", "iommu", "group", "note", "attribute"}
    return {name for name in STARTS if name in names or (name == "lab" and names & of_lab) or not only}


def main() -> None:
    args = arguments()
    results = Results()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        machine = Machine(folder, stack, calls=args.calls)
        machine.places |= {
            "build": str(args.build.resolve()),
            "python": sys.executable,
            "folder": str(folder),
        }
        start_all(machine, needed(args.only))
        measure(machine, results, plan(machine, args.only, args.quick))
        counts = system_calls(machine, args.only)
        explained = [found.of for _, found in missed(results, machine.facts)]
        profiles = Explainer(machine, results).profiles(explained, args.only)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "RESULTS.md").write_text(Report(results, machine.facts, counts, profiles).text())
    draw(args.output / "results.png", results)
    if args.output.samefile(ROOT / "bench"):
        update()
    say(f"wrote {args.output}/RESULTS.md and {args.output}/results.png")


if __name__ == "__main__":
    main()
