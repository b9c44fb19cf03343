# PYTHON_ARGCOMPLETE_OK
"""The command line, `flowdeco` and `python -m flowdeco`: how it ends. Its options are in `arguments`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from flowdeco.exits import FAILED, INTERRUPTED, USAGE

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments (by default those of the process) say, and return the exit code."""
    try:
        from flowdeco.arguments import parsed  # here, so that Ctrl-C has its exit code while they are imported, too
        from flowdeco.commands import perform

        code = perform(parsed(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except SystemExit as end:  # argparse has printed help, a version or what is wrong
        return end.code if isinstance(end.code, int) else USAGE
    except BrokenPipeError:  # `flowdeco runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code
