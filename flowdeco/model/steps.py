"""A step is an action, read once: its inputs, from signature and annotations; the use of its result, from its options."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from flowdeco.errors import MissingInputError, ReturnValueError, a_type
from flowdeco.model.annotations import EMPTY, Annotations, Declared, Meaning
from flowdeco.model.definitions import Action, ActionOptions, Stage, action_options, bound_of, local_of, memo_of
from flowdeco.model.functions import by_position, underlying
from flowdeco.model.keys import AnyKey, Key, Local, Name, key_name, result_keys
from flowdeco.model.names import NO_LOCALS
from flowdeco.model.prototypes import Body, Likeness, Pattern, Seen
from flowdeco.model.sentinels import MISSING, UNSET
from flowdeco.model.store import Store
from flowdeco.model.tuples import NamedTuple

__all__ = ["Input", "Step", "hidden", "local_names", "localized", "step_of", "steps_of"]


class Input(NamedTuple):
    """One parameter: where it is looked up, and how it is passed."""

    name: str
    key: str
    typed: Key[Any] | None
    default: Any
    context: bool
    by_keyword: bool
    annotation: Any


class Reading(NamedTuple):
    """The part of a step that is read from the function alone."""

    inputs: tuple[Input, ...]
    is_async: bool
    generates: bool
    returned: Any
    meaning: Meaning

    @classmethod
    def of(cls, function: Any, name: str, local: Mapping[str, Any] = NO_LOCALS) -> Reading:
        """Read the function of an action of this name; `local` are the local variables that its annotations name."""
        annotations = Annotations(function, local)
        inputs, inner = _inputs(function, name, annotations), underlying(function)
        generates = inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)
        return cls(inputs, inspect.iscoroutinefunction(inner), generates, *annotations.returned())


class Step:
    """An action, read once: its arguments, the use of its result, and its other effects."""

    __slots__ = (
        "action", "bound", "collects", "drops_empty", "frozen", "function", "generates", "inputs", "inserts", "is_async",
        "keys", "local", "name", "names_units", "nothing", "result_key", "returned", "simple", "supplies",
        "supplies_own_name", "timeout", "use", "wants_context", "writes",
    )  # fmt: skip

    def __init__(self, action: Any, function: Any, options: ActionOptions, reading: Reading) -> None:
        self.local: frozenset[str] = frozenset()  # names that are local to its stage
        self.action: Action[..., Any] = action
        self.function = function
        self.name = options.name
        self.bound: Mapping[str, Any] = {} if action is None else bound_of(action)
        self.use = options.use
        self.timeout = options.timeout
        self.inputs, self.is_async, self.generates, self.returned, meaning = reading
        self.wants_context = any(i.context and i.name not in self.bound for i in self.inputs)
        # The common case is read in one go: everything from the store, everything positional.
        self.simple = not self.bound and not any(i.context or i.by_keyword or i.typed for i in self.inputs)
        self.keys: tuple[Name, ...] = tuple(i.key for i in self.inputs)
        self.collects = options.collect
        returns = options.returns
        if returns is UNSET:
            returns = self.name if options.collect is None else None
        self.result_key: Any = returns
        typed = [self.collects, *result_keys(returns), *(i.typed for i in self.inputs)]
        self.frozen = frozenset(key.name for key in typed if isinstance(key, Key) and key.frozen)
        self.writes: Any = returns if isinstance(returns, str) and self.collects is None else None
        self._mean(returns, meaning, options.returns is UNSET)
        if self.drops_empty:  # `sort_out` does, and reports data where only units are named
            self.writes = None

    @classmethod
    def read(cls, action: Action[..., Any]) -> Step:
        """Return the step of an action, whose function is read now."""
        function, options = action.__wrapped__, action_options(action)
        return cls(action, function, options, Reading.of(function, options.name, local_of(action)))

    def _mean(self, returns: Any, meaning: Meaning, by_default: bool) -> None:
        data, units, none, named = meaning
        self.drops_empty = named or self.generates  # an empty list is nothing
        self.names_units = units and not data
        self.inserts = units
        is_kept = self.collects is not None or not (returns is None or isinstance(returns, tuple))
        self.nothing: Any = UNSET if none and data and is_kept else None  # the value that is not stored
        keys = [*result_keys(returns), *([] if self.collects is None else [self.collects])]
        self.supplies = tuple(map(key_name, keys)) if data else ()
        self.supplies_own_name = data and returns == self.name and by_default

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
                hint = (
                    hidden(wanted.key)
                    if wanted.key in store
                    else store.hint(wanted.key, [*store, *values, *store.local_names()])
                )
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
                if wanted.typed is not None:
                    wanted.typed.check(values[name])
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

    def of(self, action: Any, function: Any) -> Step:
        """Return the step of another action, with these facts: one by one, as a loop takes five times as long."""
        made = Step.__new__(Step)
        made.action, made.function = action, function
        made.bound, made.collects, made.generates, made.inputs = self.bound, self.collects, self.generates, self.inputs
        made.frozen = self.frozen
        made.inserts, made.is_async, made.keys, made.local = self.inserts, self.is_async, self.keys, self.local
        made.name, made.names_units, made.nothing = self.name, self.names_units, self.nothing
        made.drops_empty = self.drops_empty
        made.result_key, made.returned, made.simple = self.result_key, self.returned, self.simple
        made.supplies, made.supplies_own_name, made.timeout = self.supplies, self.supplies_own_name, self.timeout
        made.use, made.wants_context, made.writes = self.use, self.wants_context, self.writes
        if function is not None and (function.__defaults__ or function.__kwdefaults__):
            made.inputs = _with_defaults(made.inputs, function)
        return made

    def make_local(self, names: frozenset[str]) -> None:
        """Have it read and write these names as results that are local to its stage."""
        self.local = names
        self.keys = tuple(Local(i.key) if i.key in names else i.key for i in self.inputs)
        if self.supplies_own_name:
            self.result_key = Local(self.name)
            self.writes = None if self.drops_empty else self.result_key

    def keeps_elsewhere(self, key: str) -> str:
        """Return what becomes of its result instead of being stored under its name, if that is the key; else ""."""
        if key != self.name or key in self.supplies or self.names_units or self.returned in (None, types.NoneType):
            return ""
        if self.collects is not None:
            return f"collect= appends its result to the list {key_name(self.collects)!r}"
        keys = result_keys(self.result_key)
        if not keys:
            return "returns=None discards its result"
        return f"its result is stored under {' and '.join(repr(key_name(key)) for key in keys)}"

    def _parts(self, value: Any, keys: tuple[Any, ...]) -> list[Any]:
        if not isinstance(value, (tuple, list)):
            raise ReturnValueError(
                f"action {self.name!r} returned {a_type(value)}, and returns={_shown(keys)} "
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


def hidden(key: str) -> str:
    """Return advice about a key that the store has, and that an action of the stage hides."""
    return f"The store has {key!r}, but action {key!r} of this stage hides it: in the stage, the name is that of its result"


def step_of(action: Action[..., Any]) -> Step:
    """Return the step of an action, made once."""
    memo = memo_of(action)
    step: Step | None = getattr(memo, "step", None)
    if step is None:
        step = memo.step = Step.read(action)
    return step


def steps_of(stage: Stage) -> list[tuple[Step, str | None]]:
    """Return the steps of a stage, the last one first, each with the action that inserted it (None): a stack to run from."""
    known: Any = None
    steps: list[tuple[Step, str | None]]
    try:  # for each stage that runs; a default of `getattr` costs more
        known = stage.memo.steps
    except AttributeError:
        pass
    if type(known) is list:
        return known  # pyright: ignore[reportUnknownVariableType]
    if type(known) is Body:
        steps = _of_template(stage, known)
    else:
        made = [Step.read(action) if stage.local else step_of(action) for action in stage.actions]
        if stage.local:
            _make_all_local(made)
        steps = [(step, None) for step in reversed(made)]
    stage.memo.steps = steps
    return steps


def _make_all_local(steps: Sequence[Step]) -> None:
    names = local_names(steps)
    for step in steps:
        step.make_local(names)


# The stages of a template have steps in common, without the action and the function of one call.


class Layout:
    """The steps that the stages of a template have in common, and the keys that they need, which `wiring` keeps here."""

    __slots__ = ("blanks", "needs", "steps")

    def __init__(self, blanks: list[Step | None], steps: list[Step]) -> None:
        self.blanks = blanks
        self.steps = steps
        self.needs: Any = UNSET


def _of_template(stage: Stage, body: Body) -> list[tuple[Step, str | None]]:
    pattern, likenesses = cast("Pattern", body.pattern), body.likenesses
    blanks = [None if likeness is None else _blank(likeness) for likeness in likenesses]
    layout: Layout | None = pattern.layout
    if layout is not None and layout.blanks == blanks:  # the same objects: steps have no `__eq__`
        stage.memo.layout = layout
        made = layout.steps
    else:
        made = [
            blank.of(None, None) if blank is not None else Step.read(action) if stage.local else step_of(action)
            for blank, action in zip(blanks, stage.actions, strict=True)
        ]
        if stage.local:
            _make_all_local(made)
        if not any(blank is None or blank.use for blank in blanks):  # a layer may refer to anything
            pattern.layout = stage.memo.layout = Layout(blanks, made)
    filled = [
        step if blank is None or likeness is None else step.of(action, likeness[1])
        for step, blank, likeness, action in zip(made, blanks, likenesses, stage.actions, strict=True)
    ]
    return [(step, None) for step in reversed(filled)]


def _blank(likeness: Likeness) -> Step | None:
    """Return the step that actions of this likeness have in common; None if they may mean other things in each call."""
    prototype, function, options = likeness
    known = prototype.read
    if known is not None and known[1].fits(function):
        checked, seen, reading, blank = known
        if checked is options:
            return cast("Step", blank)
    else:
        seen = Seen.of(function)
        if seen is None:
            return None
        reading = Reading.of(function, options.name)
        reading = reading._replace(inputs=tuple(map(_without_default, reading.inputs)))
    blank = Step(None, None, options, reading)
    if not options.use:
        prototype.read = options, seen, reading, blank
    return blank


def _without_default(wanted: Input) -> Input:
    return wanted if wanted.default is EMPTY else wanted._replace(default=UNSET)


def _with_defaults(inputs: tuple[Input, ...], function: types.FunctionType) -> tuple[Input, ...]:
    values, code = function.__defaults__ or (), function.__code__
    last = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    named = {**dict(zip(last, values, strict=True)), **(function.__kwdefaults__ or {})}
    return tuple(
        wanted if wanted.default is EMPTY else wanted._replace(default=named[wanted.name]) for wanted in inputs
    )


def local_names(steps: Iterable[Step]) -> frozenset[str]:
    """Return the names of the results that are local to a stage with these steps."""
    return frozenset(step.name for step in steps if step.supplies_own_name)


def localized(step: Step, names: frozenset[str]) -> Step:
    """Return the step of an action in a stage to which these names are local."""
    made = Step.read(step.action)
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
