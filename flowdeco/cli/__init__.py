# PYTHON_ARGCOMPLETE_OK
"""The command line, `flowdeco` and `python -m flowdeco`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flowdeco.cli.exit_codes import INTERRUPTED, USAGE

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Perform the command of the arguments (by default those of the process), and return the exit code."""
    try:
        from flowdeco.cli.arguments import parsed  # late, so that Ctrl-C during the import has its exit code, too
        from flowdeco.cli.commands import perform

        return perform(parsed(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as end:  # argparse has printed help, a version or an error
        return end.code if isinstance(end.code, int) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
