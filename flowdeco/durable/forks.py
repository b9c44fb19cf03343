"""Locks and connections in a process that forks: they are put in order before, and belong to the parent after.

A lock that another thread holds at that moment would stay locked in the child for ever, and SQLite's connections must
not cross over at all: the child would take the locks of its parent for its own.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Final, Protocol

__all__ = ["CLOSING", "GUARD", "Forking", "prepare_for_forks"]


class Forking(Protocol):
    """An object with something that must not be copied while it is in use."""

    def before_fork(self) -> None:
        """Finish the work under way, and hold the lock until the process has forked, also if this is interrupted."""

    def after_fork(self, *, in_child: bool) -> None:
        """Let the lock go, and continue; in the child, without anything that is the parent's."""


# In the order in which they are acquired: the guard, the locks of the objects, and the one under which connections are
# closed. The garbage collector may close one at any moment, so these two can be acquired again by their thread.
GUARD: Final = threading.RLock()
CLOSING: Final = threading.RLock()

_known: Final[weakref.WeakSet[Forking]] = weakref.WeakSet()
_held: Final[list[Forking]] = []  # for the fork that is under way, in the order in which they were told


class _Held:
    """A lock that is held while the process forks."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self, *, in_child: bool) -> None:
        self._lock.release()


def prepare_for_forks(thing: Forking) -> None:
    """Have an object told of each fork of this process, as long as it lives."""
    with GUARD:
        _known.add(thing)


def _before() -> None:
    _hold(_Held(GUARD))
    for thing in list(_known):
        _hold(thing)
    _hold(_Held(CLOSING))


def _hold(thing: Forking) -> None:
    try:
        thing.before_fork()
    finally:  # what is raised here, such as an interrupt, Python drops, and forks
        _held.append(thing)


def _after(*, in_child: bool) -> None:
    while _held:  # nothing, if this module was imported as the process forked
        _held.pop().after_fork(in_child=in_child)


def _after_in_parent() -> None:
    _after(in_child=False)


def _after_in_child() -> None:
    _after(in_child=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
