# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse list`: what is in a mounted lab, read through the mount, and which processes use it.

Single-threaded; vfsfuse/monitor reads and shows it.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from vfsfuse.asking import NoAnswer, Patience, Refusal
from vfsfuse.cli.mountpoint import no_answer
from vfsfuse.cli.output import complain, discard_stdout
from vfsfuse.cli.targets import add_mount, only_lab, patience_of, place_of, why

if TYPE_CHECKING:
    from vfsfuse.monitor.listing import Contents
    from vfsfuse.monitor.processes import Client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object (docs/monitor.md)")
    add_mount(parser)


def main(args: argparse.Namespace) -> int:
    from vfsfuse.monitor.inventory import gather, inventory
    from vfsfuse.monitor.listing import Contents
    from vfsfuse.monitor.processes import Client, clients

    lab = args.mount or ""
    try:
        lab = lab or only_lab()
        place = place_of(lab, Patience())
        lab = place.path
        asked = patience_of(lab)
        found = gather(asked(lambda: inventory(lab)))
        ((seen, unseen),) = asked(lambda: [_plain(*clients(place))])
        show(Contents(lab, found, [Client(*each) for each in seen], unseen), args.json)
    except NoAnswer:
        return complain("list", no_answer(lab))
    except Refusal as error:
        return complain("list", str(error))
    except BrokenPipeError:
        discard_stdout()
    except OSError as error:
        return complain("list", why(error, lab))
    return 0


def _plain(seen: list[Client], unseen: int) -> tuple[list[tuple[Any, ...]], int]:
    """The answer to the question for clients, which has no objects of ours."""
    return [tuple(each) for each in seen], unseen


def show(contents: Contents, json: bool) -> None:
    """Print it.  Lines are cut to the width of a terminal, and whole otherwise."""
    from vfsfuse.monitor.listing import as_json, lines
    from vfsfuse.monitor.tables import cut

    if json:
        from json import dumps

        print(dumps(as_json(contents), indent=2))
    else:
        width = os.get_terminal_size(1).columns if sys.stdout.isatty() else None
        for line in lines(contents):
            print(cut(line, width))
    sys.stdout.flush()
