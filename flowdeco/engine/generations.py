"""Generations of a run: it begins again when its pipeline has changed, and the change is ignored.

The rows of a later generation are those of branches with a suffix (`~1`, `~2`, ...). So the rows of earlier ones, whose
steps are adopted (`adoption`), stay as they are until the run has completed, and a crash loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from flowdeco.engine.journal import Remembered, Row
from flowdeco.model.tuples import NamedTuple

__all__ = ["Generation", "generations", "present_rows"]

_MARK = "~"


def generations(remembered: Remembered) -> list[Remembered]:
    """Return a run as it was in each of its generations, the present one last, without the suffixes of branches."""
    if not any(_MARK in row.branch for row in remembered.rows):
        return [remembered]
    rows: dict[int, list[tuple[int, Row]]] = {}
    for at, row in enumerate(remembered.rows):
        branch, _, number = row.branch.partition(_MARK)
        rows.setdefault(int(number or 0), []).append((at, row._replace(branch=branch)))
    return [
        remembered._replace(
            rows=[row for _, row in mine],
            inputs=[(sum(at < since for at, _ in mine), payload) for since, payload in remembered.inputs],
            legs=[(sum(at < since for at, _ in mine), started) for since, started in remembered.legs],
        )
        for _, mine in sorted(rows.items())
    ]


def present_rows(rows: list[Row]) -> list[Row]:
    """Return the rows of the present generation of a run, without the suffixes of branches."""
    last = _last(rows)
    return [row._replace(branch=row.branch.partition(_MARK)[0]) for row in rows if _number(row) == last]


class Generation(NamedTuple):
    """A generation of a run in its journal: the suffix of its branches, and the branches of those before it."""

    suffix: str = ""
    older: frozenset[str] = frozenset()

    @staticmethod
    def of(remembered: Remembered, *, later: int = 0) -> Generation:
        """Return the present generation of a run, or one so much later."""
        number = later + _last(remembered.rows)
        if number == 0:
            return Generation()
        return Generation(f"{_MARK}{number}", frozenset(row.branch for row in remembered.rows if _number(row) < number))


def _number(row: Row) -> int:
    return int(row.branch.partition(_MARK)[2] or 0)


def _last(rows: Iterable[Row]) -> int:
    return max(map(_number, rows), default=0)
