# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse capture [--sys DIR | --lspci FILE] > machine.toml`: the lab file of a machine.

State: none.  docs/capture.md explains it.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from vfsfuse import sticky
from vfsfuse.asking import NoAnswer, Patience, Refusal
from vfsfuse.cli.mountpoint import no_answer
from vfsfuse.cli.output import complain, discard_stdout, explained

if TYPE_CHECKING:
    from vfsfuse.capture.machine import Machine

MAX_TEXT = 256 << 20
"""Most bytes that are read of a text."""

_TICK_SECONDS = 0.5
Captured = tuple[str, list[str], list[tuple[str, bytes]]]
"""A lab file, notes about it, and the files of ROMs by name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--sys", default="/sys", metavar="DIR", help="read the sysfs at DIR, also a lab's (default: /sys)"
    )
    source.add_argument(
        "--lspci", metavar="FILE", help="read what `lspci -nnvvvxxxx -D` printed; - is standard input"
    )
    parser.add_argument(
        "--roms", metavar="DIR", help="read option ROMs as well, and put their contents into DIR (root only)"
    )
    parser.add_argument(
        "--keep-serials",
        action="store_true",
        help="keep serial numbers and MAC addresses, which are replaced by made-up ones otherwise",
    )


def main(args: argparse.Namespace) -> int:
    if args.lspci is not None and args.roms is not None:
        return complain("capture", "--roms: a text has no ROMs (leave it out, or capture from --sys)")
    try:
        text, notes, roms = _captured(args)
        if args.roms is not None:
            _save(Path(args.roms), roms)
        for note in notes:
            print(f"vfsfuse: capture: {note}", file=sys.stderr)
        sys.stdout.write(text)
        sys.stdout.flush()
    except NoAnswer:
        return complain("capture", no_answer(args.sys))
    except Refusal as error:
        return complain("capture", str(error))
    except BrokenPipeError:
        discard_stdout()
    except OSError as error:
        return complain("capture", explained(error, args.lspci or args.sys))
    return 0


def _captured(args: argparse.Namespace) -> Captured:
    """What is to be written.  A sysfs may be a lab's, whose server may never answer."""
    is_text = args.lspci is not None
    answers = _from_text(args) if is_text else Patience().answers(lambda: _from_sysfs(args))
    for answer in answers:
        if answer is not None:
            return answer
    raise NoAnswer


def _from_sysfs(args: argparse.Namespace) -> Iterator[Captured | None]:
    from vfsfuse.capture.sysfs import read_sysfs
    from vfsfuse.capture.writer import rom_name

    roms = None if args.roms is None else Path(args.roms)
    for machine in read_sysfs(Path(args.sys), roms is not None):
        if machine is None:
            yield None
            continue
        contents = [(rom_name(each), each.rom) for each in machine.functions.values() if each.rom]
        written: list[tuple[str, list[str]]] = []
        writing = Thread(target=_written, args=(machine, args.keep_serials, roms, written))
        writing.start()
        while writing.is_alive():  # a large machine takes longer than a silent server is given
            writing.join(_TICK_SECONDS)
            yield None
        for text, notes in written:
            yield text, notes, contents


def _from_text(args: argparse.Namespace) -> Iterator[Captured | None]:
    from vfsfuse.capture.lspci import read_lspci

    name = "standard input" if args.lspci == "-" else args.lspci
    content = _read(args.lspci)
    if len(content) > MAX_TEXT:
        raise Refusal(f"{name}: is larger than {MAX_TEXT} bytes (is it a text of lspci?)")
    machine = read_lspci(content.decode("utf-8", "replace"), name)
    written: list[tuple[str, list[str]]] = []
    _written(machine, args.keep_serials, None, written)
    for text, notes in written:
        yield text, notes, []


def _written(
    machine: Machine, keep_serials: bool, roms: Path | None, result: list[tuple[str, list[str]]]
) -> None:
    """Put the lab file and the notes about it into ``result``."""
    from vfsfuse.capture.serials import without_serials
    from vfsfuse.capture.writer import Written

    written = Written(machine if keep_serials else without_serials(machine), roms)
    result.append((written.text, list(written.notes)))


def _read(path: str) -> bytes:
    """The content of a file, of a pipe, or of standard input, up to a byte more than may be."""
    fd = os.dup(0) if path == "-" else sticky.open_file(path, os.O_RDONLY)
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.set_blocking(fd, True)  # whoever writes into it may take time
    try:
        with os.fdopen(fd, "rb") as file:
            return file.read(MAX_TEXT + 1)
    except OSError as error:  # which names the descriptor
        raise OSError(error.errno, error.strerror, path) from None


def _save(folder: Path, roms: list[tuple[str, bytes]]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in roms:
        fd = sticky.open_file(str(folder / name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
