"""From parameters to keys: what an action needs, what it supplies, and whether a pipeline fits together.

A `Step` is an action read once: its signature and annotations become a list of inputs, and its options what happens to
its result. `validate` walks a definition in the order of its evaluation and keeps what is known to be in the store; from
the first unit on that may write what cannot be seen (a `ctx`, an insertion, middleware), a missing key is no longer
certain.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, cast, get_args, get_origin

from flowdeco.errors import MissingInputError, Problem, ReturnValueError, WiringError, suggestion
from flowdeco.model.annotations import EMPTY, annotated_parameters, is_context, meaning, return_annotation
from flowdeco.model.definitions import (
    Action,
    Parallel,
    Pipeline,
    Stage,
    Stream,
    Unit,
    action_selectors,
    one_action_stage,
    stage_selectors,
)
from flowdeco.model.functions import underlying
from flowdeco.model.options import UNSET, Middleware
from flowdeco.model.store import MISSING, AnyKey, Key, Store, accepted_classes, key_name

__all__ = ["Problem", "Step", "validate"]


class Input(NamedTuple):
    """One parameter: where it is looked for, and how it is passed."""

    name: str
    key: str
    typed: Key[Any] | None
    default: Any
    context: bool
    by_keyword: bool
    annotation: Any


class Step:
    """An action read once: what it is called with, what becomes of its result, what it may do beside."""

    __slots__ = (
        "action",
        "bound",
        "collects",
        "function",
        "generates",
        "inputs",
        "inserts",
        "is_async",
        "keys",
        "name",
        "names_units",
        "result_key",
        "simple",
        "supplies",
        "timeout",
        "use",
        "wants_context",
        "writes",
    )

    def __init__(self, action: Action[..., Any]) -> None:
        self.action = action
        self.function: Any = action.__wrapped__
        self.name = action.name
        self.bound = action._self_bound
        options = action._self_options
        self.use = options.use
        self.timeout = options.timeout
        self.inputs = _inputs(self.function, self.name)
        self.wants_context = any(i.context and i.name not in self.bound for i in self.inputs)
        # The common case is read in one go: everything from the store, everything positional.
        self.simple = not self.bound and not any(i.context or i.by_keyword or i.typed for i in self.inputs)
        self.keys = tuple(i.key for i in self.inputs)
        self.collects = options.collect
        returns = options.returns
        if returns is UNSET:
            returns = self.name if options.collect is None else None
        self.result_key: Any = returns
        self.writes: Any = returns if isinstance(returns, str) and self.collects is None else None
        self._read_function(returns)
        if self.names_units:  # data would be a mistake, and `sort_out` says so
            self.writes = None

    def _read_function(self, returns: Any) -> None:
        function = underlying(self.function)
        self.is_async = inspect.iscoroutinefunction(function)
        self.generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        data, units = meaning(return_annotation(function), self.generates)
        self.names_units = units and not data
        self.inserts = units
        keys: list[str] = []
        if data:
            if returns is not None:
                wanted = cast("tuple[object, ...]", returns) if isinstance(returns, tuple) else (returns,)
                keys = [key_name(key) for key in wanted]
            if self.collects is not None:
                keys.append(key_name(self.collects))
        self.supplies = tuple(keys)

    def gather(
        self, store: Store, values: Mapping[str, Any], context: Any, stage: str
    ) -> tuple[Sequence[Any], dict[str, Any] | None]:
        """Return the arguments; raises `MissingInputError` for a parameter that nothing supplies."""
        if self.simple and not values:
            try:
                return tuple(map(store._data.__getitem__, self.keys)), None
            except KeyError:
                pass  # perhaps it has a default
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for wanted in self.inputs:
            value = self._value(wanted, store, values, context)
            if value is MISSING:
                raise MissingInputError(_missing(self.name, stage, wanted.name, wanted.key, [*store, *values]))
            if wanted.by_keyword:
                kwargs[wanted.name] = value
            else:
                args.append(value)
        for name, value in self.bound.items():  # what `**kwargs` takes
            if not any(wanted.name == name for wanted in self.inputs):
                kwargs[name] = value
        return args, kwargs

    def _value(self, wanted: Input, store: Store, values: Mapping[str, Any], context: Any) -> Any:
        if wanted.name in self.bound:
            return self.bound[wanted.name]
        if wanted.context:
            return context
        for name in (wanted.key, wanted.name):
            if name in values:
                return values[name]
        if wanted.key in store:
            return store[wanted.typed or wanted.key]
        return MISSING if wanted.default is EMPTY else wanted.default

    def deliver(self, value: Any, store: Store) -> None:
        """Write the data that the action returned where its options say."""
        collects: AnyKey | None = self.collects
        if collects is not None:
            if isinstance(collects, Key):
                collects.check([value])
            store.append(collects, value)
        keys: AnyKey | tuple[AnyKey, ...] | None = self.result_key
        if isinstance(keys, tuple):
            for key, part in zip(keys, self._parts(value, keys), strict=True):
                store[key] = part
        elif keys is not None:
            store[keys] = value

    def where(self, value: Any) -> tuple[str, Any]:
        """Return how the journal finds the value again that was delivered: under a key, in a list, or by itself."""
        if self.writes is not None:
            return "put", self.writes
        if self.result_key is None and self.collects is not None:
            return "appended", key_name(self.collects)
        return "value", value

    def _parts(self, value: Any, keys: tuple[Any, ...]) -> list[Any]:
        if not isinstance(value, (tuple, list)):
            raise ReturnValueError(
                f"action {self.name!r} returned a {type(value).__name__}, and returns={_shown(keys)} "
                f"needs a sequence of {len(keys)} values"
            )
        parts = list(cast("Iterable[Any]", value))
        if len(parts) != len(keys):
            raise ReturnValueError(
                f"action {self.name!r} returned {len(parts)} values, and returns={_shown(keys)} needs {len(keys)}"
            )
        return parts


def _shown(keys: Iterable[Any]) -> str:
    return f"({', '.join(repr(key_name(key)) for key in keys)})"


def _missing(action: str, stage: str, parameter: str, key: str, known: Iterable[str]) -> str:
    through = "" if parameter == key else f" (key {key!r})"
    return (
        f"action {action!r} of stage {stage!r} needs {parameter!r}{through}, "
        f"and no input, earlier action, stage data, middleware or default supplies it. "
        f"{suggestion(key, known, 'Known keys')}"
    )


def note_suppliers(error: MissingInputError, step: Step, store: Store, ran: Iterable[Action[..., Any]]) -> None:
    """Note on the error who should have supplied what is missing, and returned nothing."""
    missing = {wanted.key for wanted in step.inputs if wanted.default is EMPTY and wanted.key not in store}
    for action in ran:
        empty = missing.intersection(step_of(action).supplies)
        if empty:
            error.add_note(
                f"action {action.name!r} has run, and returned nothing for {', '.join(map(repr, sorted(empty)))}: "
                f"None, and a generator that yields nothing, are not stored. Give the parameter a default"
            )


def step_of(action: Action[..., Any]) -> Step:
    """Return the step of an action, worked out once."""
    step = action._self_step
    if step is None:
        step = Step(action)
        action._self_remember("step", step)
    return cast("Step", step)


def steps_of(stage: Stage) -> list[tuple[Step, str | None]]:
    """Return the stage's steps, last one first: a stack of what is to run, with who inserted it (nobody)."""
    steps: Any = stage._steps
    if steps is None:
        steps = [(step_of(action), None) for action in reversed(stage._actions)]
        object.__setattr__(stage, "_steps", steps)
    return steps  # type: ignore[no-any-return]


def _inputs(function: Any, name: str) -> tuple[Input, ...]:
    target = underlying(function)
    if type(target) is types.FunctionType and not hasattr(target, "__wrapped__"):
        code = target.__code__
        if not (code.co_argcount or code.co_kwonlyargcount):
            return ()
    return tuple(_input(parameter, annotation) for parameter, annotation in annotated_parameters(function, name))


def _input(parameter: inspect.Parameter, annotation: Any) -> Input:
    typed: Key[Any] | None = None
    key = parameter.name
    if get_origin(annotation) is Annotated:
        declared, *metadata = get_args(annotation)
        for item in metadata:
            if isinstance(item, Key):
                typed = cast("Key[Any]", item)
                key = typed.name
                break
            if isinstance(item, str):
                key = item
                break
        annotation = declared
    context = is_context(annotation) or (annotation is EMPTY and parameter.name == "ctx")
    by_keyword = parameter.kind is parameter.KEYWORD_ONLY
    return Input(parameter.name, key, typed, parameter.default, context, by_keyword, annotation)


# Checking what fits together.


class _Known:
    """What is known to be in the store at some point: its keys, and who declared which class for them."""

    __slots__ = ("keys", "open")

    def __init__(self, keys: Mapping[str, Step | None], *, open: bool = False) -> None:
        self.keys = dict(keys)
        self.open = open

    def copy(self) -> _Known:
        return _Known(self.keys, open=self.open)


class _Gap(NamedTuple):
    """A parameter that is not known to fit: what a `Problem` is made of, when one is wanted."""

    stage: Stage
    step: Step
    wanted: Input
    certain: bool
    producer: Step | None = None


class _Around(NamedTuple):
    """Whether middleware of each level stands around, and may supply values."""

    stages: bool = False
    actions: bool = False


def validate(unit: Unit, inputs: Iterable[str] | Mapping[str, Any] = ()) -> list[Problem]:
    """Return the problems of a unit, certain or not, in the order of evaluation."""
    if isinstance(inputs, str):
        raise TypeError(f"inputs names keys: write [{inputs!r}]")
    known = _Known(dict.fromkeys(map(key_name, inputs)))
    return [problem for gap in _check(unit, known, _Around(), frozenset()) for problem in _problems(gap, known)]


def check_run(flow: Pipeline, inputs: Collection[str], skip: frozenset[str], wrapped: bool) -> None:
    """Raise `WiringError` for what can certainly not be supplied, before a run."""
    __tracebackhide__ = True
    if wrapped or all(gap.wanted.key in inputs for gap in _needs(flow, skip)):
        return
    known = _Known(dict.fromkeys(inputs))
    _refuse((gap for gap in _check(flow, known, _Around(), skip) if gap.certain), known)


def unmet(units: Iterable[Unit | Stream], store: Store, skip: frozenset[str]) -> bool:
    """Whether units need, from outside themselves, what the store does not have."""
    for unit in units:
        for gap in _needs(unit, skip):
            if gap.wanted.key not in store:
                return True
    return False


def check_inserted(coming: Iterable[tuple[Unit | Stream, bool]], store: Store, skip: frozenset[str]) -> None:
    """Raise `WiringError` if inserted units need what neither the store nor anything before them can supply.

    `coming` is what will run, in order, and whether it is to be checked: whether it has just been inserted.
    """
    known = _Known(dict.fromkeys(store))
    gaps = ((gap, new) for unit, new in coming for gap in _check(unit, known, _Around(), skip))
    _refuse((gap for gap, new in gaps if new and gap.certain), known)


def _refuse(gaps: Iterable[_Gap], known: _Known) -> None:
    __tracebackhide__ = True
    problems = [problem for gap in gaps for problem in _problems(gap, known)]
    if problems:
        lines = "\n".join(f"  - {problem.message}" for problem in problems)
        raise WiringError(f"the wiring has {len(problems)} problem{'s' * (len(problems) > 1)}:\n{lines}", problems)


def _needs(unit: Unit | Stream, skip: frozenset[str]) -> tuple[_Gap, ...]:
    """Return what a unit certainly needs from outside, one gap for each key, worked out once."""
    if type(unit) is Action:
        unit = one_action_stage(unit)
    if type(unit) is Stream:
        return ()
    cached = None if skip else cast("Any", unit)._needs
    if cached is None:
        gaps = (gap for gap in _check(unit, _Known({}), _Around(), skip) if gap.certain)
        cached = tuple({gap.wanted.key: gap for gap in gaps}.values())
        if not skip:
            object.__setattr__(unit, "_needs", cached)
    return cast("tuple[_Gap, ...]", cached)


def may_supply(layers: tuple[Middleware, ...]) -> bool:
    """Whether middleware may give values to what is inside, or write to the store; of our own it is known."""
    return any(getattr(layer, "supplies", True) for layer in layers)


def _check(unit: Unit | Stream, known: _Known, around: _Around, skip: frozenset[str]) -> Iterator[_Gap]:
    """Yield the gaps of a unit, and note in `known` what it supplies."""
    if isinstance(unit, Action):
        unit = one_action_stage(cast("Action[..., Any]", unit))
    if isinstance(unit, Stream):
        known.open = True
        return
    if skip and not skip.isdisjoint(stage_selectors(unit)):
        return
    if isinstance(unit, Pipeline):
        stages, actions = unit.use + unit.use_stages, unit.use_actions
        inside = _Around(around.stages or may_supply(stages), around.actions or may_supply(actions))
        known.open |= may_supply(unit.use)
        for part in unit.units:
            yield from _check(part, known, inside, skip)
    elif isinstance(unit, Parallel):
        branches = [known.copy() for _ in unit.units]
        for part, branch in zip(unit.units, branches, strict=True):
            yield from _check(part, branch, around, skip)
        for branch in branches:
            known.keys.update(branch.keys)
            known.open |= branch.open
    else:
        yield from _check_stage(cast("Stage", unit), known, around, skip)


def _check_stage(stage: Stage, known: _Known, around: _Around, skip: frozenset[str]) -> Iterator[_Gap]:
    known.keys.update(dict.fromkeys(stage._data))
    wrapped = around.stages or around.actions or may_supply(stage.use + stage.use_actions)
    known.open |= around.stages or may_supply(stage.use)
    for step, _ in reversed(steps_of(stage)):
        if skip and not skip.isdisjoint(action_selectors(stage, step.action)):
            continue
        layers = wrapped or may_supply(step.use)
        for wanted in step.inputs:
            if wanted.context or wanted.name in step.bound:
                continue
            if wanted.key in known.keys:
                producer = known.keys[wanted.key]
                if producer is not None:
                    yield _Gap(stage, step, wanted, False, producer)
            elif wanted.default is EMPTY:
                yield _Gap(stage, step, wanted, not (known.open or layers))
        known.open |= step.wants_context or step.inserts or layers
        typed = step if len(step.supplies) == 1 and step.collects is None else None
        known.keys.update(dict.fromkeys(step.supplies, typed))


def _problems(gap: _Gap, known: _Known) -> Iterator[Problem]:
    """Yield the problem that a gap is: none, if it only might have been one of types."""
    stage, step, wanted, certain, producer = gap
    if producer is None:
        message = _missing(step.name, stage.name, wanted.name, wanted.key, known.keys)
    else:
        declared = _declared_class(producer)
        if not _disagree(declared, wanted.annotation):
            return
        message = (
            f"action {step.name!r} of stage {stage.name!r} takes {wanted.key!r} as {wanted.annotation.__name__}, "
            f"and action {producer.name!r} returns {declared.__name__}"
        )
    yield Problem(stage.name, step.name, wanted.name, wanted.key, certain, message)


def _declared_class(step: Step) -> Any:
    annotation = return_annotation(step.function)
    return annotation if _is_plain_class(annotation) and not step.generates else None


def _is_plain_class(annotation: Any) -> bool:
    return (
        isinstance(annotation, type)
        and not get_args(annotation)
        and annotation not in (object, Any)
        and not inspect.isabstract(annotation)
        and not getattr(annotation, "_is_protocol", False)
    )


def _disagree(produced: Any, wanted: Any) -> bool:
    if produced is None or not _is_plain_class(wanted) or wanted is EMPTY:
        return False
    try:
        return not issubclass(produced, accepted_classes(wanted)) and not issubclass(wanted, produced)
    except TypeError:
        return False
