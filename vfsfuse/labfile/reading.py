# SPDX-License-Identifier: Apache-2.0
"""The tools of all modules that read a part of a lab file: tables by their schema, models, and errors.

State: a :class:`Reading` belongs to the reading of one lab file, on one thread.

Each part of a lab file has a module with functions that take the Reading, the content and its keys. A mistake
is :meth:`Reading.fail`, which leaves the part that is being read. :meth:`Reading.noted` is the border of a
part: what comes behind it is read all the same, so that all errors of a file are shown at once.
"""

import difflib
import re
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from devmodel.device.pci import PciDevice
from devmodel.pci.config import Aperture
from vfsfuse.labfile import values
from vfsfuse.labfile.mistakes import Keys, Mistake, Mistakes
from vfsfuse.labfile.models import Models
from vfsfuse.labfile.reasons import reason
from vfsfuse.labfile.schema import Schema
from vfsfuse.labfile.source import Source

Found = dict[str, Any]
"""The values of a table by key, read as the schema says."""

T = TypeVar("T")
_NO_TEXTS: Mapping[str, str] = MappingProxyType({})


class Reading:
    """The reading of one lab file."""

    def __init__(self, source: Source, models: Models | None = None, base: Path = Path()) -> None:
        """``models`` are new ones unless given. The path of the lab file begins at ``base``."""
        self.source, self._base = source, base
        self.mistakes = Mistakes(source.path)
        self.noted = self.mistakes.noted
        self.models = Models() if models is None else models
        self.unusable: set[str] = set()
        """Models that cannot be loaded; the error of one is noted once."""
        self.aperture = Aperture()

    # ---- errors ----

    def fail(self, keys: Keys, why: str) -> NoReturn:
        """Note an error of the value at ``keys``, and leave the part that is being read. ``why`` is the
        reason, and the remedy in parentheses."""
        self.mistakes.fail(self.source.file(keys), keys, why)

    def attempt(self, read: Callable[..., T], *args: Any) -> T | None:
        """What ``read`` makes of a part of the file, None after an error in it."""
        try:
            return read(*args)
        except Mistake:
            return None

    # ---- values ----

    def table(self, content: object, schema: Schema, keys: Keys) -> Found:
        """The values of a table. Unknown and missing keys and bad values are errors, all of them noted; then
        the table is left."""
        found, complete = self.partial(content, schema, keys)
        if not complete:
            self.note_below(found, schema, keys)
            raise Mistake
        return found

    def note_below(self, found: Found, schema: Schema, keys: Keys, without: Container[str] = ()) -> None:
        """Note the errors in the tables of a table that is about to be left."""
        for key, value in found.items():
            below = schema[key].table
            if key in without:
                continue
            if below is not None:
                self.attempt(self.table, value, below, (*keys, key))
            each = schema[key].each
            for name, inner in _named(value) if each is not None else ():
                self.attempt(self.table, inner, each, (*keys, key, name))
                if schema[key].misnamed and re.search(schema[key].names, name) is None:
                    self.note((*keys, key, name), schema[key].misnamed)

    def partial(self, content: object, schema: Schema, keys: Keys) -> tuple[Found, bool]:
        """The values of a table that can be used, and whether those are all. The errors are noted."""
        table = self.value(values.table.read, content, keys)
        found: Found = {}
        before = len(self.mistakes.lines)
        for key, value in table.items():
            entry = schema.get(key)
            if entry is None:
                self.note((*keys, key), f"there is no such key ({_suggest(key, schema)})")
                continue
            try:
                found[key] = entry.kind.read(value)
            except ValueError as error:
                self.note((*keys, key), str(error))
        for key, entry in schema.items():
            if entry.required and key not in table:
                self.note((*keys, key), "is missing (add it)")
        return found, len(self.mistakes.lines) == before

    def value(self, read: Callable[[object], T], content: object, keys: Keys) -> T:
        """What ``read`` makes of one value."""
        try:
            return read(content)
        except ValueError as error:
            self.fail(keys, str(error))

    def note(self, keys: Keys, why: str) -> None:
        """Note an error, and go on."""
        self.mistakes.note(self.source.file(keys), keys, why)

    def folder(self, keys: Keys) -> Path:
        """The folder in which relative paths of the value at ``keys`` begin: that of its file."""
        return self._base / self.source.file(keys).parent

    # ---- models ----

    def model(self, name: str, known: Mapping[str, type[PciDevice]], keys: Keys) -> type[PciDevice]:
        """The model ``name``, one of ``known`` or of the lab file or of an installed package."""
        if name in self.unusable:
            raise Mistake
        try:
            return self.models.find(name, known)
        except ValueError as error:
            if name in self.models.packages:
                self.unusable.add(name)  # one error is enough
            self.fail(keys, str(error))

    def validate(
        self,
        model: type[PciDevice],
        memory: int,
        options: Mapping[str, int],
        keys: Keys,
        texts: Mapping[str, str] = _NO_TEXTS,
    ) -> None:
        """Have the model check its memory and options, because only the model knows them. Notes what is wrong
        with either kind of options, and then raises Mistake."""
        before = len(self.mistakes.lines)
        checks: tuple[Callable[[], None], ...] = (partial(model.validate, memory, options),)
        if texts:
            checks += (partial(model.validate_texts, texts),)
        for check in checks:
            with self.noted():
                self._checked(model, check, keys)
        if len(self.mistakes.lines) > before:
            raise Mistake

    def _checked(self, model: type[PciDevice], check: Callable[[], None], keys: Keys) -> None:
        """Run one check of a model. Raises Mistake, with the error noted, if it fails."""
        try:
            check()
        except ValueError as error:
            self.fail(keys, f"{_line(error)} (as model {model.__name__.lower()!r} needs it)")
        except BaseException as error:  # also SystemExit: the code may be anybody's
            self.fail(keys, f"the model's validate() failed: {reason(error)} (mend the model)")


def _named(tables: object) -> Iterable[tuple[str, object]]:
    """Tables by name, those of an array by number."""
    if isinstance(tables, dict):
        return tables.items()
    return ((str(number), each) for number, each in enumerate(tables)) if isinstance(tables, list) else ()


def fields(found: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """The fields of a spec that a table's values fill."""
    return {schema[key].field: value for key, value in found.items() if schema[key].field}


def _line(error: ValueError) -> str:
    """The text of a model's error, in one line."""
    try:
        return str(error).encode("unicode_escape").decode()
    except Exception:
        return reason(error)


def _suggest(key: str, schema: Schema) -> str:
    close = difflib.get_close_matches(key, schema, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(schema)}"
