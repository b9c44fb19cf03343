"""Journals, which record runs so that they survive the end of their process."""

from __future__ import annotations

import time
from collections.abc import Iterable
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from flowdeco.durable.codec import PickleCodec
from flowdeco.durable.digests import digest
from flowdeco.durable.fingerprint import fingerprint
from flowdeco.durable.info import STATUSES, Question, RunInfo
from flowdeco.durable.journal import as_journal
from flowdeco.durable.memory import MemoryJournal
from flowdeco.durable.sqlite import SqliteJournal
from flowdeco.engine.generations import present_rows
from flowdeco.engine.journal import Codec, Journal, Remembered, Row
from flowdeco.errors import DefinitionError, JournalError, RunBusyError, RunNotFoundError, shortened, suggestion
from flowdeco.model.lazy import lazily
from flowdeco.model.options import Duration, check_run_id, checked_tags, in_seconds

if TYPE_CHECKING:
    from flowdeco.durable.json_codec import JsonCodec
    from flowdeco.durable.reading import answer, read
else:  # every type that JSON can hold, and the definitions of a run: listing runs needs none of them
    __getattr__, __dir__ = lazily(__name__, "json_codec", "reading")

__all__ = [
    "Codec",
    "Journal",
    "JsonCodec",
    "MemoryJournal",
    "PickleCodec",
    "Question",
    "Remembered",
    "Row",
    "RunInfo",
    "SqliteJournal",
    "answer",
    "as_journal",
    "cancel",
    "delete",
    "digest",
    "due",
    "fingerprint",
    "history",
    "purge",
    "read",
    "runs",
]


def runs(journal: Any) -> list[RunInfo]:
    """Return the runs of a journal, the latest first."""
    found: list[RunInfo] = as_journal(journal).runs()
    return found


def history(journal: Any, run_id: str) -> list[Row]:
    """Return the steps of a run in the order in which they finished, with their payloads undecoded.

    A step that a resume performed again appears once, as recorded the last time.
    """
    check_run_id(run_id)
    latest: dict[tuple[str, int], Row] = {}
    for row in present_rows(as_journal(journal).history(run_id)):
        latest.pop((row.branch, row.number), None)
        latest[row.branch, row.number] = row
    return list(latest.values())


def due(journal: Any, now: float | None = None) -> list[RunInfo]:
    """Return the runs that `wake` would resume, in due-time order: those that are due, answered or crashed.

    A crashed run, and one that was answered before it is due, is due since it was last updated. `now` is in POSIX seconds.
    """
    if now is not None and (isinstance(now, bool) or not isinstance(now, (int, float))):
        raise DefinitionError(f"now is a time in POSIX seconds, as that of time.time(), not {shortened(now)}")
    at = time.time() if now is None else now
    target = as_journal(journal)
    found: list[RunInfo] = target.runs(due=at) if isinstance(target, SqliteJournal) else target.runs()
    ready: list[tuple[float, RunInfo]] = []
    for run in found:
        if run.owner is not None:
            continue
        if run.due is not None and run.due <= at:
            ready.append((run.due, run))
        elif run.answered or run.status == "running":
            ready.append((run.updated, run))
    return [run for _, run in sorted(ready, key=itemgetter(0))]


def cancel(journal: Any, run_id: str) -> None:
    """Cancel a run: at once if no process works on it, otherwise when its owner reaches its next step or heartbeat.

    The owner's `run` raises `Cancelled`. A cancelled run can be resumed, and is left alone by `wake`. Raises
    `RunNotFoundError`, and `JournalError` for a run that has finished.
    """
    check_run_id(run_id)
    target = as_journal(journal)
    if not callable(getattr(target, "cancel", None)):
        raise JournalError(f"{target!r} has no method `cancel`, with which to cancel run {run_id!r}")
    target.cancel(run_id)


def delete(journal: Any, run_id: str) -> None:
    """Delete a run; raises `RunNotFoundError`, and `RunBusyError` while a process works on it."""
    check_run_id(run_id)
    as_journal(journal).delete(run_id)


def purge(journal: Any, older_than: Duration, status: str | Iterable[str] | None = None) -> int:
    """Delete the runs last updated at least this long ago (seconds, or a timedelta), and return their number.

    `status` restricts it to runs of these statuses; a negative age takes all of them, whatever the clocks say. A run that a
    process works on stays. Large values that nothing refers to any more are deleted as well. The file keeps its size: the
    space is used again.
    """
    seconds = in_seconds(older_than)
    if seconds is None:
        raise DefinitionError(f"older_than is a number of seconds, or a timedelta, not {shortened(older_than)}")
    wanted = None if status is None else checked_tags([status] if isinstance(status, str) else status, "status")
    for unknown in sorted((wanted or frozenset()) - STATUSES):
        raise DefinitionError(f"no run has the status {shortened(unknown)}. {suggestion(unknown, STATUSES)}")
    target, before, count = as_journal(journal), time.time() - seconds, 0
    for run in target.runs():
        if run.updated <= before and run.owner is None and (wanted is None or run.status in wanted):
            try:
                target.delete(run.id)
                count += 1
            except (RunBusyError, RunNotFoundError):  # another process was faster
                continue
    if hasattr(target, "drop_unused"):
        target.drop_unused()
    return count
