"""The description of a run, for those who list runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from shlex import quote
from typing import Any, Final, NamedTuple, cast

from flowdeco.errors import QUESTION, JournalError, Wait, utc

__all__ = [
    "STATUSES", "Question", "RunInfo", "as_text", "finished_error", "first_due", "nothing_to_cancel",
    "questions_in", "questions_of", "resume_command", "waits_as_json",
]  # fmt: skip

STATUSES: Final = frozenset({"running", "completed", "failed", "bailed", "suspended", "cancelled", "damaged"})


class RunInfo(NamedTuple):
    """A run of a journal: times in POSIX seconds, `steps` the number of rows saved: of actions, stages, and others.

    `flowdeco runs` shows another number under STEPS, that of the actions that have ended.

    `owner` is the process that works on it, if any: a run that is `running` without one has crashed. It is `cancelling` from
    `cancel` until its owner has stopped.
    `error` is the type and message of the exception that it failed with.
    `entry` is the entry point of its pipeline, if known; `codec` the codec of its steps.

    A suspended run is `due` when the first of its sleeps ends, or the time to answer one of its `questions`, and `answered`
    once it has been given an answer since it was suspended.
    """

    id: str
    pipeline: str
    status: str
    reason: str | None
    started: float
    updated: float
    steps: int
    error: str | None = None
    owner: str | None = None
    entry: str | None = None
    codec: str = "pickle"
    due: float | None = None
    questions: tuple[Question, ...] = ()
    answered: bool = False
    cancelling: bool = False


class Question(NamedTuple):
    """A question that a run waits for: its key, what it is `about`, the type of the answer, as text, the last moment.

    `classes` is that type for programs, as `model.store.type_of` reads it: the classes that an answer is checked for.
    """

    key: str
    about: Any = None
    type: str | None = None
    deadline: float | None = None
    asked: float = 0.0
    classes: tuple[Any, ...] | None = None


def as_text(question: Question) -> str:
    """Return a question as a line: its key, the type of its answer, what it is about, and until when."""
    about = question.about if isinstance(question.about, str) else json.dumps(question.about, default=str)
    kind = "" if question.type is None else f" ({question.type})"
    said = "" if question.about is None else f": {about}"
    until = "" if question.deadline is None else f", until {utc(question.deadline, up=True)}"
    return f"{question.key!r}{kind}{said}{until}"


def questions_of(waits: Iterable[Wait]) -> tuple[Question, ...]:
    """Return the questions among these."""
    asked = (wait for wait in waits if wait.kind == QUESTION)
    return tuple(Question(w.key, _shown(w.about), w.type, w.due, w.asked, w.classes) for w in asked)


def resume_command(run_id: str, status: str, keys: Iterable[str], path: str | None, *, known: bool = True) -> str:
    """Return the command that resumes a run, "" if it cannot be resumed; `keys` are those that it asks for.

    The workflow is named unless the journal at `path` has `known` it.
    """
    if status not in ("failed", "suspended", "cancelled", "crashed"):
        return ""
    journal = f" --journal {quote(path)}" if path else ""
    values = "".join(f" -i {quote(key)}=VALUE" for key in dict.fromkeys(keys))
    return f"flowdeco resume {'' if known else 'FILE.py:FLOW '}{quote(run_id)}{journal}{values}"


def finished_error(run_id: str, status: str) -> JournalError:
    """Return the error of an answer to a run that has finished."""
    return JournalError(f"run {run_id!r} has {status} and no longer asks anything: an answer would have no effect")


def nothing_to_cancel(run_id: str, status: str) -> JournalError:
    """Return the error of cancelling a run that has finished."""
    return JournalError(f"run {run_id!r} has {status}: there is nothing to cancel")


def first_due(waits: Sequence[Wait]) -> float | None:
    """Return the time at which the first of these ends, None if none does by itself."""
    return min((wait.due for wait in waits if wait.due is not None), default=None)


def waits_as_json(waits: Sequence[Wait]) -> str:
    """Return the questions among these as JSON, for lists of runs; `about` as text where it is nothing that JSON knows."""
    return json.dumps(questions_of(waits))


def _shown(about: object) -> Any:
    try:
        return json.loads(json.dumps(about))
    except (TypeError, ValueError, RecursionError):
        return str(about)


def questions_in(text: object) -> tuple[Question, ...]:
    """Return the questions that are written so; none if it is damaged: no checksum covers them."""
    try:
        found: Any = json.loads(cast("str", text))
        return tuple(
            Question(str(key), about, kind, due, asked, classes and tuple(classes))
            for key, about, kind, due, asked, classes in found
        )
    except (TypeError, ValueError, RecursionError):
        return ()
