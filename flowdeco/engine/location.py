"""Where a run failed, written behind the error in its journal: that has rows of what is over, and none of what failed.

ConnectionError: refused
in action 'upload' of stage 'publish', 3 attempts
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from flowdeco.errors import members_of, told

if TYPE_CHECKING:
    from flowdeco.engine.runs import ActionRecord, Run, StageRecord

__all__ = ["Place", "error_of", "places_of"]

MOST: Final = 50  # of the branches of one group


class Place(NamedTuple):
    """A stage that did not come to its end, and the action that was to blame, if it was one.

    `error` is told where it is only a part of what the run failed with: the failures of several branches.
    """

    stage: str
    action: str | None = None
    attempts: int = 1
    error: str = ""

    def __str__(self) -> str:
        action = f"action {self.action!r} of " if self.action is not None else ""
        attempts = f", {self.attempts} attempts" if self.attempts > 1 else ""
        return f"in {action}stage {self.stage!r}{attempts}{': ' if self.error else ''}{self.error}"


_NAME: Final = r"""('(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
_PLACE: Final = rf"in (?:action {_NAME} of )?stage {_NAME}(?:, (\d+) attempts)?(?:: (.*))?"


def error_of(run: Run) -> str | None:
    """Return what a run failed with, as its journal has it; None if it did not."""
    error = run.error
    if error is None:
        return None
    return "\n".join([told(error), *map(str, reversed(list(_places(run, error))))])


def places_of(text: str | None) -> tuple[str, list[Place]]:
    """Return the error alone, and the places that were written behind it."""
    lines = (text or "").split("\n")
    places: list[Place] = []
    while len(lines) > 1 and (found := re.fullmatch(_PLACE, lines[-1])) is not None:
        action, stage, attempts, error = found.groups()
        named = None if action is None else literal_eval(action)
        places.insert(0, Place(literal_eval(stage), named, int(attempts or 1), error or ""))
        lines.pop()
    return "\n".join(lines), places


def _places(run: Run, error: BaseException) -> Iterator[Place]:
    """Yield where an error came from, the last one first."""
    blamed = {id(each): each for each in members_of(error)}
    left = MOST
    for record in reversed(run.stages):  # it is among the last ones
        if not left:
            return
        if id(record.error) in blamed and _is_stopped(record):
            left -= 1
            action = next((each for each in reversed(record.actions) if each.error is record.error), None)
            said = told(record.error).partition("\n")[0] if record.error is not error else ""
            if action is None or not _is_stopped(action):
                yield Place(record.name, None, record.attempts, said)
            else:
                yield Place(record.name, action.name, action.attempts, said)


def _is_stopped(record: StageRecord | ActionRecord) -> bool:
    return record.status in ("failed", "cancelled") and not record.recovered
