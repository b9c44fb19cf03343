"""Who inserted whom, read from the records of a run.

Names do not tell: two stages may have one. The number of the inserting step does, in the branch in which it ran; what came
with a group that was inserted as a whole was inserted by the inserter of the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flowdeco.engine.outcome import Scope, StageRecord, innermost_branch

__all__ = ["DEEPEST", "Inserters", "depths"]

DEEPEST: Final = 16  # insertions that are nested deeper are shown at this level


class Inserters:
    """Finds the stage that inserted a unit, among the records of a run."""

    def __init__(self, records: Sequence[StageRecord]) -> None:
        self._indexes: dict[tuple[object, int], int] = {}  # by branch and number of a stage, or of one of its actions
        for index, record in enumerate(records):
            branch = _branch(record.scope)
            for did in (record, *record.actions):
                self._indexes[branch, did.number] = index

    def find(self, by: str | None, scope: Scope | None) -> int | None:
        """Return the index of the stage that inserted a unit of this scope; None if nobody did, or it is forgotten."""
        while by is not None:
            number = getattr(by, "number", None)
            if number is not None:
                return self._indexes.get((_branch(scope), number))
            branch = innermost_branch(scope)
            if branch is None:
                return None
            by, scope = branch.inserted_by, branch.outer  # it came with its group
        return None


def depths(records: Sequence[StageRecord]) -> list[int]:
    """Return how many inserters are above each stage of a run, for a list of stages; turns of a loop have one depth."""
    inserters = Inserters(records)
    found: list[int] = []
    for record in records:
        parent = inserters.find(record.inserted_by, record.scope)
        above = 0 if parent is None else found[parent] + (records[parent].name != record.name)
        found.append(min(above, DEEPEST))
    return found


def _branch(scope: Scope | None) -> object:
    branch = innermost_branch(scope)
    return None if branch is None else (branch.id, branch.branch)
