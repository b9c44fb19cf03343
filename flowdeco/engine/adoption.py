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
from typing import Any, TypeAlias, cast

from flowdeco.engine.outcome import ROOT, Outcome, Outcomes, Status, branch_id
from flowdeco.engine.rows import KINDS
from flowdeco.model.deep import Deep, evaluated
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Stream, one_action_stage
from flowdeco.model.steps import Step
from flowdeco.model.tuples import NamedTuple

__all__ = ["Archive"]

Address: TypeAlias = "tuple[tuple[str, int], ...]"  # of a branch: the groups around it by name, and its place in each


class Archive:
    """The steps of earlier generations that have not been adopted yet."""

    def __init__(self, earlier: Iterable[Outcomes], present: Outcomes | None = None) -> None:
        """Take the steps of these generations, the latest first; those of the present one have been adopted."""
        self.adopted: set[tuple[str, int]] = set()  # the places that adopted steps have now
        self._pasts = [_Past(steps) for steps in earlier]
        self._addresses: dict[str, Address] = {ROOT: ()}
        self._stages: dict[str, _Found | None] = {}  # by branch: the earlier stage that the open one continues
        for newer, older in zip([_Past(present or {}), *self._pasts], self._pasts, strict=False):
            _claim_adopted(newer, [older])

    def begin_branch(self, outer: str, branch: str, group: str, index: int) -> None:
        """Note where a branch of a group is."""
        self._addresses[branch] = (*self._addresses[outer], (group, index))

    def adopt(self, steps: Outcomes, branch: str, number: int, unit: Any, around: Any) -> None:
        """Put the earlier outcome of a step, and of everything in it, among these steps under its present numbers."""
        found = self._found(branch, unit, around)
        if type(unit) is Stage:
            self._stages[branch] = found
        if found is None:
            return
        past, old, at = found
        if type(unit) is Step:
            self._move(steps, past, _Move(old, at, branch, number, 1))
        elif _Comparison(past).is_same(unit, old, at):
            self._move(steps, past, _Move(old, at, branch, number, max(1, past.steps[old][at].end - at)))
        past.left.discard((old, at))

    def _found(self, branch: str, unit: Any, around: Any) -> _Found | None:
        address = self._addresses[branch]
        if type(unit) is not Step:
            key = KINDS[type(unit)], unit.name
            return _first(self._pasts, key, address, lambda past, of, at: _Comparison(past).likeness(unit, of, at))
        stage = self._stages.get(branch)
        if stage is None:
            return _first(self._pasts, ("action", around.name, unit.name), address)
        return stage.past.action_in(stage, unit.name)

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
                mine[place + shift] = outcome._replace(number=place + shift, end=end)
                past.left.discard((old, place))
                self.adopted.add((branch, place + shift))
                for index in range(outcome.branches):
                    inner, to = branch_id(f"{old}.{place}", index), branch_id(f"{branch}.{place + shift}", index)
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


Likeness: TypeAlias = "Callable[[_Past, str, int], int]"
_SAME = 1 << 30
_LOOKED_AT = 100  # steps of one name; a loop may have made any number


class _Past:
    """The steps of an earlier generation, and which of them are `left` to adopt.

    A stage that had not ended has no row; it is found by its actions.
    """

    def __init__(self, steps: Outcomes) -> None:
        self.steps = steps
        self.left: set[tuple[str, int]] = set()
        self.addresses: dict[str, Address] = {}
        self.scopes: list[tuple[str, int]] = []
        self.actions: dict[tuple[str, int], list[int]] = {}  # of each scope
        # By name, and in a branch or in any: in the order of the run, the next one last.
        self._named: dict[tuple[tuple[str, ...], Address | None], list[tuple[str, int]]] = {}
        evaluated(self._read(ROOT, ()))
        for places in self._named.values():
            places.reverse()

    def _read(self, branch: str, address: Address) -> Deep[None]:
        self.addresses[branch] = address
        stage: list[int] = []
        follows = -1
        for number, did in sorted(self.steps.get(branch, {}).items()):
            kind = did.unit.kind
            if kind == "action":
                if number != follows:
                    stage = self._add_scope(("stage", did.unit.stage), branch, number - 1)
                stage.append(number)
                if did.is_final:
                    self._add(("action", did.unit.stage, did.name), branch, number)
            else:
                stage = self._add_scope((kind, did.name), branch, number)
            follows = number + 1
            for index in range(did.branches):
                yield self._read(branch_id(f"{branch}.{number}", index), (*address, (did.name, index)))

    def _add_scope(self, key: tuple[str, ...], branch: str, number: int) -> list[int]:
        self._add(key, branch, number)
        self.scopes.append((branch, number))
        return self.actions.setdefault((branch, number), [])

    def _add(self, key: tuple[str, ...], branch: str, number: int) -> None:
        self.left.add((branch, number))
        for where in (self.addresses[branch], None):
            self._named.setdefault((key, where), []).append((branch, number))

    def first(self, key: tuple[str, ...], address: Address, likeness: Likeness | None) -> tuple[str, int] | None:
        """Return the step of this name that is left and most alike, the first of several such.

        One in a branch of this address is preferred.
        """
        for where in (address, None):
            places = self._named.get((key, where))
            while places and places[-1] not in self.left:
                places.pop()
            if places:
                return places[-1] if likeness is None else self._most_alike(places, likeness)
        return None

    def _most_alike(self, places: list[tuple[str, int]], likeness: Likeness) -> tuple[str, int]:
        best, most = places[-1], -1
        for place in places[: -_LOOKED_AT - 1 : -1]:
            if place in self.left:
                found = likeness(self, *place)
                if found > most:
                    best, most = place, found
                if found == _SAME:
                    break
        return best

    def names_in(self, branch: str, number: int) -> list[str]:
        """Return the names of the actions of a stage."""
        return [self.steps[branch][at].name for at in self.actions[branch, number]]

    def action_in(self, stage: _Found, name: str) -> _Found | None:
        """Return the first action of this name in a stage that is left and had ended."""
        steps = self.steps[stage.branch]
        for number in self.actions[stage.branch, stage.number]:
            if steps[number].name == name and steps[number].is_final and (stage.branch, number) in self.left:
                return _Found(self, stage.branch, number)
        return None


def _first(
    pasts: Iterable[_Past], key: tuple[str, ...], address: Address, likeness: Likeness | None = None
) -> _Found | None:
    for past in pasts:
        place = past.first(key, address, likeness)
        if place is not None:
            return _Found(past, *place)
    return None


def _sharing(names: list[str]) -> Likeness:
    return lambda past, branch, number: _overlap(past.names_in(branch, number), names)


def _overlap(some: Iterable[str], others: Iterable[str]) -> int:
    return (Counter(some) & Counter(others)).total()


def _claim_adopted(newer: _Past, older: list[_Past]) -> None:
    """Note the steps of earlier generations that a newer one has adopted: those of the same names, in order."""
    for branch, number in newer.scopes:
        did = newer.steps[branch].get(number)
        inside = [newer.steps[branch][at] for at in newer.actions[branch, number]]
        key = (did.unit.kind, did.name) if did is not None else ("stage", inside[0].unit.stage)
        address = newer.addresses[branch]
        found = _first(older, key, address, _sharing(newer.names_in(branch, number)))
        for each in inside:
            own = "action", each.unit.stage, each.name
            action = _first(older, own, address) if found is None else found.past.action_in(found, each.name)
            if action is not None and each.is_final:
                action.past.left.discard(action[1:])
        if found is not None and did is not None and did.is_final:
            found.past.left.discard(found[1:])


class _Comparison:
    """Compares a unit with the steps that it had, without evaluating anything: whether they are still the same."""

    def __init__(self, past: _Past) -> None:
        self._past = past

    def likeness(self, unit: Any, branch: str, number: int) -> int:
        """Return how much of a unit the steps that begin at this number are: `_SAME` if they are those of all of it."""
        if self.is_same(unit, branch, number):
            return _SAME
        return _overlap((each.name for each in unit), self._past.names_in(branch, number))

    def is_same(self, unit: Any, branch: str, number: int) -> bool:
        """Whether a stage, pipeline or group had ended, with the steps that it has now."""
        past = self._past
        outcome = past.steps[branch].get(number)
        if outcome is None or not outcome.is_final:
            return False
        steps = past.steps[branch]
        if any(
            (branch, at) not in past.left for at in range(number, outcome.end) if at in steps and steps[at].is_final
        ):
            return False
        return self._after(unit, branch, number) is not None

    def _after(self, unit: Any, branch: str, number: int) -> tuple[int, list[Any]] | None:
        """Return the number behind the steps of a unit, and the units that it inserted; None if it has other steps."""
        if isinstance(unit, Pipeline) and not unit.use:
            return self._in_a_row(unit.units, branch, number)
        did = self._past.steps.get(branch, {}).get(number)
        if did is None or did.name != unit.name or did.unit.kind != KINDS[type(unit)]:
            return None
        if did.status is Status.SKIPPED or not did.entered:
            return max(did.end, number + 1), []
        if isinstance(unit, Parallel):
            return (number + 1, []) if self._has_branches(unit, did, branch) else None
        is_stage = isinstance(unit, Stage)
        found = self._stage(unit, branch, number + 1) if is_stage else self._in_a_row(unit.units, branch, number + 1)
        if did.error is not None:  # it ended there: the rest of it had not begun
            return max(did.end, number + 1), list(did.inserted)
        if found is None or (did.end >= 0 and found[0] != did.end):
            return None
        return found[0], [*found[1], *did.inserted]

    def _in_a_row(self, units: Iterable[Any], branch: str, number: int) -> tuple[int, list[Any]] | None:
        waiting = list(units)[::-1]
        while waiting:
            unit = waiting.pop()
            if isinstance(unit, Stream):
                return None  # it would have to be pulled
            stage = one_action_stage(cast("Action[..., Any]", unit)) if isinstance(unit, Action) else unit
            found = self._after(stage, branch, number)
            if found is None:
                return None
            number, inserted = found
            waiting += inserted[::-1]
        return number, []

    def _stage(self, stage: Stage, branch: str, number: int) -> tuple[int, list[Any]] | None:
        inserted: list[Any] = []
        waiting = list(stage.actions)[::-1]
        while waiting:
            did = self._past.steps[branch].get(number)
            if did is None or did.unit.kind != "action" or did.name != waiting.pop().name:
                return None
            number += 1
            waiting += [each for each in did.inserted if isinstance(each, Action)][::-1]
            inserted += [each for each in did.inserted if not isinstance(each, Action)]
        return number, inserted

    def _has_branches(self, group: Parallel, did: Outcome, branch: str) -> bool:
        if group.stream is not None or did.branches != len(group.units):  # it would have to be pulled
            return False
        for index, unit in enumerate(group.units):
            inner = branch_id(f"{branch}.{did.number}", index)
            steps = self._past.steps.get(inner, {})
            if not steps and not (did.error is None and did.selection.takes(index)):
                continue  # it had not begun
            found = self._in_a_row([unit], inner, 0)
            if found is None or (steps and found[0] <= max(steps)):
                return False
        return True
