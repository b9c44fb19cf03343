"""A step is an action, read once: its inputs, from signature and annotations; the use of its result, from its options."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from flowdeco.errors import MissingInputError, ReturnValueError
from flowdeco.model.annotations import EMPTY, Annotations, Declared
from flowdeco.model.definitions import Action, Stage, action_options, bound_of, local_of, memo_of
from flowdeco.model.functions import by_position, underlying
from flowdeco.model.options import UNSET
from flowdeco.model.store import MISSING, AnyKey, Key, Local, Name, Store, key_name

__all__ = ["Input", "Step", "local_names", "localized", "step_of", "steps_of"]


class Input(NamedTuple):
    """One parameter: where it is looked up, and how it is passed."""

    name: str
    key: str
    typed: Key[Any] | None
    default: Any
    context: bool
    by_keyword: bool
    annotation: Any


class Step:
    """An action, read once: its arguments, the use of its result, and its other effects."""

    __slots__ = (
        "action",
        "bound",
        "collects",
        "frozen",
        "function",
        "generates",
        "inputs",
        "inserts",
        "is_async",
        "keys",
        "local",
        "name",
        "names_units",
        "nothing",
        "result_key",
        "returned",
        "simple",
        "supplies",
        "supplies_own_name",
        "timeout",
        "use",
        "wants_context",
        "writes",
    )

    def __init__(self, action: Action[..., Any]) -> None:
        self.local: frozenset[str] = frozenset()  # names that are local to its stage
        self.action = action
        self.function: Any = action.__wrapped__
        self.name = action.name
        self.bound = bound_of(action)
        options = action_options(action)
        self.use = options.use
        self.timeout = options.timeout
        annotations = Annotations(self.function, local_of(action))
        self.inputs = _inputs(self.function, self.name, annotations)
        self.wants_context = any(i.context and i.name not in self.bound for i in self.inputs)
        # The common case is read in one go: everything from the store, everything positional.
        self.simple = not self.bound and not any(i.context or i.by_keyword or i.typed for i in self.inputs)
        self.keys: tuple[Name, ...] = tuple(i.key for i in self.inputs)
        self.collects = options.collect
        returns = options.returns
        if returns is UNSET:
            returns = self.name if options.collect is None else None
        self.result_key: Any = returns
        declared = (self.collects, *(cast("tuple[Any, ...]", returns) if isinstance(returns, tuple) else (returns,)))
        typed = [*declared, *(i.typed for i in self.inputs)]
        self.frozen = frozenset(key.name for key in typed if isinstance(key, Key) and key.frozen)
        self.writes: Any = returns if isinstance(returns, str) and self.collects is None else None
        self._read_function(returns, annotations)
        if self.names_units:  # data would be a mistake, which `sort_out` reports
            self.writes = None

    def _read_function(self, returns: Any, annotations: Annotations) -> None:
        function = underlying(self.function)
        self.is_async = inspect.iscoroutinefunction(function)
        self.generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        self.returned, (data, units, none) = annotations.returned()
        self.names_units = units and not data
        self.inserts = units
        is_kept = self.collects is not None or not (returns is None or isinstance(returns, tuple))
        self.nothing: Any = UNSET if none and data and is_kept else None  # the value that is not stored
        keys: list[str] = []
        if data:
            if returns is not None:
                wanted = cast("tuple[object, ...]", returns) if isinstance(returns, tuple) else (returns,)
                keys = [key_name(key) for key in wanted]
            if self.collects is not None:
                keys.append(key_name(self.collects))
        self.supplies = tuple(keys)
        self.supplies_own_name = data and returns == self.name and action_options(self.action).returns is UNSET

    def gather(
        self, store: Store, values: Mapping[str, Any], context: Any, stage: str
    ) -> tuple[Sequence[Any], dict[str, Any] | None]:
        """Return the arguments; raises `MissingInputError` for a parameter that nothing supplies."""
        if self.simple and not values:
            try:
                return tuple(map(store.reader(), self.keys)), None
            except KeyError:
                pass  # perhaps it has a default
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for wanted, key in zip(self.inputs, self.keys, strict=True):
            value = self._value(wanted, key, store, values, context)
            if value is MISSING:
                hint = store.hint(wanted.key, [*store, *values, *store.local_names()])
                raise MissingInputError(missing(self.name, stage, wanted, hint))
            if wanted.by_keyword:
                kwargs[wanted.name] = value
            else:
                args.append(value)
        for name, value in self.bound.items():  # for `**kwargs`
            if not any(wanted.name == name for wanted in self.inputs):
                kwargs[name] = value
        return args, kwargs

    def arguments(self, store: Store, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by the names of parameters, without the context and those that nothing supplies."""
        found = {
            wanted.name: self._value(wanted, key, store, values, MISSING)
            for wanted, key in zip(self.inputs, self.keys, strict=True)
        }
        return {**self.bound, **{name: value for name, value in found.items() if value is not MISSING}}

    def _value(self, wanted: Input, key: Name, store: Store, values: Mapping[str, Any], context: Any) -> Any:
        if wanted.name in self.bound:
            return self.bound[wanted.name]
        if wanted.context:
            return context
        for name in (wanted.key, wanted.name):
            if name in values:
                return values[name]
        if key in store:
            value = store.reader()(key)
            if wanted.typed is not None:
                wanted.typed.check(value)
            return value
        return MISSING if wanted.default is EMPTY else wanted.default

    def deliver(self, value: Any, store: Store) -> None:
        """Write the data that the action returned where its options say."""
        collects: AnyKey | None = self.collects
        if collects is not None:
            if isinstance(collects, Key):
                collects.check([value])
            store.append(collects, value)
        keys: AnyKey | Local | tuple[AnyKey, ...] | None = self.result_key
        if isinstance(keys, Local):
            store.put(keys, value)
        elif isinstance(keys, tuple):
            if value is None:
                return
            for key, part in zip(keys, self._parts(value, keys), strict=True):
                store[key] = part
        elif keys is not None:
            store[keys] = value

    def make_local(self, names: frozenset[str]) -> None:
        """Have it read and write these names as results that are local to its stage."""
        self.local = names
        self.keys = tuple(Local(i.key) if i.key in names else i.key for i in self.inputs)
        if self.supplies_own_name:
            self.result_key = self.writes = Local(self.name)

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


def missing(action: str, stage: str, wanted: Input, hint: str) -> str:
    """Return the message for a parameter that nothing supplies."""
    through = "" if wanted.name == wanted.key else f" (key {wanted.key!r})"
    return (
        f"action {action!r} of stage {stage!r} needs {wanted.name!r}{through}, "
        f"and no input, earlier action, stage data, middleware or default supplies it. {hint}"
    )


def step_of(action: Action[..., Any]) -> Step:
    """Return the step of an action, made once."""
    memo = memo_of(action)
    step: Step | None = getattr(memo, "step", None)
    if step is None:
        step = memo.step = Step(action)
    return step


def steps_of(stage: Stage) -> list[tuple[Step, str | None]]:
    """Return the steps of a stage, the last one first, each with the action that inserted it (None): a stack to run from."""
    steps: list[tuple[Step, str | None]]
    try:  # for each stage that runs; a default of `getattr` costs more
        steps = stage.memo.steps
        return steps
    except AttributeError:
        pass
    if stage.local:
        made = [Step(action) for action in stage.actions]
        names = local_names(made)
        for step in made:
            step.make_local(names)
    else:
        made = [step_of(action) for action in stage.actions]
    steps = [(step, None) for step in reversed(made)]
    stage.memo.steps = steps
    return steps


def local_names(steps: Iterable[Step]) -> frozenset[str]:
    """Return the names of the results that are local to a stage with these steps."""
    return frozenset(step.name for step in steps if step.supplies_own_name)


def localized(step: Step, names: frozenset[str]) -> Step:
    """Return the step of an action in a stage to which these names are local."""
    made = Step(step.action)
    made.make_local(names)
    return made


def _inputs(function: Any, name: str, annotations: Annotations) -> tuple[Input, ...]:
    target = underlying(function)
    if type(target) is types.FunctionType and not target.__dict__:  # nor does it pretend to have another signature
        code = target.__code__
        if not (code.co_argcount or code.co_kwonlyargcount):
            return ()
    found = list(annotations.parameters(name))
    positional = by_position(function, [parameter for parameter, _ in found])
    return tuple(_input(*each, by_keyword=place >= positional) for place, each in enumerate(found))


def _input(parameter: inspect.Parameter, declared: Declared, by_keyword: bool) -> Input:
    annotation, key, asks_for_context = declared
    typed = key if isinstance(key, Key) else None
    context = asks_for_context or (annotation is EMPTY and parameter.name == "ctx")
    name = parameter.name if key is None else key_name(key)
    return Input(parameter.name, name, typed, parameter.default, context, by_keyword, annotation)
