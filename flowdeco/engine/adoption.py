"""Outcomes that a run had completed before its pipeline changed: adopted by name, wherever they are now.

`on_change="ignore"` keeps them. Outcomes are otherwise found by their numbers, and a changed pipeline numbers them anew:

1. The run begins again, as a new *generation* (`generations`).
2. Where a step of the new generation begins, the earlier ones are searched: for a stage, pipeline or group by kind and
   name, for an action by its name and that of its stage. Each step is adopted once, in the order of the run; of several,
   one in the same branch of the same group is preferred, then the one that is most alike.
3. A scope whose contents are the same is adopted as a whole. Any other one is opened anew, and its actions are adopted
   one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

from flowdeco.engine.outcome import ROOT, Outcome, Outcomes, Status, branches_of
from flowdeco.engine.rows import kind_of, with_actions
from flowdeco.model.deep import Deep, evaluated
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Stream, as_stage
from flowdeco.model.steps import Step
from flowdeco.model.tuples import NamedTuple

__all__ = ["Archive"]

Address: TypeAlias = "tuple[tuple[str, int], ...]"  # of a branch: the groups around it by name, and its place in each


class Archive:
    """The steps of earlier generations that have not been adopted yet."""

    def __init__(self, earlier: Iterable[Outcomes], present: Outcomes | None = None) -> None:
        """Take the steps of these generations, the latest first; those of the present one have been adopted."""
        self._pasts = [_Past(steps) for steps in earlier]
        self._addresses: dict[str, Address] = {ROOT: ()}
        self._stages: dict[str, _Found | None] = {}  # by branch: the earlier stage that the open one continues
        for newer, older in zip([_Past(present or {}), *self._pasts], self._pasts, strict=False):
            _claim_adopted(newer, older)

    def begin_branch(self, outer: str, branch: str, group: str, index: int) -> None:
        """Note where a branch of a group is."""
        self._addresses[branch] = (*self._addresses[outer], (group, index))

    def adopt(self, steps: Outcomes, branch: str, number: int, unit: Any, around: Any) -> None:
        """Put the earlier outcome of a step, and of everything in it, among these steps under its present numbers.

        These are `restored` already: the journal does not have them in their present places.
        """
        found = self._found(branch, unit, around)
        if type(unit) is Stage:
            self._stages[branch] = found
        if found is None:
            return
        past, old, at = found
        if type(unit) is Step:
            self._move(steps, past, _Move(old, at, branch, number, 1))
        elif past.is_same(unit, old, at):
            self._move(steps, past, _Move(old, at, branch, number, max(1, past.steps[old][at].end - at)))
        past.left.discard((old, at))

    def _found(self, branch: str, unit: Any, around: Any) -> _Found | None:
        address = self._addresses[branch]
        if type(unit) is not Step:
            return self._first((kind_of(unit), unit.name), address, unit)
        stage = self._stages.get(branch)
        if stage is None:
            return self._first(("action", around.name, unit.name), address)
        return stage.past.action_in(stage, unit.name)

    def _first(self, key: tuple[str, ...], address: Address, unit: Any = None) -> _Found | None:
        for past in self._pasts:
            found = past.first(key, address, None if unit is None else partial(past.likeness, unit))
            if found is not None:
                return found
        return None

    def _move(self, steps: Outcomes, past: _Past, move: _Move) -> None:
        """Adopt steps, and the contents of groups among them."""
        moves = [move]
        while moves:
            old, at, branch, number, length = moves.pop()
            mine, shift = steps.setdefault(branch, {}), number - at
            for place in range(at, at + length):
                outcome = past.steps[old].get(place)
                if outcome is None:
                    continue
                end = outcome.end if outcome.end < 0 else outcome.end + shift
                mine[place + shift] = outcome._replace(number=place + shift, end=end, restored=True)
                past.left.discard((old, place))
                branches = branches_of(old, place, outcome), branches_of(branch, place + shift, outcome)
                for inner, to in zip(*branches, strict=True):
                    if inner in past.steps:
                        moves.append(_Move(inner, 0, to, 0, 1 + max(past.steps[inner])))


class _Move(NamedTuple):
    """`length` steps of an earlier generation, and their place in this one."""

    old: str
    at: int
    branch: str
    number: int
    length: int


class _Found(NamedTuple):
    """A step of an earlier generation."""

    past: _Past
    branch: str
    number: int


Likeness: TypeAlias = "Callable[[str, int], int]"
_SAME = 1 << 30
_LOOKED_AT = 100  # steps of one name; a loop may have made any number


class _Past:
    """The steps of an earlier generation, and which of them are `left` to adopt.

    A stage that had not ended has no row; it is found by its actions. A unit is compared with the steps that it had without
    evaluating anything.
    """

    def __init__(self, steps: Outcomes) -> None:
        self.steps = steps
        self.left: set[tuple[str, int]] = set()
        self.addresses: dict[str, Address] = {}
        self.scopes: dict[tuple[str, int], tuple[Outcome, list[Outcome]]] = {}  # each with its actions
        # By name, and in a branch or in any: in the order of the run, the next one last.
        self._named: dict[tuple[tuple[str, ...], Address | None], list[tuple[str, int]]] = {}
        evaluated(self._read(ROOT, ()))
        for places in self._named.values():
            places.reverse()

    def _read(self, branch: str, address: Address) -> Deep[None]:
        self.addresses[branch] = address
        for scope, actions in with_actions(self.steps.get(branch, {})):
            self.scopes[branch, scope.number] = scope, actions
            self._add((scope.unit.kind, scope.name), branch, scope.number)
            for did in actions:
                if did.is_final:
                    self._add(("action", did.unit.stage, did.name), branch, did.number)
            for index, inner in enumerate(branches_of(branch, scope.number, scope)):
                yield self._read(inner, (*address, (scope.name, index)))

    def _add(self, key: tuple[str, ...], branch: str, number: int) -> None:
        self.left.add((branch, number))
        for where in (self.addresses[branch], None):
            self._named.setdefault((key, where), []).append((branch, number))

    def first(self, key: tuple[str, ...], address: Address, likeness: Likeness | None = None) -> _Found | None:
        """Return the step of this name that is left and most alike, the first of several such.

        One in a branch of this address is preferred.
        """
        for where in (address, None):
            places = self._named.get((key, where))
            while places and places[-1] not in self.left:
                places.pop()
            if places:
                branch, number = places[-1] if likeness is None else self._most_alike(places, likeness)
                return _Found(self, branch, number)
        return None

    def _most_alike(self, places: list[tuple[str, int]], likeness: Likeness) -> tuple[str, int]:
        best, most = places[-1], -1
        for place in places[: -_LOOKED_AT - 1 : -1]:
            if place in self.left:
                found = likeness(*place)
                if found > most:
                    best, most = place, found
                if found == _SAME:
                    break
        return best

    def action_in(self, stage: _Found, name: str) -> _Found | None:
        """Return the first action of this name in a stage that is left and had ended."""
        for did in self.scopes[stage.branch, stage.number][1]:
            if did.name == name and did.is_final and (stage.branch, did.number) in self.left:
                return _Found(self, stage.branch, did.number)
        return None

    # Comparison.

    def overlap(self, units: Iterable[Any], branch: str, number: int) -> int:
        """Return how many actions of a stage have the names of these."""
        _, actions = self.scopes[branch, number]
        return (Counter(each.name for each in units) & Counter(each.name for each in actions)).total()

    def likeness(self, unit: Any, branch: str, number: int) -> int:
        """Return how much of a unit the steps that begin at this number are: `_SAME` if they are those of all of it."""
        return _SAME if self.is_same(unit, branch, number) else self.overlap(unit, branch, number)

    def is_same(self, unit: Any, branch: str, number: int) -> bool:
        """Whether a stage, pipeline or group had ended, with the steps that it has now."""
        steps = self.steps[branch]
        outcome = steps.get(number)
        if outcome is None or not outcome.is_final:
            return False
        if any(
            (branch, at) not in self.left for at in range(number, outcome.end) if at in steps and steps[at].is_final
        ):
            return False
        return self._after(unit, branch, number) is not None

    def _after(self, unit: Any, branch: str, number: int) -> tuple[int, list[Any]] | None:
        """Return the number behind the steps of a unit, and the units that it inserted; None if it has other steps."""
        if isinstance(unit, Pipeline) and not unit.use:
            return self._in_a_row(unit.units, branch, number)
        did = self.steps.get(branch, {}).get(number)
        if did is None or did.name != unit.name or did.unit.kind != kind_of(unit):
            return None
        if did.status is Status.SKIPPED or not did.entered:
            return max(did.end, number + 1), []
        if isinstance(unit, Parallel):
            return (number + 1, []) if self._has_branches(unit, did, branch) else None
        if isinstance(unit, Action):
            return number + 1, list(did.inserted)
        is_stage = isinstance(unit, Stage)
        parts = unit.actions if is_stage else unit.units
        found = self._in_a_row(parts, branch, number + 1, in_stage=is_stage)
        if did.error is not None:  # it ended there: the rest of it had not begun
            return max(did.end, number + 1), list(did.inserted)
        if found is None or (did.end >= 0 and found[0] != did.end):
            return None
        return found[0], [*found[1], *did.inserted]

    def _in_a_row(
        self, units: Iterable[Any], branch: str, number: int, *, in_stage: bool = False
    ) -> tuple[int, list[Any]] | None:
        """Return the same of units and all that they inserted: `in_stage`, actions, and the actions that these inserted."""
        waiting, left = list(units)[::-1], list[Any]()
        while waiting:
            unit = waiting.pop()
            if isinstance(unit, Stream):
                return None  # it would have to be pulled
            found = self._after(unit if in_stage else as_stage(unit), branch, number)
            if found is None:
                return None
            number, inserted = found
            if in_stage:
                left += [each for each in inserted if not isinstance(each, Action)]
                waiting += [each for each in inserted[::-1] if isinstance(each, Action)]
            else:
                waiting += inserted[::-1]
        return number, left

    def _has_branches(self, group: Parallel, did: Outcome, branch: str) -> bool:
        if group.stream is not None or did.branches != len(group.units):  # it would have to be pulled
            return False
        for index, (unit, inner) in enumerate(zip(group.units, branches_of(branch, did.number, did), strict=True)):
            steps = self.steps.get(inner, {})
            if not steps and not (did.error is None and did.selection.takes(index)):
                continue  # it had not begun
            found = self._in_a_row([unit], inner, 0)
            if found is None or (steps and found[0] <= max(steps)):
                return False
        return True


def _claim_adopted(newer: _Past, older: _Past) -> None:
    """Note the steps of an earlier generation that a newer one has adopted: those of the same names, in order."""
    for (branch, _), (scope, actions) in newer.scopes.items():
        address = newer.addresses[branch]
        found = older.first((scope.unit.kind, scope.name), address, partial(older.overlap, actions))
        for each in actions:
            own = "action", each.unit.stage, each.name
            action = older.first(own, address) if found is None else older.action_in(found, each.name)
            if action is not None and each.is_final:
                older.left.discard(action[1:])
        if found is not None and scope.is_final:
            older.left.discard(found[1:])
