# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse top`: what the devices of a mounted lab do, again and again, busiest first.

Single-threaded.  A child process reads the lab (vfsfuse.asking), so a server that does not answer cannot hold
this process up.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vfsfuse.asking import NoAnswer, Patience, Refusal
from vfsfuse.cli.mountpoint import no_answer
from vfsfuse.cli.output import complain, discard_stdout
from vfsfuse.cli.targets import add_mount, only_lab, patience_of, place_of, why

if TYPE_CHECKING:
    from vfsfuse.monitor.processes import Place
    from vfsfuse.monitor.rates import Rates

NO_RICH = (
    "the live view needs rich (pip install 'vfsfuse[top]', or apt-get install python3-rich); "
    "`vfsfuse top --batch` does without it"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d", "--delay", type=_seconds, default=1.0, metavar="SECONDS", help="between two looks; default: 1"
    )
    parser.add_argument("-n", "--count", type=_count, metavar="COUNT", help="end after so many looks")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "-b", "--batch", action="store_true", help="plain text, as it is where the output is no terminal"
    )
    form.add_argument("--json", action="store_true", help="a JSON object a line (docs/monitor.md)")
    add_mount(parser)


def _seconds(said: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.1 <= float(said) <= 3600:
            return float(said)
    raise argparse.ArgumentTypeError(f"{said!r} is not 0.1 to 3600 seconds")


def _count(said: str) -> int:
    if not said.isdecimal() or not int(said):
        raise argparse.ArgumentTypeError(f"{said!r} is no number above 0")
    return int(said)


def main(args: argparse.Namespace) -> int:
    lab = args.mount or ""
    try:
        lab = lab or only_lab()
        place = place_of(lab, Patience())
        lab = place.path
        shown = _rates(place, args.delay)
        if args.json or args.batch or not sys.stdout.isatty():
            _print(shown, args.count, args.json)
        else:
            _watch(shown, args.count)
    except NoAnswer:
        return complain("top", no_answer(lab))
    except Refusal as error:
        return complain("top", str(error))
    except BrokenPipeError:
        discard_stdout()
    except KeyboardInterrupt:
        pass  # the usual end
    except OSError as error:
        return complain("top", why(error, lab))
    return 0


def _rates(place: Place, seconds: float) -> Iterator[Rates | None]:
    """The rates of each interval, and None while time goes by."""
    from vfsfuse.monitor.rates import rates
    from vfsfuse.monitor.sampling import Sample, samples

    def question() -> Iterator[tuple[Any, ...] | None]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal signals both processes
        return samples(place, seconds)

    before = None
    for item in patience_of(place.path)(question):
        if item is None:
            yield None
            continue
        now = Sample.of(item)
        if before is not None:
            yield rates(place.path, before, now)
        before = now


def _print(shown: Iterator[Rates | None], count: int | None, json: bool) -> None:
    from json import dumps

    from vfsfuse.monitor.tables import cut
    from vfsfuse.monitor.topview import as_json, lines

    number = 0
    for rates in shown:
        if rates is None:
            continue
        number += 1
        if json:
            print(dumps(as_json(rates, time.time())))
        else:
            width = os.get_terminal_size(1).columns if sys.stdout.isatty() else None
            print("\n" * (number > 1) + "\n".join(cut(line, width) for line in lines(rates)))
        sys.stdout.flush()
        if number == count:
            return


def _watch(shown: Iterator[Rates | None], count: int | None) -> None:
    """Raises Refusal without rich."""
    try:
        from vfsfuse.monitor.live import watch
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise Refusal(NO_RICH) from None
    watch(shown, count)
