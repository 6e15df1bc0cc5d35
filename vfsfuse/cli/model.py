# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse model FILE > model.py`: a first device model from a recording.

State: none.  docs/recording.md explains it.
"""

from __future__ import annotations

import argparse
import sys

from vfsfuse.cli.output import complain, discard_stdout, explained

EPILOG = """\
The model does what the recording has, and no more: a beginning for a model of your own. docs/recording.md
says what it knows and what it cannot know.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("file", metavar="FILE", help="a recording, as `vfsfuse record` writes it")
    parser.add_argument(
        "--device", metavar="NAME", default="", help="the device (default: the only one of the recording)"
    )


def main(args: argparse.Namespace) -> int:
    from vfsfuse.recording.model import model
    from vfsfuse.recording.reading import read
    from vfsfuse.recording.recording import RecordingError

    try:
        text = model(read(args.file), args.device)
    except RecordingError as error:
        return complain("model", str(error))
    except OSError as error:
        return complain("model", f"{explained(error, args.file)} (vfsfuse record makes a recording)")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
    except OSError as error:
        return complain("model", f"standard output: {error.strerror}")
    return 0
