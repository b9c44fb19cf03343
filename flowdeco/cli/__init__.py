# PYTHON_ARGCOMPLETE_OK
"""The command line, `flowdeco` and `python -m flowdeco`: how it ends. Its options are in `arguments`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flowdeco.cli.exit_codes import INTERRUPTED, USAGE

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments (by default those of the process) say, and return the exit code."""
    try:
        from flowdeco.cli.arguments import parsed  # here, so that Ctrl-C has its exit code while they are imported, too
        from flowdeco.cli.commands import perform

        return perform(parsed(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as end:  # argparse has printed help, a version or what is wrong
        return end.code if isinstance(end.code, int) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
