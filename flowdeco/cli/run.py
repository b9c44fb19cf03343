"""The commands that run a workflow: `run` and `resume`."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from flowdeco.cli import report
from flowdeco.cli.arguments import JOURNAL
from flowdeco.cli.exit_codes import FAILED, FINE, SUSPENDED
from flowdeco.cli.inputs import UsageError, check_page, input_warnings, read_errors, read_inputs, text_keys
from flowdeco.cli.json_output import plain, print_json, run_as_data
from flowdeco.cli.process import Cancelling, configure_logging, discard_broken_output, reserved_stdout
from flowdeco.cli.workflow import load_recorded_workflow, load_workflow, stand_in_for_main
from flowdeco.engine.runs import Run
from flowdeco.engine.waits import open_questions
from flowdeco.errors import CONSUMED, RunExistsError, cut, message_of
from flowdeco.model.definitions import Pipeline

if TYPE_CHECKING:
    from flowdeco.durable import SqliteJournal
    from flowdeco.errors import Wait

__all__ = ["resume", "run"]

_CODES: Final = {"completed": FINE, "bailed": FINE, "suspended": SUSPENDED}


def run(options: Namespace) -> int:
    """Run a workflow."""
    if options.no_journal and options.journal:
        raise UsageError(f"--no-journal keeps no journal, and --journal {options.journal} keeps one: give one of them")
    given = read_inputs(options)
    workflow = load_workflow(options)
    flow = workflow.to_run(options)
    inputs, warned = _converted(given, options, flow)
    path = None if options.no_journal else options.journal or os.environ.get(JOURNAL)
    journal: Any = None
    if path:
        from flowdeco.durable import SqliteJournal  # a run without one needs no database

        journal = SqliteJournal(path, codec=options.codec, entry=workflow.reference(options.only))

    def perform(how: dict[str, Any]) -> Run:
        try:
            begun = flow.run(inputs, skip=options.skip, journal=journal, run_id=options.run_id, **how)
        except RunExistsError as error:
            raise _exists(options, path) from error
        return _with_early_answers(begun, given, options, flow, journal, how)

    return _perform(options, path, inputs, perform, warned=warned)


def _exists(options: Namespace, path: str | None) -> UsageError:
    """Return the error of a run id that the journal has already."""
    from flowdeco.cli.journals import command_to_resume, find_run, state_of

    info = find_run(str(path), options.run_id)
    command = command_to_resume(options.journal, info)
    return UsageError(
        f"{path} has a run {info.id!r} already, {state_of(info)}: give another --run-id"
        f"{f', or resume it: {command}' if command else ''}"
    )


def resume(options: Namespace) -> int:
    """Resume a run of a journal."""
    from flowdeco.cli.journals import journal_of, journal_path

    given = read_inputs(options)
    errors = read_errors(options, given)
    path = journal_path(options)
    workflow, info = load_recorded_workflow(options, path)
    flow = workflow.to_run(options)
    stand_in_for_main(workflow.entry)
    journal = journal_of(path, info, workflow.reference(options.only))
    inputs, warned = _converted(given, options, flow, _questions(journal, info.id) if given else ())
    finished = info.status in ("completed", "bailed") and options.on_change != "rerun" and not options.from_stage

    def perform(how: dict[str, Any]) -> Run:
        resumed = flow.resume(
            info.id, inputs, journal=journal, on_change=options.on_change, from_stage=options.from_stage,
            skip=options.skip, error=errors or None, **how,
        )  # fmt: skip
        return _with_early_answers(resumed, given, options, flow, journal, how)

    asked = {question.key for question in info.questions}
    return _perform(options, path, inputs.keys() - asked, perform, warned=warned, finished=finished)


def _with_early_answers(
    run: Run, given: Mapping[str, Any], options: Namespace, flow: Pipeline, journal: Any, how: dict[str, Any]
) -> Run:
    """Resume a run with the inputs that it refused as answers, converted by the types of the questions, now that it asks."""
    left = dict(given)
    while early := {wait.key for wait in run.waits if wait.is_open and wait.given == CONSUMED} & left.keys():
        made = dict[str, Any]()
        for key in early:
            made |= _as_asked(key, left.pop(key), options, run)
        if not made:
            break
        more: dict[str, Any] = {"on_change": options.on_change} if hasattr(options, "on_change") else {}
        run = flow.resume(run if journal is None else run.id, made, journal=journal, skip=options.skip, **more, **how)
    return run


def _as_asked(key: str, value: Any, options: Namespace, run: Run) -> dict[str, Any]:
    """Return the answer to an open question, converted by its type; nothing if it does not fit."""
    from flowdeco.cli.conversion import InputError, answers

    try:
        made, _ = answers({key: value}, text_keys(options), [wait for wait in run.waits if wait.is_open])
    except InputError as error:
        report.print_warning(str(error))
        return {}
    return made if made[key] is not value else {}


def _questions(journal: SqliteJournal, run_id: str) -> list[Wait]:
    """Return the open questions of a run, whatever its status."""
    from flowdeco.engine.generations import generations
    from flowdeco.engine.rows import outcomes

    return open_questions(outcomes(generations(journal.read(run_id))[-1].rows, journal.codec))


def _converted(
    inputs: dict[str, Any], options: Namespace, flow: Pipeline, questions: Iterable[Wait] = ()
) -> tuple[dict[str, Any], Collection[str]]:
    """Return the inputs as the questions ask for them, or the actions take them, and the keys that were warned of."""
    if not inputs:
        return inputs, ()
    from flowdeco.cli.conversion import answers, converted, takers

    made, answered = answers(inputs, text_keys(options), questions)
    taken = {key: each for key, each in takers(flow, frozenset(options.skip)).items() if key not in answered}
    made, warnings = converted(made, text_keys(options), taken)
    for warning in warnings.values():
        report.print_warning(warning)
    return made, warnings


def _perform(
    options: Namespace, path: str | None, inputs: Iterable[str], perform: Callable[[dict[str, Any]], Run],
    *, warned: Collection[str], finished: bool = False,
) -> int:  # fmt: skip
    """Run, report the outcome, and return the exit code; `finished` is a run that had completed before."""
    configure_logging(options.verbose)
    check_page(options.html, values=options.values, journal=path)
    how: dict[str, Any] = {"check": False, "suspend_after": options.suspend_after, "timeout": options.timeout}
    if options.progress:
        how["progress"] = True
    cancelling = Cancelling()
    try:
        with cancelling, reserved_stdout(options.json):
            run = perform(how)
    except KeyboardInterrupt as interrupt:
        try:
            run = Run.of(interrupt)
        except LookupError:
            return cancelling.code
    takes_more = _show(lambda: _print_run(run, options, finished=finished), "the run is not shown", options)
    if takes_more:
        _show(lambda: _print_problems(run, options, path, inputs, warned), "its problems are not shown", options)
    if options.html:
        _show(lambda: run.to_html(options.html, values=options.values), "the page is not written", options)
    return cancelling.code if run.status == "cancelled" else _CODES.get(str(run.status), FAILED)


def _show(show: Callable[[], object], failure: str, options: Namespace) -> bool:
    """Show a run: no error meanwhile changes its exit code. Return whether the standard output takes more."""
    try:
        show()
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            discard_broken_output(error, options)
            return False
        report.print_error(error, options, f"{failure}: {report.describe_error(error)}")
    return True


def _print_run(run: Run, options: Namespace, *, finished: bool) -> None:
    """Print the stages, the status and the result, or all of them as JSON."""
    if options.json:
        print_json(run_as_data(run))
        return
    status = report.Coloured(str(run.status))
    if finished and run.status in ("completed", "bailed"):
        report.say(f"run {run.id} was ", status, " already: nothing to do")
    else:
        if not (options.progress and sys.stdout.isatty()):  # the progress display has shown them
            report.print_stages(run)
        why = f": {report.one_line(run.reason)}" if run.reason else ""
        counts = f"{report.plural(len(run.stages), 'stage')}, {report.duration(run.elapsed)}, run {run.id}"
        report.say("\n", status, f"{why} ({counts})")
    if run.result is not None and run.status in ("completed", "bailed"):
        report.say(f"result: {report.shortened(report.one_line(repr(plain(run.result))), 300)}")


def _print_problems(
    run: Run, options: Namespace, path: str | None, inputs: Iterable[str], warned: Collection[str]
) -> None:
    """Print why a run failed, doubtful inputs, and how to resume it."""
    warnings = list(input_warnings(run, inputs, options, warned, _is_convertible))
    if run.status == "failed" and run.error is not None:
        why = _failure(run, run.error) + (f" ({'; '.join(warnings)})" if warnings else "")
        report.print_error(run.error, options, why, of_user=True)
    else:
        for warning in warnings:
            report.print_warning(warning)
    if path is None:
        if run.status == "suspended":
            report.say(
                "flowdeco: to resume such a run, give it a --journal: this one cannot be resumed", out=sys.stderr
            )
    elif not hasattr(run.error, "changes"):
        from flowdeco.durable.info import questions_of, resume_command

        keys = [question.key for question in questions_of(run.waits)]
        report.print_resume_hint(resume_command(run.id, str(run.status), keys, options.journal))


def _is_convertible(text: str, annotation: Any) -> bool:
    from flowdeco.cli.conversion import is_convertible  # most runs need nothing of it

    return is_convertible(text, annotation)


def _failure(run: Run, error: BaseException) -> str:
    """Return the message of a failure, with the failed step unless the error itself names it."""
    step = report.failed_step(run)
    text = report.error_message(error) if hasattr(error, "changes") else report.describe_error(error)
    if not step:
        return text
    message = message_of(error)
    # The note with the place, and those of several lines, as a traceback of another process, are left out.
    notes = [note for note in getattr(error, "__notes__", ()) if not ("\n" in note or note.endswith(f"run {run.id!r}"))]
    why = f" ({'; '.join(notes)})" if notes else ""
    return f"{cut(message) if message.startswith(step) else f'{step} failed: {text}'}{why}"
