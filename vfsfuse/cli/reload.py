# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse reload [MODEL...]`: read the code of a lab's own models again, and make new devices of it.

Single-threaded.  It writes to the file `reload` of the mount, and reads what has become of it.
"""

from __future__ import annotations

import argparse
import errno
import os

from vfsfuse.asking import SECONDS, NoAnswer, Patience, Refusal
from vfsfuse.cli.mountpoint import answers, no_answer
from vfsfuse.cli.output import complain, discard_stdout
from vfsfuse.cli.targets import add_mount, check_lab, only_lab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="*", metavar="MODEL", help="default: all models of the lab's own")
    add_mount(parser)


def main(args: argparse.Namespace) -> int:
    lab = args.mount or ""
    try:
        lab = os.path.join(os.getcwd(), args.mount or only_lab())
        failed, outcome = Patience(SECONDS / 2).ask(
            lambda: _reload(lab, args.model), lambda: answers(lab, SECONDS / 2)
        )
    except NoAnswer:
        return complain("reload", f"{no_answer(lab)}; the models may still be reloaded later")
    except Refusal as error:
        return complain("reload", str(error))
    except OSError as error:
        return complain("reload", f"{lab}: {error.strerror}")
    if failed:
        for line in outcome.splitlines() or [os.strerror(failed)]:
            complain("reload", line)
        return 1
    try:
        print(outcome, end="", flush=True)
    except BrokenPipeError:
        discard_stdout()
    return 0


def _reload(lab: str, models: list[str]) -> tuple[int, str]:
    """The errno of the reload, 0 if it has succeeded, and its outcome."""
    check_lab(lab)
    try:
        fd = os.open(f"{lab}/reload", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        raise Refusal(f"{lab}: only the user who mounted the lab can reload it") from None
    try:
        failed = 0
        try:
            os.write(fd, f"{' '.join(models)}\n".encode(errors="surrogateescape"))
        except OSError as error:
            failed = error.errno or errno.EIO
        return failed, os.pread(fd, 1 << 20, 0).decode(errors="replace")
    finally:
        os.close(fd)
