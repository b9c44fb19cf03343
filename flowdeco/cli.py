# PYTHON_ARGCOMPLETE_OK
"""The command line: `flowdeco run file.py:flow`, and what belongs to it.

    0    the run completed, or bailed; there was nothing wrong
    1    the run failed
    2    nothing was run: wrong usage, a name that is not there, a pipeline that cannot run
    3    the run is suspended
    130  the run was cancelled by Ctrl-C

What a command found goes to the standard output, what went wrong to the standard error, in one line.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

if TYPE_CHECKING:
    from flowdeco.definitions import Pipeline, Unit
    from flowdeco.durable import RunInfo
    from flowdeco.entry import Entry
    from flowdeco.runs import Run

__all__ = ["main"]

FINE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
SUSPENDED: Final = 3
INTERRUPTED: Final = 130

JOURNAL: Final = "FLOWDECO_JOURNAL"
LATEST: Final = "latest"
_CODES: Final = {"completed": FINE, "bailed": FINE, "suspended": SUSPENDED, "cancelled": INTERRUPTED}


class UsageError(Exception):
    """What is told to the user in one line, after which nothing is run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments (by default those of the process) say, and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser)
    try:
        options = parser.parse_args(given or ["--help"])
        code = _performed(options)
        sys.stdout.flush()
    except SystemExit as end:  # argparse has printed help, a version or what is wrong
        return end.code if isinstance(end.code, int) else USAGE
    except BrokenPipeError:  # `flowdeco runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _performed(options: argparse.Namespace) -> int:
    from flowdeco.errors import FlowdecoError

    command = cast("Callable[[argparse.Namespace], int]", options.command)
    try:
        return command(options)
    except (FlowdecoError, UsageError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        _complain(error, options)
        return USAGE


def _complain(error: BaseException, options: argparse.Namespace, text: str | None = None) -> None:
    from flowdeco.report import one_line, painted

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
        more = f", and {len(changes) - 1} more" if len(changes) > 1 else ""
        return (
            f"the definition has changed since the run was interrupted: {changes[0]}{more}. "
            f"Give --on-change ignore to go on all the same, or --on-change rerun to run again from the first change"
        )
    return str(error) or type(error).__name__


# The options.


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, and what was probably meant."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **options)
        self.names: list[str] = []

    def error(self, message: str) -> NoReturn:
        from flowdeco.errors import suggestion

        wrong = re.search(r"(?:invalid choice: '|unrecognized arguments: )([^'\s]+)", message)
        known = self.names if "invalid choice" in message else self._long_options()
        close = suggestion(wrong[1], known) if wrong and known else ""
        if close.startswith("Did"):
            message = re.sub(r" \(choose from .*", "", message)
            message = f"{message}. {close}"
        self.exit(USAGE, f"{self.prog}: error: {message} (see: {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        known, rest = super().parse_known_args(args, namespace)
        if rest and self.get_default("command"):
            self.error(f"unrecognized arguments: {' '.join(rest)}")  # of the command, whose options can be named
        return known, rest

    def _long_options(self) -> list[str]:
        return [option for option in self._option_string_actions if option.startswith("--")]


def _parser() -> _Parser:
    import flowdeco

    parser = _Parser(prog="flowdeco", description="Run staged workflows, and look at what they did.")
    parser.add_argument("--version", action="version", version=f"flowdeco {flowdeco.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, perform: Callable[[argparse.Namespace], int], help: str) -> _Parser:
        made: _Parser = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        made.set_defaults(command=perform)
        made.add_argument("--traceback", action="store_true", help="show the traceback of an error")
        parser.names.append(name)
        return made

    _run_options(command("run", _run, "run a workflow"))
    _validate_options(command("validate", _validate, "look for parameters that nothing supplies, without running"))
    _plan_options(command("plan", _plan, "show what a workflow would run"))
    _runs_options(command("runs", _runs, "list the runs of a journal"))
    _show_options(command("show", _show, "show the steps of a run"))
    _resume_options(command("resume", _resume, "go on with a run that failed, was suspended, cancelled or killed"))
    _diff_options(command("diff", _diff, "compare what a run did with what was planned"))
    _purge_options(command("purge", _purge, "delete runs from a journal"))
    return parser


def _add_entry(parser: _Parser) -> None:
    parser.add_argument("entry", metavar="FILE.py:FLOW", help="the workflow: file.py:flow or module:flow").completer = (  # type: ignore[attr-defined]
        _complete_entry
    )


def _add_inputs(parser: _Parser) -> None:
    parser.add_argument(
        "-i", "--input", action="append", default=[], metavar="KEY=VALUE", dest="input",
        help="an input: KEY=VALUE is text, KEY:=VALUE is JSON; can be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--inputs", metavar="FILE", help="a JSON object of inputs, which -i adds to; - reads it from stdin"
    )


def _add_journal(parser: _Parser, help: str) -> None:
    parser.add_argument("--journal", metavar="PATH", help=f"{help} (default: ${JOURNAL})")


def _add_only(parser: _Parser) -> None:
    parser.add_argument(
        "--only", action="append", default=[], metavar="SELECTOR",
        help="leave out everything else: stage, stage/action or tag:name; can be repeated",
    ).completer = _complete_selector  # type: ignore[attr-defined]  # fmt: skip


def _add_json(parser: _Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_running(parser: _Parser) -> None:
    parser.add_argument(
        "--skip", action="append", default=[], metavar="SELECTOR",
        help="leave out stages and actions: stage, stage/action or tag:name; can be repeated",
    ).completer = _complete_selector  # type: ignore[attr-defined]  # fmt: skip
    parser.add_argument(
        "--allow-unknown", action="store_true",
        help="accept a --skip that resembles a known name but may be of a stage that is inserted later",
    )  # fmt: skip
    parser.add_argument("--progress", action="store_true", help="show the progress (extra: flowdeco[rich])")
    parser.add_argument("--html", metavar="FILE", help="write a page that shows the run")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="show log messages; -vv: all of them")
    _add_json(parser)


def _run_options(parser: _Parser) -> None:
    _add_entry(parser)
    _add_inputs(parser)
    _add_only(parser)
    _add_journal(parser, "remember the run in this file, so that it can be resumed")
    parser.add_argument("--no-journal", action="store_true", help=f"keep no journal, whatever ${JOURNAL} says")
    parser.add_argument("--codec", choices=["pickle", "json"], default="pickle", help="what the journal is written in")
    parser.add_argument("--run-id", metavar="ID", help="the name of the run (default: a random one)")
    _add_running(parser)


def _validate_options(parser: _Parser) -> None:
    _add_entry(parser)
    parser.add_argument(
        "-i", "--input", action="append", default=[], metavar="KEY", dest="input",
        help="an input that will be given, with or without =VALUE; can be repeated",
    )  # fmt: skip
    parser.add_argument("--inputs", metavar="FILE", help="a JSON object of inputs; - reads it from stdin")
    parser.add_argument("--strict", action="store_true", help="what may be missing is an error, too")
    _add_json(parser)


def _add_format(parser: _Parser) -> None:
    parser.add_argument("--format", choices=["text", "mermaid", "html"], default="text", help="how (default: text)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write it to a file")


def _plan_options(parser: _Parser) -> None:
    _add_entry(parser)
    _add_only(parser)
    _add_format(parser)


def _runs_options(parser: _Parser) -> None:
    _add_journal(parser, "the journal")
    parser.add_argument("--status", action="append", default=[], metavar="STATUS", help="only runs of this status")
    parser.add_argument("--limit", type=int, metavar="N", help="only the latest N")
    _add_json(parser)


def _add_run(parser: _Parser, metavar: str, nargs: str, help: str) -> None:
    added: Any = parser.add_argument("run", metavar=metavar, nargs=nargs, help=help)
    added.completer = _complete_run
    _add_journal(parser, "the journal")


_RUN: Final = f"the run: its id, the beginning of one, or {LATEST}"
_ENTRY_AND_RUN: Final = f"{_RUN}; before it the workflow, where the journal does not know it"


def _show_options(parser: _Parser) -> None:
    _add_run(parser, "RUN", "?", f"{_RUN} (default: {LATEST})")
    _add_json(parser)


def _resume_options(parser: _Parser) -> None:
    _add_run(parser, "[FILE.py:FLOW] RUN", "+", _ENTRY_AND_RUN)
    _add_inputs(parser)
    _add_only(parser)
    parser.add_argument(
        "--on-change", choices=["error", "ignore", "rerun"], default="error",
        help="what to do where completed actions have other code now (default: error)",
    )  # fmt: skip
    parser.add_argument("--from-stage", metavar="STAGE", help="make a new run that goes on from this stage")
    _add_running(parser)


def _diff_options(parser: _Parser) -> None:
    _add_run(parser, "[FILE.py:FLOW] RUN", "+", _ENTRY_AND_RUN)
    _add_only(parser)
    _add_format(parser)


def _purge_options(parser: _Parser) -> None:
    _add_run(parser, "RUN", "*", f"{_RUN}; can be several")
    parser.add_argument(
        "--older-than", metavar="AGE", help="all runs that nothing was heard of for so long: 90s, 45m, 12h, 30d, 2w"
    )
    parser.add_argument("--status", action="append", default=[], metavar="STATUS", help="only runs of this status")
    parser.add_argument("--dry-run", action="store_true", help="delete nothing, only list them")
    _add_json(parser)


# What a run is given.


def _inputs(options: argparse.Namespace) -> dict[str, Any]:
    """Return the inputs of a file, and over them those of `-i`."""
    found: dict[str, Any] = {}
    if options.inputs is not None:
        content = _json(_read(options.inputs), f"--inputs {options.inputs}: ")
        if not isinstance(content, dict):
            raise UsageError(f"--inputs {options.inputs}: expected a JSON object, not a {type(content).__name__}")
        found.update(cast("dict[str, Any]", content))
    found.update(map(_input, options.input))
    return found


def _input(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    as_json = key.endswith(":")
    key = key.removesuffix(":")
    if not equals or not key:
        raise UsageError(f"-i takes KEY=VALUE, or KEY:=VALUE for JSON, not {text!r}")
    return key, _json(value, f"-i {key}:=") if as_json else value


def _json(text: str, what: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        shown = text if len(text) < 60 else f"{text[:59]}…"
        raise UsageError(f"{what}{shown} is no JSON: {error}") from None


def _read(path: str) -> str:
    if path == "-":
        return sys.stdin.read()
    with open(path, encoding="utf-8") as file:
        return file.read()


def _only(unit: Unit, selectors: Sequence[str], where: str) -> Pipeline:
    """Return the pipeline with only what the selectors name."""
    from flowdeco.definitions import as_pipeline

    flow = as_pipeline(unit)
    if not selectors:
        return flow
    known = _selectors_of(flow)
    for selector in selectors:
        if selector not in known:
            raise UsageError(f"--only {selector}: {where} has no such stage, action or tag. {_names(selector, known)}")
    return flow.only(*selectors)


def _check_skip(selectors: Sequence[str], flow: Pipeline, entry: Entry) -> None:
    """Refuse what is probably misspelt: what was meant would run."""
    from difflib import get_close_matches

    from flowdeco.definitions import Template

    known = _selectors_of(flow)
    templates = {value.name for value in vars(entry.module).values() if isinstance(value, Template)}
    for selector in selectors:
        if selector in known or selector.partition("/")[0].partition("[")[0] in templates:
            continue
        if get_close_matches(selector, known | templates, n=1):
            raise UsageError(
                f"--skip {selector}: {entry.reference} has no such stage, action or tag. "
                f"{_names(selector, known | templates)} (If it is inserted later: --allow-unknown)"
            )


def _selectors_of(unit: Unit) -> set[str]:
    """Return every selector that finds something in a unit before it is run."""
    from flowdeco.definitions import Action, Parallel, Pipeline, action_selectors, one_action_stage, stage_selectors

    if isinstance(unit, (Pipeline, Parallel)):
        return {*stage_selectors(unit), *(name for part in unit.units for name in _selectors_of(part))}
    stage: Any = one_action_stage(cast("Any", unit)) if isinstance(unit, Action) else unit
    return {*stage_selectors(stage), *(name for action in stage for name in action_selectors(stage, action))}


def _names(wrong: str, known: Iterable[str]) -> str:
    from flowdeco.errors import suggestion

    return suggestion(wrong, known)


# Running.


def _run(options: argparse.Namespace) -> int:
    from flowdeco.entry import load

    inputs = _inputs(options)
    entry = load(options.entry)
    flow = _only(entry.unit, options.only, options.entry)
    if not options.allow_unknown:
        _check_skip(options.skip, flow, entry)
    path = None if options.no_journal else options.journal or os.environ.get(JOURNAL)
    journal = _journal(path, options.codec, _reference(entry, options.only)) if path else None
    return _perform(
        options, path, lambda how: flow.run(inputs, skip=options.skip, journal=journal, run_id=options.run_id, **how)
    )


def _resume(options: argparse.Namespace) -> int:
    inputs = _inputs(options)
    path = _journal_path(options)
    entry, info = _entry_and_run(options, path)
    flow = _only(entry.unit, options.only, entry.reference)
    if not options.allow_unknown:
        _check_skip(options.skip, flow, entry)
    if entry.in_file:
        sys.modules["__main__"] = entry.module  # what a script wrote while it was the main module is found in its file
    journal = _journal(path, info.codec, _reference(entry, options.only))
    return _perform(
        options,
        path,
        lambda how: flow.resume(
            info.id, inputs, journal=journal, on_change=options.on_change, from_stage=options.from_stage,
            skip=options.skip, **how,
        ),
    )  # fmt: skip


def _perform(options: argparse.Namespace, path: str | None, perform: Callable[[dict[str, Any]], Run]) -> int:
    """Run, say what came of it, and return the exit code."""
    from flowdeco.runs import Run

    _configure_logging(options.verbose)
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
    _tell(run, options, path)
    return _CODES.get(str(run.status), FAILED)


def _tell(run: Run, options: argparse.Namespace, path: str | None) -> None:
    from flowdeco.report import duration, one_line, painted, plain, run_as_data, shortened, stages, where

    if options.html:
        cast("Any", run).to_html(options.html)
    if options.json:
        _print_json(run_as_data(run))
    else:
        stages(run, sys.stdout)
        counted = f"{len(run.stages)} stage{'s' * (len(run.stages) != 1)}"
        why = f": {one_line(run.reason)}" if run.reason else ""
        print(f"\n{painted(str(run.status), sys.stdout)}{why} ({counted}, {duration(run.elapsed)}, run {run.id})")
        if run.result is not None and run.status in ("completed", "bailed"):
            print(f"result: {shortened(one_line(repr(plain(run.result))), 300)}")
    if run.status == "failed" and run.error is not None:
        place = where(run)
        text = _message(run.error) if hasattr(run.error, "changes") else _described(run.error)
        _complain(run.error, options, f"{place} failed: {text}" if place else text)
    if path is not None and run.status in ("failed", "suspended", "cancelled"):
        value = f" -i {_awaited(run.reason)}=VALUE" if run.status == "suspended" else ""
        given = f" --journal {_quoted(path)}" if options.journal else ""
        print(f"flowdeco: to go on: flowdeco resume {run.id}{given}{value}", file=sys.stderr)


def _awaited(reason: str | None) -> str:
    """Return the key that a run waits for, by the reason that `ctx.wait_for` gives."""
    found = re.fullmatch("waiting for '(.+)'", reason or "")
    return found[1] if found else "KEY"


def _described(error: BaseException) -> str:
    """Return an exception in one line, as the last line of a traceback has it."""
    if isinstance(error, BaseExceptionGroup):
        return f"{error.message}: {'; '.join(map(_described, cast('Any', error.exceptions)))}"
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
        signal.signal(signal.SIGINT, before)


# Looking.


def _validate(options: argparse.Namespace) -> int:
    from flowdeco.entry import load
    from flowdeco.report import painted

    options.input = [text if "=" in text else f"{text}=" for text in options.input]
    problems = load(options.entry).unit.validate(_inputs(options))
    certain = [problem for problem in problems if problem.certain or options.strict]
    if options.json:
        _print_json([problem._asdict() for problem in problems])
    else:
        for problem in problems:
            label = painted("error" if problem.certain else "possible", sys.stdout)
            print(f"{label}: {problem.message}")
        possible = len(problems) - sum(problem.certain for problem in problems)
        errors = f"{len(problems) - possible} error{'s' * (len(problems) - possible != 1)}"
        print(f"{options.entry}: {f'{errors}, {possible} possible' if problems else 'no problems'}")
    return FAILED if certain else FINE


def _plan(options: argparse.Namespace) -> int:
    from flowdeco.entry import load

    flow: Any = load(options.entry).unit
    return _print_picture(
        cast("Any", _only(flow, options.only, options.entry) if options.only else flow).plan(), options
    )


def _diff(options: argparse.Namespace) -> int:
    from flowdeco.recorded import recorded

    path = _journal_path(options)
    entry, info = _entry_and_run(options, path)
    flow = _only(entry.unit, options.only, entry.reference)
    if entry.in_file:
        sys.modules["__main__"] = entry.module
    run: Any = recorded(path, info, flow)
    return _print_picture(cast("Any", flow).plan().diff(run.ran()), options)


def _print_picture(picture: Any, options: argparse.Namespace) -> int:
    text = str(getattr(picture, options.format)())
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else f"{text}\n")
    else:
        print(text.rstrip("\n"))
    return FINE


def _print_json(data: Any) -> None:
    import json

    print(json.dumps(data, indent=2, ensure_ascii=False))


# Journals.


def _journal_path(options: argparse.Namespace) -> str:
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


def _find(path: str, wanted: str) -> RunInfo:
    """Return the run of that id, or of the only id that begins so."""
    from flowdeco.durable import runs

    found = runs(path)
    if not found:
        raise UsageError(f"{path} has no runs")
    if wanted == LATEST and not any(info.id == LATEST for info in found):
        return found[0]
    exact = [info for info in found if info.id == wanted]
    close = exact or [info for info in found if wanted and info.id.startswith(wanted)]
    if len(close) == 1:
        return close[0]
    if close:
        several = ", ".join(info.id for info in close[:5])
        raise UsageError(
            f"{len(close)} runs of {path} begin with {wanted!r}: {several}{', …' if len(close) > 5 else ''}"
        )
    raise UsageError(f"{path} has no run {wanted!r}. {_names(wanted, [info.id for info in found[:100]])}")


def _entry_and_run(options: argparse.Namespace, path: str) -> tuple[Entry, RunInfo]:
    """Return the workflow, as it was given or as the journal knows it, and the run."""
    import shlex

    from flowdeco.entry import load

    *given, wanted = options.run
    if len(given) > 1:
        raise UsageError(f"expected [FILE.py:FLOW] RUN, not {' '.join(options.run)}")
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
    from flowdeco.runs import Status

    known = [*map(str, Status), "crashed"]
    for status in wanted:
        if status not in known:
            raise UsageError(f"--status {status}: there is no such status. {_names(status, known)}")


def _info_as_data(info: RunInfo) -> dict[str, Any]:
    return {**info._asdict(), "status": _state(info)}


def _table_of(found: Iterable[RunInfo]) -> None:
    from flowdeco.report import moment, table

    rows = [
        (info.id, _workflow(info), _state(info), moment(info.started), str(info.steps),
         info.error or info.reason or (f"by {info.owner}" if info.owner else ""))
        for info in found
    ]  # fmt: skip
    table(["RUN", "WORKFLOW", "STATUS", "STARTED", "STEPS", "WHY"], rows, sys.stdout, right=["STEPS"])


def _runs(options: argparse.Namespace) -> int:
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


def _show(options: argparse.Namespace) -> int:
    from flowdeco.durable import history
    from flowdeco.recorded import steps

    path = _journal_path(options)
    info = _find(path, options.run or LATEST)
    rows = history(path, info.id)
    if options.json:
        _print_json({**_info_as_data(info), "history": [_row_as_data(row) for row in rows]})
        return FINE
    _head(info)
    _steps(steps(rows), _state(info))
    return FINE


def _row_as_data(row: Any) -> dict[str, Any]:
    wanted = ("branch", "number", "kind", "stage", "action", "status", "started", "elapsed")
    return {name: getattr(row, name) for name in wanted} | {"bytes": len(row.payload)}


def _head(info: RunInfo) -> None:
    from flowdeco.report import duration, moment, one_line, painted

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


def _steps(found: Iterable[Any], state: str) -> None:
    from flowdeco.report import duration, table

    rows: list[tuple[str, str, str]] = []
    for step in found:
        status, elapsed = (step.row.status, duration(step.row.elapsed)) if step.row is not None else (state, "")
        rows.append((step.name, status, elapsed if status != "skipped" else ""))
        if [row.action for row in step.actions] != [step.name]:
            rows.extend((f"  {row.action}", row.status, duration(row.elapsed)) for row in step.actions)
    if rows:
        print()
        table(["STAGE", "STATUS", "TIME"], rows, sys.stdout, right=["TIME"])


_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _age(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if found is None:
        raise UsageError(f"--older-than takes a number and a unit, as 90s, 45m, 12h, 30d or 2w, not {text!r}")
    return float(found[1]) * _UNITS[found[2]]


def _purge(options: argparse.Namespace) -> int:
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
    print(f"{verb} {len(deleted)} run{'s' * (len(deleted) != 1)}")
    return FINE


def _doomed(options: argparse.Namespace, path: str) -> list[RunInfo]:
    """Return the runs that are to be deleted; one that somebody works on only where it was named."""
    import time

    from flowdeco.durable import runs

    _check_statuses(options.status)
    if bool(options.run) == (options.older_than is not None):
        raise UsageError("say which runs: their ids, or --older-than 30d")
    if options.run:
        found = [_find(path, wanted) for wanted in options.run]
    else:
        before = time.time() - _age(options.older_than)
        found = [info for info in runs(path) if info.updated <= before and info.owner is None]
    return [info for info in found if not options.status or _state(info) in options.status]


# Completion, which runs nobody's code.


def _complete(parser: _Parser) -> None:
    try:
        import argcomplete
    except ImportError:
        return
    cast("Any", argcomplete).autocomplete(parser)


def _complete_entry(prefix: str, **_: Any) -> Iterator[str]:
    from flowdeco.entry import names_in

    where, colon, _name = prefix.rpartition(":")
    if colon:
        yield from (f"{where}:{name}" for name in names_in(where))
        return
    directory, _slash, beginning = prefix.rpartition("/")
    with suppress(OSError), os.scandir(directory or ".") as found:
        for each in found:
            path = f"{directory}/{each.name}" if directory else each.name
            if not each.name.startswith(beginning) or each.name.startswith("."):
                continue
            if each.is_dir():
                yield f"{path}/"
            elif each.name.endswith(".py"):
                yield f"{path}:"


def _complete_run(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    from flowdeco.durable import runs

    path = parsed_args.journal or os.environ.get(JOURNAL)
    with suppress(Exception):
        yield from (info.id for info in runs(path) if info.id.startswith(prefix))


def _complete_selector(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    from flowdeco.entry import names_in

    where = str(getattr(parsed_args, "entry", "") or "").rpartition(":")[0]
    yield from (name for name in names_in(where) if name.startswith(prefix))
