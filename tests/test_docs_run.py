# SPDX-License-Identifier: Apache-2.0
"""docs/run.md, README.md and `vfsfuse run --help` name the same options.  The sessions of docs/run.md are
run by tests/test_readme.py."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from vfsfuse.cli import run

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "run.md").read_text()
ROW = re.compile(r"^\| `(-[^`]*)` \|", re.MULTILINE)


def options() -> list[str]:
    """The options of `run` as a document shows them: "-q, --quiet", "--log FILE"."""
    parser = argparse.ArgumentParser(add_help=False)
    run.add_arguments(parser)
    return [
        ", ".join(action.option_strings) + (f" {action.metavar}" if action.metavar else "")
        for action in parser._actions
        if action.option_strings
    ]


def test_the_table_has_every_option_in_alphabetical_order() -> None:
    rows = ROW.findall(DOCUMENT)
    assert rows == sorted(options(), key=lambda option: option.rpartition("--")[2])


def test_the_readme_names_every_option() -> None:
    row = next(
        line
        for line in (ROOT / "README.md").read_text().splitlines()
        if "vfsfuse run [" in line and "|" in line
    )
    assert all(f"[{option.rpartition(', ')[2]}]" in row for option in options()), row


def test_the_settings_for_libvirt_are_those_of_the_example() -> None:
    """docs/run.md says of each why it is needed."""
    script = (ROOT / "examples/libvirt/run.sh").read_text()
    written = script.partition("qemu.conf <<END\n")[2].partition("END\n")[0]
    assert re.findall(r"^\| `(\w+ = [^`]*)` \|", DOCUMENT, re.MULTILINE) == written.splitlines()
