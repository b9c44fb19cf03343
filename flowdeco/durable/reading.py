"""A run of a journal as a `Run`."""

from __future__ import annotations

from typing import Any

from flowdeco.durable.journal import as_journal, at_rest
from flowdeco.engine.reading import read_run
from flowdeco.engine.runs import Resumption, Run

__all__ = ["read"]


def read(journal: Any, run_id: str) -> Run:
    """Return a run in its present state, ended or under way; nothing of it runs.

    Its pipeline and stages have the names, and none of the options, of those that ran. Until the run has ended, its
    store is that of its finished steps. Raises `RunNotFoundError`, and `JournalError` if a value cannot be loaded.
    """
    source = as_journal(journal)
    remembered = source.read(run_id)
    run = read_run(remembered, source.codec)
    run.resumption = Resumption((), frozenset(remembered.skip), None, at_rest(source))
    return run
