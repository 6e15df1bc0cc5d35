# SPDX-License-Identifier: Apache-2.0
"""Lab files that include others: who wins, what is taken away, where paths begin, the file of an error."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vfsfuse.labfile.reader import LabFileError, load

BASE = """
vendor = "base"
[mount]
cache = 5
device_mode = "0660"
[parents."0000:86:00.0"]
kind = "gpu"
driver = "card"
memory = "16M"
types.half = { memory = "8M", description = "half" }
types.all = { memory = "16M", description = "all" }
[functions."0000:01:00.0"]
driver = "igb"
net = ["a", "b"]
[functions."0000:02:00.{0-3}"]
[roots."0000:80"]
[iommu.units.dmar0]
"""
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_including_file_wins(write: Write) -> None:
    write("base.toml", BASE)
    lab = load(
        write(
            "my.toml",
            """
            include = "base.toml"
            vendor = "mine"
            [mount]
            cache = 7
            [parents."0000:86:00.0"]
            memory = "32M"
            types.all.memory = "32M"
            [functions."0000:01:00.0"]
            net = ["c"]
            driver = "ice"
            [functions."0000:03:00.0"]
            """,
        )
    )
    assert (lab.vendor, lab.cache, lab.device_mode) == ("mine", 7.0, 0o660)
    (parent,) = lab.parents
    assert (parent.memory >> 20, parent.driver) == (32, "card")
    assert {each.name: each.memory >> 20 for each in parent.types} == {"half": 8, "all": 32}
    card, *others = lab.functions
    assert (card.net, card.driver) == (("c",), "ice")
    assert [each.address for each in others] == [*(f"0000:02:00.{n}" for n in range(4)), "0000:03:00.0"]


def test_a_later_file_wins_and_files_may_be_included_twice(write: Write) -> None:
    write("base.toml", BASE)
    write("one.toml", 'include = "base.toml"\nvendor = "one"\n[mount]\ncache = 1\n')
    write("two.toml", 'include = "base.toml"\nvendor = "two"\n')
    lab = load(write("my.toml", 'include = ["one.toml", "two.toml"]\n'))
    assert (lab.vendor, lab.cache, len(lab.parents)) == ("two", 5.0, 1)


def test_absent_takes_away(write: Write) -> None:
    write("base.toml", BASE)
    lab = load(
        write(
            "my.toml",
            """
            include = "base.toml"
            [parents."0000:86:00.0".types.half]
            absent = true
            [functions."0000:01:00.0"]
            absent = true
            [functions."0000:02:00.{1-2}"]
            absent = true
            [roots]
            "0000:80".absent = true
            [iommu.units.dmar0]
            absent = true
            """,
        )
    )
    assert [each.name for each in lab.parents[0].types] == ["all"]
    assert [each.address for each in lab.functions] == ["0000:02:00.0", "0000:02:00.3"]
    assert (lab.roots, lab.units) == ((), ())
    away = write("away.toml", 'include = "base.toml"\nparents."0000:86:00.0".absent = true\n')
    assert load(away).parents == ()
    again = 'include = "away.toml"\n[parents.card]\nkind = "virtual"\ndriver = "mtty"\nslots = 1\n'
    lab = load(write("again.toml", again + 'types.one.description = "one"\n'))
    assert [each.name for each in lab.parents] == ["card"]


def test_a_path_begins_at_the_file_that_it_is_written_in(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "from devmodel.sdk import Identity, PciDevice\nclass Card(PciDevice):\n"
    model = head + "    identity = Identity({}, 2, 3, 4, 0)\n"
    write("lib/model.py", model.format(1))
    write("lib/rom", "\x55")
    write("lib/base.toml", '[models]\ncard = "model.py:Card"\n[functions."0000:01:00.0"]\nmodel = "card"\n')
    write("lib/more.toml", 'include = "base.toml"\n[functions."0000:02:00.0"]\nrom = "rom"\n')
    own = write("my.toml", 'include = "lib/more.toml"\n')
    monkeypatch.chdir("/")
    card, plain = load(own).functions
    assert card.model is not None and card.model.identity.vendor == 1
    write("model.py", model.format(9))
    write("rom", "\x56")
    own.write_text('include = "lib/more.toml"\nmodels.card = "model.py:Card"\n')
    card, _ = load(own).functions
    assert card.model is not None and card.model.identity.vendor == 9
    own.write_text('include = "lib/more.toml"\n[functions."0000:02:00.0"]\nrom = "rom"\n')
    assert load(own).functions[1].model is not plain.model


def test_an_error_names_the_file_that_it_is_in(write: Write) -> None:
    base = write("base.toml", BASE + "[functions.x]\n")
    middle = write(
        "middle.toml", 'include = "base.toml"\n[mount]\ncache = -1\n[functions."0000:01:00.0"]\nmac = "a"\n'
    )
    own = write("my.toml", 'include = "middle.toml"\n[mount]\ngroups = 3\n')
    with pytest.raises(LabFileError) as caught:
        load(own)
    assert [line.partition(": ")[0] for line in sorted(caught.value.lines)] == [
        str(base),
        str(middle),
        str(middle),
        str(own),
    ]


@pytest.mark.parametrize(
    ("include", "why"),
    [
        ("3", "include: 3 is not the path of a lab file"),
        ('[""]', "include: '' is not the path of a lab file"),
        (str(["a.toml"] * 65), "include: has 65 files (give 64 at most)"),
        ('"none.toml"', "include: there is no file {folder}/none.toml (paths begin at the file that they"),
        ('"my.toml"', "include: goes in a circle: {folder}/my.toml includes {folder}/my.toml (take one of"),
        ('"circle.toml"', "includes {folder}/circle.toml includes {folder}/my.toml (take one of them out)"),
    ],
)
def test_includes_that_cannot_be(write: Write, tmp_path: Path, include: str, why: str) -> None:
    write("circle.toml", 'include = "my.toml"')
    own = write("my.toml", f"include = {include}\nparents = {{}}")
    with pytest.raises(LabFileError) as caught:
        load(own)
    (line,) = caught.value.lines
    assert why.format(folder=tmp_path) in line and line.endswith(")")


def test_errors_of_several_files_are_shown_at_once(write: Write) -> None:
    one, two = write("one.toml", "a ="), write("two.toml", "b =")
    with pytest.raises(LabFileError) as caught:
        load(write("my.toml", 'include = ["one.toml", "two.toml"]'))
    assert [line.partition(": not TOML")[0] for line in caught.value.lines] == [str(one), str(two)]


def test_a_chain_of_many_files_has_an_end(write: Write) -> None:
    for number in range(1000):
        write(f"{number}.toml", f'include = "{number + 1}.toml"')
    with pytest.raises(
        LabFileError, match=r"62.toml: include: comes to more than 64 files \(join some\)|more than 64"
    ):
        load(write("my.toml", 'include = "0.toml"'))


def test_absent_beside_other_keys_is_a_mistake(write: Write) -> None:
    write("base.toml", BASE)
    own = write("my.toml", 'include = "base.toml"\n[functions."0000:01:00.0"]\nabsent = true\nnet = "a"\n')
    with pytest.raises(LabFileError, match="net: stands beside absent = true, which takes all away"):
        load(own)
