"""Errors of a journal file: rows that are not as they were written, and the messages for those of SQLite."""

from __future__ import annotations

import sqlite3
from typing import Final

from flowdeco.errors import JournalError

__all__ = ["PATIENCE", "Damaged", "sqlite_message"]

PATIENCE: Final = 60.0  # seconds to wait for other writers of the file


class Damaged(JournalError):
    """A row is missing, or does not agree with its checksum: the journal adds its path, and the remedy."""


def sqlite_message(error: Exception, path: str) -> str:
    """Return the message of an error: the problem of the file, and its remedy."""
    if isinstance(error, (sqlite3.DataError, OverflowError)):
        return f"SQLite does not take a value of that size ({error})"
    undecodable = "Could not decode to UTF-8" in str(error)  # which has no name
    name = "SQLITE_CORRUPT" if undecodable else str(getattr(error, "sqlite_errorname", ""))
    for prefix, text in _TROUBLES.items():
        if name.startswith(prefix):
            return f"{path} {text} ({error})"
    return f"{path}: {error}"


_TROUBLES: Final = {
    "SQLITE_FULL": "cannot grow, the disk is full: make room",
    "SQLITE_IOERR": "cannot be read or written: check the disk, and whether the file may grow",
    "SQLITE_READONLY": "is read-only: give this user write access to the file and its directory",
    "SQLITE_PERM": "cannot be accessed: give this user access to the file",
    "SQLITE_CANTOPEN": "cannot be opened: check that its directory exists and is writable",
    "SQLITE_BUSY": f"has been locked by another process for {PATIENCE:.0f} s: find the process that holds it",
    "SQLITE_CORRUPT": "is damaged: restore it from a backup, or use another path",
    "SQLITE_NOTADB": "is not a journal, or is damaged: restore it from a backup, or use another path",
}
