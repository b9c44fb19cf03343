"""How long the command line takes to start: `python tests/benchmarks/cli.py`.

In CPU time above that of a bare Python, with cached bytecode. What wrapt and typing-extensions take of it is shown
beside it: it is the larger part, and differs much between versions of wrapt.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

from measure import fastest_commands

BUDGET = 100  # milliseconds


def main() -> int:
    """Print what it takes, and return whether it is too much."""
    bare, needed, started = fastest_commands(
        ["-c", "pass"], ["-c", "import wrapt, typing_extensions"], ["-m", "flowdeco", "--help"]
    )
    took, dependencies = (started - bare) * 1000, (needed - bare) * 1000
    verdict = "PASS" if took <= BUDGET else "OVER"
    print(f"{verdict}  flowdeco --help, above Python: {took:.0f} ms of CPU time (budget {BUDGET} ms)")
    print(f"      of which wrapt {version('wrapt')} and typing-extensions: {dependencies:.0f} ms")
    return int(took > BUDGET)


if __name__ == "__main__":
    sys.exit(main())
