# SPDX-License-Identifier: Apache-2.0
"""The style check of the documents: codespell with the words and phrases of the project, see setup.cfg.

tests/run.sh runs it over the documents; these tests show that it finds what it should.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORDS = [line.partition("->")[::2] for line in (ROOT / "tools/plain_english.txt").read_text().splitlines()]


def found(path: Path, *lines: str) -> list[str]:
    """What codespell prints of a file with these lines."""
    path.write_text("".join(f"{line}\n" for line in lines))
    command = [sys.executable, "-m", "codespell_lib", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == "" and done.returncode == (65 if done.stdout else 0)
    return done.stdout.splitlines()


def test_every_word_and_phrase_is_found_with_its_place_and_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "text.md"
    printed = found(path, *(f"Here. {wrong.strip().capitalize()} it." for wrong, _ in WORDS))
    assert len(printed) == len(WORDS)
    for number, ((wrong, right), line) in enumerate(zip(WORDS, printed, strict=True), 1):
        place, _, remedy = line.partition(" ==> ")
        assert place == f"{path}:{number}: {wrong.capitalize()}"
        assert {part.strip() for part in right.split(",")} - {""} <= set(
            re.split(r", | *[|] ", remedy.lower())
        )


@pytest.mark.parametrize(
    "line",
    [
        "What is mapped is copied.",
        "- Who stops it stops the lab.",
        "It is read there; what comes first: Who asks gets it.",
        "It asks, and so does the server.",
        "It is no object, nor is its entry.",
        "Teh lab is mounted.",
    ],
)
def test_a_clause_in_the_place_of_a_subject_is_found(tmp_path: Path, line: str) -> None:
    assert len(found(tmp_path / "text.md", line)) == 1


def test_plain_sentences_pass(tmp_path: Path) -> None:
    lines = [
        "## What a model does",
        "| what | target |",
        "What is a lab? Who owns it?",
        "The program that asks gets what it asked for.",
        "It does so. The call reaches the server, so is_open() is true, and the lab, which is new, says so.",
    ]
    assert found(tmp_path / "text.md", *lines) == []
