"""The exit codes of the command line; `help.txt` says when a command has which."""

from typing import Final

__all__ = ["FAILED", "FINE", "INTERRUPTED", "SUSPENDED", "USAGE"]

FINE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
SUSPENDED: Final = 3
INTERRUPTED: Final = 130
