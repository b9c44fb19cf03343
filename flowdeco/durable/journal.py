"""The journal that a user named."""

from __future__ import annotations

import os
from typing import Any, cast

from flowdeco.durable.sqlite import SqliteJournal
from flowdeco.errors import JournalError, shortened

__all__ = ["as_journal", "at_rest", "for_run"]


def as_journal(journal: Any) -> Any:
    """Return the journal itself, or the SQLite journal at that path."""
    if isinstance(journal, (str, os.PathLike)):
        return SqliteJournal(cast("str", journal))
    if not isinstance(journal, type) and all(
        callable(getattr(journal, name, None)) for name in ("create", "open", "read", "write", "close")
    ):
        return journal
    raise JournalError(f"journal is a path or a journal, such as SqliteJournal(path), not {shortened(journal)}")


def for_run(journal: Any) -> Any:
    """Return the journal for a run; one of a path has its file open only while the run is at work."""
    found = as_journal(journal)
    return found if found is journal else at_rest(found)


def at_rest(journal: Any) -> Any:
    """Return the journal for a run that has ended: it keeps nothing open until the run is resumed."""
    return journal.brief() if isinstance(journal, SqliteJournal) else journal
