"""The exit codes of the command line.

0    the run completed, or bailed; the command succeeded
1    the run failed; validate found an error; a replay differs; the output could not be written
2    nothing was run: wrong usage, an unknown name, a pipeline that cannot run
3    the run is suspended
130  the run was cancelled: by Ctrl-C, or flowdeco cancel
143  the run was cancelled by SIGTERM
"""

from typing import Final

__all__ = ["FAILED", "FINE", "INTERRUPTED", "SUSPENDED", "USAGE"]

FINE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
SUSPENDED: Final = 3
INTERRUPTED: Final = 130
