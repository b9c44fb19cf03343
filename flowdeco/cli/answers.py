"""The command `answer`, and the conversion of answers without a resume, which `ui` uses as well."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import Any

from flowdeco import durable
from flowdeco.cli import report
from flowdeco.cli.conversion import InputError, answers, converted, takers
from flowdeco.cli.exit_codes import FINE
from flowdeco.cli.inputs import UsageError, parse_inputs, read_errors, text_keys
from flowdeco.cli.journals import find_run, journal_of, journal_path, state_of
from flowdeco.cli.json_output import print_json
from flowdeco.cli.workflow import recorded_flow
from flowdeco.durable import RunInfo
from flowdeco.durable.info import finished_error, resume_command
from flowdeco.engine.journal import FINISHED
from flowdeco.errors import FlowdecoError, suggestion

__all__ = ["answer", "record"]


def answer(options: Namespace) -> int:
    """Record answers to the questions of a run, without resuming it."""
    wanted, *options.input = options.run
    path = journal_path(options)
    info = find_run(path, wanted)
    values = parse_inputs(options.input, "")
    errors = read_errors(options, values)
    _check_asked(info, [*values, *errors])
    for warning in record(path, info, values, text_keys(options), errors):
        report.print_warning(warning)
    asked = dict.fromkeys(question.key for question in info.questions)
    left = [key for key in asked if key not in values and key not in errors]
    if options.json:
        print_json({"id": info.id, "answered": [*values, *errors], "asks": left})
        return FINE
    report.say(f"run {info.id} has its answer to {_listed([*values, *errors])} at its next resume")
    report.print_resume_hint(resume_command(info.id, "suspended", left, options.journal, known=bool(info.entry)))
    return FINE


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(map(repr, keys))


def _check_asked(info: RunInfo, keys: list[str]) -> None:
    """Refuse answers that no question of the run takes."""
    if info.status in FINISHED:
        raise finished_error(info.id, info.status)
    asked = [question.key for question in info.questions]
    if not asked:
        why = info.reason if info.status == "suspended" else state_of(info)
        inputs = "" if info.owner else f". To give it inputs: flowdeco resume {shlex.quote(info.id)} -i KEY=VALUE"
        raise UsageError(f"run {info.id!r} asks nothing now: it is {why}{inputs}")
    if not keys:
        raise UsageError(f"give an answer: flowdeco answer {shlex.quote(info.id)} {shlex.quote(asked[0])}=VALUE")
    for key in keys:
        if key not in asked:
            raise UsageError(f"run {info.id!r} does not ask for {key!r}. {suggestion(key, asked, 'It asks for')}")


def record(
    path: str, info: RunInfo, values: Mapping[str, Any], texts: frozenset[str],
    errors: Mapping[str, Exception] = {},
) -> list[str]:  # fmt: skip
    """Record answers, converted as those of `resume -i`; return warnings.

    `texts` are the keys whose values are text, not JSON. The workflow is imported if the journal knows it. Raises
    `InputError`, and the errors of `durable.answer`; then nothing is recorded.
    """
    journal = journal_of(path, info)
    missing, taken = "the journal does not know where that is", {}
    try:
        taken = takers(recorded_flow(info.entry)) if info.entry and values else {}
    except FlowdecoError as error:  # the answer may be one of a known type
        missing = report.error_message(error)
    made, known = answers(values, texts, info.questions)
    for question in info.questions:
        if question.classes and question.key in values and question.key not in known:
            why = f"is a {question.type}, which the workflow defines: {missing}"
            raise InputError(f"the answer {question.key!r} {why}", question.key)
    made, warnings = converted(made, texts, {key: each for key, each in taken.items() if key not in known})
    durable.answer(journal, info.id, made, error=errors)
    return list(warnings.values())
