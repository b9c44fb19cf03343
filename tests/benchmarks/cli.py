"""How long the command line takes to start: `python tests/benchmarks/cli.py`.

In CPU time above that of a bare Python, with cached bytecode, from a warm disk; other packages of the environment cost
the same in both. Help, and what is read of a journal, need nothing but the standard library. A command that imports a
workflow imports wrapt and typing-extensions with it, as the workflow alone would: for these, the budget is for the rest,
and both are shown. How much wrapt takes differs much between its versions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from measure import fastest_commands

BUDGET = 100  # milliseconds
RUNS = 20  # in the journal
FLOW = """
from flowdeco import action

@action
def one() -> int:
    return 1

@action
def two(one: int) -> int:
    return one + 1

flow = one >> two
"""


def main() -> int:
    """Print what it takes, and return whether it is too much."""
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        flow, journal = str(Path(folder, "flow.py")), str(Path(folder, "runs.db"))
        Path(flow).write_text(FLOW)
        fill = f"from flow import flow\nfor _ in range({RUNS}): flow.run(journal={journal!r})"
        subprocess.run([sys.executable, "-c", fill], check=True, cwd=folder)
        bare, needed, help, runs, show, run = fastest_commands(
            ["-c", "pass"],
            ["-c", "import wrapt, typing_extensions"],
            ["-m", "flowdeco", "--help"],
            ["-m", "flowdeco", "runs", "--journal", journal],
            ["-m", "flowdeco", "show", "--journal", journal],
            ["-m", "flowdeco", "run", flow],
        )
    dependencies = f"wrapt {version('wrapt')} and typing-extensions"
    over = 0
    for what, took in [
        ("flowdeco --help, above Python", help - bare),
        (f"flowdeco runs of a journal of {RUNS}, above Python", runs - bare),
        ("flowdeco show of a run, above Python", show - bare),
        ("flowdeco run of two actions, above Python and what they import", run - needed),
    ]:
        over += took * 1000 > BUDGET
        verdict = "OVER" if took * 1000 > BUDGET else "PASS"
        print(f"{verdict}  {what:63} {took * 1000:4.0f} ms of CPU time (budget {BUDGET} ms)")
    print(
        f"      the last one above Python: {(run - bare) * 1000:.0f} ms; {dependencies}: {(needed - bare) * 1000:.0f} ms"
    )
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
