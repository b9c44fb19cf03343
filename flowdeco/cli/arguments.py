"""The options of the command line, and their completion in a shell."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, NamedTuple, NoReturn, cast

import flowdeco
from flowdeco.cli.exit_codes import USAGE
from flowdeco.errors import suggestion

__all__ = ["JOURNAL", "LATEST", "parsed"]

JOURNAL: Final = "FLOWDECO_JOURNAL"  # the environment variable
LATEST: Final = "latest"
_CODES: Final = "exit codes:"


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; exits where they ask for help, or are wrong."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        with suppress(ImportError):  # the extra `completion`; a shell has no use for an error message
            import_module("argcomplete").autocomplete(parser)
    return parser.parse_args(arguments or ["--help"])


def help_texts() -> dict[str, str]:
    """Return the texts of `help.txt`: the examples of each command, the exit codes of some, and the end of every help."""
    path = os.path.join(os.path.dirname(__file__), "help.txt")
    loader: Any = __spec__.loader
    text = loader.get_data(path).decode()  # also from a zip file; `importlib.resources` takes longer to import
    text = text.replace("\r\n", "\n")
    return dict(part.split("\n", 1) for part in text.removeprefix("# ").split("\n# "))


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows an argument with several values as its metavar: `[FILE.py:FLOW] RUN`."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar) if action.nargs == "+" else super()._format_args(action, default_metavar)


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, with a suggestion."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False, "formatter_class": _Formatter})
        self.commands: dict[str, _Parser] = {}

    def format_help(self) -> str:
        texts, command = help_texts(), self.prog.rpartition(" ")[2]
        codes = next(text for title, text in texts.items() if title.startswith(_CODES) and command in title.split())
        self.epilog = f"examples:\n{texts[command]}\n\n{_CODES}\n{codes}\n\n{texts['every command']}"
        return super().format_help()

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


def _number(convert: Callable[[str], float], fits: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    """Return the type of an option that is a number."""

    def checked(text: str) -> float:
        with suppress(ValueError):
            if fits(number := convert(text)):
                return number
        raise argparse.ArgumentTypeError(f"expected {expected}, not {text!r}")

    return checked


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else -1


_one_or_more = _number(_whole, lambda number: number >= 1, "a number of at least 1")
_port = _number(_whole, lambda number: 0 <= number <= 65535, "a number from 0 to 65535")
_seconds = _number(float, lambda number: number >= 0, "a number of seconds, or inf for never")
_positive_seconds = _number(float, lambda number: number > 0, "a positive number of seconds")


def _run_id(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a name, not an empty string")
    return text


def _path(instead: str) -> Callable[[str], str]:
    """Return the type of an option that is the path of a file."""

    def checked(text: str) -> str:
        if not text:
            raise argparse.ArgumentTypeError(f"an empty string is not the path of a file: write {instead}")
        return text

    return checked


_journal_path, _page_path = _path("--journal runs.db"), _path("--html page.html")


# Completion, which reads the source of a workflow and never runs it. A completer may yield more than what begins with the
# prefix, and anything twice: argcomplete chooses.


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


def _complete_run(parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    with suppress(Exception):
        path, infos, chosen = _named_runs(parsed_args)
        if chosen is not None and parsed_args.command == "replay":
            yield from _names(path, chosen, "action")
        else:
            yield from (info.id for info in infos)


def _complete_stage(parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    with suppress(Exception):
        path, _infos, chosen = _named_runs(parsed_args)
        yield from _names(path, chosen, "stage")


def _names(path: str, info: Any, kind: str) -> Iterator[str]:
    """Yield the names of the stages or actions of a run; of a long run none, because a shell should not wait."""
    from flowdeco.durable import history

    if info.steps <= _MOST_STEPS:
        found = (row for row in history(path, info.id) if row.kind == kind)
        yield from (f"{row.stage}/{row.action}" if row.action else row.stage for row in found)


_MOST_STEPS: Final = 20_000


def _complete_answer(parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    """Complete a run that asks something, or, after it, the keys that it asks for."""
    with suppress(Exception):
        _path, infos, chosen = _named_runs(parsed_args)
        asking = (info.id for info in infos if info.questions)
        yield from asking if chosen is None else (f"{question.key}=" for question in chosen.questions)


def _complete_input(parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    """Complete the keys that actions of the file take, and, of a run, those that it waits for."""
    from flowdeco.cli.entry_point import parameters_in

    *named, run = getattr(parsed_args, "run", None) or [None]
    entry = str(getattr(parsed_args, "entry", None) or next(iter(named), ""))
    keys: list[str] = []
    with suppress(Exception):
        if run:
            from flowdeco.durable import runs

            infos = runs(parsed_args.journal or os.environ[JOURNAL])
            info = next(info for info in infos if run == LATEST or info.id.startswith(run))
            keys = [question.key for question in info.questions]
            entry = entry or (info.entry or "").partition(" ")[0]
    keys += parameters_in(entry.rpartition(":")[0] or entry)
    yield from keys if parsed_args.command == "validate" else (f"{key}=" for key in keys)


def _complete_status(**_: Any) -> Iterator[str]:
    from flowdeco.durable.info import STATUSES

    yield from (*STATUSES, "crashed")


def _complete_selector(parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    from flowdeco.cli.entry_point import names_in, tags_in

    where = str(getattr(parsed_args, "entry", "") or "").rpartition(":")[0]
    yield from (*names_in(where), *tags_in(where))


# The commands.


class _Option(NamedTuple):
    """An option or argument of commands, as `add_argument` takes it; `completes` yields the completions of a prefix."""

    names: tuple[str, ...]
    settings: dict[str, Any]
    completes: Callable[..., Iterator[str]] | None


def _option(*names: str, completes: Callable[..., Iterator[str]] | None = None, **settings: Any) -> _Option:
    return _Option(names, settings, completes)


def _repeated(*names: str, completes: Callable[..., Iterator[str]], help: str, **settings: Any) -> _Option:
    help = f"{help}; can be repeated"
    return _option(*names, completes=completes, action="append", default=[], help=help, **settings)


def _selectors(option: str, verb: str) -> _Option:
    help = f"{verb} these: stage, stage/action or tag:name"
    return _repeated(option, completes=_complete_selector, metavar="SELECTOR", help=help)


def _journal(help: str = "the journal") -> _Option:
    return _option("--journal", metavar="PATH", type=_journal_path, help=f"{help} (default: ${JOURNAL})")


def _run(
    help: str = "", metavar: str = "RUN", completes: Callable[..., Iterator[str]] | None = None, **n: str
) -> _Option:
    help = f"the run: its id, the beginning of its id, or {LATEST}{help}"
    return _option("run", metavar=metavar, help=help, completes=completes or _complete_run, **n)


_NAMED: Final = "; preceded by the workflow, if the journal does not know it"
_ENTRY: Final = _option(
    "entry", metavar="FILE.py:FLOW", help="the workflow: file.py:flow or module:flow", completes=_complete_entry
)
_INPUT: Final = _repeated(
    "-i", "--input", metavar="KEY=VALUE", dest="input", completes=_complete_input,
    help="an input, converted by the annotation of the parameter that takes it; KEY:=VALUE is JSON",
)  # fmt: skip
_INPUTS: Final = _option(
    "--inputs", metavar="FILE", help="a JSON object of inputs, to which -i adds; - reads it from stdin"
)
_ONLY, _SKIP = _selectors("--only", "run only"), _selectors("--skip", "skip")
_JSON: Final = _option("--json", action="store_true", help="print JSON")
_VALUES: Final = _option("--values", action="store_true", help="show values on the page, and redact nothing")
_VERBOSE: Final = _option("-v", "--verbose", action="count", default=0, help="show log messages; -vv: all of them")
_SUSPEND_AFTER: Final = _option(
    "--suspend-after", type=_seconds, default=60.0, metavar="SECONDS",
    help="suspend a durable run for sleeps longer than this (default: 60)",
)  # fmt: skip
_STATUS: Final = _repeated("--status", metavar="STATUS", help="only runs of this status", completes=_complete_status)
_ERROR: Final = _repeated(
    "--error", metavar="KEY=TEXT", completes=_complete_answer,
    help="answer this question with a failure, a RuntimeError",
)  # fmt: skip
_GIVEN_JOURNAL: Final = _option(
    "journal", metavar="JOURNAL", nargs="?", type=_journal_path, help=f"the journal (default: ${JOURNAL})"
)
_RUNNING: Final = (
    _SKIP,
    _option(
        "--allow-unknown", action="store_true",
        help="accept a --skip that resembles a known name: the stage may be inserted later",
    ),
    _SUSPEND_AFTER,
    _option(
        "--timeout", type=_positive_seconds, metavar="SECONDS",
        help="the run fails if it takes longer: running coroutines are cancelled, and nothing more begins",
    ),
    _option("--progress", action="store_true", help="show a live display (extra: flowdeco[rich])"),
    _option("--html", metavar="FILE", type=_page_path, help="write an HTML page of the run"),
    _VALUES, _VERBOSE, _JSON,
)  # fmt: skip
_DRAWN: Final = (
    _option(
        "--format", choices=["text", "mermaid", "html"],
        help="the format (default: by the suffix of the file, .html, .mmd or .md; otherwise text)",
    ),
    _option(
        "-o", "--output", metavar="FILE", type=_path("-o plan.html"), help="write it to this file; - is stdout, the default"
    ),
    _JSON,
)  # fmt: skip

_COMMANDS: Final[dict[str, tuple[str, *tuple[_Option, ...]]]] = {
    "run": (
        "run a workflow",
        _ENTRY, _INPUT, _INPUTS, _ONLY, _journal("record the run in this file, so that it can be resumed"),
        _option("--no-journal", action="store_true", help=f"keep no journal, even if ${JOURNAL} names one"),
        _option(
            "--codec", choices=["pickle", "json"], default="pickle", help="the format of the journal (default: pickle)"
        ),
        _option("--run-id", type=_run_id, metavar="ID", help="the name of the run (default: a random one)"),
        *_RUNNING,
    ),
    "validate": (
        "check for parameters that nothing supplies, without running anything",
        _ENTRY,
        _repeated(
            "-i", "--input", metavar="KEY", dest="input", completes=_complete_input,
            help="the name of an input, with or without =VALUE",
        ),
        _option("--inputs", metavar="FILE", help="a JSON object of inputs; - reads it from stdin"),
        _option("--strict", action="store_true", help="report possible problems as errors, too"), _JSON,
    ),
    "plan": ("show the stages that a workflow would run", _ENTRY, _ONLY, _SKIP, *_DRAWN),
    "runs": (
        "list the runs of a journal",
        _journal(), _STATUS, _option("--limit", type=_one_or_more, metavar="N", help="only the latest N"), _JSON,
    ),
    "show": (
        "show the steps of a run",
        _run(f" (default: {LATEST})", nargs="?"), _journal(),
        _option(
            "--html", metavar="FILE", nargs="?", const=True, type=_page_path,
            help="write the page of the run (default: RUN.html), and show nothing",
        ),
        _VALUES, _option("--force", action="store_true", help="overwrite the page if it exists"),
        _option("--messages", action="store_true", help="also show the messages of the actions"), _JSON,
    ),
    "resume": (
        "resume a run that failed, was suspended, cancelled or killed",
        _run(_NAMED, "[FILE.py:FLOW] RUN", nargs="+"), _journal(), _INPUT, _INPUTS, _ONLY,
        _option(
            "--on-change", choices=["error", "ignore", "rerun"], default="error",
            help="how to treat completed actions whose code has changed (default: error)",
        ),
        _option(
            "--from-stage", metavar="STAGE", help="make a new run that continues from this stage",
            completes=_complete_stage,
        ),
        _ERROR, *_RUNNING,
    ),
    "diff": (
        "compare a run with its plan",
        _run(_NAMED, "[FILE.py:FLOW] RUN", nargs="+"), _journal(), _ONLY, *_DRAWN,
    ),
    "replay": (
        "call one recorded step again, and compare the outcomes",
        _run(f"{_NAMED}; and the step", "[FILE.py:FLOW] RUN STAGE/ACTION", nargs="+"), _journal(),
        _option(
            "--nth", type=_one_or_more, metavar="N",
            help="the N-th of several steps with this name (default: the last)",
        ),
        _option("--pdb", action="store_true", help="debug it: stop at its first line, and where it raises"), _JSON,
    ),
    "purge": (
        "delete runs from a journal, and the large values that no other run has",
        _option(
            "run", metavar="RUN", nargs="*", help=f"the run: its full id, or {LATEST}; one or more",
            completes=_complete_run,
        ),
        _journal(),
        _option("--older-than", metavar="AGE", help="all runs not updated for this long: 90s, 45m, 12h, 30d, 2w"),
        _STATUS, _option("--dry-run", action="store_true", help="delete nothing, only list them"), _JSON,
    ),
    "wake": (
        "resume the runs that are due, answered or crashed",
        _GIVEN_JOURNAL,
        _option("--watch", action="store_true", help="keep running, and look every second, until SIGINT or SIGTERM"),
        _SUSPEND_AFTER, _VERBOSE, _JSON,
    ),
    "ui": (
        "show the runs of a journal in the browser, live; answer, cancel and resume them",
        _GIVEN_JOURNAL,
        _option(
            "--host", default="127.0.0.1", metavar="ADDRESS",
            help="the address to listen on (default: only this machine)",
        ),
        _option(
            "--port", type=_port, metavar="N", help="the port; 0 for any (default: 8347, or the next one that is free)"
        ),
        _option(
            "--open", action=argparse.BooleanOptionalAction,
            help="open the page in a browser (default: on a terminal of this machine)",
        ),
        _option(
            "--unpickle", action="store_true",
            help="load the values of pickle journals, which runs code: only for journals that you trust like code",
        ),
    ),
    "answer": (
        "record answers to the questions of a run, without resuming it",
        _run(
            "; and the answers, converted by the type of their question; KEY:=VALUE is JSON", "RUN KEY=VALUE ...",
            _complete_answer, nargs="+",
        ),
        _journal(), _ERROR, _JSON,
    ),
    "cancel": ("cancel a run: at its next step, or at once if it is not active", _run(), _journal(), _JSON),
}  # fmt: skip


def _parser() -> _Parser:
    parser = _Parser(prog="flowdeco", description="Run staged workflows, and inspect their runs.")
    parser.add_argument("--version", action="version", version=f"flowdeco {flowdeco.__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )
    for name, (help, *options) in _COMMANDS.items():
        made: _Parser = commands.add_parser(
            name, help=help, description=help[0].upper() + help[1:] + ".", add_help=name != "run"
        )
        parser.commands[name] = made
        if name == "run":
            made.add_argument(
                "-h", "--help", action=_HelpWithInputs, nargs=0, default=argparse.SUPPRESS,
                help="show this help message and exit; after FILE.py:FLOW, list its inputs as well",
            )  # fmt: skip
        made.add_argument("--traceback", action="store_true", help="show the traceback of an error")
        for option in options:
            added: Any = made.add_argument(*option.names, **option.settings)
            added.completer = option.completes  # read by argcomplete
    parser.commands["replay"].set_defaults(only=[])
    return parser
