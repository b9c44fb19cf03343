"""The insertion tree of a run: who inserted whom.

Runs are recorded in the order of execution, which is depth first: a stage stands right before whatever it inserted. So a
tree that puts each unit below its inserter is read from top to bottom in the order of the run.

1. A unit that was there from the start, or whose inserter is not shown (`history=` has forgotten it), is a root.
2. A stage that returns itself is a loop, and its turns stand side by side: a thousand are not nested a thousand deep.
3. Rows of one template are collapsed; others only where there are hundreds. Whatever failed is shown.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, NamedTuple

from flowdeco.engine.runs import Status
from flowdeco.show.inserters import DEEPEST
from flowdeco.show.parts import Part, walk

__all__ = ["Collapsed", "Node", "collapsed", "grown"]

FIRST: Final = 25  # of the rows of other kinds, in a view that cannot show all of them
SHOWN: Final = 3  # of the rows of one template that are collapsed, for each status


@dataclass(eq=False, slots=True)
class Node:
    """A part, with the units that it inserted in the order of the run.

    `by` is who inserted it, None for a part of something that was inserted as a whole; `above` is the part that it is
    right below, if that inserted it.
    """

    part: Part
    by: str | None = None
    above: Part | None = None
    inserted: list[Node] = field(default_factory=list[Any])
    again: Node | None = None  # the next turn of a loop

    @property
    def via(self) -> str | None:
        """Who inserted it, as far as the tree does not show it: which action of several, or the stage and the action."""
        if self.above is None or self.by is None:
            return self.by
        return self.by.removeprefix(f"{self.above.name}/") if len(self.above.parts) > 1 else None

    def below(self) -> Iterator[Node]:
        """Yield the nodes that it inserted, and those that they did."""
        for node in self.inserted:
            yield node
            yield from node.below()


def grown(parts: Sequence[Part], above: str | None = None) -> list[Node]:
    """Return parts that ran in one pipeline, branch or stage as trees; `above` is who inserted that."""
    roots: list[Node] = []
    nodes: dict[int | None, Node] = {}
    for part in parts:
        inserter = None if part.parent is None else nodes.get(part.parent)
        if inserter is None:
            roots.append(Node(part, None if part.inserted_by == above else part.inserted_by))
            node = roots[-1]
        else:
            node = Node(part, part.inserted_by, inserter.part)
            inserter.inserted.append(node)
        if part.kind in ("stage", "action") and part.record is not None:
            nodes[part.record] = node
    for node in nodes.values():
        last = node.inserted[-1].part if node.inserted else None
        if last is not None and (last.kind, last.name) == (node.part.kind, node.part.name):
            node.again = node.inserted.pop()
    return _nested(roots)


def _nested(roots: list[Node]) -> list[Node]:
    """Return the trees with the turns of loops side by side, and with what is nested too deep at the deepest level."""
    levels: list[list[Node]] = [[]]
    stack = [(0, node) for node in reversed(roots)]
    while stack:
        level, node = stack.pop()
        if node.again is not None:
            node.again.above = None
            stack.append((level, node.again))
        stack.extend((level + 1, child) for child in reversed(node.inserted))
        if level > DEEPEST:
            level, node.above = DEEPEST, None
        node.again, node.inserted = None, []
        del levels[level + 1 :]
        levels[level].append(node)
        levels.append(node.inserted)
    return levels[0]


# Rows of one template.


class Collapsed(NamedTuple):
    """Nodes in a row that are not shown one by one."""

    nodes: tuple[Node, ...]

    @property
    def parts(self) -> list[Part]:
        """Their parts, without those below them."""
        return [node.part for node in self.nodes]

    @property
    def elapsed(self) -> float | None:
        """How long they took together, None if none of them began."""
        known = [part.elapsed for part in self.parts if part.elapsed is not None]
        return sum(known) if known else None

    @property
    def label(self) -> str:
        """How many they are, of which template, and how many stages are below them."""
        names = Counter(f"{part.stem}[…]" if part.stem else part.name for part in self.parts)
        below = sum(1 for node in self.nodes for _ in node.below())
        more = f", with {below:,} below them" if below else ""
        if len(names) == 1:
            return f"{len(self.nodes):,} more, {next(iter(names))}{more}"
        listed = ", ".join(f"{count:,} {name}" for name, count in names.most_common())
        return f"{len(self.nodes):,} more{f': {listed}' if len(names) <= 3 else ''}{more}"


def collapsed(nodes: Sequence[Node], limit: int | None, most: int = sys.maxsize) -> list[Node | Collapsed]:
    """Return the nodes with those of one template collapsed from so many on, None for never.

    Where more than `most` are left, the first few of them are shown. Failed ones are always shown, and the first of those
    that are not like the others: recovered, say, or tried again, or with such a part in them or below them.
    """
    templates = list(map(_template, nodes))
    counts = Counter(templates)
    many = sys.maxsize if limit is None else limit
    if len(nodes) <= most and max(counts.values(), default=0) < many:
        return list(nodes)
    kinds = list(map(_kind, nodes))
    ranks = _ranks(zip(templates, kinds, strict=True))
    hides = [counts[template] >= many and rank > SHOWN for template, rank in zip(templates, ranks, strict=True)]
    if len(nodes) - sum(hides) > most:
        before = accumulate((not hidden for hidden in hides), initial=0)
        rows = zip(hides, before, _ranks(kinds), strict=False)
        hides = [hidden or (count >= FIRST and rank > SHOWN) for hidden, count, rank in rows]
    shown: list[Node | Collapsed] = []
    rest: list[Node] = []
    for node, hidden in zip(nodes, hides, strict=True):
        if hidden and not _has_failed(node):
            rest.append(node)
            continue
        if rest:
            shown.append(Collapsed(tuple(rest)))
            rest = []
        shown.append(node)
    return [*shown, Collapsed(tuple(rest))] if rest else shown


def _ranks(kinds: Iterable[object]) -> Iterator[int]:
    """Yield, for each of these, how many of its kind there are up to it."""
    seen: Counter[object] = Counter()
    for kind in kinds:
        seen[kind] += 1
        yield seen[kind]


def _template(node: Node) -> tuple[str, str]:
    """Return what rows that look alike have in common: a template, or the name of what runs again and again."""
    return node.part.kind, node.part.stem or node.part.name


def _kind(node: Node) -> tuple[object, ...]:
    """Return the status of a row, and whether something in it or below it was recovered, or tried again."""
    parts = list(walk(each.part for each in (node, *node.below())))
    return node.part.status, any(part.recovered for part in parts), any(part.attempts > 1 for part in parts)


def _has_failed(node: Node) -> bool:
    """Whether a part in a node or below it failed, and was not recovered."""
    parts = [each.part for each in (node, *node.below())]
    failed = any(each.status is Status.FAILED and not each.recovered for each in walk(parts))
    return failed or any(part.status is Status.CANCELLED for part in parts)
