# SPDX-License-Identifier: Apache-2.0
"""Keeps the quotations of bench/RESULTS.md in the README and docs/performance.md up to date.

    python -m bench.quote

The command replaces the text between `<!-- quoted from bench/RESULTS.md: TITLE -->` and `<!-- end of
quotation -->` by the section TITLE, so that no figure has two values. A run of the benchmark does the same at
its end.
"""

from __future__ import annotations

import re
from pathlib import Path

from bench.servers import ROOT

RESULTS = ROOT / "bench/RESULTS.md"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs/performance.md")
_QUOTED = re.compile(
    r"(?P<begin><!-- quoted from bench/RESULTS\.md: (?P<title>.*?) -->\n)"
    r".*?(?P<end><!-- end of quotation -->)",
    re.DOTALL,
)


def sections(results: str) -> dict[str, str]:
    """The text below each heading of the second level."""
    parts = re.split(r"^## (.*)\n", results, flags=re.MULTILINE)
    return {title: text.strip("\n") for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def quoted(document: str, results: str) -> str:
    """The document with every quotation replaced from the results. A section that is missing there is
    empty."""
    known = sections(results)

    def quotation(found: re.Match[str]) -> str:
        return f"{found['begin']}{known.get(found['title'], '')}\n{found['end']}"

    return _QUOTED.sub(quotation, document)


def titles(document: str) -> list[str]:
    """The titles of the sections that the document quotes."""
    return [found["title"] for found in _QUOTED.finditer(document)]


def update(results: Path = RESULTS) -> None:
    """Bring all documents up to date."""
    for path in DOCUMENTS:
        path.write_text(quoted(path.read_text(), results.read_text()))


if __name__ == "__main__":
    update()
