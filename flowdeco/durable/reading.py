"""A run of a journal as a `Run`, and answers to its questions: both need the definitions of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowdeco.durable.info import Question, RunInfo, finished_error
from flowdeco.durable.journal import as_journal, at_rest
from flowdeco.durable.sqlite import SqliteJournal
from flowdeco.engine.journal import FINISHED
from flowdeco.engine.reading import encoded_inputs, questions_and_used_keys, read_run
from flowdeco.engine.run_logger import run_logger
from flowdeco.engine.runs import Resumption, Run
from flowdeco.engine.waits import check_answer, refusals
from flowdeco.errors import DefinitionError, JournalError, Wait, shortened, suggestion
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


def answer(
    journal: Any,
    run_id: str,
    answers: Mapping[str, Any] | None = None,
    *,
    error: Exception | Mapping[str, Exception] | None = None,
) -> None:
    """Record answers to the questions of a run, for its next resume, without resuming it; the last answer counts.

    `error` answers with a failure, as that of `resume`. Keys that the run does not ask for are inputs of that resume; there
    is a warning in the log if such a key may be a misspelt question. Raises `StoreTypeError` for an answer of a wrong type,
    as far as its classes are loaded, `RunNotFoundError`, and `JournalError` for a run that has finished, or that waits and
    has used an answer to a key that it does not ask for now.
    """
    check_run_id(run_id)
    if not isinstance({} if answers is None else answers, Mapping) or not (answers or error):
        raise DefinitionError(
            f'answers are a mapping of keys to values, such as {{"approved": True}}, not {shortened(answers)}'
        )
    given, target, errors = dict(Store(answers)), as_journal(journal), dict[str, BaseException]()
    runs: list[RunInfo] = target.runs(run_id=run_id) if isinstance(target, SqliteJournal) else target.runs()
    for run in (run for run in runs if run.id == run_id):
        if run.status in FINISHED:
            raise finished_error(run_id, run.status)
        questions: Sequence[Question | Wait] = run.questions
        unasked = given.keys() - {question.key for question in questions}
        if run.status == "cancelled" or (run.status == "suspended" and unasked):
            waiting, used = questions_and_used_keys(target.read(run_id), target.codec)
            questions = questions if run.status == "suspended" else waiting
            _check_unasked(run_id, given, [question.key for question in questions], used)
        errors = refusals(error, questions, run_id)
        for question in questions:
            if question.key in given:
                check_answer(question, given[question.key])
    target.answer(run_id, encoded_inputs(target.codec.encode, target.codec, given, errors))


def _check_unasked(run_id: str, given: Mapping[str, Any], asked: list[str], used: set[str]) -> None:
    """Raise `JournalError` for a key whose question was answered before; warn of one that may be a misspelt question."""
    unasked = sorted(given.keys() - set(asked))
    late = [key for key in unasked if key in used]
    if late:
        names = ", ".join(map(repr, asked)) or "nothing"
        raise JournalError(
            f"run {run_id!r} has used an answer to {late[0]!r} already, and waits for {names} now: another answer would "
            f"replace what came of the first. To run the steps since then again, resume it with from_stage="
        )
    missing = [key for key in asked if key not in given]
    for key in unasked if missing else ():
        meant = suggestion(key, missing)
        if meant.startswith("Did") or len(unasked) == len(given):
            run_logger(run_id).warning(
                "run %s does not ask for %r, which is now an input of its next resume. %s", run_id, key,
                meant if meant.startswith("Did") else f"It asks for {', '.join(map(repr, missing))}.",
            )  # fmt: skip
