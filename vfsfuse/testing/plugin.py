# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin: each test gets labs of its own, and a failure shows what went on in them.

pytest loads it by its entry point (`pytest11`) wherever vfsfuse is installed.  So it imports nothing of
vfsfuse until a test asks for a lab.  docs/testing.md is a tutorial, docs/python.md the reference.

State: the labs of one pytest process, which pytest's only thread makes and ends.  Each worker of pytest-xdist
is a process of its own, with folders of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vfsfuse.testing.labs import Labs

MARKER = """\
vfio_lab(config=None, *, trace=True, strict=True, log_level="info", options=(), faults=()): the lab of the \
fixture `vfio_lab`. `config` is a lab file, with a path that begins at the test's file, the text of a lab \
file, or a dict; without it the lab is the built-in one. `faults` are fault rules, a dict each."""
LINES_OPTION = "vfio_lab_lines"
_HAS_FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        LINES_OPTION,
        "how many lines of its trace a failed test shows for each lab (default: 40)",
        default="40",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    if not (lines := config.getini(LINES_OPTION)).isdecimal():
        raise pytest.UsageError(f"{LINES_OPTION}: {lines!r} is no number of lines (write one, such as 40)")


@pytest.fixture(scope="session")
def _vfio_labs(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Labs:
    from vfsfuse.testing.labs import LABS, Labs

    lines = int(pytestconfig.getini(LINES_OPTION))
    labs = Labs(lambda: tmp_path_factory.mktemp("lab"), lines)
    pytestconfig.stash[LABS] = labs  # for reports, the last of which is made after the fixtures' end
    return labs


@pytest.fixture(scope="session")
def vfio_lab_factory(_vfio_labs: Labs) -> Callable[..., Any]:
    """Makes a lab, for a fixture of your own: `with vfio_lab_factory("lab.toml") as lab:`.

    It takes what :class:`vfsfuse.Lab` takes, and `trace`: whether a failed test shows the lab's last calls.
    Relative paths begin at the current directory.  `strict` is true if not given."""
    return _vfio_labs.make


@pytest.fixture
def vfio_lab(request: pytest.FixtureRequest, _vfio_labs: Labs) -> Iterator[Any]:
    """A :class:`vfsfuse.Lab` for one test, as its marker `vfio_lab` says, else the built-in one."""
    from vfsfuse.api.errors import LabError
    from vfsfuse.testing.labs import marked

    marker, folder = request.node.get_closest_marker("vfio_lab"), Path(request.node.path).parent
    try:
        config, options = marked(marker, folder)
        with _vfio_labs.make(config, **options) as lab:
            yield lab
    except pytest.UsageError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    except LabError as error:
        if not request.node.stash.get(_HAS_FAILED, False):  # a failed test has shown the log already
            raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.hookimpl(hookwrapper=True)  # the other kind ends pytest before 8 at its start, in every project
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    report = (yield).get_result()
    if report.failed and (labs := _labs_of(item.config)) is not None:
        item.stash[_HAS_FAILED] = True
        report.sections.extend(labs.sections())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if (labs := _labs_of(item.config)) is not None:
        labs.begin_test()


def _labs_of(config: pytest.Config) -> Labs | None:
    """The labs of this process. None until a test has asked for one: then nothing of vfsfuse is imported."""
    module = sys.modules.get("vfsfuse.testing.labs")
    return None if module is None else config.stash.get(module.LABS, None)
