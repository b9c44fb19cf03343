"""The timeline of a page: the positions of moments, and the lanes of branches that run at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from flowdeco.show.formatting import duration
from flowdeco.show.parts import Part

__all__ = ["Lanes", "Scale"]


class Scale:
    """Positions of moments between 0 and 1; long gaps without any stage, as before a resume, are cut short."""

    CUT: Final = 0.04  # the width of such a gap

    def __init__(self, spans: Iterable[tuple[float, float]]) -> None:
        busy = _joined(spans, 0.0)
        worked = sum(end - start for start, end in busy)
        self.blocks = _joined(busy, max(worked, 1.0))
        del self.blocks[20:-1]
        self.zero = self.blocks[0][0] if self.blocks else 0.0
        self.total = sum(end - start for start, end in self.blocks) or 1e-9
        self.cut = self.CUT if len(self.blocks) > 1 else 0.0
        self.unit = (1.0 - self.cut * (len(self.blocks) - 1)) / self.total

    def at(self, moment: float) -> float:
        """Return the position of a moment."""
        position = 0.0
        for number, (start, end) in enumerate(self.blocks):
            if number and moment < start:
                return position - self.cut / 2
            if moment <= end:
                return position + (moment - start) * self.unit
            position += (end - start) * self.unit + self.cut
        return min(1.0, position)

    def place(self, started: float, elapsed: float) -> tuple[float, float]:
        """Return the position and the length of a bar."""
        left = min(1.0, max(0.0, self.at(started)))
        return round(left, 5), round(max(0.0, min(1.0, self.at(started + elapsed)) - left), 5)

    def ticks(self, count: int = 6) -> list[tuple[float, str, int]]:
        """Return the positions of about so many lines, with labels; at a cut, with 1 and the time that is left out."""
        if not self.blocks:
            return []
        step = _round_step(self.total / count)
        found: list[tuple[float, str, int]] = [(0.0, "0", 0)]
        if len(self.blocks) == 1:
            found += [
                (round(number * step * self.unit, 5), duration(number * step), 0)
                for number in range(1, int(self.total / step) + 1)
            ]
        for before, after in pairwise(self.blocks):
            found.append((round(self.at(after[0]), 5), f"{duration(after[0] - before[1])} later", 1))
        return found


def _joined(spans: Iterable[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """Return the spans in order, joined where no more than `gap` seconds are between them."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start - joined[-1][1] <= gap:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def _round_step(least: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, 50 …; above a minute of 1, 2, 5, 10, 15, 30 minutes, 1, 2, 6, 12, 24 hours."""
    if least > 50:
        minutes = (1, 2, 5, 10, 15, 30, 60, 120, 360, 720)
        return next((60.0 * one for one in minutes if 60 * one >= least), 86400.0 * max(1, round(least / 86400)))
    power = 1e-7
    while power * 10 <= least:
        power *= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)


class Lanes:
    """The lanes of stages, by the index of their records: branches that overlap in time have one each."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.of: dict[int, int] = {}
        self.count = max(1, self._assign(parts, 0))

    def _assign(self, parts: Sequence[Part], lane: int) -> int:
        """Assign lanes to stages, from this one on, and return how many they need."""
        height = 1
        for part in parts:
            if part.kind == "parallel":
                height = max(height, self._assign_branches(part.parts, lane))
            elif part.kind == "stage":
                if part.record is not None:
                    self.of[part.record] = lane
            else:
                height = max(height, self._assign(part.parts, lane))
        return height

    def _assign_branches(self, branches: Sequence[Part], lane: int) -> int:
        busy: list[float] = []  # for each lane, until when it is taken
        for branch in sorted((b for b in branches if b.started is not None), key=lambda b: b.started or 0.0):
            started = branch.started or 0.0
            ended = started + (branch.elapsed or 0.0)
            first = next((number for number, until in enumerate(busy) if until <= started), len(busy))
            height = self._assign(branch.parts, lane + first)
            while height > 1 and any(until > started for until in busy[first : first + height]):
                first += 1
                self._assign(branch.parts, lane + first)
            busy.extend([0.0] * (first + height - len(busy)))
            busy[first : first + height] = [ended] * height
        return max(1, len(busy))
