"""The waits of a branch's steps: what they have waited for, and the answers that they have used up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flowdeco.engine.branch import Branch
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import Outcome
from flowdeco.engine.requests import Raised, Sleep, Walk
from flowdeco.engine.waits import consumed, kept
from flowdeco.errors import PAUSE, Suspend, Wait

__all__ = ["not_reached", "rest_of_pause", "time_used", "waited", "with_waits"]


def time_used(branch: Branch, number: int, who: int) -> float:
    """Return how much of its timeout a layer of a scope has used before the run was suspended."""
    is_known = number in branch.waits or (branch.id, number) in branch.terms.waits
    return branch.waits_of(number).time_used(who) if is_known else 0.0


def waited(branch: Branch, number: int) -> tuple[Wait, ...]:
    """Return everything that a step has waited for so far."""
    waits = branch.waits.get(number)
    return tuple(branch.terms.waits.get((branch.id, number), ())) if waits is None else waits.recorded()


def with_waits(branch: Branch, did: Outcome) -> Any:
    """Return the outcome of a step with its waits, or with the answers that it used up."""
    waits, place = waited(branch, did.number), (branch.id, did.number)
    branch.waits.pop(did.number, None)
    branch.terms.waits.pop(place, None)
    if branch.atomic:
        branch.held_waits += tuple(wait._replace(at=wait.at or place) for wait in waits)
    if branch.revocable and (answers := kept(waits, only_answers=True)):
        branch.answered += ((did.number, place, answers),)
    if did.is_final:
        did = did._replace(waits=consumed(waits, values=bool(branch.revocable)))
        branch.consumed |= {wait.key for wait in did.waits}
        return did
    return did._replace(waits=waits)


def not_reached(branch: Branch, scope: OpenScope) -> Iterator[Wait]:
    """Yield the waits of steps inside a scope that have not run again yet."""
    for place in () if scope.layers is None else scope.layers.inside:
        yield from (wait._replace(at=place) for wait in branch.terms.waits.get(place, ()))


def rest_of_pause(branch: Branch, number: int) -> Walk:
    """Sleep until the next attempt at a step may begin; return the signal if that suspends the run again."""
    terms, place = branch.terms, (branch.id, number)
    waits = terms.waits.get(place, ())
    for pause in [wait for wait in waits if wait.kind == PAUSE]:
        left = (pause.due or 0.0) - terms.wall.now()
        if left > terms.wall.suspend_after:
            return Suspend.until(pause)
        answer = (yield Sleep(left)) if left > 0 else None
        if type(answer) is Raised:
            return answer.error
        terms.waits[place] = [wait for wait in waits if wait is not pause]
    return None
