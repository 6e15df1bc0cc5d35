# SPDX-License-Identifier: Apache-2.0
"""The fault rules that hold from the start: the tables ``[[faults]]`` of a lab file.

State: none. Errors: see :mod:`vfsfuse.labfile.reading`. What a rule says of registers is looked at when
the lab is there (vfsfuse.faults.rules).
"""

import os
from collections.abc import Sequence

from devmodel.lifecycle.spec import LabSpec
from vfsfuse.faults.inlab import LabNames
from vfsfuse.faults.rule import MOST_RULES, Rule, RuleError, parse_line
from vfsfuse.labfile.mistakes import Keys
from vfsfuse.labfile.reading import Reading
from vfsfuse.labfile.schema import FAULT


def read_faults(reading: Reading, entries: Sequence[object]) -> tuple[str, ...]:
    """The lines of all rules that can be read."""
    if len(entries) > MOST_RULES:
        reading.note(("faults",), f"has {len(entries)} rules (give {MOST_RULES} at most)")
        return ()
    rules: list[str] = []
    names: dict[str, int] = {}
    for number, content in enumerate(entries):
        keys = ("faults", str(number))
        rule = reading.attempt(_rule, reading, content, keys)
        if rule is None:
            continue
        first = names.setdefault(rule.name, number) if rule.name else number
        if first != number:
            reading.note((*keys, "name"), f"is that of faults.{first} (give another name)")
        rules.append(rule.line)
    return tuple(rules)


def check_faults(reading: Reading, spec: LabSpec) -> None:
    """Note each rule that names what the lab does not have."""
    names = LabNames(spec)
    for number, line in enumerate(spec.faults):
        try:
            names.check(parse_line(line))
        except RuleError as error:
            reading.note(("faults", str(number), error.key), error.why)


def _rule(reading: Reading, content: object, keys: Keys) -> Rule:
    found = reading.table(content, FAULT, keys)
    if "while" in found:
        found["while"] = os.path.abspath(reading.folder(keys) / found["while"])
    try:
        return Rule.read(found)
    except RuleError as error:
        reading.fail((*keys, error.key) if error.key else keys, error.why)
