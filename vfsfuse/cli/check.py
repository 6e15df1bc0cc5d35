# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse check [LAB.toml]`: what a lab file makes, as a tree, without a mount; or all its errors."""

from __future__ import annotations

import argparse
import sys

from vfsfuse.cli.output import complain, discard_stdout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lab", nargs="?", metavar="LAB.toml", help="a lab file; default: the built-in lab")
    parser.add_argument(
        "--schema", action="store_true", help="print the JSON schema of lab files for editors"
    )


def main(args: argparse.Namespace) -> int:
    try:
        return _schema() if args.schema else _check(args.lab)
    except BrokenPipeError:
        discard_stdout()
        return 0


def _check(lab: str | None) -> int:
    from devmodel.lifecycle.spec import SpecError
    from vfsfuse.labfile.outline import outline
    from vfsfuse.labfile.reader import BUILT_IN, LabFileError, load
    from vfsfuse.labfile.reasons import reason
    from vfsfuse.views.models import check_models

    try:
        spec = load(lab)
        lines = list(outline(spec))
        check_models(spec)
    except LabFileError as error:
        for line in error.lines:
            complain("check", line)
        return 1
    except SpecError as error:
        return complain("check", str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of a model's code, which may also exit
        return complain("check", f"{lab or BUILT_IN}: the lab cannot be made: {reason(error)}")
    for line in lines:
        print(line)
    sys.stdout.flush()
    return 0


def _schema() -> int:
    from vfsfuse.labfile.reader import SCHEMA

    sys.stdout.write(SCHEMA.read_text(encoding="utf-8"))
    sys.stdout.flush()
    return 0
