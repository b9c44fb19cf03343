"""The options of the command line, and their completion in a shell."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, NoReturn, cast

import flowdeco
from flowdeco.cli.exit_codes import USAGE
from flowdeco.errors import suggestion

__all__ = ["JOURNAL", "LATEST", "parsed"]

JOURNAL: Final = "FLOWDECO_JOURNAL"  # the environment variable
LATEST: Final = "latest"


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; exits where they ask for help, or are wrong."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser)
    return parser.parse_args(arguments or ["--help"])


EXIT_CODES: Final = """\
exit codes:
  0    the run completed, or bailed; the command succeeded
  1    the run failed; validate found an error; a replay differs;
       the output could not be written
  2    nothing was run: wrong usage, an unknown name, a pipeline that cannot run
  3    the run is suspended
  130  the run was cancelled: by Ctrl-C, or flowdeco cancel
  143  the run was cancelled by SIGTERM
"""

ENVIRONMENT: Final = f"""\
environment variables:
  {JOURNAL}  the journal of commands without --journal
  NO_COLOR          if not empty: no colors; it wins over FORCE_COLOR
  FORCE_COLOR       if not empty: colors, even if the output is not a terminal
"""

# By command; None stands for all of them together.
EXAMPLES: Final = {
    None: """
  flowdeco run flows.py:backup -i 'tables=["users", "orders"]' --journal runs.db
  flowdeco show latest --journal runs.db
  flowdeco COMMAND --help
""",
    "run": """
  flowdeco run flows.py:backup -i 'tables=["users", "orders"]' -i limit=3
  flowdeco run shop.flows:backup --inputs inputs.json --skip tag:slow
  flowdeco run flows.py:backup --journal runs.db --html run.html
  flowdeco run flows.py:backup --help
""",
    "validate": """
  flowdeco validate flows.py:backup -i tables
""",
    "plan": """
  flowdeco plan flows.py:backup
  flowdeco plan flows.py:backup -o plan.html
""",
    "runs": """
  flowdeco runs --journal runs.db --status failed --limit 10
""",
    "show": """
  flowdeco show monday --journal runs.db
  flowdeco show latest --html
""",
    "resume": """
  flowdeco resume monday --journal runs.db
  flowdeco resume monday -i approval=yes
  flowdeco resume flows.py:backup monday --on-change rerun
""",
    "diff": """
  flowdeco diff monday --journal runs.db
  flowdeco diff monday -o monday.md
""",
    "replay": """
  flowdeco replay monday publish/publish --journal runs.db
  flowdeco replay latest 'copy[users]/rows' --pdb
  flowdeco replay latest copy/rows --nth 2
""",
    "wake": """
  flowdeco wake runs.db
  flowdeco wake runs.db --watch
""",
    "answer": """
  flowdeco answer monday approval=yes --journal runs.db
  flowdeco answer monday 'tables:=["users"]' --error 'approval=nobody is there'
""",
    "cancel": """
  flowdeco cancel monday --journal runs.db
""",
    "ui": """
  flowdeco ui runs.db
  flowdeco ui runs.db --port 8080 --no-open
""",
    "purge": """
  flowdeco purge monday --journal runs.db
  flowdeco purge --older-than 30d --status completed --dry-run
""",
}


def _epilog(command: str | None) -> str:
    """Return the end of a help: examples, exit codes, environment variables."""
    return "\n".join([f"examples:{EXAMPLES.get(command, '')}".rstrip() + "\n", EXIT_CODES, ENVIRONMENT])


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows an argument with several values as its metavar: `[FILE.py:FLOW] RUN`."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar) if action.nargs == "+" else super()._format_args(action, default_metavar)


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, with a suggestion."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False, "formatter_class": _Formatter})
        self.commands: dict[str, _Parser] = {}

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {message.rstrip('.')} (see: {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            close = suggestion(str(value), map(str, action.choices))
            if action.dest == "command":
                raise argparse.ArgumentError(None, f"there is no command {value!r}. {close}")
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}. {close}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.commands:
            self._check_options_before_the_command(args)
        known, rest = super().parse_known_args(args, namespace)
        if isinstance(getattr(known, "run", None), list) and not any(text.startswith("-") for text in rest):
            known.run += rest  # arguments that argparse leaves when options stand between them
            return known, []
        if rest:
            self._refuse(rest)
        return known, rest

    def _check_options_before_the_command(self, args: Sequence[str]) -> None:
        for text in args:
            if not text.startswith("-"):
                return
            if text not in self._option_string_actions:
                later = any(text in command._option_string_actions for command in self.commands.values())
                self.error(f"{text} comes after the command") if later else self._refuse([text])

    def _refuse(self, rest: Sequence[str]) -> NoReturn:
        known = [option for option in self._option_string_actions if option.startswith("--")]
        wrong = next((text for text in rest if text.startswith("-")), "")
        close = suggestion(wrong.partition("=")[0], known, closeness=0.7) if wrong else ""
        if not wrong and "=" in rest[0] and "--input" in known:
            close = f"Did you mean -i {rest[0]}?"
        self.error(f"unrecognized arguments: {' '.join(rest)}{f'. {close}' if close.startswith('Did') else ''}")


class _HelpWithInputs(argparse.Action):
    """Prints the help and, of the workflow that is named before, the inputs that it takes."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        parser.print_help()
        if getattr(namespace, "entry", None):
            from flowdeco.cli.commands import report_error

            try:
                _print_inputs(namespace.entry)
            except Exception as error:
                parser.exit(report_error(error, argparse.Namespace(traceback=False)))
        parser.exit()


def _print_inputs(entry: str) -> None:
    from flowdeco.cli.conversion import listed
    from flowdeco.cli.entry_point import load
    from flowdeco.cli.report import say
    from flowdeco.model.selectors import may_insert
    from flowdeco.model.units import every_unit

    unit = load(entry).unit
    lines = list(listed(unit))
    more = "inserted stages may take more" if may_insert(every_unit((unit,))) else ""
    say(f"\ninputs of {entry}:" if lines else f"\n{entry} takes no inputs{more and f'; {more}'}")
    for line in lines:
        say(f"  {line}")
    if lines and more:
        say(f"  ({more}, which are not converted)")


def _one_or_more(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, not {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if (seconds := float(text)) >= 0:
            return seconds
    raise argparse.ArgumentTypeError(f"expected a number of seconds, or inf for never, not {text!r}")


def _positive_seconds(text: str) -> float:
    with suppress(ValueError):
        if (seconds := float(text)) > 0:
            return seconds
    raise argparse.ArgumentTypeError(f"expected a positive number of seconds, not {text!r}")


def _run_id(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a name, not an empty string")
    return text


def _parser() -> _Parser:
    parser = _Parser(prog="flowdeco", description="Run staged workflows, and inspect their runs.", epilog=_epilog(None))
    parser.add_argument("--version", action="version", version=f"flowdeco {flowdeco.__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )

    def command(name: str, help: str) -> _Parser:
        made: _Parser = commands.add_parser(
            name, help=help, description=help[0].upper() + help[1:] + ".", add_help=name != "run",
            epilog=_epilog(name),
        )  # fmt: skip
        if name == "run":
            made.add_argument(
                "-h", "--help", action=_HelpWithInputs, nargs=0, default=argparse.SUPPRESS,
                help="show this help message and exit; after FILE.py:FLOW, list its inputs as well",
            )  # fmt: skip
        made.add_argument("--traceback", action="store_true", help="show the traceback of an error")
        parser.commands[name] = made
        return made

    _run_options(command("run", "run a workflow"))
    _validate_options(command("validate", "check for parameters that nothing supplies, without running anything"))
    _plan_options(command("plan", "show the stages that a workflow would run"))
    _runs_options(command("runs", "list the runs of a journal"))
    _show_options(command("show", "show the steps of a run"))
    _resume_options(command("resume", "resume a run that failed, was suspended, cancelled or killed"))
    _diff_options(command("diff", "compare a run with its plan"))
    _replay_options(command("replay", "call one recorded step again, and compare the outcomes"))
    _purge_options(command("purge", "delete runs from a journal, and the large values that no other run has"))
    _wake_options(command("wake", "resume the runs that are due, answered or crashed"))
    _ui_options(command("ui", "show the runs of a journal in the browser, live; answer, cancel and resume them"))
    _answer_options(command("answer", "record answers to the questions of a run, without resuming it"))
    _cancel_options(command("cancel", "cancel a run: at its next step, or at once if it is not active"))
    return parser


def _add_entry(parser: _Parser) -> None:
    added = parser.add_argument("entry", metavar="FILE.py:FLOW", help="the workflow: file.py:flow or module:flow")
    _completed_by(added, _complete_entry)


def _add_inputs(parser: _Parser) -> None:
    added = parser.add_argument(
        "-i", "--input", action="append", default=[], metavar="KEY=VALUE", dest="input",
        help="an input, converted by the annotation of the parameter that takes it; KEY:=VALUE is JSON; can be repeated",
    )  # fmt: skip
    _completed_by(added, _complete_input)
    parser.add_argument(
        "--inputs", metavar="FILE", help="a JSON object of inputs, to which -i adds; - reads it from stdin"
    )


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("an empty string is not the path of a file: write --journal runs.db")
    return text


def _add_journal(parser: _Parser, help: str) -> None:
    parser.add_argument("--journal", metavar="PATH", type=_path, help=f"{help} (default: ${JOURNAL})")


def _add_only(parser: _Parser) -> None:
    _add_selectors(parser, "--only", "run only")


def _add_skip(parser: _Parser) -> None:
    _add_selectors(parser, "--skip", "skip")


def _add_selectors(parser: _Parser, option: str, verb: str) -> None:
    added = parser.add_argument(
        option, action="append", default=[], metavar="SELECTOR",
        help=f"{verb} these: stage, stage/action or tag:name; can be repeated",
    )  # fmt: skip
    _completed_by(added, _complete_selector)


def _add_json(parser: _Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_running(parser: _Parser) -> None:
    _add_skip(parser)
    parser.add_argument(
        "--allow-unknown", action="store_true",
        help="accept a --skip that resembles a known name: the stage may be inserted later",
    )  # fmt: skip
    _add_suspend_after(parser)
    parser.add_argument(
        "--timeout", type=_positive_seconds, metavar="SECONDS",
        help="the run fails if it takes longer: running coroutines are cancelled, and nothing more begins",
    )  # fmt: skip
    parser.add_argument("--progress", action="store_true", help="show a live display (extra: flowdeco[rich])")
    parser.add_argument("--html", metavar="FILE", help="write an HTML page of the run")
    _add_values(parser)
    parser.add_argument("-v", "--verbose", action="count", default=0, help="show log messages; -vv: all of them")
    _add_json(parser)


def _add_values(parser: _Parser) -> None:
    parser.add_argument("--values", action="store_true", help="show values on the page, and redact nothing")


def _add_suspend_after(parser: _Parser) -> None:
    parser.add_argument(
        "--suspend-after", type=_seconds, default=60.0, metavar="SECONDS",
        help="suspend a durable run for sleeps longer than this (default: 60)",
    )  # fmt: skip


def _run_options(parser: _Parser) -> None:
    _add_entry(parser)
    _add_inputs(parser)
    _add_only(parser)
    _add_journal(parser, "record the run in this file, so that it can be resumed")
    parser.add_argument("--no-journal", action="store_true", help=f"keep no journal, even if ${JOURNAL} names one")
    parser.add_argument(
        "--codec", choices=["pickle", "json"], default="pickle", help="the format of the journal (default: pickle)"
    )
    parser.add_argument("--run-id", type=_run_id, metavar="ID", help="the name of the run (default: a random one)")
    _add_running(parser)


def _validate_options(parser: _Parser) -> None:
    _add_entry(parser)
    added = parser.add_argument(
        "-i", "--input", action="append", default=[], metavar="KEY", dest="input",
        help="the name of an input, with or without =VALUE; can be repeated",
    )  # fmt: skip
    _completed_by(added, _complete_input)
    parser.add_argument("--inputs", metavar="FILE", help="a JSON object of inputs; - reads it from stdin")
    parser.add_argument("--strict", action="store_true", help="report possible problems as errors, too")
    _add_json(parser)


def _add_format(parser: _Parser) -> None:
    parser.add_argument(
        "--format", choices=["text", "mermaid", "html"],
        help="the format (default: by the suffix of the file, .html, .mmd or .md; otherwise text)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE", help="write it to this file")
    _add_json(parser)


def _plan_options(parser: _Parser) -> None:
    _add_entry(parser)
    _add_only(parser)
    _add_skip(parser)
    _add_format(parser)


def _add_status(parser: _Parser) -> None:
    added = parser.add_argument(
        "--status", action="append", default=[], metavar="STATUS", help="only runs of this status; can be repeated"
    )
    _completed_by(added, _complete_status)


def _runs_options(parser: _Parser) -> None:
    _add_journal(parser, "the journal")
    _add_status(parser)
    parser.add_argument("--limit", type=_one_or_more, metavar="N", help="only the latest N")
    _add_json(parser)


def _add_run(parser: _Parser, metavar: str, nargs: str, help: str) -> argparse.Action:
    added = parser.add_argument("run", metavar=metavar, nargs=nargs, help=help)
    _completed_by(added, _complete_run)
    _add_journal(parser, "the journal")
    return added


_RUN: Final = f"the run: its id, the beginning of its id, or {LATEST}"
_ENTRY_AND_RUN: Final = f"{_RUN}; preceded by the workflow, if the journal does not know it"


def _show_options(parser: _Parser) -> None:
    _add_run(parser, "RUN", "?", f"{_RUN} (default: {LATEST})")
    parser.add_argument(
        "--html",
        metavar="FILE",
        nargs="?",
        const="",
        help="write the page of the run (default: RUN.html), and show nothing",
    )
    _add_values(parser)
    parser.add_argument("--force", action="store_true", help="overwrite the page if it exists")
    parser.add_argument("--messages", action="store_true", help="also show the messages of the actions")
    _add_json(parser)


def _resume_options(parser: _Parser) -> None:
    _add_run(parser, "[FILE.py:FLOW] RUN", "+", _ENTRY_AND_RUN)
    _add_inputs(parser)
    _add_only(parser)
    parser.add_argument(
        "--on-change", choices=["error", "ignore", "rerun"], default="error",
        help="how to treat completed actions whose code has changed (default: error)",
    )  # fmt: skip
    added = parser.add_argument("--from-stage", metavar="STAGE", help="make a new run that continues from this stage")
    _completed_by(added, _complete_stage)
    _add_error(parser)
    _add_running(parser)


def _diff_options(parser: _Parser) -> None:
    _add_run(parser, "[FILE.py:FLOW] RUN", "+", _ENTRY_AND_RUN)
    _add_only(parser)
    _add_format(parser)


def _replay_options(parser: _Parser) -> None:
    _add_run(parser, "[FILE.py:FLOW] RUN STAGE/ACTION", "+", f"{_ENTRY_AND_RUN}; and the step")
    parser.add_argument(
        "--nth", type=_one_or_more, metavar="N", help="the N-th of several steps with this name (default: the last)"
    )
    parser.add_argument("--pdb", action="store_true", help="debug it: stop at its first line, and where it raises")
    parser.set_defaults(only=[])
    _add_json(parser)


def _purge_options(parser: _Parser) -> None:
    _add_run(parser, "RUN", "*", f"the run: its full id, or {LATEST}; one or more")
    parser.add_argument(
        "--older-than", metavar="AGE", help="all runs not updated for this long: 90s, 45m, 12h, 30d, 2w"
    )
    _add_status(parser)
    parser.add_argument("--dry-run", action="store_true", help="delete nothing, only list them")
    _add_json(parser)


def _add_positional_journal(parser: _Parser) -> None:
    parser.add_argument("journal", metavar="JOURNAL", nargs="?", type=_path, help=f"the journal (default: ${JOURNAL})")


def _ui_options(parser: _Parser) -> None:
    _add_positional_journal(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="the address to listen on (default: only this machine)"
    )
    parser.add_argument(
        "--port", type=_port, metavar="N", help="the port; 0 for any (default: 8347, or the next one that is free)"
    )
    parser.add_argument(
        "--open", action=argparse.BooleanOptionalAction,
        help="open the page in a browser (default: on a terminal of this machine)",
    )  # fmt: skip
    parser.add_argument(
        "--unpickle", action="store_true",
        help="load the values of pickle journals, which runs code: only for journals that you trust like code",
    )  # fmt: skip


def _wake_options(parser: _Parser) -> None:
    _add_positional_journal(parser)
    parser.add_argument(
        "--watch", action="store_true", help="keep running, and look every second, until SIGINT or SIGTERM"
    )
    _add_suspend_after(parser)
    parser.add_argument("-v", "--verbose", action="count", default=0, help="show log messages; -vv: all of them")
    _add_json(parser)


def _add_error(parser: _Parser) -> None:
    added = parser.add_argument(
        "--error", action="append", default=[], metavar="KEY=TEXT",
        help="answer this question with a failure, a RuntimeError; can be repeated",
    )  # fmt: skip
    _completed_by(added, _complete_answer)


def _answer_options(parser: _Parser) -> None:
    added = _add_run(
        parser, "RUN KEY=VALUE ...", "+",
        f"{_RUN}; and the answers, converted by the type of their question; KEY:=VALUE is JSON",
    )  # fmt: skip
    _completed_by(added, _complete_answer)
    _add_error(parser)
    _add_json(parser)


def _cancel_options(parser: _Parser) -> None:
    _completed_by(parser.add_argument("run", metavar="RUN", help=_RUN), _complete_run)
    _add_journal(parser, "the journal")
    _add_json(parser)


# Completion, which reads the source of a workflow and never runs it.


def _complete(parser: _Parser) -> None:
    with suppress(ImportError):  # the extra `completion`; a shell has no use for an error message
        import_module("argcomplete").autocomplete(parser)


def _completed_by(argument: argparse.Action, completer: Callable[..., Iterator[str]]) -> None:
    argument.completer = completer  # type: ignore[attr-defined]  # read by argcomplete  # pyright: ignore[reportAttributeAccessIssue]


def _complete_entry(prefix: str, **_: Any) -> Iterator[str]:
    from flowdeco.cli.entry_point import names_in

    where, colon, _name = prefix.rpartition(":")
    if colon:
        yield from (f"{where}:{name}" for name in names_in(where, templates=False))
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


def _named_runs(parsed_args: argparse.Namespace) -> tuple[Any, list[Any], Any]:
    """Return the journal, its runs, and the one that the line names already, None if there is none."""
    from flowdeco.durable import runs

    path, run = parsed_args.journal or os.environ[JOURNAL], parsed_args.run
    given = cast("list[str]", run) if isinstance(run, list) else []
    infos = runs(path)
    chosen = (info for info in infos for name in given if name == info.id)
    return path, infos, next(chosen, infos[0] if LATEST in given else None)


def _complete_run(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    with suppress(Exception):
        path, infos, chosen = _named_runs(parsed_args)
        if chosen is not None and parsed_args.command == "replay":
            yield from _names(prefix, path, chosen, "action")
        else:
            yield from (info.id for info in infos if info.id.startswith(prefix))


def _complete_stage(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    with suppress(Exception):
        path, _infos, chosen = _named_runs(parsed_args)
        yield from _names(prefix, path, chosen, "stage")


def _names(prefix: str, path: str, info: Any, kind: str) -> Iterator[str]:
    """Yield the names of the stages or actions of a run; of a long run none, because a shell should not wait."""
    from flowdeco.durable import history

    if info.steps <= _MOST_STEPS:
        found = (row for row in history(path, info.id) if row.kind == kind)
        names = (f"{row.stage}/{row.action}" if row.action else row.stage for row in found)
        yield from dict.fromkeys(name for name in names if name.startswith(prefix))


_MOST_STEPS: Final = 20_000


def _complete_answer(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    """Complete a run that asks something, or, after it, the keys that it asks for."""
    with suppress(Exception):
        _path, infos, chosen = _named_runs(parsed_args)
        asking = (info.id for info in infos if info.questions)
        keys = asking if chosen is None else (f"{question.key}=" for question in chosen.questions)
        yield from dict.fromkeys(key for key in keys if key.startswith(prefix))


def _complete_input(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    """Complete the keys that actions of the file take, and, of a run, those that it waits for."""
    from flowdeco.cli.entry_point import parameters_in
    from flowdeco.cli.inputs import awaited_keys

    *named, run = getattr(parsed_args, "run", None) or [None]
    entry = str(getattr(parsed_args, "entry", None) or next(iter(named), ""))
    keys: list[str] = []
    with suppress(Exception):
        if run:
            from flowdeco.durable import runs

            infos = runs(parsed_args.journal or os.environ[JOURNAL])
            info = next(info for info in infos if run == LATEST or info.id.startswith(run))
            keys, entry = awaited_keys(info.reason), entry or (info.entry or "").partition(" ")[0]
    keys += parameters_in(entry.rpartition(":")[0] or entry)
    equals = "" if getattr(parsed_args, "command", "") == "validate" else "="
    yield from dict.fromkeys(f"{key}{equals}" for key in keys if key.startswith(prefix))


def _complete_status(prefix: str, **_: Any) -> Iterator[str]:
    from flowdeco.durable.info import STATUSES

    yield from (status for status in (*STATUSES, "crashed") if status.startswith(prefix))


def _complete_selector(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    from flowdeco.cli.entry_point import names_in, tags_in

    where = str(getattr(parsed_args, "entry", "") or "").rpartition(":")[0]
    yield from (name for name in (*names_in(where), *tags_in(where)) if name.startswith(prefix))
