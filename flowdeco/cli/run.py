"""The commands that run a workflow: `run` and `resume`."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any, Final

from flowdeco.cli import report
from flowdeco.cli.arguments import JOURNAL
from flowdeco.cli.exit_codes import FAILED, FINE, INTERRUPTED, SUSPENDED
from flowdeco.cli.inputs import UsageError, input_warnings, read_inputs
from flowdeco.cli.json_output import plain, print_json, run_as_data
from flowdeco.cli.process import cancelling_on_interrupt, configure_logging, reserved_stdout
from flowdeco.cli.workflow import load_recorded_workflow, load_workflow, stand_in_for_main
from flowdeco.engine.runs import Run

__all__ = ["resume", "run"]

_CODES: Final = {"completed": FINE, "bailed": FINE, "suspended": SUSPENDED, "cancelled": INTERRUPTED}


def run(options: Namespace) -> int:
    """Run a workflow."""
    inputs = read_inputs(options)
    workflow = load_workflow(options)
    flow = workflow.to_run(options)
    path = None if options.no_journal else options.journal or os.environ.get(JOURNAL)
    journal: Any = None
    if path:
        from flowdeco.cli.journals import open_journal  # a run without one needs no database

        journal = open_journal(path, options.codec, workflow.reference(options.only))
    return _perform(
        options, path, inputs,
        lambda how: flow.run(inputs, skip=options.skip, journal=journal, run_id=options.run_id, **how),
    )  # fmt: skip


def resume(options: Namespace) -> int:
    """Resume a run of a journal."""
    from flowdeco.cli.journals import journal_path, open_journal

    inputs = read_inputs(options)
    path = journal_path(options)
    workflow, info = load_recorded_workflow(options, path)
    flow = workflow.to_run(options)
    stand_in_for_main(workflow.entry)
    journal = open_journal(path, info.codec, workflow.reference(options.only))
    finished = info.status in ("completed", "bailed") and options.on_change != "rerun" and not options.from_stage
    return _perform(
        options, path, inputs,
        lambda how: flow.resume(
            info.id, inputs, journal=journal, on_change=options.on_change, from_stage=options.from_stage,
            skip=options.skip, **how,
        ),
        finished=finished,
    )  # fmt: skip


def _perform(
    options: Namespace, path: str | None, inputs: Iterable[str], perform: Callable[[dict[str, Any]], Run],
    *, finished: bool = False,
) -> int:  # fmt: skip
    """Run, report the outcome, and return the exit code; `finished` is a run that had completed before."""
    configure_logging(options.verbose)
    if options.html and not os.path.isdir(os.path.dirname(options.html) or "."):
        raise UsageError(f"--html {options.html}: there is no such directory")
    how: dict[str, Any] = {"check": False}
    if options.progress:
        how["progress"] = True
    try:
        with cancelling_on_interrupt(), reserved_stdout(options.json):
            run = perform(how)
    except KeyboardInterrupt as interrupt:
        try:
            run = Run.of(interrupt)
        except LookupError:
            return INTERRUPTED
    _print_run(run, options, finished=finished)
    _print_problems(run, options, path, inputs)
    code = _CODES.get(str(run.status), FAILED)
    if options.html:
        try:
            run.to_html(options.html)
        except OSError as error:
            report.print_error(error, options, f"the page is not written: {error}")
            return code or FAILED
    return code


def _print_run(run: Run, options: Namespace, *, finished: bool) -> None:
    """Print the stages, the status and the result, or all of them as JSON."""
    if options.json:
        print_json(run_as_data(run))
        return
    status = report.coloured(str(run.status), sys.stdout)
    if finished and run.status in ("completed", "bailed"):
        print(f"run {run.id} was {status} already: nothing to do")
    else:
        if not (options.progress and sys.stdout.isatty()):  # the progress display has shown them
            report.print_stages(run, sys.stdout)
        why = f": {report.one_line(run.reason)}" if run.reason else ""
        print(
            f"\n{status}{why} ({report.plural(len(run.stages), 'stage')}, {report.duration(run.elapsed)}, run {run.id})"
        )
    if run.result is not None and run.status in ("completed", "bailed"):
        print(f"result: {report.shortened(report.one_line(repr(plain(run.result))), 300)}")


def _print_problems(run: Run, options: Namespace, path: str | None, inputs: Iterable[str]) -> None:
    """Print why a run failed, doubtful inputs, and how to resume it."""
    warnings = list(input_warnings(run, inputs, options))
    if run.status == "failed" and run.error is not None:
        report.print_error(
            run.error, options, _failure(run, run.error) + (f" ({'; '.join(warnings)})" if warnings else "")
        )
    else:
        for warning in warnings:
            print(f"flowdeco: {report.coloured('warning', sys.stderr)}: {warning}", file=sys.stderr)
    if path is None:
        if run.status == "suspended":
            print("flowdeco: it has no --journal, and cannot be resumed", file=sys.stderr)
    elif not hasattr(run.error, "changes"):
        report.print_resume_hint(run.id, str(run.status), run.reason, options)


def _failure(run: Run, error: BaseException) -> str:
    """Return the message of a failure, with the failed step unless the error itself names it."""
    step = report.failed_step(run)
    text = report.error_message(error) if hasattr(error, "changes") else report.describe_error(error)
    if not step:
        return text
    return str(error) if str(error).startswith(step) else f"{step} failed: {text}"
