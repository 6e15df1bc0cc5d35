# SPDX-License-Identifier: Apache-2.0
"""Reloads the models of a mounted lab: all or nothing, one reload after the other.

The trio thread owns everything here.  The code of the models runs on a thread of its own (`attempt`).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from devmodel import memo
from devmodel.lifecycle.renewal import Outcome
from devmodel.lifecycle.renewalplan import Plan, Unfit
from devmodel.lifecycle.spec import SpecError
from vfsfuse.labfile.code import LabCode
from vfsfuse.labfile.mistakes import LabFileError
from vfsfuse.labfile.models import Models
from vfsfuse.labfile.reasons import reason
from vfsfuse.reload.attempt import SECONDS, Attempt, CodeEnded
from vfsfuse.reload.stamps import Stamps, stamps_of
from vfsfuse.views.labview import LabView
from vfsfuse.views.models import check_models, lab_flags

log = logging.getLogger(__name__)


class NotReloaded(OSError):
    """The old code goes on.  The text says why: one line for each error."""


class Reloader:
    """Of one lab.  `last` is the outcome of the last reload, as text."""

    def __init__(self, view: LabView, code: LabCode, publish: Callable[[], Awaitable[None]]) -> None:
        """`publish` tells the kernel what has changed."""
        self._view, self._code, self._publish = view, code, publish
        self._turn = trio.Lock()
        self.last = ""
        self.patience: float = SECONDS
        self._seen: Stamps = stamps_of(code.files)
        """The files that the last reload has read, as they were before."""
        self._failed = False
        self._look: Stamps = {}

    def has_changed(self) -> bool:
        """Whether a file of the models is not as it was read, and was the same at the last call, so that
        nobody is writing to it now.  After a failure also a module beside a model file counts: it may have
        been missing.  One thread at a time."""
        seen, failed = self._seen, self._failed
        before, self._look = self._look, self._stamps(failed)
        return before == self._look and any(
            stamp != seen.get(path, None if failed else stamp) for path, stamp in self._look.items()
        )

    def _stamps(self, beside: bool) -> Stamps:
        return stamps_of(self._code.files, self._code.folders if beside else ())

    async def reload(self, names: Sequence[str] = ()) -> str:
        """Read the code of these models again, or of all, and make new devices of it.  Returns the outcome.
        Raises NotReloaded: ENOENT for a name of no model, ETIMEDOUT for an import that does not end, EINVAL
        for anything else that is wrong with the code."""
        async with self._turn:
            before = await trio.to_thread.run_sync(self._stamps, True)
            try:
                self.last = await self._reload(names)
            except NotReloaded as error:
                self.last = str(error.strerror)
                self._seen, self._failed = before, True
                log.error("reload: %s", self.last)
                raise
            finally:
                memo.forget()
            if not names:
                self._seen, self._failed = before, False
            log.info("reload: %s", self.last)
            return self.last

    async def _reload(self, names: Sequence[str]) -> str:
        try:
            chosen = self._code.chosen(names)
        except ValueError as error:
            raise NotReloaded(errno.ENOENT, str(error)) from None
        attempt = Attempt(lambda: self._prepare(chosen), self._code.drop(chosen))
        try:
            plan, models = await attempt.result(self.patience)
            try:
                outcome = self._view.lab.renewals.carry_out(plan)
            except BaseException:
                attempt.again.undo()
                raise
        except Exception as error:
            raise self._refusal(error) from None
        attempt.again.keep()
        self._code.models = models
        self._view.flags |= lab_flags(self._view.lab.spec)
        await self._publish()
        return said(outcome)

    def _prepare(self, chosen: frozenset[str]) -> tuple[Plan, Models]:
        """Everything that runs code of the models.  The thread of the attempt."""
        spec, models = self._code.read(chosen)
        check_models(spec)
        lab = self._view.lab
        return lab.renewals.plan(lab.spec, spec), models

    def _refusal(self, error: BaseException) -> NotReloaded:
        source = self._view.lab.spec.source
        if isinstance(error, TimeoutError):
            return NotReloaded(errno.ETIMEDOUT, f"{error} (mend it)")
        if isinstance(error, LabFileError):
            return NotReloaded(errno.EINVAL, "\n".join(error.lines))
        if isinstance(error, Unfit):
            cause = error if error.__cause__ is None else error.__cause__
            return NotReloaded(errno.EINVAL, f"{source}: {error.place}: {reason(cause)} (mend the model)")
        if isinstance(error, SpecError):
            return NotReloaded(errno.EINVAL, str(error))
        if isinstance(error, CodeEnded) and error.__cause__ is not None:
            error = error.__cause__
        return NotReloaded(errno.EINVAL, f"{source}: {reason(error)} (mend the model)")


def said(outcome: Outcome) -> str:
    """What a reload has done, in one line."""
    now, later = outcome.now, outcome.later
    if not now and not later:
        return "no device has such a model; those that are created from now on get the new code"
    first = now or later
    text = f"{len(first)} {'device is' if len(first) == 1 else 'devices are'} reloaded"
    if not later:
        return text
    whose = "its client closes it" if len(later) == 1 else "their clients close them"
    return f"{text}{f', {len(later)}' if now else ''} when {whose}: {', '.join(later)}"
