"""Actions, stages, pipelines and parallel groups: frozen values, and the algebra of `>>`.

Two definitions are equal when they would do the same: actions by function and options, stages by their actions (those
of a template by its arguments), pipelines by their units. Nothing here knows how a run works, and no run ever changes
what is defined here (L3).

    (a >> b) >> c == a >> (b >> c)      L1
    pipeline() >> a == pipeline(a)      L2
"""

from __future__ import annotations

import functools
import types
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    NamedTuple,
    Never,
    NoReturn,
    Self,
    cast,
    overload,
)

import wrapt
from typing_extensions import ParamSpec, TypeVar

from flowdeco.errors import DefinitionError, ReturnValueError, shortened, suggestion
from flowdeco.model.functions import bindable, call_bound, function_name, signature_of
from flowdeco.model.options import (
    UNSET,
    Middleware,
    checked_key,
    checked_layers,
    checked_name,
    checked_returns,
    checked_selectors,
    checked_tags,
    checked_text,
    checked_timeout,
    described,
    first_paragraph,
)
from flowdeco.model.references import (
    Bound,
    Called,
    Changed,
    Imported,
    Member,
    Method,
    Narrowed,
    Origin,
    load,
    require_importable,
)
from flowdeco.model.runnable import Runnable
from flowdeco.model.store import Key, key_name

__all__ = ["Action", "Middleware", "Parallel", "Pipeline", "Stage", "Stream", "Unit", "parallel", "pipeline", "stream"]

P = ParamSpec("P", default=...)
R = TypeVar("R", covariant=True, default=Any)


# Units and the algebra of `>>`.


class Unit(Runnable):
    """What can stand in a pipeline: an action, a stage, a pipeline, a parallel group."""

    __slots__ = ()
    name: str
    tags: frozenset[str]

    def __rshift__(self, other: Unit) -> Pipeline:
        """Chain: what is on the right runs after what is on the left."""
        return _chain(self, other)

    def __irshift__(self, other: Unit) -> Pipeline:  # wrapt's own would go to the function
        return _chain(self, other)

    def __rrshift__(self, other: Never) -> NoReturn:
        raise DefinitionError(no_unit(other))


def no_unit(thing: object, place: str = "`>>`") -> str:
    """Return the message for what should have been a unit, with what to write instead."""
    if isinstance(thing, Template):
        return f"the stage template {thing.name!r} must be called to give a stage: write {thing.name}(...)"
    if isinstance(thing, Stream):
        return "a stream is returned by an action (or given to ctx.insert): it cannot be chained"
    kind = type(thing).__name__
    found = f"{kind} {described(thing)}"
    if kind in ("list", "tuple") and place != "`>>`":
        return f"{place} takes the units one by one, not in a {kind}: write {place}(*units)"
    if callable(thing):
        return (
            f"{place} takes actions, stages, pipelines and parallel groups, not the {found}: decorate it with @action"
        )
    return f"{place} takes actions, stages, pipelines and parallel groups, not the {found}"


def checked_units(units: Iterable[Any], place: str) -> tuple[Unit, ...]:
    """Return the units, with pipelines that have no options dissolved in them."""
    flat: list[Unit] = []
    for unit in units:
        if not isinstance(unit, Unit):
            raise DefinitionError(no_unit(unit, place))
        flat.extend(unit.units if isinstance(unit, Pipeline) and unit.plain else (unit,))
    return tuple(flat)


def insertable(units: Iterable[Any], who: str, how: str = "returned") -> tuple[Unit | Stream, ...]:
    """Return units as they are inserted, with plain pipelines dissolved; raises `ReturnValueError` for anything else."""
    flat: list[Unit | Stream] = []
    for unit in units:
        if isinstance(unit, Pipeline) and unit.plain:
            flat.extend(map(_as_stage, unit.units))  # what is in a pipeline runs after the stage, actions too
        elif isinstance(unit, (Unit, Stream)):
            flat.append(unit)
        elif isinstance(unit, Template):
            raise ReturnValueError(f"{who} {how} no stage: {no_unit(unit)}")
        elif how == "returned":
            raise ReturnValueError(
                f"{who} returned a mix of units and data: the {type(unit).__name__} {shortened(unit)} is no unit. "
                f"Return the units, and write the data by ctx.store or collect="
            )
        else:
            kind = type(unit).__name__
            raise ReturnValueError(
                f"{who} {how} the {kind} {shortened(unit)}, which is no action, stage, pipeline or stream"
            )
    return tuple(flat)


def _chain(left: Unit, right: Any) -> Pipeline:
    for side, other in ((left, right), (right, left)):
        if isinstance(side, Pipeline) and side.plain and not side.units and isinstance(other, Pipeline):
            return other  # the unit of `>>` (L2)
    return Pipeline(checked_units((left, right), "`>>`"))


U = TypeVar("U", bound=Unit)


class _Value:
    """A frozen value: equal by type and content, which `_content` gives."""

    __slots__ = ()

    def _content(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not type(self):
            return NotImplemented
        return self._content() == cast("_Value", other)._content()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable: use with_options to get a changed copy")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable")


def _set(target: object, **attributes: Any) -> None:
    for name, value in attributes.items():
        object.__setattr__(target, name, value)


def _check_known(what: str, known: Iterable[str], options: Iterable[str]) -> None:
    for name in options:
        if name not in known:
            raise DefinitionError(f"{what} has no option {name!r}. {suggestion(name, known)}")


# Actions.


class ActionOptions(NamedTuple):
    """What `@action` was told."""

    name: str
    description: str | None = None
    tags: frozenset[str] = frozenset()
    returns: Any = UNSET
    collect: Any = None
    use: tuple[Middleware, ...] = ()
    timeout: float | None = None


_ACTION_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "name": lambda name: checked_name(name, "an action"),
    "description": lambda text: checked_text(text, "description"),
    "tags": checked_tags,
    "returns": checked_returns,
    "collect": lambda key: None if key is None else checked_key(key, "collect"),
    "use": checked_layers,
    "timeout": checked_timeout,
}


if TYPE_CHECKING:

    class _Proxy:  # without the `__getattr__` of wrapt: a misspelt attribute of an action is an error
        __name__: str
        __qualname__: str

        def __init__(self, wrapped: Any) -> None: ...
else:
    _Proxy = wrapt.ObjectProxy


class Action(Unit, _Proxy, Generic[P, R]):
    """A function made part of workflows: a transparent proxy that is still called as the plain function.

    It is made by `@action`. It is equal to another action of the same function with the same options and bound values.
    """

    if TYPE_CHECKING:  # at run time, the annotations of an action are those of its function
        __wrapped__: Callable[P, R]
        _self_options: ActionOptions
        _self_bound: Mapping[str, Any]
        _self_origin: Origin | None
        _self_step: Any
        _self_stage: Stage | None

    def __init__(
        self,
        function: Callable[P, R],
        options: ActionOptions | None = None,
        bound: Mapping[str, Any] = types.MappingProxyType({}),
        origin: Origin | None = None,
    ) -> None:
        _Proxy.__init__(self, function)
        self._self_remember("options", options or ActionOptions(function_name(function)))
        self._self_remember("bound", bound)
        self._self_remember("origin", origin)
        self._self_remember("step", None)
        self._self_remember("stage", None)

    def _self_remember(self, name: str, value: Any) -> None:
        _Proxy.__setattr__(self, f"_self_{name}", value)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name in records, selectors and, by default, the store."""
        return self._self_options.name

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        return self.__wrapped__.__annotations__

    @property
    def description(self) -> str:
        """The explanation: by default, the first paragraph of the docstring."""
        given = self._self_options.description
        return first_paragraph(getattr(self.__wrapped__, "__doc__", None)) if given is None else given

    @property
    def tags(self) -> frozenset[str]:  # type: ignore[override]
        """What selectors such as `"tag:slow"` find."""
        return self._self_options.tags

    def bind(self, /, **values: Any) -> Action[..., R]:
        """Return a new action with some parameters fixed; an unknown name is a `DefinitionError`."""
        accepted = bindable(self.__wrapped__, self.name)
        for name in values:
            if accepted is not None and name not in accepted:
                raise DefinitionError(f"action {self.name!r} has no parameter {name!r}. {suggestion(name, accepted)}")
        bound = {**self._self_bound, **values}
        base, old = self._self_origin if isinstance(self._self_origin, Bound) else Bound(self, {})
        return Action(self.__wrapped__, self._self_options, bound, Bound(base, {**old, **values}))

    def with_options(self, **changes: Any) -> Action[P, R]:
        """Return a copy with another name, description, tags, returns, collect, use or timeout."""
        _check_known(repr(self), ActionOptions._fields, changes)
        checked = {option: _ACTION_CHECKS[option](value) for option, value in changes.items()}
        base, old = self._self_origin if isinstance(self._self_origin, Changed) else Changed(self, {})
        return Action(
            self.__wrapped__,
            self._self_options._replace(**checked),
            self._self_bound,
            Changed(base, {**old, **changes}),
        )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._self_bound:
            return cast("R", call_bound(self.__wrapped__, self._self_bound, args, kwargs))
        return self.__wrapped__(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Action[..., R]:
        getter = getattr(type(self.__wrapped__), "__get__", None)
        if getter is None or isinstance(self.__wrapped__, functools.partial):  # a partial does not bind, as ever
            return self
        bound = getter(self.__wrapped__, instance, owner)
        if bound is self.__wrapped__:
            return self
        method = isinstance(bound, types.MethodType) and bound.__self__ is instance
        return Action(bound, self._self_options, self._self_bound, Method(self, instance) if method else None)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not Action:
            return NotImplemented
        return (
            self._self_identity() == other._self_identity()
            and self._self_options == other._self_options
            and self._self_bound == other._self_bound
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _self_identity(self) -> Any:
        """Return what makes the function this one: its place, for one that a template made anew in each call."""
        origin = self._self_origin
        while isinstance(origin, (Changed, Bound)):
            origin = origin.base._self_origin
        return origin if isinstance(origin, Member) and isinstance(origin.stage, Called) else self.__wrapped__

    def __hash__(self) -> int:
        return hash((Action, self.name, getattr(self.__wrapped__, "__qualname__", None)))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Action is immutable: cannot set {name!r} on {self!r}, nor on the function behind it")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an Action is immutable: cannot delete {name!r}")

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        bound = "".join(f", {name}={value!r}" for name, value in self._self_bound.items())
        return f"<Action {self.name}{bound}>"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def __reduce__(self) -> tuple[Any, ...]:
        function: Any = self.__wrapped__
        origin = self._self_origin
        if isinstance(origin, Member):
            require_importable(origin.stage, f"action {self.name!r} of a stage", lambda found: isinstance(found, Stage))
        if origin is not None:
            return load, (origin,)
        if isinstance(function, types.MethodType):
            return getattr, (function.__self__, function.__func__.__name__)
        if not isinstance(function, types.FunctionType):
            return Action, (function, self._self_options)
        reference = Imported(function.__module__, function.__qualname__)
        require_importable(reference, f"action {self.name!r}", lambda found: found == self or found is function)
        return (load, (reference,)) if reference.load() == self else (Action, (function, self._self_options))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self


def make_action(function: Any, *, name: str | None = None, **options: Any) -> Action[..., Any]:
    """Return an action of this function with these options, all of them checked."""
    method = isinstance(cast("object", function), (classmethod, staticmethod))
    if isinstance(function, (Unit, Template, type)) or not (method or callable(function)):
        raise DefinitionError(
            f"an action is made of a function, not of the {type(function).__name__} {described(function)}"
            f"{f': write @action(name={function!r})' if isinstance(function, str) else ''}"
        )
    made = ActionOptions(
        checked_name(function_name(function) if name is None else name, "an action"),
        **{option: _ACTION_CHECKS[option](value) for option, value in options.items()},
    )
    if type(function) is not types.FunctionType:
        signature_of(function, made.name)
    return Action(function, made)


def as_action(thing: Any) -> Action[..., Any]:
    """Return the action itself, or a plain function as an action."""
    return cast("Action[..., Any]", thing) if isinstance(thing, Action) else make_action(thing)


# Stages.


_STAGE_OPTIONS: Final = ("name", "title", "tags", "data", "use", "use_actions", "description")
_ATOMS: Final = (str, bytes, int, float, bool, complex, types.NoneType)


def _checked_data(data: object, stage: str) -> dict[str, Any]:
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise DefinitionError(f"the data of stage {stage!r} is a mapping of keys to values, not {data!r}")
    found: dict[str, Any] = {}
    for key, value in cast("Mapping[Any, Any]", data).items():
        name = key_name(key)
        if isinstance(key, Key):
            cast("Key[Any]", key).check(value)
        found[name] = value
    return _copied(found, stage)


def _copied(data: dict[str, Any], stage: str) -> dict[str, Any]:
    if all(type(value) in _ATOMS for value in data.values()):
        return dict(data)
    import copy  # not loaded for data that is plain

    try:
        return copy.deepcopy(data)
    except Exception:
        for name, value in data.items():
            try:
                copy.deepcopy(value)
            except Exception as error:
                raise DefinitionError(
                    f"the data of stage {stage!r} cannot be copied: key {name!r} holds a {type(value).__name__} "
                    f"({error}). Give what is not data, a connection or a lock, by middleware: yield {{{name!r}: ...}}"
                ) from error
        raise


class Stage(_Value, Unit):
    """A named, immutable sequence of actions, with tags, initial data and middleware.

    `data` is copied here and merged into the store, as a fresh copy, whenever the stage begins (L5). `use` wraps the
    stage, `use_actions` each of its actions. Plain functions among the actions are wrapped. What cannot be copied is a
    `DefinitionError` that names its key.
    """

    __slots__ = (
        "_actions",
        "_data",
        "_description",
        "_flow",
        "_needs",
        "_origin",
        "_steps",
        "_title",
        "name",
        "tags",
        "use",
        "use_actions",
    )
    name: str
    tags: frozenset[str]
    use: tuple[Middleware, ...]
    use_actions: tuple[Middleware, ...]
    _actions: tuple[Action[..., Any], ...]
    _data: dict[str, Any]
    _steps: Any
    _origin: Origin | None
    _title: str | None
    _description: str

    def __init__(
        self,
        name: str,
        actions: Iterable[Callable[..., Any]] = (),
        *,
        title: str | None = None,
        tags: Iterable[str] = (),
        data: Mapping[str, Any] | None = None,
        use: Iterable[Middleware] = (),
        use_actions: Iterable[Middleware] = (),
        description: str = "",
    ) -> None:
        if isinstance(actions, (Unit, str)) or not isinstance(actions, Iterable):
            raise DefinitionError(f"the actions of stage {name!r} are a list, not {actions!r}: write [...]")
        _set(
            self,
            name=checked_name(name, "a stage"),
            tags=checked_tags(tags),
            use=checked_layers(use),
            use_actions=checked_layers(use_actions, "use_actions"),
            _actions=tuple(as_action(action) for action in actions),
            _data=_checked_data(data, name),
            _title=checked_text(title, "title"),
            _description=checked_text(description, "description") or "",
            _origin=None,
            _flow=None,
            _steps=None,
            _needs=None,
        )

    @property
    def title(self) -> str:
        """The human-readable name: by default, made from the name."""
        if self._title is not None:
            return self._title
        words = self.name.replace("_", " ").strip() or self.name
        return words[:1].upper() + words[1:]

    @property
    def description(self) -> str:
        """The explanation; for a `@stage` function, the first paragraph of its docstring."""
        return self._description

    @property
    def data(self) -> dict[str, Any]:
        """A fresh copy of the data that is merged when the stage begins."""
        return _copied(self._data, self.name)

    def with_options(self, **changes: Any) -> Stage:
        """Return a copy with another name, title, tags, data, use, use_actions or description."""
        _check_known(repr(self), _STAGE_OPTIONS, changes)
        made = Stage(**{**self._options(), **changes}, actions=self._actions)
        base, old = self._origin if isinstance(self._origin, Changed) else Changed(self, {})
        _set(made, _origin=Changed(base, {**old, **changes}))
        return made

    def _options(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self._title,
            "tags": self.tags,
            "data": self._data,
            "use": self.use,
            "use_actions": self.use_actions,
            "description": self._description,
        }

    @property
    def template(self) -> Template | None:
        """The template that gave this stage, None for others."""
        origin = self._origin
        while isinstance(origin, (Changed, Narrowed)):
            origin = origin.base._origin
        return cast("Template", origin.template) if isinstance(origin, Called) else None

    def _narrowed(self, places: tuple[int, ...]) -> Stage:
        """Return the stage with only the actions at these places."""
        made = Stage(actions=[self._actions[place] for place in places], **self._options())
        _set(made, _origin=Narrowed(self, places))
        return made

    def _actions_content(self) -> Any:
        """Return what the actions are: those of a template are new functions in each call, so what gave them."""
        origin = self._origin
        if isinstance(origin, Changed):
            return origin.base._actions_content()
        if isinstance(origin, Narrowed) and self.template is not None:
            return origin.base._actions_content(), origin.places
        return origin if isinstance(origin, Called) else self._actions

    def __iter__(self) -> Iterator[Action[..., Any]]:
        return iter(self._actions)

    def __len__(self) -> int:
        return len(self._actions)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, name: str) -> Action[..., Any]:
        return _named(self, name, self._actions, "action")

    def _content(self) -> tuple[Any, ...]:
        return (self._actions_content(), self._options(), self.title)

    def __hash__(self) -> int:
        return hash((Stage, self.name, self.tags))

    def __repr__(self) -> str:
        tags = f" tags={sorted(self.tags)}" if self.tags else ""
        return f"<Stage {self.name}: {', '.join(a.name for a in self._actions) or 'no actions'}{tags}>"

    def __reduce__(self) -> tuple[Any, ...]:
        origin = self._origin
        if isinstance(origin, Imported):
            require_importable(origin, f"stage {self.name!r}", lambda found: found == self)
        if origin is not None:
            return load, (origin,)
        return _stage_of, (self._actions, self._options())


def _stage_of(actions: tuple[Action[..., Any], ...], options: dict[str, Any]) -> Stage:
    return Stage(actions=actions, **options)


def one_action_stage(action: Action[..., Any]) -> Stage:
    """Return the stage that a bare action stands for in a pipeline: of its name, description and tags."""
    made: Any = action._self_stage
    if made is None:
        made = Stage(action.name, (action,), tags=action.tags, description=action.description)
        action._self_remember("stage", made)
    return made  # type: ignore[no-any-return]


def _as_stage(unit: Unit) -> Unit:
    return one_action_stage(cast("Action[..., Any]", unit)) if isinstance(unit, Action) else unit


def _named(owner: Unit, name: object, members: Sequence[U], what: str) -> U:
    if not isinstance(name, str):
        raise TypeError(f"{owner!r} is looked up by the name of a {what}, not by {name!r}")
    found = [member for member in members if member.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise KeyError(
            f"{len(found)} {what}s of {owner!r} are named {name!r}: give them different names by with_options(name=...)"
        )
    raise KeyError(f"no {what} {name!r} in {owner!r}. {suggestion(name, [member.name for member in members])}")


class Template:
    """The base of stage templates: what must be called to give a stage."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The name that selects all its stages."""
        raise NotImplementedError


# Streams.


class Stream:
    """Units that are pulled one at a time, each when the one before it is done; made by `stream`."""

    __slots__ = ("args", "source")

    def __init__(self, source: Any, args: tuple[Any, ...]) -> None:
        self.source = source
        self.args = args

    @property
    def name(self) -> str:
        """What stands for it in messages and among pending units."""
        return f"stream of {described(self.source)}"

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Stream, (self.source, self.args)


@overload
def stream(source: Iterable[Unit] | AsyncIterable[Unit], /) -> Stream: ...
@overload
def stream(
    source: Callable[P, Iterable[Unit] | AsyncIterable[Unit]], /, *args: P.args, **kwargs: P.kwargs
) -> Stream: ...
def stream(source: Any, /, *args: Any, **kwargs: Any) -> Stream:
    """Return units to be pulled lazily, one at a time, after the current stage.

    The source is an iterable (an async one too) or a function that gives one, with its arguments. In a durable run it
    must be a function, and repeatable: on resume it is called again.
    """
    if kwargs:
        raise DefinitionError(f"stream takes positional arguments for its function, not {', '.join(kwargs)}=")
    if callable(source):
        return Stream(source, args)
    kind = type(source).__name__
    if args:
        raise DefinitionError(f"stream takes arguments for a function, and the {kind} is none")
    if isinstance(source, (str, bytes, Mapping)) or not isinstance(source, (Iterable, AsyncIterable)):
        raise DefinitionError(f"stream takes an iterable of units or a function, not the {kind}")
    return Stream(cast("Any", source), ())


# Pipelines.


class _Composite(_Value, Unit):
    """An immutable sequence of units with options: what pipelines and parallel groups share."""

    __slots__ = ("_flow", "_needs", "_options", "units")
    _DEFAULTS: ClassVar[dict[str, Any]]
    units: tuple[Unit, ...]
    _options: dict[str, Any]

    if TYPE_CHECKING:

        def __init__(self, units: Iterable[Unit] = (), **options: Any) -> None: ...

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name in records and messages."""
        return cast("str", self._options["name"])

    @property
    def tags(self) -> frozenset[str]:  # type: ignore[override]
        """What selectors such as `"tag:slow"` find."""
        return cast("frozenset[str]", self._options["tags"])

    @property
    def plain(self) -> bool:
        """Whether no option was given."""
        return self._options == self._DEFAULTS

    @classmethod
    def _given(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        _check_known(cls.__name__, cls._DEFAULTS, options)
        return {**cls._DEFAULTS, **options}

    def with_options(self, **changes: Any) -> Self:
        """Return a copy with other options."""
        _check_known(repr(self), self._DEFAULTS, changes)
        return type(self)(self.units, **{**self._options, **changes})

    def _with_units(self, units: Iterable[Unit]) -> Self:
        return type(self)(units, **self._options)

    def __len__(self) -> int:
        return len(self.units)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.units)

    def _content(self) -> tuple[Any, ...]:
        return (self.units, self._options)

    def __hash__(self) -> int:
        return hash((type(self), self.units, self.name))

    def __reduce__(self) -> tuple[Any, ...]:
        return _composite_of, (type(self), self.units, self._options)


def _composite_of(cls: type[_Composite], units: tuple[Unit, ...], options: dict[str, Any]) -> Any:
    return cls(units, **options)


class Pipeline(_Composite):
    """An immutable sequence of units, made by `>>` or `pipeline`.

    `flow[0]` and `flow["clean"]` give a unit (KeyError lists the names), slices a pipeline: `flow["clean":]`,
    `flow[:"load"]`, the end excluded.
    """

    __slots__ = ()
    _DEFAULTS = {
        "name": "pipeline",
        "title": None,
        "tags": frozenset(),
        "description": "",
        "use": (),
        "use_stages": (),
        "use_actions": (),
    }

    def __init__(self, units: Iterable[Unit] = (), **options: Any) -> None:
        given = self._given(options)
        _set(
            self,
            units=checked_units(units, "pipeline"),
            _flow=None,
            _needs=None,
            _options={
                "name": checked_name(given["name"], "a pipeline"),
                "title": checked_text(given["title"], "title"),
                "tags": checked_tags(given["tags"]),
                "description": checked_text(given["description"], "description") or "",
                "use": checked_layers(given["use"]),
                "use_stages": checked_layers(given["use_stages"], "use_stages"),
                "use_actions": checked_layers(given["use_actions"], "use_actions"),
            },
        )

    @property
    def title(self) -> str:
        """The human-readable name."""
        return cast("str", self._options["title"] or self.name)

    @property
    def description(self) -> str:
        """The explanation."""
        return cast("str", self._options["description"])

    @property
    def use(self) -> tuple[Middleware, ...]:
        """Middleware around the whole run of the pipeline."""
        return cast("tuple[Middleware, ...]", self._options["use"])

    @property
    def use_stages(self) -> tuple[Middleware, ...]:
        """Middleware around each stage."""
        return cast("tuple[Middleware, ...]", self._options["use_stages"])

    @property
    def use_actions(self) -> tuple[Middleware, ...]:
        """Middleware around each action."""
        return cast("tuple[Middleware, ...]", self._options["use_actions"])

    @overload
    def __getitem__(self, where: int | str) -> Unit: ...
    @overload
    def __getitem__(self, where: slice) -> Pipeline: ...
    def __getitem__(self, where: Any) -> Any:
        if isinstance(where, slice):
            cut = cast("slice[Any, Any, Any]", where)
            return self._with_units(self.units[self._index(cut.start) : self._index(cut.stop) : cut.step])
        if isinstance(where, int):
            return self.units[where]
        return _named(self, where, self.units, "unit")

    def _index(self, edge: Any) -> Any:
        return self.units.index(_named(self, edge, self.units, "unit")) if isinstance(edge, str) else edge

    def only(self, *selectors: str) -> Pipeline:
        """Return the pipeline with only what the selectors name."""
        return _selected(self, selectors, keep=True)

    def without(self, *selectors: str) -> Pipeline:
        """Return the pipeline without what the selectors name."""
        return _selected(self, selectors, keep=False)

    def __repr__(self) -> str:
        names = " >> ".join(unit.name for unit in self.units) or "empty"
        return f"<Pipeline {names}>" if self.plain else f"<Pipeline {self.name}: {names}>"


def pipeline(
    *units: Unit,
    name: str = "pipeline",
    title: str | None = None,
    tags: Iterable[str] = (),
    description: str = "",
    use: Iterable[Middleware] = (),
    use_stages: Iterable[Middleware] = (),
    use_actions: Iterable[Middleware] = (),
) -> Pipeline:
    """Return a pipeline of these units; without options the same as chaining them with `>>`.

    `use` wraps the whole run of the pipeline, `use_stages` each of its stages, `use_actions` each action.

    >>> pipeline(Stage("a"), Stage("b")) == Stage("a") >> Stage("b")
    True
    """
    return Pipeline(
        units,
        name=name,
        title=title,
        tags=tags,
        description=description,
        use=use,
        use_stages=use_stages,
        use_actions=use_actions,
    )


def as_pipeline(unit: Unit) -> Pipeline:
    """Return the pipeline itself, or the pipeline of this one unit, made once."""
    if isinstance(unit, Pipeline):
        return unit
    owner: Any = _as_stage(unit)
    if owner._flow is None:
        _set(owner, _flow=Pipeline((unit,)))
    return cast("Pipeline", owner._flow)


# Parallel groups.


class Parallel(_Composite):
    """Units that each start from the store as it is, and whose writes are merged in their order when all are done.

    Made by `parallel`. `merge` maps a key to a function that folds the values that several branches wrote, two at a
    time, in branch order; without one, different values are a `WriteConflictError`.
    """

    __slots__ = ()
    _DEFAULTS = {"name": "parallel", "limit": None, "merge": {}, "tags": frozenset()}

    def __init__(self, units: Iterable[Unit] = (), **options: Any) -> None:
        given = self._given(options)
        limit: Any = given["limit"]
        merge: Any = given["merge"] or {}
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise DefinitionError(f"limit is a positive number of branches that run at once, not {limit!r}")
        if not isinstance(merge, Mapping) or not all(map(callable, cast("Mapping[Any, Any]", merge).values())):
            raise DefinitionError(
                f"merge maps keys to functions of two values, as {{'key': operator.add}}, not {merge!r}"
            )
        branches: list[Unit] = []
        for unit in units:
            if not isinstance(unit, Unit):
                raise DefinitionError(no_unit(unit, "parallel"))
            branches.append(unit)
        _set(
            self,
            units=tuple(branches),
            _flow=None,
            _needs=None,
            _options={
                "name": checked_name(given["name"], "a parallel group"),
                "limit": limit,
                "merge": {key_name(key): fold for key, fold in cast("Mapping[Any, Any]", merge).items()},
                "tags": checked_tags(given["tags"]),
            },
        )

    @property
    def limit(self) -> int | None:
        """How many branches may run at once; None: all of them."""
        return cast("int | None", self._options["limit"])

    @property
    def merge(self) -> Mapping[str, Callable[[Any, Any], Any]]:
        """How the values that several branches wrote under a key are folded."""
        return types.MappingProxyType(self._options["merge"])

    def __getitem__(self, where: int | str) -> Unit:
        return self.units[where] if isinstance(where, int) else _named(self, where, self.units, "unit")

    def __repr__(self) -> str:
        return f"<Parallel {self.name}: {' | '.join(unit.name for unit in self.units) or 'empty'}>"


def parallel(
    *units: Unit,
    name: str = "parallel",
    limit: int | None = None,
    merge: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    tags: Iterable[str] = (),
) -> Parallel:
    """Return a group whose units are branches: each starts from the store as it is, and sees no other (L9).

    What they wrote is merged in branch order when all are done, so that the result does not depend on timing.
    """
    return Parallel(units, name=name, limit=limit, merge=merge, tags=tags)


# Selectors.


def stage_selectors(unit: Unit) -> list[str]:
    """Return every selector that names this unit as a whole; a pipeline or group counts if it was given a name."""
    names = [f"tag:{tag}" for tag in unit.tags]
    if not (isinstance(unit, _Composite) and unit.name == unit._DEFAULTS["name"]):
        names.append(unit.name)
    if isinstance(unit, Stage) and unit.template is not None:
        names.append(unit.template.name)
    return names


def action_selectors(stage: Stage, action: Action[..., Any]) -> list[str]:
    """Return every selector that names this action of this stage."""
    names = [f"{stage.name}/{action.name}", *(f"tag:{tag}" for tag in action.tags)]
    if stage.template is not None:
        names.append(f"{stage.template.name}/{action.name}")
    return names


def _selected(flow: Pipeline, selectors: tuple[str, ...], *, keep: bool) -> Pipeline:
    wanted = frozenset(checked_selectors(selectors, "selectors"))
    units = (_narrowed(unit, wanted, keep) for unit in flow.units)
    return flow._with_units(unit for unit in units if unit is not None)


def _narrowed(unit: Unit, wanted: frozenset[str], keep: bool) -> Unit | None:
    """Return what is left of a unit when only the wanted (or all but the wanted) parts stay, None for nothing."""
    stage = _as_stage(unit)
    if not wanted.isdisjoint(stage_selectors(stage)):
        return unit if keep else None
    if isinstance(stage, _Composite):
        parts = [_narrowed(part, wanted, keep) for part in stage.units]
        left = [part for part in parts if part is not None]
        return stage._with_units(left) if left or not (keep or stage.units) else None
    assert isinstance(stage, Stage)
    places = [i for i, a in enumerate(stage) if wanted.isdisjoint(action_selectors(stage, a)) is not keep]
    if len(places) == len(stage):
        return None if keep and not places else unit
    return stage._narrowed(tuple(places)) if places or not keep else None
