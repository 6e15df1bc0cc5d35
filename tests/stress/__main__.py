# SPDX-License-Identifier: Apache-2.0
"""`./tests/stress.sh [SECONDS]`: run the campaigns and print a table. The exit status is 1 after a fault."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.stress import (
    churn,
    engines,
    faults,
    fuzz,
    hostile,
    killed_clients,
    killed_servers,
    sanitize,
    soak,
)
from tests.stress.campaign import Campaign, Run, execute
from tests.stress.programs import compile_programs
from tests.stress.setting import DOCUMENTED_SECONDS, ROOT, Setting
from tests.stress.table import document, table

MODULES = (fuzz, engines, killed_clients, killed_servers, churn, hostile, faults, soak)
CAMPAIGNS: tuple[Campaign, ...] = tuple(module.CAMPAIGN for module in MODULES)


def parser() -> argparse.ArgumentParser:
    epilog = "campaigns: " + "; ".join(f"{campaign.name}: {campaign.tries}" for campaign in CAMPAIGNS)
    made = argparse.ArgumentParser(
        prog="tests/stress.sh", description=__doc__, epilog=epilog, allow_abbrev=False
    )
    made.add_argument(
        "seconds",
        metavar="SECONDS",
        nargs="?",
        type=float,
        default=120.0,
        help=f"about how long to take, half of it to soak (default 120; documented {DOCUMENTED_SECONDS})",
    )
    made.add_argument("--seed", type=int, help="repeat the random numbers of a run (default: any)")
    names = [campaign.name for campaign in CAMPAIGNS]
    made.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help="run this campaign; may be repeated"
    )
    made.add_argument(
        "--sanitize", action="store_true", help="build the extension with AddressSanitizer and UBSan"
    )
    made.add_argument("--document", action="store_true", help="write the table into docs/robustness.md")
    made.add_argument("--keep", action="store_true", help="keep the logs")
    return made


def main() -> int:
    args = parser().parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vfsfuse-stress-"))
    folder.chmod(0o755)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    print(f"stress.sh: seed {seed}, {args.seconds:g} s, logs in {folder}", flush=True)
    compile_programs(folder)
    tree, sanitized = (sanitize.build(folder), sanitize.ENVIRONMENT) if args.sanitize else (ROOT, None)
    setting = Setting(folder, seed, args.seconds, tree, sanitized)
    runs: list[tuple[Run, float]] = []
    for campaign in CAMPAIGNS:
        if args.only and campaign.name not in args.only:
            continue
        print(f"{campaign.name}: {campaign.tries} ...", flush=True)
        begun = time.monotonic()
        run = execute(campaign, setting)
        runs.append((run, time.monotonic() - begun))
        for fault in run.report.faults:
            print(f"  FAULT {fault}", flush=True)
    lines = table(setting, runs)
    print("\n".join(lines))
    if args.document:
        document(ROOT / "docs/robustness.md", lines)
    failed = any(run.report.faults for run, _ in runs)
    if failed or args.keep:
        print(f"stress.sh: the logs are in {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
