"""Views of flows and runs: plans, runs, diffs, and the page of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from flowdeco.show.plan import Change, Diff, Plan, Ran, html_of, plan, ran

if TYPE_CHECKING:
    from flowdeco.engine.runs import Run

__all__ = ["Change", "Diff", "Plan", "Ran", "html_of", "plan", "ran", "write_page"]


def write_page(
    run: Run,
    path: str | os.PathLike[str],
    values: bool,
    *,
    of: Ran | None = None,
    compared: bool = True,
    resume: str = "",
) -> Path:
    """Write the page of a run, and return its path.

    `of` is the view of the run, if it is not what its records say, and `resume` the command that resumes it; `compared`
    with its plan, which a run that was read from a journal does not have.
    """
    from flowdeco.show.page import page

    shown = ran(run) if of is None else of
    diff = plan(run.pipeline).diff(shown) if compared else None
    target = Path(path)
    # Half of a surrogate pair, which cannot be encoded, is shown as its number.
    target.write_bytes(page(run, shown, diff, values=values, resume=resume).encode("utf-8", "backslashreplace"))
    return target
