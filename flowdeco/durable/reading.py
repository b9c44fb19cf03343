"""A run of a journal as a `Run`, and answers to its questions: both need the definitions of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowdeco.durable.info import RunInfo
from flowdeco.durable.journal import as_journal, at_rest
from flowdeco.durable.sqlite import SqliteJournal
from flowdeco.engine.reading import encoded_inputs, read_run, used_keys
from flowdeco.engine.runs import Resumption, Run
from flowdeco.engine.waits import check_answer
from flowdeco.errors import DefinitionError, JournalError
from flowdeco.model.options import check_run_id
from flowdeco.model.store import Store

__all__ = ["answer", "read"]


def read(journal: Any, run_id: str) -> Run:
    """Return a run in its present state, ended or under way; nothing of it runs.

    Its pipeline and stages have the names, and none of the options, of those that ran. Until the run has ended, its
    store is that of its finished steps. Raises `RunNotFoundError`, and `JournalError` if a value cannot be loaded.
    """
    check_run_id(run_id)
    source = as_journal(journal)
    remembered = source.read(run_id)
    run = read_run(remembered, source.codec)
    run.resumption = Resumption((), frozenset(remembered.skip), None, at_rest(source))
    return run


def answer(journal: Any, run_id: str, answers: Mapping[str, Any]) -> None:
    """Record answers to the questions of a run, for its next resume, without resuming it; the last answer counts.

    Keys that it does not ask for are inputs of that resume. Raises `StoreTypeError` for an answer of a wrong type,
    as far as its classes are loaded, `RunNotFoundError`, and `JournalError` for a run that has finished, or that is
    suspended and has used an answer to a key that it does not ask for now.
    """
    check_run_id(run_id)
    if not isinstance(answers, Mapping) or not answers:
        raise DefinitionError(f'answers are a mapping of keys to values, such as {{"approved": True}}, not {answers!r}')
    given, target = dict(Store(answers)), as_journal(journal)
    runs: list[RunInfo] = target.runs(run_id=run_id) if isinstance(target, SqliteJournal) else target.runs()
    for run in (run for run in runs if run.id == run_id):
        unasked = set(given)
        for question in run.questions:
            if question.key in given:
                check_answer(question, given[question.key])
                unasked.remove(question.key)
        if unasked and run.status == "suspended":
            _check_unasked(target, run, unasked)
    target.answer(run_id, encoded_inputs(target.codec.encode, target.codec, given))


def _check_unasked(target: Any, run: RunInfo, keys: set[str]) -> None:
    """Raise `JournalError` for a key that the run had asked for, and does not ask for now."""
    late = sorted(keys & used_keys(target.read(run.id), target.codec))
    if late:
        names = ", ".join(repr(question.key) for question in run.questions) or "nothing"
        raise JournalError(
            f"run {run.id!r} has used an answer to {late[0]!r} already, and waits for {names} now: another answer would "
            f"replace what came of the first. To run the steps since then again, resume it with from_stage="
        )
