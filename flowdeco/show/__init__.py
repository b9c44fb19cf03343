"""Views of flows and runs: plans, runs, diffs, and the page of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from flowdeco.show.plan import Change, Diff, Plan, Ran, html_of, plan, ran

if TYPE_CHECKING:
    from flowdeco.engine.runs import Run

__all__ = ["Change", "Diff", "Plan", "Ran", "html_of", "plan", "ran", "write_page"]


def write_page(run: Run, path: str | os.PathLike[str], values: bool) -> Path:
    """Write the page of a run, compared with its plan, and return its path."""
    from flowdeco.show.page import page

    shown = ran(run)
    target = Path(path)
    # Half of a surrogate pair, which cannot be encoded, is shown as its number.
    target.write_bytes(
        page(run, shown, plan(run.pipeline).diff(shown), values=values).encode("utf-8", "backslashreplace")
    )
    return target
