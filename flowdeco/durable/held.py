"""A run that this process works on: its lease, and how many steps have been written."""

from __future__ import annotations

import sqlite3
import time

from flowdeco.durable.file import JournalFile
from flowdeco.durable.head import Head, update
from flowdeco.durable.lease import Lease, owner_of
from flowdeco.durable.owner import NOBODY
from flowdeco.engine.journal import Remembered, Row
from flowdeco.errors import JournalError

__all__ = ["HeldRun"]


class HeldRun(Lease):
    """A run that a journal holds the lease of; `doubtful` if the last write may or may not have happened.

    `before` is the head that it had when it was opened. `begun` are branches whose first row is marked in the file. Some
    may be missing: their next row is marked as well. `next` is the position of the next row, `saved` the number of rows.
    """

    __slots__ = ("answers", "before", "begun", "broken", "doubtful", "file", "first", "head", "last", "next", "saved")

    def __init__(self, file: JournalFile, head: Head, token: str, seconds: float, before: Head | None = None) -> None:
        super().__init__(head.id, token, seconds, noted=before is None)
        self.file = file
        self.before = before or head
        self.first = head.ids[0]
        self.begun: set[str] = set()
        self.broken = False
        self.answers = 0  # known to this leg of the run
        self.last: Row | None = None
        self.head, self.next, self.saved = head, head.written, head.written - head.dropped
        self.doubtful = before is not None  # the file does not say yet that it is running

    def continues(self, remembered: Remembered, written: int) -> None:
        """Continue after the rows that were found, of all that were ever written."""
        self.answers = len(remembered.inputs) - self.head.given
        self.next, self.saved = written, len(remembered.rows)
        self.last = remembered.rows[-1] if remembered.rows else None
        self.head = self.counted()

    def counted(self) -> Head:
        """Return the head with the present numbers of rows."""
        return self.head._replace(written=self.next, dropped=self.next - self.saved)

    def require_ours(self, connection: sqlite3.Connection) -> None:
        """Raise `JournalError` if the lease was lost."""
        if not self.is_ours(connection):
            raise self.lost(connection)

    def lost(self, connection: sqlite3.Connection) -> JournalError:
        """Return the error for a lease that was lost."""
        run_id = self.head.run_id
        if not self.token:
            return JournalError(
                f"run {run_id!r} is active in the process that forked this one, which cannot write to it"
            )
        if not connection.execute("SELECT 1 FROM runs WHERE id = ?", (self.id,)).fetchone():
            return JournalError(f"run {run_id!r} was deleted from {self.file.path} while it was running")
        who = owner_of(connection, self.id)[0] or "another process, which has finished"
        return JournalError(
            f"the lease of run {run_id!r} was lost: {who} took the run over. This process did not renew its "
            f"lease in time; nothing that it has done since is saved"
        )

    def settle(self, connection: sqlite3.Connection) -> None:
        """Read the position of the last step, if an interrupted write may or may not have happened.

        And if the run was opened and has not written anything yet, note that it is running.
        """
        if not self.doubtful:
            return
        self.is_cancelled(connection)
        last, self.saved, given = connection.execute(
            "SELECT coalesce(max(id) + 1, 0), count(*), (SELECT max(given) FROM runs WHERE id = ?) FROM log "
            "WHERE id BETWEEN ? AND ?",
            (self.id, *self.head.ids),
        ).fetchone()
        self.next = max(self.head.written, last - self.first)
        self.head = self.head._replace(given=given or 0)
        if not self.noted:
            self.note(connection)
            number = "(SELECT count(*) FROM legs WHERE run = ?)"
            leg = self.id, self.id, self.next, time.time()
            connection.execute(f"INSERT INTO legs VALUES (?, {number}, ?, ?)", leg)
            self.noted = True
        self.doubtful = False

    def note(self, connection: sqlite3.Connection) -> None:
        """Write the head, if the run is still ours."""
        update(connection, self.head, self.owner)

    def abandon(self, connection: sqlite3.Connection) -> None:
        """Release the lease of a run, which stays as it was before it was opened, unless it was cancelled meanwhile."""
        try:
            self.on_cancel = None
            self.is_cancelled(connection)
            before, is_cancelled = self.before, self.owner != self.token
            if self.noted or is_cancelled:
                head = self.counted() if self.noted else before
                state = ("cancelled", None, None) if is_cancelled else (before.status, before.reason, before.error)
                update(connection, head.with_status(*state), self.owner, release=True)
            else:
                connection.execute(f"UPDATE runs SET {NOBODY} WHERE id = ? AND owner = ?", (self.id, self.owner))
        finally:
            self.file.leave(self)
