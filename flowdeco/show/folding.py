"""Folding: long rows of similar parts are shown by the first of them, and the number of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from flowdeco.engine.runs import Status
from flowdeco.show.parts import Part, walk

__all__ = ["Fold", "Folding", "folded"]


class Fold(NamedTuple):
    """Similar parts in a row that are not shown one by one."""

    parts: tuple[Part, ...]

    @property
    def elapsed(self) -> float | None:
        """How long they took together, None if none of them began."""
        known = [part.elapsed for part in self.parts if part.elapsed is not None]
        return sum(known) if known else None

    @property
    def label(self) -> str:
        """How many they are, and of which template."""
        count = f"{len(self.parts):,} more"
        stems: dict[str, int] = {}
        for part in self.parts:
            stem = part.stem or part.name.partition("[")[0]
            stems[stem] = stems.get(stem, 0) + 1
        if len(stems) == 1:
            (stem,) = stems
            return f"{count}, {stem}[…]" if any(part.stem for part in self.parts) else count
        if len(stems) <= 3:
            return f"{count}: {', '.join(f'{number:,} {stem}' for stem, number in stems.items())}"
        return count


class Folding(NamedTuple):
    """The number of similar parts from which on a row is folded, and of those shown; `most` bounds all parts."""

    dynamic: tuple[int, int] = (7, 3)
    branches: tuple[int, int] = (12, 5)
    others: tuple[int, int] = (60, 25)
    most: int = 150


_DEFAULT = Folding()


def folded(parts: Sequence[Part], folding: Folding = _DEFAULT) -> list[Part | Fold]:
    """Return the parts with rows of similar ones folded; failed ones are always shown."""
    shown: list[Part | Fold] = []
    start = 0
    kinds = [_kind(part) for part in parts]
    for index in range(1, len(parts) + 1):
        if index < len(parts) and kinds[index] == kinds[start]:
            continue
        row = parts[start:index]
        limit, keep = _limits(row[0], folding)
        if len(row) > limit:
            shown.extend(row[:keep])
            shown.append(Fold(tuple(row[keep:])))
        else:
            shown.extend(row)
        start = index
    return shown if len(shown) <= folding.most else _cut(shown, folding.most)


def _limits(part: Part, folding: Folding) -> tuple[int, int]:
    if part.kind == "branch":
        return folding.branches
    return folding.dynamic if part.is_dynamic else folding.others


def _kind(part: Part) -> tuple[Any, ...]:
    """Return the attributes in which similar parts are equal."""
    inner = {
        (each.status, each.recovered) for _, each in walk(part.parts) if each.status not in (None, Status.COMPLETED)
    }
    failed = part.status in (Status.FAILED, Status.CANCELLED) or any(status is Status.FAILED for status, _ in inner)
    unique = object() if failed and not part.recovered else None
    return (part.kind == "branch", part.is_dynamic, part.status, part.attempts > 1, part.recovered, inner, unique)


def _cut(shown: list[Part | Fold], most: int) -> list[Part | Fold]:
    """Return at most so many of dissimilar parts: the first ones, and of the others those that failed."""
    cut = shown[: most // 2]
    left = most - len(cut)
    hidden: list[Part] = []
    for one in shown[most // 2 :]:
        if isinstance(one, Part) and one.status is Status.FAILED and not one.recovered and left > 0:
            left -= 1
            if hidden:
                cut.append(Fold(tuple(hidden)))
                hidden = []
            cut.append(one)
        else:
            hidden.extend(one.parts if isinstance(one, Fold) else (one,))
    return [*cut, Fold(tuple(hidden))] if hidden else cut
