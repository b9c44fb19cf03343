"""What the commands of the command line do: each takes its options and returns the exit code.

What a command found goes to the standard output, what went wrong to the standard error, in one line.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from io import StringIO, TextIOWrapper
from typing import TYPE_CHECKING, Any, Final, cast

from flowdeco.cli.exit_codes import FAILED, FINE, INTERRUPTED, SUSPENDED, USAGE
from flowdeco.cli.inputs import UsageError, awaited, doubts, read_inputs
from flowdeco.errors import FlowdecoError, suggestion

if TYPE_CHECKING:
    from flowdeco.cli.entry_point import Entry
    from flowdeco.durable import RunInfo
    from flowdeco.durable.info import Step
    from flowdeco.engine.location import Place
    from flowdeco.engine.runs import Run
    from flowdeco.model.definitions import Pipeline, Unit

__all__ = ["COMMANDS", "JOURNAL", "LATEST", "perform"]

JOURNAL: Final = "FLOWDECO_JOURNAL"
LATEST: Final = "latest"
_CODES: Final = {"completed": FINE, "bailed": FINE, "suspended": SUSPENDED, "cancelled": INTERRUPTED}


def perform(options: Namespace) -> int:
    """Do what the options say, and return the exit code."""
    _accept_any_text()
    try:
        code = COMMANDS[options.command](options)
        sys.stdout.flush()
    except FlowdecoError as error:
        _complain(error, options)
        return USAGE
    except OSError as error:
        if error.filename is not None:
            _complain(error, options, f"{error.filename}: {error.strerror}")
            return USAGE
        _give_up_broken_output()
        if not isinstance(error, BrokenPipeError):  # `flowdeco runs | head`
            _complain(error, options, error.strerror)
        return FAILED
    except Exception as error:
        _complain(error, options, f"{_described(error)} (--traceback shows where)")
        return FAILED
    return code


def _accept_any_text() -> None:
    """Have the standard output, if there is one, take what its encoding lacks, as the standard error does."""
    out: Any = sys.stdout
    if out is None:
        sys.stdout = StringIO()
    elif isinstance(out, TextIOWrapper):
        cast("Any", out).reconfigure(errors="backslashreplace")


def _give_up_broken_output() -> None:
    """Have an output that takes no more not fail once again when the process ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(error: BaseException, options: Namespace, text: str | None = None) -> None:
    from flowdeco.cli.report import one_line, painted

    if options.traceback:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    label = painted("error", sys.stderr)
    print(f"flowdeco: {label}: {one_line(text or _message(error))}", file=sys.stderr)


def _message(error: BaseException) -> str:
    """Return what is wrong in one line: of several problems the first one, and how many there are."""
    problems: Sequence[Any] = getattr(error, "problems", ())
    if problems:
        more = len(problems) - 1
        rest = f" ({more} more: see flowdeco validate)" if more else ""
        return f"{problems[0].message} If it is an input: -i {problems[0].key}=VALUE{rest}"
    changes: Sequence[str] = getattr(error, "changes", ())
    if changes:
        others = f", and {len(changes) - 1} more" if len(changes) > 1 else ""
        return (
            f"the definition has changed since the run was interrupted: {changes[0]}{others}. "
            f"Give --on-change ignore to go on all the same, or --on-change rerun to run again from the first change"
        )
    return str(error) or type(error).__name__


# What a run is made of.


def _only(entry: Entry, selectors: Sequence[str], where: str) -> Pipeline:
    """Return the pipeline with only what the selectors name."""
    from flowdeco.model.definitions import as_pipeline

    flow = as_pipeline(entry.unit)
    if not selectors:
        return flow
    _check_planned("--only", selectors, flow, entry, where)
    return flow.only(*selectors)


def _check_planned(option: str, selectors: Sequence[str], flow: Pipeline, entry: Entry, where: str) -> None:
    """Refuse selectors that find nothing in a pipeline before it is run."""
    known = _selectors_of(flow)
    for selector in selectors:
        if selector in known:
            continue
        if _names(selector, _insertable(entry) - known):
            raise UsageError(
                f"{option} {_quoted(selector)}: {where} has no such stage, action or tag before it runs, "
                f"and what is inserted later cannot be selected by it"
            )
        raise UsageError(
            f"{option} {_quoted(selector)}: {where} has no such stage, action or tag. {suggestion(selector, known)}"
        )


def _check_skip(selectors: Sequence[str], flow: Pipeline, entry: Entry, where: str) -> None:
    """Refuse what is probably misspelt: what was meant would run."""
    from difflib import get_close_matches

    known = _selectors_of(flow) | _insertable(entry)
    for selector in selectors:
        if not _names(selector, known) and get_close_matches(selector, known, n=1):
            raise UsageError(
                f"--skip {_quoted(selector)}: {where} has no such stage, action or tag. "
                f"{suggestion(selector, known)} (If it is inserted later: --allow-unknown)"
            )


def _names(selector: str, known: set[str]) -> bool:
    """Whether a selector is one of these, or of a stage of a template that is."""
    return not known.isdisjoint((selector, selector.partition("/")[0].partition("[")[0]))


def _insertable(entry: Entry) -> set[str]:
    """Return selectors of what the module of a workflow has, and may insert."""
    from flowdeco.model.definitions import Template, Unit

    known: set[str] = set()
    for thing in vars(entry.module).values():
        if isinstance(thing, Template):
            known |= {thing.name, *(f"tag:{tag}" for tag in cast("Any", thing).tags)}
        elif isinstance(thing, Unit):
            known |= _selectors_of(thing)
    return known


def _selectors_of(unit: Unit) -> set[str]:
    """Return every selector that finds something in a unit before it is run."""
    from flowdeco.model.definitions import (
        Action,
        Parallel,
        Pipeline,
        action_selectors,
        one_action_stage,
        stage_selectors,
    )

    if isinstance(unit, (Pipeline, Parallel)):
        return {*stage_selectors(unit), *(name for part in unit.units for name in _selectors_of(part))}
    stage: Any = one_action_stage(cast("Any", unit)) if isinstance(unit, Action) else unit
    return {*stage_selectors(stage), *(name for action in stage for name in action_selectors(stage, action))}


# Running.


def _run(options: Namespace) -> int:
    from flowdeco.cli.entry_point import load

    inputs = read_inputs(options)
    entry = load(options.entry)
    flow = _only(entry, options.only, options.entry)
    if not options.allow_unknown:
        _check_skip(options.skip, flow, entry, options.entry)
    path = None if options.no_journal else options.journal or os.environ.get(JOURNAL)
    journal = _journal(path, options.codec, _reference(entry, options.only)) if path else None
    return _perform(
        options, path, inputs,
        lambda how: flow.run(inputs, skip=options.skip, journal=journal, run_id=options.run_id, **how),
    )  # fmt: skip


def _resume(options: Namespace) -> int:
    inputs = read_inputs(options)
    path = _journal_path(options)
    entry, info = _entry_and_run(options, path)
    flow = _only(entry, options.only, entry.reference)
    if not options.allow_unknown:
        _check_skip(options.skip, flow, entry, entry.reference)
    if entry.in_file:
        sys.modules["__main__"] = entry.module  # what a script wrote while it was the main module is found in its file
    journal = _journal(path, info.codec, _reference(entry, options.only))
    over = info.status in ("completed", "bailed") and options.on_change != "rerun" and not options.from_stage
    return _perform(
        options, path, inputs,
        lambda how: flow.resume(
            info.id, inputs, journal=journal, on_change=options.on_change, from_stage=options.from_stage,
            skip=options.skip, **how,
        ),
        over=over,
    )  # fmt: skip


def _perform(
    options: Namespace, path: str | None, inputs: Iterable[str], perform: Callable[[dict[str, Any]], Run],
    *, over: bool = False,
) -> int:  # fmt: skip
    """Run, say what came of it, and return the exit code; of a run that was `over` before, that nothing did."""
    from flowdeco.engine.runs import Run

    _configure_logging(options.verbose)
    if options.html and not os.path.isdir(os.path.dirname(options.html) or "."):
        raise UsageError(f"--html {options.html}: there is no such directory")
    how: dict[str, Any] = {"check": False}
    if options.progress:
        how["progress"] = True
    try:
        with _interrupts(), _standard_output_for_data(options.json):
            run = perform(how)
    except KeyboardInterrupt as interrupt:
        try:
            run = Run.of(interrupt)
        except LookupError:
            return INTERRUPTED
    _tell(run, options, path, inputs, over=over)
    code = _CODES.get(str(run.status), FAILED)
    if options.html:
        try:
            run.to_html(options.html)
        except OSError as error:
            _complain(error, options, f"the page is not written: {error}")
            return code or FAILED
    return code


def _tell(run: Run, options: Namespace, path: str | None, inputs: Iterable[str], *, over: bool) -> None:
    from flowdeco.cli.report import duration, one_line, painted, run_as_data, stages

    if options.json:
        _print_json(run_as_data(run))
    elif over and run.status in ("completed", "bailed"):
        print(f"run {run.id} was {painted(str(run.status), sys.stdout)} already: nothing to do")
        _tell_result(run)
    else:
        if not (options.progress and sys.stdout.isatty()):  # which has shown them
            stages(run, sys.stdout)
        counted = f"{len(run.stages)} stage{'s' * (len(run.stages) != 1)}"
        why = f": {one_line(run.reason)}" if run.reason else ""
        print(f"\n{painted(str(run.status), sys.stdout)}{why} ({counted}, {duration(run.elapsed)}, run {run.id})")
        _tell_result(run)
    found = list(doubts(run, inputs, options))
    if run.status == "failed" and run.error is not None:
        _complain(run.error, options, _failure(run, run.error) + (f" ({'; '.join(found)})" if found else ""))
    else:
        for doubt in found:
            print(f"flowdeco: {painted('warning', sys.stderr)}: {doubt}", file=sys.stderr)
    if path is None:
        if run.status == "suspended":
            print("flowdeco: it has no --journal, and cannot be resumed", file=sys.stderr)
    elif not hasattr(run.error, "changes"):
        _tell_how_to_go_on(run.id, str(run.status), run.reason, options)


def _tell_result(run: Run) -> None:
    from flowdeco.cli.report import one_line, plain, shortened

    if run.result is not None and run.status in ("completed", "bailed"):
        print(f"result: {shortened(one_line(repr(plain(run.result))), 300)}")


def _failure(run: Run, error: BaseException) -> str:
    """Return what failed, and where, unless the error says that itself."""
    from flowdeco.cli.report import where

    place = where(run)
    text = _message(error) if hasattr(error, "changes") else _described(error)
    if not place:
        return text
    return str(error) if str(error).startswith(place) else f"{place} failed: {text}"


def _tell_how_to_go_on(run: str, status: str, reason: str | None, options: Namespace, entry: str = "") -> None:
    if status in ("failed", "suspended", "cancelled", "crashed"):
        value = f" -i {_quoted(awaited(reason) or 'KEY')}=VALUE" if status == "suspended" else ""
        given = f" --journal {_quoted(options.journal)}" if options.journal else ""
        print(f"flowdeco: to go on: flowdeco resume {entry}{_quoted(run)}{given}{value}", file=sys.stderr)


def _described(error: BaseException) -> str:
    """Return an exception in one line, as the last line of a traceback has it."""
    if isinstance(error, BaseExceptionGroup):
        parts: tuple[BaseException, ...] = cast("Any", error).exceptions
        return f"{error.message}: {'; '.join(map(_described, parts))}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)


def _configure_logging(verbosity: int) -> None:
    import logging

    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbosity, 2)]
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


@contextmanager
def _standard_output_for_data(wanted: bool) -> Generator[None, None, None]:
    """Send what the workflow prints, its subprocesses included, to the standard error."""
    if not wanted:
        yield
        return
    from contextlib import redirect_stdout

    sys.stdout.flush()
    try:
        number = sys.stdout.fileno()
        kept = os.dup(number)
        os.dup2(sys.stderr.fileno(), number)
    except (OSError, ValueError):  # no file, but an object in memory
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, number)
        os.close(kept)


@contextmanager
def _interrupts() -> Generator[None, None, None]:
    """Have the first Ctrl-C cancel the run and wait for its clean-up, and the second end the process at once.

    What was written to a journal by then is there, as after any end of a process.
    """
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = False

    def interrupt(signum: int, frame: object) -> None:
        nonlocal told
        if told:
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\x1b[0m")  # a progress display may have hidden the cursor
            os._exit(INTERRUPTED)
        told = True
        with suppress(OSError):
            os.write(2, b"\nflowdeco: cancelling... (Ctrl-C again ends it at once, without clean-up)\n")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if not told:  # else the process is about to end, and must not be interrupted in telling what happened
            signal.signal(signal.SIGINT, before)


# Looking.


def _validate(options: Namespace) -> int:
    from flowdeco.cli.entry_point import load
    from flowdeco.cli.report import painted

    options.input = [text if "=" in text else f"{text}=" for text in options.input]
    problems = load(options.entry).unit.validate(read_inputs(options))
    errors = [problem for problem in problems if problem.certain or options.strict]
    if options.json:
        _print_json([problem._asdict() for problem in problems])
    else:
        told: set[tuple[str, str]] = set()
        for problem in problems:
            label = painted("error" if problem in errors else "possible", sys.stdout)
            needs, nothing, _ = problem.message.partition(", and no input")
            again = nothing and (problem.key, label) in told  # who else needs it: the rest has been said
            told.add((problem.key, label))
            print(f"{label}: {f'{needs}, too' if again else problem.message}")
        counted = f"{len(errors)} error{'s' * (len(errors) != 1)}, {len(problems) - len(errors)} possible"
        print(f"{options.entry}: {counted if problems else 'no problems'}")
    return FAILED if errors else FINE


def _plan(options: Namespace) -> int:
    from flowdeco.cli.entry_point import load
    from flowdeco.cli.report import plan_as_data
    from flowdeco.model.definitions import as_pipeline

    entry = load(options.entry)
    flow: Any = _only(entry, options.only, options.entry) if options.only else entry.unit
    if options.skip:
        flow = as_pipeline(flow)
        _check_planned("--skip", options.skip, flow, entry, options.entry)
        flow = flow.without(*options.skip)
    plan = flow.plan()
    if options.json:
        _print_json(plan_as_data(plan))
        return FINE
    return _print_picture(plan, f"plan of {options.entry}", options)


def _diff(options: Namespace) -> int:
    from flowdeco.cli.history import crashed, recorded

    path = _journal_path(options)
    entry, info = _entry_and_run(options, path)
    flow = _only(entry, options.only, entry.reference)
    if entry.in_file:
        sys.modules["__main__"] = entry.module
    ran = recorded(path, info, flow).ran()
    diff = flow.plan().diff(crashed(ran) if _state(info) == "crashed" else ran)
    if options.json:
        changes = [change._asdict() for change in diff.changes]
        _print_json({"id": info.id, "status": _state(info), "counts": diff.counts(), "changes": changes})
        return FINE
    return _print_picture(diff, f"plan and run {info.id}", options)


def _print_picture(picture: Any, title: str, options: Namespace) -> int:
    text = str(getattr(picture, options.format)())
    if options.format == "html":
        text = _page(title, text)
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else f"{text}\n")
    else:
        print(text.rstrip("\n"))
    return FINE


def _page(title: str, piece: str) -> str:
    """Return a piece of HTML as a page of its own."""
    from html import escape

    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n{piece}\n</html>'
    )


def _print_json(data: Any) -> None:
    import json

    encodes_all = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    print(json.dumps(data, indent=2, ensure_ascii=not encodes_all))


# Journals.


def _journal_path(options: Namespace) -> str:
    path = options.journal or os.environ.get(JOURNAL)
    if not path:
        raise UsageError(f"name the journal: --journal runs.db, or {JOURNAL}=runs.db in the environment")
    if not os.path.exists(path):
        raise UsageError(f"there is no journal {path}")
    return cast("str", path)


def _journal(path: str, codec: str, reference: str) -> Any:
    from flowdeco.durable import SqliteJournal

    if codec not in ("pickle", "json"):
        raise UsageError(f"the run is written in the codec {codec!r}, which only your program knows: resume it there")
    return SqliteJournal(path, codec=cast("Any", codec), entry=reference)


def _reference(entry: Entry, only: Iterable[str]) -> str:
    """Return what finds the pipeline again: the entry point, and what was left of it."""
    import shlex

    return shlex.join([entry.reference, *(f"--only={selector}" for selector in only)])


def _find(path: str, wanted: str, *, whole: bool = False) -> RunInfo:
    """Return the run of that id, or of the only id that begins so, unless it must be `whole`."""
    from flowdeco.durable import runs

    found = runs(path)
    if not found:
        raise UsageError(f"{path} has no runs")
    if wanted == LATEST and not any(info.id == LATEST for info in found):
        return found[0]
    exact = [info for info in found if info.id == wanted]
    close = exact or [info for info in found if wanted and info.id.startswith(wanted)]
    if len(close) == 1 and not (whole and not exact):
        return close[0]
    if len(close) == 1:
        raise UsageError(f"what is deleted is named in full, and {wanted!r} is no run of {path}: {close[0].id!r} is")
    if close:
        several = ", ".join(info.id for info in close[:5])
        raise UsageError(
            f"{len(close)} runs of {path} begin with {wanted!r}: {several}{', …' if len(close) > 5 else ''}"
        )
    raise UsageError(f"{path} has no run {wanted!r}. {suggestion(wanted, [info.id for info in found[:100]])}")


def _entry_and_run(options: Namespace, path: str) -> tuple[Entry, RunInfo]:
    """Return the workflow, as it was given or as the journal knows it, and the run."""
    import shlex

    from flowdeco.cli.entry_point import load

    *given, wanted = options.run
    if len(given) > 1:
        raise UsageError(f"expected [FILE.py:FLOW] RUN, not {' '.join(options.run)}")
    if wanted.endswith(".py") or ".py:" in wanted:
        run = given[0] if given else "RUN"
        raise UsageError(f"the run comes last: flowdeco {options.command} {_quoted(wanted)} {run}")
    info = _find(path, wanted)
    if given:
        return load(given[0]), info
    if info.entry is None:
        raise UsageError(
            f"the journal does not know where the workflow of run {info.id!r} is, which was not started by this "
            f"command: name it, as in flowdeco resume file.py:flow {wanted}"
        )
    reference, *only = shlex.split(info.entry)
    options.only = options.only or [selector.removeprefix("--only=") for selector in only]
    return load(reference), info


def _state(info: RunInfo) -> str:
    return "crashed" if info.status == "running" and info.owner is None else info.status


def _workflow(info: RunInfo) -> str:
    """Return how people know the workflow: by its file, if that is known and nobody has given it a name."""
    if info.entry is None or info.pipeline != "pipeline":
        return info.pipeline
    return os.path.basename(info.entry)


def _check_statuses(wanted: Iterable[str]) -> None:
    from flowdeco.durable.info import STATUSES

    known = [*STATUSES, "crashed"]
    for status in wanted:
        if status not in known:
            raise UsageError(f"--status {status}: there is no such status. {suggestion(status, known)}")


def _info_as_data(info: RunInfo) -> dict[str, Any]:
    from flowdeco.engine.location import places_of

    error, places = places_of(info.error)
    failed = [place._asdict() for place in places]
    return {**info._asdict(), "status": _state(info), "error": error or None, "failed": failed}


def _table_of(found: Iterable[RunInfo]) -> None:
    from flowdeco.cli.report import moment, one_line, shortened, table
    from flowdeco.engine.location import places_of

    rows = [
        (info.id, _workflow(info), _state(info), moment(info.started), str(info.steps),
         shortened(one_line(places_of(info.error)[0] or info.reason or (f"by {info.owner}" if info.owner else "")), 80))
        for info in found
    ]  # fmt: skip
    table(["RUN", "WORKFLOW", "STATUS", "STARTED", "STEPS", "WHY"], rows, sys.stdout, right=["STEPS"])


def _runs(options: Namespace) -> int:
    from flowdeco.durable import runs

    path = _journal_path(options)
    _check_statuses(options.status)
    found = [info for info in runs(path) if not options.status or _state(info) in options.status]
    if options.limit is not None:
        found = found[: max(0, options.limit)]
    if options.json:
        _print_json([_info_as_data(info) for info in found])
    elif found:
        _table_of(found)
    else:
        print(f"{path} has no {' or '.join(options.status)} runs".replace("  ", " "))
    return FINE


def _show(options: Namespace) -> int:
    from flowdeco.durable import history
    from flowdeco.durable.info import steps
    from flowdeco.engine.location import places_of

    path = _journal_path(options)
    info = _find(path, options.run or LATEST)
    rows = history(path, info.id)
    error, places = places_of(info.error)
    if options.json:
        _print_json({**_info_as_data(info), "history": [_row_as_data(row) for row in rows]})
        return FINE
    last = max((row.started + row.elapsed for row in rows), default=0.0)  # it is not noted at every step
    _head(info._replace(error=error or None, updated=max(info.updated, last)))
    _steps(steps(rows), _state(info), places)
    _tell_how_to_go_on(info.id, _state(info), info.reason, options, "" if info.entry else "FILE.py:FLOW ")
    return FINE


def _row_as_data(row: Any) -> dict[str, Any]:
    wanted = ("branch", "number", "kind", "stage", "action", "status", "started", "elapsed")
    return {name: getattr(row, name) for name in wanted} | {"bytes": len(row.payload)}


def _head(info: RunInfo) -> None:
    from flowdeco.cli.report import duration, moment, one_line, painted

    why = info.error or info.reason
    status = painted(_state(info), sys.stdout) + (f": {one_line(why)}" if why else "")
    lines = [
        ("run", info.id),
        ("pipeline", info.pipeline),
        ("workflow", info.entry or "not known to the journal"),
        ("status", f"{status} (by {info.owner})" if info.owner else status),
        ("started", moment(info.started)),
        ("updated", f"{moment(info.updated)}, {duration(max(0.0, info.updated - info.started))} later"),
    ]
    for name, value in lines:
        print(f"{name:<9} {value}")


def _steps(found: Iterable[Step], state: str, places: Sequence[Place]) -> None:
    from flowdeco.cli.report import duration, table

    rows: list[tuple[str, str, str]] = []
    left = list(places)
    for step in found:
        took = sum(row.elapsed for row in step.actions)  # a stage whose end was all that was left of it on a resume
        status, elapsed = (
            (step.row.status, duration(max(step.row.elapsed, took))) if step.row is not None else (state, "")
        )
        if step.row is None and state == "crashed":
            status = "crashed here or later"  # the end of a stage is written with what comes next
        rows.append((step.name, status, elapsed if status != "skipped" else ""))
        if [row.action for row in step.actions] != [step.name]:
            rows.extend((f"  {row.action}", row.status, duration(row.elapsed)) for row in step.actions)
        place = next((place for place in left if step.row is None and place.stage == step.name), None)
        if place is not None:
            left.remove(place)
            rows.extend([(f"  {place.action}", _stopped(place, state), "")] if place.action is not None else [])
    for place in left:  # nothing in the stage is over
        alone = place.action in (None, place.stage)
        rows.append((place.stage, _stopped(place, state) if alone else state, ""))
        rows.extend([] if alone else [(f"  {place.action}", _stopped(place, state), "")])
    if rows:
        print()
        table(["STAGE", "STATUS", "TIME"], rows, sys.stdout, right=["TIME"])


def _stopped(place: Place, state: str) -> str:
    return f"{state}, {place.attempts} attempts" if place.attempts > 1 else state


_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _age(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", "0s" if text == "0" else text)
    if found is None:
        raise UsageError(f"--older-than takes a number and a unit, as 90s, 45m, 12h, 30d or 2w, not {text!r}")
    return float(found[1]) * _UNITS[found[2]]


def _purge(options: Namespace) -> int:
    from flowdeco.durable import delete
    from flowdeco.errors import RunBusyError, RunNotFoundError

    path = _journal_path(options)
    doomed = _doomed(options, path)
    deleted: list[RunInfo] = []
    for info in doomed:
        try:
            if not options.dry_run:
                delete(path, info.id)
        except (RunBusyError, RunNotFoundError):  # somebody was faster
            if options.run:
                raise
        else:
            deleted.append(info)
    if options.json:
        _print_json({"deleted": [info.id for info in deleted], "dry_run": options.dry_run})
        return FINE
    if options.dry_run and deleted:
        _table_of(deleted)
    verb = "would delete" if options.dry_run else "deleted"
    named = f": {', '.join(info.id for info in deleted)}" if options.run and deleted else ""
    print(f"{verb} {len(deleted)} run{'s' * (len(deleted) != 1)}{named}")
    return FINE


def _doomed(options: Namespace, path: str) -> list[RunInfo]:
    """Return the runs that are to be deleted; one that somebody works on only where it was named."""
    import time

    from flowdeco.durable import runs

    _check_statuses(options.status)
    if bool(options.run) == (options.older_than is not None):
        raise UsageError(f"say which runs: their ids, or --older-than 30d{', but not both' if options.run else ''}")
    if options.run:
        found = [_find(path, wanted, whole=True) for wanted in options.run]
    else:
        before = time.time() - _age(options.older_than)
        found = [info for info in runs(path) if info.updated <= before and info.owner is None]
    return [info for info in found if not options.status or _state(info) in options.status]


COMMANDS: Final[dict[str, Callable[[Namespace], int]]] = {
    "run": _run,
    "validate": _validate,
    "plan": _plan,
    "runs": _runs,
    "show": _show,
    "resume": _resume,
    "diff": _diff,
    "purge": _purge,
}
