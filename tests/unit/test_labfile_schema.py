# SPDX-License-Identifier: Apache-2.0
"""The JSON schema of lab files: it is the declared one, takes what the reader takes, and refuses mistakes."""

import json
import re
import tomllib
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.commands import ROOT
from tools import lab_schema
from vfsfuse.labfile import hwvalues, values
from vfsfuse.labfile.kinds import Kind
from vfsfuse.labfile.reader import BUILT_IN

EXAMPLES = [BUILT_IN, *sorted((ROOT / "examples").glob("*.toml"))]
BLOCKS = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/lab.md").read_text(encoding="utf-8"), re.DOTALL)
KINDS = {name: kind for name, kind in {**vars(values), **vars(hwvalues)}.items() if isinstance(kind, Kind)}
SAMPLES: list[object] = [
    *(None, True, False, 0, 1, -1, 4, 5, 10, 255, 256, 0xFFFF, 1 << 24, 1 << 31, 1 << 41, 0.5, -0.5, 1e9),
    *("", "a", "a b", "a\nb", "é", "root", "gpu", "virtual", "busy", "wait", "vfio", "iommufd", "none"),
    *("0600", "600", "0999", "1920x1080", "0x0", "256M", "4 GiB", "1.5G", "4096", "0-3,8", "3-", "0-3, 8"),
    *("mem64", "io", "root-port", "pci", "own", "physical", "00-11-22-33-44-55-66-77", "52:54:00:12:34:56"),
    *("0xe0000000", "e0000000", "0000:80", "0000:00:02.0", "8191", "8192", "enp1s0f0", "a" * 16, "a" * 256),
    *(
        [],
        ["a"],
        ["a", "b"],
        [1],
        [10, 21],
        [9],
        [2, 300],
        ["0000:80", "0000:00:02.0"],
        ["pm", "msi", "msi:4", "msix:32@1", "express:8GT,x4,no-flr", "vpd", "aer"],
        ["x:y"],
        {},
        {"a": 1},
    ),
    *({"a": "b"}, {"a": 1.5}, {"a": []}, "intel-vtd", "homogeneous", "nvidia", "mdev", "enp1s0f0:1"),
]


@pytest.fixture(scope="module")
def jsonschema() -> Any:
    needs.module("jsonschema")
    return import_module("jsonschema")


@pytest.fixture(scope="module")
def validator(jsonschema: Any) -> Any:
    schema = json.loads(lab_schema.PATH.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_the_schema_is_that_of_the_declarations() -> None:
    written = lab_schema.PATH.read_text(encoding="utf-8")
    assert written == lab_schema.text(), "run python -m tools.lab_schema"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_lab_that_comes_along_is_right(validator: Any, path: Path) -> None:
    validator.validate(tomllib.loads(path.read_text(encoding="utf-8")))


def test_every_lab_in_the_documentation_is_right(validator: Any) -> None:
    whole, *parts = BLOCKS
    for part in ("", *parts):
        validator.validate(tomllib.loads(whole + part))


GPU = 'parents."0000:01:00.0" = { kind = "gpu", driver = "a", memory = "2M", types.a.description = "A" }\n'


@pytest.mark.parametrize(
    "text",
    [
        "flavour = 1",
        "vendor = 3",
        'vendor = "a/b"',
        "functions = 3",
        "mount.cache = -1",
        "mount.mode = 3",
        'mount.device_mode = "0999"',
        'mount.remove = "never"',
        'iommu.hw_info = "amd"',
        'iommu.units.a.scope = ["80"]',
        'roots."80" = {}',
        "nodes.x = {}",
        'nodes.0.cpus = "a"',
        'functions."65:00.0" = {}',
        'functions."0000:65:00.8" = {}',
        'functions."0000:65:00.0".vendor = 0x10000',
        'functions."0000:65:00.0".bars.6.size = 4096',
        'functions."0000:65:00.0".bars.0.kind = "mem16"',
        'functions."0000:65:00.0".bars.0 = {}',
        'functions."0000:65:00.0".capabilities = ["pmm"]',
        'functions."0000:65:00.0".capabilities = ["msix:"]',
        'functions."0000:65:00.0".bridge = "port"',
        'functions."0000:65:00.0".serial = "1"',
        'functions."0000:65:00.0".vf.vfs = 1',
        'parents."a b" = {}',
        "parents.a = {}",
        'parents.a = { kind = "gpu" }',
        'parents.a = { kind = "cpu", driver = "a", types = {} }',
        'parents.a = { kind = "virtual", driver = "a", types.a = {} }',
        'parents.a = { kind = "virtual", driver = "a", types.a = { description = "A", slots = 0 } }',
        "include = 3",
        'include = ""',
        'include = "base.toml"\nflavour = 1',
    ],
)
def test_mistakes_are_found(validator: Any, text: str) -> None:
    validator.validate(tomllib.loads(GPU))
    assert list(validator.iter_errors(tomllib.loads(GPU + text)))


def test_a_file_that_includes_another_may_leave_keys_out(validator: Any) -> None:
    left_out = 'parents."0000:86:00.0".types.a.memory = "1M"\n'
    assert list(validator.iter_errors(tomllib.loads(left_out)))
    validator.validate(tomllib.loads('include = "base.toml"\n' + left_out))


def agree(read: Callable[[object], object], schema: Any, samples: Iterable[object]) -> None:
    """The schema takes each sample that the reader takes, and refuses some that it refuses."""
    refused = 0
    for sample in samples:
        try:
            read(sample)
        except ValueError:
            refused += not schema.is_valid(sample)
        else:
            schema.validate(sample)
    assert refused  # the schema is no empty one


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_takes_what_the_reader_takes(jsonschema: Any, name: str) -> None:
    kind = KINDS[name]
    agree(kind.read, jsonschema.Draft7Validator(kind.json), SAMPLES)
