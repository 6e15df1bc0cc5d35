# SPDX-License-Identifier: Apache-2.0
"""Names of the attributes that models declare: which can be files, and what the errors say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from devmodel.device.attribute import MOST_NAMES, NAME_MAX, DeviceAttribute, check_attributes
from devmodel.models.registry import MODELS, PHYSICAL
from vfsfuse.labfile.models import Models


def named(*names: str) -> Sequence[DeviceAttribute]:
    return [DeviceAttribute(name, lambda device: 0) for name in names]


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("a", "b", "dir/a", "dir/b", "dir/inner/a", "other/inner/a"),
        ("nvidia/creatable_vgpu_types", "nvidia/current_vgpu_type"),
        ("...", ".hidden", "a.b-c_d", "Größe/ß", "a b"),
        ("x" * NAME_MAX,),
        tuple(f"a{number}" for number in range(MOST_NAMES)),
        ("/".join(f"d{depth}" for depth in range(MOST_NAMES)),),
    ],
)
def test_these_can_be_files(names: tuple[str, ...]) -> None:
    check_attributes(named(*names))


def test_the_models_of_vfsfuse_can_be_shown() -> None:
    for model in (*MODELS.values(), *PHYSICAL.values()):
        check_attributes(model.ATTRIBUTES)


WRONG = {
    ("",): "'' cannot be a file: its name is no text (give it a name)",
    ("/a",): "a name begins at the device's directory (leave out the slash before it)",
    ("/",): "(write one slash between two names)",
    ("a/",): "a directory or a file has no name (write one slash between two names)",
    ("a//b",): "(write one slash between two names)",
    ("..",): "'..' is no name (name the directories below the device's)",
    ("a/../../b",): "'..' is no name",
    ("./a",): "'.' is no name",
    ("a\nb",): "'a\\nb' has characters that cannot be shown (use letters, digits, '_' and '-')",
    ("a/b\0",): "cannot be shown",
    ("x" * (NAME_MAX + 1),): f"has more than {NAME_MAX} bytes (choose a shorter one)",
    ("ß" * NAME_MAX,): f"has more than {NAME_MAX} bytes",
    ("a", "a"): "there are two attributes 'a' (rename one)",
    ("a/b", "c", "a/b"): "there are two attributes 'a/b' (rename one)",
    ("a", "a/b"): "the attribute 'a' is a file, and the directory of 'a/b' (rename one)",
    ("a/b/c/d", "a/b"): "the attribute 'a/b' is a file, and the directory of 'a/b/c/d' (rename one)",
    tuple(f"a{number}" for number in range(MOST_NAMES + 1)): f"more than {MOST_NAMES} names (declare fewer)",
    tuple(f"d{number}/a" for number in range(MOST_NAMES)): f"{MOST_NAMES} attributes in {MOST_NAMES} dir",
}


@pytest.mark.parametrize("names", WRONG)
def test_these_cannot(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        check_attributes(named(*names))
    assert WRONG[names] in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_attribute_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a str is among the attributes \(use DeviceAttribute\)"):
        check_attributes(["name"])  # type: ignore[list-item]  # what a model of one's own may say
    with pytest.raises(ValueError, match=r"its name is no text \(give it a name\)"):
        check_attributes(named(7))  # type: ignore[arg-type]


MODEL = """
from devmodel.sdk import DeviceAttribute, Identity, PciDevice
class Card(PciDevice):
    identity = Identity(1, 2, 3, 4, 0)
    ATTRIBUTES = %s
"""


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        (
            '(DeviceAttribute("../up", str),)',
            ":Card: the attribute '../up' cannot be a file: '..' is no name",
        ),
        ("7", ":Card: its ATTRIBUTES cannot be read: TypeError("),
        ('("x",)', ":Card: a str is among the attributes (use DeviceAttribute)"),
    ],
)
def test_a_model_file_is_checked_when_it_is_loaded(tmp_path: Path, declared: str, why: str) -> None:
    (tmp_path / "card.py").write_text(MODEL % declared)
    with pytest.raises(ValueError) as caught:
        Models().add("card", "card.py:Card", tmp_path)
    assert f"{tmp_path}/card.py{why}" in str(caught.value)
