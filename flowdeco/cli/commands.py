"""The commands of the command line: where each is defined, and how its errors are reported.

Each command is a function of its own name that takes the options and returns the exit code. Results go to the standard
output, an error to the standard error, in one line.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from io import StringIO, TextIOWrapper
from typing import Any, Final, cast

from flowdeco.cli.exit_codes import FAILED, USAGE
from flowdeco.errors import FlowdecoError

__all__ = ["COMMANDS", "perform", "report_error"]

# By module, which is imported when its command is used: help needs none of them.
COMMANDS: Final = {
    "run": "flowdeco.cli.run",
    "validate": "flowdeco.cli.plans",
    "plan": "flowdeco.cli.plans",
    "runs": "flowdeco.cli.journals",
    "show": "flowdeco.cli.journals",
    "resume": "flowdeco.cli.run",
    "diff": "flowdeco.cli.plans",
    "replay": "flowdeco.cli.replay",
    "purge": "flowdeco.cli.journals",
    "wake": "flowdeco.cli.wake",
    "cancel": "flowdeco.cli.journals",
    "answer": "flowdeco.cli.answers",
    "ui": "flowdeco.cli.ui.command",
}


def perform(options: Namespace) -> int:
    """Perform the command of these options, and return the exit code."""
    _escape_unencodable_output()
    try:
        command: Callable[[Namespace], int] = getattr(import_module(COMMANDS[options.command]), options.command)
        code = command(options)
        sys.stdout.flush()
    except Exception as error:
        return report_error(error, options)
    return code


def report_error(error: Exception, options: Namespace) -> int:
    """Print an error, and return the exit code for it."""
    from flowdeco.cli.process import discard_broken_output
    from flowdeco.cli.report import describe_error, print_error

    if isinstance(error, FlowdecoError):
        print_error(error, options)
        return USAGE
    if not isinstance(error, OSError):
        print_error(error, options, f"{describe_error(error)} (--traceback shows where)")
        return FAILED
    if error.filename is not None:
        print_error(error, options, f"{error.filename}: {error.strerror}")
        return USAGE
    discard_broken_output(error, options)
    return FAILED


def _escape_unencodable_output() -> None:
    """Escape characters that the encoding of the standard output lacks, as the standard error does."""
    out: Any = sys.stdout
    if out is None:
        sys.stdout = StringIO()
    elif isinstance(out, TextIOWrapper):
        cast("Any", out).reconfigure(errors="backslashreplace")
