"""The lease of a run: the right to work on it, which the row of the run in the file gives to one owner at a time.

It is taken for so many seconds, and renewed by the heartbeat of the file (`file.JournalFile`). A lease is known here before
the row that names it is committed: whoever sees the row knows whether its owner is at work.
"""

from __future__ import annotations

import math
import sqlite3
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

from flowdeco.durable.head import Head
from flowdeco.durable.owner import OWNER, Owner, is_dead
from flowdeco.errors import RunBusyError

__all__ = [
    "CANCELLED",
    "HELD",
    "LONGEST",
    "Lease",
    "is_busy",
    "is_held_here",
    "owner_of",
    "require_idle",
    "take",
]

CANCELLED: Final = "!"  # follows the token of an owner whose run has been cancelled
LONGEST: Final = 86400.0  # seconds for which a lease is believed: one that ends later was written by a wrong clock

_IS_OWNER: Final = "SELECT 1 FROM runs WHERE id = ? AND owner = ?"
HELD: Final[weakref.WeakValueDictionary[str, Lease]] = weakref.WeakValueDictionary()  # by this process, by token


class Lease:
    """The right to work on the run with this `id`, for so many `seconds` at a time; `token` identifies it in the file.

    `noted` tells whether the file says that the run is running: it does not before a resume is accepted. After a fork,
    the lease is the parent's: its copy in the child has no token.

    A run is cancelled by changing its `owner` in the file, who notices this at the next write or heartbeat, changes it
    here, and calls `on_cancel` until that returns True. So a write need not ask whether the run has been cancelled.
    """

    __slots__ = ("__weakref__", "id", "noted", "on_cancel", "owner", "seconds", "token")

    def __init__(self, id: int, token: str, seconds: float, *, noted: bool) -> None:
        self.id = id
        self.token = self.owner = token
        self.seconds = seconds
        self.noted = noted
        self.on_cancel: Callable[[], bool] | None = None

    def is_ours(self, connection: sqlite3.Connection) -> bool:
        """Whether the file still names this owner, whose run may have been cancelled meanwhile."""
        return bool(connection.execute(_IS_OWNER, (self.id, self.owner)).fetchone()) or self.is_cancelled(connection)

    def is_cancelled(self, connection: sqlite3.Connection) -> bool:
        """Whether the run has been cancelled since this was last asked."""
        cancelled = self.token + CANCELLED
        if not self.token or self.owner == cancelled:
            return False
        if not connection.execute(_IS_OWNER, (self.id, cancelled)).fetchone():
            return False
        self.owner = cancelled
        self.tell()
        return True

    def tell(self) -> None:
        """Have the driver cancel the run, if that was not possible before."""
        call = self.on_cancel
        if call is not None and self.owner != self.token and call():
            self.on_cancel = None


def is_held_here(token: str) -> bool:
    """Whether this process works on the run with this token, or that of a cancelled one."""
    return token.removesuffix(CANCELLED) in HELD


def owner_of(connection: sqlite3.Connection, run: int) -> tuple[Owner | None, Any]:
    """Return the owner that the row of a run names, which may have ended, and the end of its lease."""
    until, *owner = connection.execute(f"SELECT lease, {OWNER} FROM runs WHERE id = ?", (run,)).fetchone()
    return None if owner[0] is None else Owner._make(owner), until


def is_busy(owner: Owner | None, until: float, me: Owner) -> bool:
    """Whether the owner, whose lease ends then, works on its run."""
    if owner is None or owner[1:] == me[1:]:
        return owner is not None and is_held_here(owner.token)
    try:
        dead, now = is_dead(owner), time.time()
        return now < until <= now + LONGEST if dead is None else not dead
    except (TypeError, ValueError, OverflowError):  # these columns were changed from outside; no checksum covers them
        return False


def require_idle(connection: sqlite3.Connection, head: Head, me: Owner, seconds: float) -> None:
    """Raise `RunBusyError` if an owner works on the run; `seconds` is how long a lease lasts."""
    owner, until = owner_of(connection, head.id)
    if is_busy(owner, until, me):
        ago = max(0.0, time.time() - (until - seconds)) if isinstance(until, float) else math.inf
        heard = "which is this one" if owner and owner[1:] == me[1:] else f"which was last heard of {ago:.0f} s ago"
        raise RunBusyError(
            f"run {head.run_id!r} is being worked on by {owner}, {heard}: only one at a time can work on a run"
        )


def take(connection: sqlite3.Connection, run: int, owner: Owner, seconds: float) -> None:
    """Give the lease of a run, on which nobody works, to an owner."""
    given = OWNER.replace(",", " = ?,")
    connection.execute(f"UPDATE runs SET {given} = ?, lease = ? WHERE id = ?", (*owner, time.time() + seconds, run))
