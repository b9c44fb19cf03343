"""The values that a run is known to have had, and that can be found after it.

Nothing records the values that pass through a run. These can be found: the store as the run left it, and those of branches
that were not merged; the data of stages, the arguments of templates, bound values and defaults; and the arguments of failed
actions, as long as their traceback has the frame. `docs/see.md` lists the values that are missed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, cast

from flowdeco.engine.runs import Run
from flowdeco.model.annotations import EMPTY
from flowdeco.model.definitions import Action, Stage, data_of
from flowdeco.model.references import Called, Changed, Narrowed, origin_of
from flowdeco.model.steps import step_of
from flowdeco.show.redaction import Doubtful

__all__ = ["KnownValues", "known_values"]

DEEPEST: Final = 8  # functions that wrap each other
_STARS: Final = {0: 0, 4: 1, 8: 1, 12: 2}  # parameters by CO_VARARGS and CO_VARKEYWORDS


class KnownValues(NamedTuple):
    """Values with the names of their keys or parameters, and words that the report shows anyway, in names."""

    values: list[tuple[str, Any]]
    public: set[str]


def known_values(run: Run, errors: Iterable[BaseException]) -> KnownValues:
    """Return the values that a run is known to have had in its store, and passed to its actions."""
    known = KnownValues(list(run.store.items()), set())
    known.values.extend(_in_branches(run))
    actions: dict[int, Action[..., Any]] = {}
    stages: dict[int, Stage] = {}
    for record in run.stages:
        stages[id(record.stage)] = record.stage
        actions.update((id(one.action), one.action) for one in record.actions)
    for stage in stages.values():
        known.values.extend(data_of(stage).items())
        arguments = list(_template_arguments(stage))
        if not arguments:  # of a stage read from a journal, its name is all that is known
            known.public.update(_arguments_in(stage.name))
        for name, value in arguments:
            known.public.update({value} if isinstance(value, str) and value in stage.name else ())
            known.values.append((name, value))
        actions.update((id(action), action) for action in stage)
    codes: set[Any] = set()
    defaults: set[int] = set()
    for action in actions.values():
        step = step_of(action)
        codes.update(_codes(action.__wrapped__))
        known.values.extend(step.bound.items())
        optional = [parameter for parameter in step.inputs if parameter.default is not EMPTY]
        known.values.extend((parameter.name, Doubtful(parameter.default)) for parameter in optional)
        defaults.update(id(parameter.default) for parameter in optional)
    for error in errors:
        known.values.extend((name, value) for name, value in _in_frames(error, codes) if id(value) not in defaults)
    return known


def _in_branches(run: Run) -> Iterator[tuple[str, Any]]:
    """Yield the contents of the stores of branches that were not merged."""
    log = None if run.resumption is None else run.resumption.log
    for remains in () if log is None else log.remains.values():
        if remains.store is not None:
            yield from remains.store.items()
        yield from remains.writes.puts.items()
        yield from remains.writes.appends.items()


def _template_arguments(stage: Stage) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of the template call that made this stage."""
    origin: Any = origin_of(stage)
    while isinstance(origin, (Changed, Narrowed)):
        origin = origin_of(origin.base)
    if isinstance(origin, Called):
        name = str(getattr(origin.template, "name", "argument"))
        names = [*inspect.signature(origin.template).parameters]
        names.extend([name] * len(origin.args))  # for the values of `*args`
        yield from zip(names, origin.args, strict=False)
        yield from origin.kwargs.items()


_ARGUMENTS: Final = re.compile(r"[^\[]*\[(.+)\]")
_KEYWORD: Final = re.compile(r"[^\W\d]\w*=")


def _arguments_in(name: str) -> Iterator[str]:
    """Yield the words of a name like `copy the[users, to=disk]` that may be arguments of its template."""
    found = _ARGUMENTS.fullmatch(name)
    if found is None:
        yield from name.split()
    else:
        yield found[1]
        yield from (_KEYWORD.sub("", each, count=1) for each in found[1].split(", "))


def _codes(function: Any) -> Iterator[Any]:
    """Yield the code of a function, and of those that it wraps."""
    for _ in range(DEEPEST):
        if function is None:
            return
        yield getattr(function, "__code__", None)
        wrapped = (getattr(function, name, None) for name in ("__wrapped__", "__func__", "func"))
        function = next(filter(None, wrapped), None)


def _in_frames(error: BaseException, codes: set[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the arguments and the enclosed variables of functions with these codes that are in a traceback."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        waiting.extend((current.__cause__, current.__context__))
        if isinstance(current, BaseExceptionGroup):
            waiting.extend(cast("BaseExceptionGroup[BaseException]", current).exceptions)
        traceback = current.__traceback__
        while traceback is not None:
            frame, traceback = traceback.tb_frame, traceback.tb_next
            code = frame.f_code
            if code in codes:
                arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + _STARS[code.co_flags & 12]]
                names = (*arguments, *code.co_freevars)
                yield from ((name, value) for name, value in frame.f_locals.items() if name in names)
