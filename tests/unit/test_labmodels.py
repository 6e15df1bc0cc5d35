# SPDX-License-Identifier: Apache-2.0
"""Where models come from: files that a lab file names, and installed packages; errors are one line."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devmodel.models.mtty import Mtty
from devmodel.models.registry import MODELS
from tests.commands import ROOT
from vfsfuse.labfile.models import Models
from vfsfuse.labfile.reader import LabFileError, load

LAB = """
[parents.card]
kind = "virtual"
driver = "card"
slots = 1
types.one = { description = "one" }
"""
MODEL = """
from devmodel.sdk import Identity, PciDevice
class Card(PciDevice):
    identity = Identity(1, 2, 3, 4, 0)
"""
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def writer(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return writer


@pytest.fixture
def package(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package whose entry points are models."""
    write("cardpackage.py", MODEL + "nothing = 1\n")
    info = tmp_path / "cardpackage-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cardpackage\nVersion: 1\n")
    points = (
        "card = cardpackage:Card",
        "mtty = cardpackage:Card",
        "bad = cardpackage:nothing",
        "lost = gone:X",
    )
    (info / "entry_points.txt").write_text("[vfsfuse.models]\n" + "\n".join(points) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("cardpackage", None)


def test_the_example_is_a_lab() -> None:
    (parent,) = load(ROOT / "examples/copier.toml").parents
    assert parent.types[0].model.__name__ == "Copier"
    assert len((ROOT / "examples/copier.py").read_text().splitlines()) <= 50


def test_a_path_begins_at_the_lab_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("model.py", MODEL)
    lab = write("lab.toml", '[models]\ncard = "model.py:Card"\n' + LAB)
    monkeypatch.chdir("/")
    (parent,) = load(lab).parents
    assert parent.types[0].model.identity.device == 2


def test_an_installed_package_adds_models_and_replaces_none(package: Path) -> None:
    models = Models()
    assert models.find("card", MODELS).__module__ == "cardpackage"
    assert models.find("mtty", MODELS) is Mtty


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bad", "cardpackage:nothing is not a device model (derive it from devmodel.device.pci.PciDevice)"),
        (
            "lost",
            "gone:X cannot be loaded: ModuleNotFoundError(\"No module named 'gone'\") (mend that package)",
        ),
        ("none", "there is no model 'none' (there is vgpu, mtty, mdpy, mbochs, card, mtty, bad, lost)"),
    ],
)
def test_what_a_package_may_have_wrong(package: Path, name: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        Models().find(name, MODELS)
    assert str(caught.value).startswith(why)


@pytest.mark.parametrize(
    ("place", "content", "why"),
    [
        ("model.py", MODEL, "'model.py' is not a place (write \"file.py:Class\")"),
        ("other.py:Card", MODEL, "there is no file {folder}/other.py (paths begin at the lab file)"),
        ("model.py:Other", MODEL, "{folder}/model.py has no class Other (check the name)"),
        ("model.py:X", "X = 1\n", "{folder}/model.py:X is not a device model (derive it from "),
        ("model.py:X", "class X: pass\n", "{folder}/model.py:X is not a device model (derive it from "),
        ("model.py:Card", "import gone\n", "{folder}/model.py cannot be loaded: ModuleNotFoundError("),
        ("model.py:Card", "def:\n", "{folder}/model.py cannot be loaded: SyntaxError("),
    ],
)
def test_what_a_file_may_have_wrong(write: Write, tmp_path: Path, place: str, content: str, why: str) -> None:
    write("model.py", content)
    lab = write("lab.toml", f'[models]\ncard = "{place}"\n' + LAB)
    with pytest.raises(LabFileError) as caught:
        load(lab)
    assert str(caught.value).startswith(f"{lab}: models.card: " + why.format(folder=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_models_own_name_is_not_taken(write: Write) -> None:
    write("model.py", MODEL)
    lab = write("lab.toml", '[models]\nmtty = "model.py:Card"\n' + LAB)
    with pytest.raises(LabFileError, match="'mtty' is a model of vfsfuse's own"):
        load(lab)
