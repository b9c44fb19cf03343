"""Whether a middleware may supply values, read from its code, which is compiled: no source is needed.

It supplies nothing if all it yields is None or a `Sleep`, and all it does with its call is to read harmless attributes;
if it yields anything else, values for its target alone. Whatever else it does may supply anything.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from enum import Enum
from typing import Final

from flowdeco.model.functions import attribute_uses, function_run, instructions_of
from flowdeco.model.options import Middleware

__all__ = ["Supplies", "supplies_of"]


class Supplies(Enum):
    """The effect of a middleware on what actions find.

    None, values for those that it wraps, the result of the one that it wraps, or anything, for later ones too.
    """

    NOTHING = 0
    VALUES = 1
    OUTCOME = 2
    ANYTHING = 3


_READ: Final = "action arguments attempt level logger name outcome pipeline run_id stage undo_on_failure"
_SETS_OUTCOME: Final = "STORE", "outcome"
_HARMLESS: Final = {_SETS_OUTCOME, *(("LOAD", name) for name in _READ.split())}  # uses of a call
_REFLECTION: Final = frozenset({"_getframe", "currentframe", "eval", "exec", "locals", "vars"})
_SLEEP: Final = "flowdeco.engine.requests", "Sleep"


def supplies_of(layer: Middleware) -> Supplies:
    """Return the effect of a middleware: the one that it declares as `supplies`, or that of its code."""
    declared = getattr(layer, "supplies", None)
    if isinstance(declared, Supplies):
        return declared
    if declared is not None:
        return Supplies.ANYTHING if declared else Supplies.NOTHING
    found = function_run(layer)
    return Supplies.ANYTHING if found is None else _of_code(found[0].__code__, found[1], _sleeps(found[0]))


def _sleeps(function: types.FunctionType) -> frozenset[str]:
    """Return the names that a function knows `Sleep` by."""
    enclosed: dict[str, object] = {}
    try:
        enclosed = dict(inspect.getclosurevars(function).nonlocals)
    except (TypeError, ValueError):
        pass
    names = {name: function.__globals__.get(name) for name in function.__code__.co_names} | enclosed
    return frozenset(name for name, found in names.items() if _is_sleep(found))


def _is_sleep(thing: object) -> bool:
    return isinstance(thing, type) and (thing.__module__, thing.__qualname__) == _SLEEP


@functools.lru_cache(maxsize=256)
def _of_code(code: types.CodeType, first: int, sleeps: frozenset[str]) -> Supplies:
    uses = attribute_uses(code, first)
    if uses is None or not _REFLECTION.isdisjoint(code.co_names) or not uses <= _HARMLESS:
        return Supplies.ANYTHING
    steps = instructions_of(code)
    gives_values = any(
        step.opname == "GET_YIELD_FROM_ITER"
        or (step.opname == "YIELD_VALUE" and not _yields_nothing(steps, at, sleeps))
        for at, step in enumerate(steps)
    )
    if _SETS_OUTCOME in uses:
        return Supplies.ANYTHING if gives_values else Supplies.OUTCOME
    return Supplies.VALUES if gives_values else Supplies.NOTHING


def _yields_nothing(steps: list[dis.Instruction], at: int, sleeps: frozenset[str]) -> bool:
    """Whether that instruction yields None or a `Sleep`, or waits for an awaitable."""
    while steps[at].opname in ("YIELD_VALUE", "ASYNC_GEN_WRAP", "CALL_INTRINSIC_1"):
        if steps[at].is_jump_target:  # there is another value
            return False
        at -= 1
    value = steps[at]
    if value.opname == "SEND":  # `await`; `yield from` is looked for on its own
        return True
    if value.opname in ("LOAD_CONST", "RETURN_CONST"):
        return value.argval is None
    return value.opname == "CALL" and _called(steps, at) in sleeps


def _called(steps: list[dis.Instruction], at: int) -> str | None:
    """Return the name of the function that a call at this place calls; None if it is not a plain name."""
    missing = 1  # values that the instructions from here on have to leave on the stack
    while at and not _jumps(steps[at]):  # the first instruction of a function belongs to no call
        step = steps[at]
        missing -= dis.stack_effect(step.opcode, step.arg if step.opcode >= dis.HAVE_ARGUMENT else None, jump=False)
        if missing <= 0:
            begin = steps[at + 1] if step.opname == "PUSH_NULL" else step
            return begin.argval if begin.opname in ("LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME") else None
        at -= 1
    return None


def _jumps(step: dis.Instruction) -> bool:
    return step.is_jump_target or step.opcode in dis.hasjrel or step.opcode in dis.hasjabs
