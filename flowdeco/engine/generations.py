"""Generations of a run: it begins again when its pipeline has changed, and the change is ignored.

The rows of a later generation are those of branches with a suffix (`~1`, `~2`, ...). So the rows of earlier ones, whose
steps are adopted (`adoption`), stay as they are until the run has completed, and a crash loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flowdeco.engine.journal import Codec, Journal, Remembered, Row

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


class Generation:
    """The journal of a run in a later generation; `older` are the branches of the earlier ones."""

    def __init__(self, journal: Journal, number: int, older: Iterable[str]) -> None:
        self.codec: Codec = journal.codec
        self.takes_parts = getattr(journal, "takes_parts", False)
        self.number = number
        self.older = frozenset(older)
        self._journal = journal
        self._suffix = f"{_MARK}{number}"
        self.create, self.open, self.read = journal.create, journal.open, journal.read
        self.proceed, self.release = journal.proceed, journal.release
        self.add_inputs, self.answer, self.close = journal.add_inputs, journal.answer, journal.close

    @staticmethod
    def of(journal: Journal, remembered: Remembered) -> Journal:
        """Return the journal as the present generation of a run writes it."""
        number = _last(remembered.rows)
        return journal if number == 0 else Generation(journal, number, _older(remembered, number))

    @staticmethod
    def after(journal: Journal, remembered: Remembered) -> Generation:
        """Return the journal of the next generation of a run."""
        number = 1 + _last(remembered.rows)
        return Generation(journal, number, _older(remembered, number))

    def write(self, run_id: str, rows: Sequence[Row]) -> None:
        """Remember steps."""
        self._journal.write(run_id, [row._replace(branch=row.branch + self._suffix) for row in rows])

    def drop(self, run_id: str, cuts: Mapping[str, int]) -> None:
        """Forget the rows of these branches from these numbers on."""
        self._journal.drop(run_id, {branch + self._suffix: since for branch, since in cuts.items()})

    def drop_older(self, run_id: str) -> None:
        """Forget the earlier generations."""
        self._journal.drop(run_id, dict.fromkeys(self.older, 0))


def _number(row: Row) -> int:
    return int(row.branch.partition(_MARK)[2] or 0)


def _last(rows: Iterable[Row]) -> int:
    return max(map(_number, rows), default=0)


def _older(remembered: Remembered, number: int) -> set[str]:
    return {row.branch for row in remembered.rows if _number(row) < number}
