"""Actions and stages: frozen values, as pipelines and groups (`units`) are.

Two definitions are equal when they would do the same thing: actions by function and options, stages by their actions (those
of a template by its arguments), pipelines by their units. Nothing here knows how a run works, and no run ever changes a
definition (L3).

An action is a proxy, so a public attribute would hide the one of its function. Other modules therefore read definitions
through functions: `action_options`, `bound_of`, `origin_of`, `memo_of`, `options_of`.
"""
# The functions of this module read the private attributes of its own classes.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, cast

import wrapt
from typing_extensions import ParamSpec, TypeVar, Unpack

from flowdeco.errors import (
    DefinitionError,
    ReturnValueError,
    StoreTypeError,
    a_type,
    printable,
    shortened,
    suggestion,
)
from flowdeco.model.contents import ATOMS
from flowdeco.model.functions import bindable, call_bound, function_name, is_same_function, signature_of
from flowdeco.model.identity import content_of, keep_defaults
from flowdeco.model.keys import Key, key_name, result_keys
from flowdeco.model.names import NO_LOCALS, local_variables
from flowdeco.model.options import Duration, Middleware, checked, described, first_paragraph, placed
from flowdeco.model.references import (
    Bound,
    Called,
    Changed,
    Imported,
    Member,
    Method,
    Narrowed,
    Origin,
    Part,
    Parted,
    home_of,
    importable,
    load,
    module_at_work,
    named,
    reduced,
    reference,
)
from flowdeco.model.sentinels import UNSET
from flowdeco.model.streams import Stream, stream
from flowdeco.model.tuples import NamedTuple
from flowdeco.model.units import (
    Equal,
    Memo,
    Parallel,
    Pipeline,
    Template,
    Unit,
    Value,
    assign,
    check_known,
    check_layers,
    every_unit,
    member_named,
    no_unit,
    options_of,
    parallel,
    pipeline,
    stage_selectors,
)

if TYPE_CHECKING:
    from flowdeco.model.options import ActionChanges, StageChanges

__all__ = [
    "Action",
    "Parallel",
    "Pipeline",
    "Stage",
    "Stream",
    "Template",
    "Unit",
    "memo_of",
    "no_unit",
    "options_of",
    "parallel",
    "pipeline",
    "stage_selectors",
    "stream",
]

P = ParamSpec("P", default=...)
R = TypeVar("R", covariant=True, default=Any)
S = TypeVar("S", "Action[..., Any]", "Stage")


# Actions.


class ActionOptions(NamedTuple):
    """The options of an action, as `@action` takes them."""

    name: str
    description: str | None = None
    tags: frozenset[str] = frozenset()
    returns: Any = UNSET
    collect: Any = None
    use: tuple[Middleware, ...] = ()
    timeout: float | None = None


if TYPE_CHECKING:

    class _Proxy:  # without the `__getattr__` of wrapt: a misspelt attribute of an action is an error
        __name__: str
        __qualname__: str

        def __init__(self, wrapped: Any) -> None: ...
else:
    _Proxy = wrapt.ObjectProxy

_remember: Final = _Proxy.__setattr__  # an attribute of the proxy, whose own `__setattr__` refuses


class Action(Equal, Unit, _Proxy, Generic[P, R]):
    """A function that can be part of workflows: a transparent proxy, still called as the plain function.

    Made by `@action`. It is equal to another action of the same function with the same options and bound values.
    """

    if TYPE_CHECKING:  # at run time, the annotations of an action are those of its function
        __wrapped__: Callable[P, R]
        _self_options: ActionOptions
        _self_bound: Mapping[str, Any]
        _self_origin: Origin | None
        _self_memo: Memo | None
        _self_local: Mapping[str, Any]
        _self_module: str
    else:  # those that most actions have; an attribute of a proxy takes as long to set as the loop for one item
        _self_bound = types.MappingProxyType({})
        _self_origin = _self_memo = None
        _self_local = NO_LOCALS
        _self_module = ""  # where one of an object was made

    def __init__(
        self,
        function: Callable[P, R],
        options: ActionOptions | None = None,
        bound: Mapping[str, Any] | None = None,
        origin: Origin | None = None,
        local: Mapping[str, Any] = NO_LOCALS,
    ) -> None:
        _Proxy.__init__(self, function)
        _remember(self, "_self_options", options or ActionOptions(function_name(function)))
        if bound:
            _remember(self, "_self_bound", bound)
        if origin is not None:
            _remember(self, "_self_origin", origin)
        if local:
            _remember(self, "_self_local", local)

    @property
    def name(self) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """The name in records, selectors and, by default, the store."""
        return self._self_options.name

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.__wrapped__.__annotations__

    @property
    def description(self) -> str:
        """The explanation: by default, the first paragraph of the docstring."""
        given = self._self_options.description
        return first_paragraph(getattr(self.__wrapped__, "__doc__", None)) if given is None else given

    @property
    def tags(self) -> frozenset[str]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """The tags, found by selectors such as `"tag:slow"`."""
        return self._self_options.tags

    def bind(self, /, **values: Any) -> Action[..., R]:
        """Return a new action with some parameters fixed; an unknown name is a `DefinitionError`."""
        accepted = bindable(self.__wrapped__, self.name)
        for name in values:
            if accepted is not None and name not in accepted:
                raise DefinitionError(f"action {self.name!r} has no parameter {name!r}. {suggestion(name, accepted)}")
        bound = {**self._self_bound, **values}
        base, old = self._self_origin if isinstance(self._self_origin, Bound) else Bound(self, {})
        return Action(self.__wrapped__, self._self_options, bound, Bound(base, {**old, **values}), self._self_local)

    def with_options(self, **changes: Unpack[ActionChanges]) -> Action[P, R]:
        """Return a copy with another name, description, tags, returns, collect, use or timeout."""
        check_known(repr(self), ActionOptions._fields, changes)
        options = _without_conflict(self._self_options._replace(**checked("an action", changes)))
        base, old = self._self_origin if isinstance(self._self_origin, Changed) else Changed(self, {})
        if "use" in changes:
            check_layers(options.use, [self])
        origin = Changed(base, {**old, **changes})
        return Action(self.__wrapped__, options, self._self_bound, origin, self._self_local)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._self_bound:
            return cast("R", call_bound(self.__wrapped__, self._self_bound, args, kwargs))
        return self.__wrapped__(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Action[..., R]:
        getter = getattr(type(self.__wrapped__), "__get__", None)
        if getter is None or isinstance(self.__wrapped__, functools.partial):  # a partial does not bind to an instance
            return self
        bound = getter(self.__wrapped__, instance, owner)
        if bound is self.__wrapped__:
            return self
        method = isinstance(bound, types.MethodType) and bound.__self__ is instance
        origin = Method(self, instance) if method else None
        return Action(bound, self._self_options, self._self_bound, origin, self._self_local)

    __ne__ = object.__ne__  # that of the proxy would compare the functions

    def _made_from(self) -> Origin | None:
        return self._self_origin

    def _given(self) -> dict[str, Any]:
        return self._self_options._asdict()

    def _all_selectors(self) -> list[str]:
        return one_action_stage(self)._all_selectors()

    def _actions(self) -> tuple[Any, ...]:
        return (self,)

    def _selected(self, wanted: frozenset[str], keep: bool) -> Unit | None:
        stage = one_action_stage(self)
        left = stage._selected(wanted, keep)
        return self if left is stage else left

    def _content(self) -> tuple[Any, ...]:
        return self._self_identity(), self._self_options, self._self_bound

    def _self_identity(self) -> Any:
        """Return the identity of the function: its place in the stage where a template makes a new one in each call."""
        origin = _root_origin(self)
        if isinstance(origin, Member) and isinstance(origin.stage, Called):
            return Member(origin.stage.normalised(), origin.position)
        function: Any = self.__wrapped__
        return (function.func, function.args, function.keywords) if type(function) is functools.partial else function

    def __hash__(self) -> int:
        return hash((Action, self.name, getattr(self.__wrapped__, "__qualname__", None)))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Action is immutable: cannot set {name!r} on {self!r}, nor on the function behind it")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an Action is immutable: cannot delete {name!r}")

    def __str__(self) -> str:
        return repr(self)

    def __dir__(self) -> list[str]:
        return sorted({*dir(self.__wrapped__), *(name for name in dir(Action) if not name.startswith("_"))})

    def __repr__(self) -> str:
        bound = "".join(f", {name}={shortened(value)}" for name, value in self._self_bound.items())
        return printable(f"<Action {self.name}{bound}>")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def __reduce__(self) -> tuple[Any, ...]:
        function: Any = self.__wrapped__
        origin, what = self._self_origin, f"action {self.name!r}"
        if isinstance(origin, Member) and isinstance(origin.stage, Imported):
            place = importable(origin.stage, self, f"{what} of a stage", lambda found: isinstance(found, Stage))
            return load, (origin if place is origin.stage else place,)
        if origin is not None:
            return reference(self, origin, what)
        if isinstance(function, types.MethodType):
            return reduced(
                what, {"object": function.__self__}, (getattr, (function.__self__, function.__func__.__name__))
            )
        if isinstance(function, types.FunctionType):
            own = Imported(function.__module__, function.__qualname__)
            home: Any = importable(own, self, what, lambda found: found == self or found is function)
            home = home if home.load() == self else None
        else:
            home = _home_of_object(self)
        if home is not None:
            return load, (home,)
        values = {"function": function, **named("option", self._given())}
        return reduced(what, values, (Action, (function, self._self_options)))


def checked_options(function: Any, *, name: str | None = None, **options: Any) -> ActionOptions:
    """Return the options of an action of this function, which is checked as well."""
    method = isinstance(cast("object", function), (classmethod, staticmethod))
    if isinstance(function, (Unit, Template, type)) or not (method or callable(function)):
        hint = ""
        if isinstance(function, (Unit, Template)):
            hint = ". A stage contains actions: chain units with `>>` or pipeline(...), or have an action return them"
        elif isinstance(function, type):
            hint = ": write a function that makes an object of it and returns that"
        elif isinstance(cast("object", function), functools.partialmethod):
            hint = ": write a method that calls the other one"
        raise DefinitionError(
            f"an action is made from a function, not from the {type(function).__name__} {described(function)}{hint}"
            f"{f': write @action(name={shortened(function)})' if isinstance(function, str) else ''}"
        )
    options["name"] = function_name(function) if name is None else name
    return _without_conflict(ActionOptions(**checked("an action", options)))


def _without_conflict(options: ActionOptions) -> ActionOptions:
    """Return the options; raises `DefinitionError` if the result would replace the list in which it is collected."""
    collect = options.collect
    if collect is not None and key_name(collect) in map(key_name, result_keys(options.returns)):
        raise DefinitionError(
            f"action {options.name!r} stores its result under {key_name(collect)!r} by returns=, and appends it to the "
            f"list there by collect=: choose one, or another key"
        )
    return options


def make_action(function: Any, **options: Any) -> Action[..., Any]:
    """Return an action of this function with these options, which are checked here."""
    made = checked_options(function, **options)
    if type(function) is not types.FunctionType:
        signature_of(function, made.name)
        keep_defaults(function)
    elif function.__defaults__ or function.__kwdefaults__ or hasattr(function, "__wrapped__"):
        keep_defaults(function)
    found = Action(function, made, local=local_variables(function))
    if type(function) is not types.FunctionType:
        _remember(cast("Any", found), "_self_module", module_at_work())
    if made.use:
        check_layers(made.use, [found])
    return found


def as_action(thing: Any) -> Action[..., Any]:
    """Return the action itself, or a plain function as an action."""
    return cast("Action[..., Any]", thing) if isinstance(thing, Action) else make_action(thing)


# Stages.


_SLOTS: Final = {"title": "_title", "data": "_data"}  # of options whose attributes are not the options themselves
_STAGE_OPTIONS: Final = ("name", "title", "tags", "data", "use", "use_actions", "local", "timeout", "description")


def _checked_data(data: object, stage: str) -> dict[str, Any]:
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise DefinitionError(f"the data of stage {stage!r} is a mapping of keys to values, not {shortened(data)}")
    found: dict[str, Any] = {}
    for key, value in cast("Mapping[Any, Any]", data).items():
        try:
            name = key_name(key)
        except StoreTypeError as error:
            raise StoreTypeError(f"data= of stage {stage!r}: {error}") from None
        if isinstance(key, Key):
            cast("Key[Any]", key).check(value)
        found[name] = value
    return _copied(found, stage)


def _check_namesakes(actions: Iterable[Action[..., Any]], stage: str) -> None:
    """Raise `DefinitionError` for two different functions under one name; one function may be there twice.

    Functions that a loop made of one `def` may be, too, unless the result of one would replace that of another.
    """
    known: dict[str, Action[..., Any]] = {}
    for action in actions:
        function = action.__wrapped__
        first = known.setdefault(action.name, action)
        if first is action:
            continue
        other = first.__wrapped__
        if not is_same_function(other, function):
            raise DefinitionError(
                f"stage {stage!r} has two actions named {action.name!r}, {placed(other)} and {placed(function)}: "
                f"give one of them another name, by `def` or by @action(name=...)"
            )
        if _are_of_one_body(first, action) and not _result_keys(first).isdisjoint(_result_keys(action)):
            raise DefinitionError(
                f"stage {stage!r} has several actions named {action.name!r}, made of one function ({placed(function)}) "
                f"in a loop or by several calls, and the result of each would replace the one before: give each a name of "
                f"its own by @action(name=...), or collect the results by collect="
            )


def _are_of_one_body(one: Action[..., Any], other: Action[..., Any]) -> bool:
    """Whether two actions are those of two places in the body of one stage."""
    first, second = (_root_origin(action) for action in (one, other))
    is_same_stage = isinstance(first, Member) and isinstance(second, Member) and first.stage is second.stage
    return is_same_stage and first.position != second.position


def _root_origin(action: Action[..., Any]) -> Any:
    """Return the origin of the action that this one is a changed copy of, or its own."""
    origin = action._self_origin
    while isinstance(origin, (Changed, Bound)):
        origin = origin.base._self_origin
    return origin


def _result_keys(action: Action[..., Any]) -> set[str]:
    """Return the keys under which an action stores what it returns; not one under which it is collected."""
    returns, collect = action._self_options.returns, action._self_options.collect
    is_default = returns is UNSET and collect is None
    return {action.name} if is_default else set(map(key_name, result_keys(returns)))


def _copied(data: dict[str, Any], stage: str) -> dict[str, Any]:
    if all(type(value) in ATOMS for value in data.values()):
        return dict(data)
    import copy  # not loaded for plain data

    try:
        return copy.deepcopy(data)
    except Exception:
        for name, value in data.items():
            try:
                copy.deepcopy(value)
            except Exception as error:
                raise DefinitionError(
                    f"the data of stage {stage!r} cannot be copied: key {name!r} holds {a_type(value)} "
                    f"({error}). Supply a connection, a lock or the like by middleware: yield {{{name!r}: ...}}"
                ) from error
        raise


class Stage(Value, Unit, Parted):
    """A named, immutable sequence of actions, with tags, initial data and middleware.

    `data` is copied here and merged into the store, as a fresh copy, whenever the stage begins (L5). `use` wraps the
    stage, `use_actions` each of its actions. With `local`, results that its actions store under their own names are
    seen by later actions of the stage only, and are gone when it ends. `timeout` is in seconds, for each attempt at the
    whole stage. Plain functions among the actions become actions. Data that cannot be copied raises a `DefinitionError`
    that names its key. `has_data` is true if there is any; `description` is the explanation, for a `@stage` function the
    first paragraph of its docstring. `memo` keeps facts that were worked out once, and is not part
    of the value.
    """

    __slots__ = (
        "_data", "_origin", "_title", "actions", "description", "has_data", "local", "memo", "name", "tags",
        "timeout", "use", "use_actions",
    )  # fmt: skip
    name: str
    tags: frozenset[str]
    use: tuple[Middleware, ...]
    use_actions: tuple[Middleware, ...]
    actions: tuple[Action[..., Any], ...]
    has_data: bool
    local: bool
    timeout: float | None
    description: str
    _data: dict[str, Any]
    _origin: Origin | None
    _title: str | None

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
        local: bool = False,
        timeout: Duration | None = None,
        description: str = "",
    ) -> None:
        if isinstance(cast("object", name), (list, tuple)):
            raise DefinitionError(
                f"the name of a stage is a non-empty string, not {shortened(name)}: write Stage('name', [...])"
            )
        if isinstance(actions, (Unit, str)) or not isinstance(actions, Iterable):
            raise DefinitionError(f"the actions of stage {name!r} are a list, not {shortened(actions)}: write [...]")
        if isinstance(actions, (set, frozenset)):
            raise DefinitionError(f"the actions of stage {name!r} are a list, and a set has no order: write [...]")
        own = checked(
            "a stage",
            {
                "name": name, "title": title, "tags": tags, "use": use, "use_actions": use_actions, "local": local,
                "timeout": timeout, "description": description,
            },
        )  # fmt: skip
        members, content = tuple(map(as_action, actions)), _checked_data(data, name)
        if len(members) > 1:
            _check_namesakes(members, name)
        assign(
            self, actions=members, _data=content, has_data=bool(content), _title=own.pop("title"), _origin=None,
            memo=Memo(), **own,
        )  # fmt: skip
        check_layers(self.use_actions, [self])

    @property
    def title(self) -> str:
        """The human-readable name: by default, made from the name."""
        if self._title is not None:
            return self._title
        words = self.name.replace("_", " ").strip() or self.name
        return words[:1].upper() + words[1:]

    @property
    def data(self) -> dict[str, Any]:
        """A fresh copy of the data, which is merged into the store when the stage begins."""
        return _copied(self._data, self.name)

    def with_options(self, **changes: Unpack[StageChanges]) -> Stage:
        """Return a copy with another name, title, tags, data, use, use_actions, local, timeout or description."""
        check_known(repr(self), _STAGE_OPTIONS, changes)
        made = Stage(**(self._given() | cast("dict[str, Any]", changes)), actions=self.actions)
        base, old = self._origin if isinstance(self._origin, Changed) else Changed(self, {})
        return set_origin(made, Changed(base, {**old, **changes}))

    def _made_from(self) -> Origin | None:
        return self._origin

    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, _SLOTS.get(name, name)) for name in _STAGE_OPTIONS}

    @property
    def template(self) -> Template | None:
        """The template that made this stage, None for others."""
        called = _called(self)
        return None if called is None else cast("Template", called.template)

    def _identity(self) -> str:
        """Return the name; if it is that of a call, the same for all ways to write the call."""
        root = _root(self)
        called = root._origin
        if not isinstance(called, Called) or root.name != self.name:
            return self.name
        if not hasattr(root.memo, "called"):
            root.memo.called = called.template.stage_name(called.normalised().kwargs)
        return root.memo.called

    def narrowed(self, places: tuple[int, ...]) -> Stage:
        """Return the stage with only the actions at these places."""
        made = Stage(actions=[self.actions[place] for place in places], **self._given())
        return set_origin(made, Narrowed(self, places))

    def _selectors(self) -> list[str]:
        names = super()._selectors()
        return names if self.template is None else [*names, self.template.name]

    def _actions(self) -> tuple[Any, ...]:
        return self.actions

    def _all_selectors(self) -> list[str]:
        return [*self._selectors(), *(name for action in self.actions for name in action_selectors(self, action))]

    def _selected(self, wanted: frozenset[str], keep: bool) -> Unit | None:
        if not wanted.isdisjoint(self._selectors()):
            return self if keep else None
        places = [i for i, a in enumerate(self.actions) if wanted.isdisjoint(action_selectors(self, a)) is not keep]
        if len(places) == len(self.actions):
            return None if keep and not places else self
        return self.narrowed(tuple(places)) if places or not keep else None

    def _actions_content(self) -> Any:
        """Return the actions, or the call of the template that made them: its functions are new in each call."""
        origin = self._origin
        if isinstance(origin, Changed):
            return origin.base._actions_content()
        if isinstance(origin, Narrowed) and self.template is not None:
            return origin.base._actions_content(), origin.places
        return origin.normalised() if isinstance(origin, Called) else self.actions

    if not TYPE_CHECKING:  # pragma: no branch - to type checkers, a stage is not callable

        def __call__(self, /, *args: object, **kwargs: object) -> None:
            made = f": it was made by calling {self.template.name}(...)" if self.template is not None else ""
            raise DefinitionError(
                f"the stage {self.name!r} is not a template and cannot be called{made}. Use it as it is, and write "
                f"{self.name}.run() to run it. To make a template of a @stage function, give it parameters"
            )

    def __iter__(self) -> Iterator[Action[..., Any]]:
        return iter(self.actions)

    def __len__(self) -> int:
        return len(self.actions)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, name: str) -> Action[..., Any]:
        return member_named(self, name, self.actions, "action")

    def _content(self) -> tuple[Any, ...]:
        return (self._actions_content(), {**self._given(), "name": self._identity()})

    def __hash__(self) -> int:
        return hash((Stage, self._identity(), self.tags))

    def __repr__(self) -> str:
        tags = f" tags={sorted(self.tags)}" if self.tags else ""
        timeout = f" timeout={self.timeout:g}" if self.timeout is not None else ""
        names = ", ".join(each.name for each in self.actions) or "no actions"
        return printable(f"<Stage {self.name}: {names}{tags}{timeout}>")

    def __reduce__(self) -> tuple[Any, ...]:
        origin, what = self._origin, f"stage {self.name!r}"
        if isinstance(origin, Imported):
            origin = importable(origin, self, what, lambda found: found == self)
        if origin is not None:
            return reference(self, origin, what)
        return reduced(what, named("option", self._given()), (_stage_of, (self.actions, self._given())), self)


def stage_like(sample: Stage, name: str, actions: tuple[Action[..., Any], ...], origin: Origin, memo: Memo) -> Stage:
    """Return a stage with these actions and the options of the sample, where they have been checked."""
    if len(actions) > 1:
        _check_namesakes(actions, name)
    made = Stage.__new__(Stage)
    values = (
        sample._data, origin, sample._title, actions, sample.description, sample.has_data, sample.local, memo, name,
        sample.tags, sample.timeout, sample.use, sample.use_actions,
    )  # fmt: skip
    for setter, value in zip(_SETTERS, values, strict=True):
        setter(made, value)
    return made


_SETTERS: Final = [getattr(Stage, slot).__set__ for slot in Stage.__slots__]  # `assign` takes three times as long


def _called(stage: Stage) -> Called | None:
    """Return the call of a template that a stage comes from."""
    origin = _root(stage)._origin
    return origin if isinstance(origin, Called) else None


def _root(stage: Stage) -> Stage:
    """Return the stage of which this one is a changed copy, or itself."""
    while isinstance(stage._origin, (Changed, Narrowed)):
        stage = stage._origin.base
    return stage


def _stage_of(actions: tuple[Action[..., Any], ...], options: dict[str, Any]) -> Stage:
    return Stage(actions=actions, **options)


def one_action_stage(action: Action[..., Any]) -> Stage:
    """Return the stage of a bare action in a pipeline, with its name, description and tags; made once."""
    memo = memo_of(action)
    made: Stage | None = getattr(memo, "stage", None)
    if made is None:
        made = memo.stage = Stage(action.name, (action,), tags=action.tags, description=action.description)
    return made


def action_selectors(stage: Stage, action: Action[..., Any]) -> list[str]:
    """Return every selector that names this action of this stage."""
    names = [f"{stage.name}/{action.name}", *(f"tag:{tag}" for tag in action.tags)]
    if stage.template is not None:
        names.append(f"{stage.template.name}/{action.name}")
    return names


# How other modules read definitions.


def action_options(action: Action[..., Any]) -> ActionOptions:
    """Return the options of an action, with defaults."""
    return action._self_options


def bound_of(action: Action[..., Any]) -> Mapping[str, Any]:
    """Return the values fixed with `bind`."""
    return action._self_bound


def local_of(action: Action[..., Any]) -> Mapping[str, Any]:
    """Return the local variables that its annotations name, of the functions around it."""
    return action._self_local


def data_of(stage: Stage) -> Mapping[str, Any]:
    """Return the data of a stage itself, not a copy: it must not be changed."""
    return stage._data


def values_of(unit: Action[..., Any] | Stage) -> str:
    """Return a checksum of the values in a definition, which tells apart those of one name; worked out once.

    For an action these are its bound values, for a stage its data and the arguments of its template.
    """
    memo = memo_of(unit)
    found: str | None = getattr(memo, "values", None)
    if found is None:
        from hashlib import blake2b  # not loaded for runs that never ask for it

        if isinstance(unit, Action):
            values: Any = dict(bound_of(unit))
        else:
            called = _called(unit)
            values = unit._data, called and called[1:]
        found = memo.values = blake2b(content_of(values).encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
    return found


def memo_of(unit: Unit) -> Memo:
    """Return the memo of a unit: facts that were worked out once, and are not part of its value."""
    if not isinstance(unit, Action):
        return cast("Value", unit).memo
    memo = unit._self_memo
    if memo is None:
        memo = Memo()
        _remember(cast("Any", unit), "_self_memo", memo)
    return memo


def _home_of_object(made: Action[..., Any]) -> Part | None:
    """Return where its module has this action of an object; None if the object itself comes back from a pickle.

    Other processes have another `__main__`, so that its objects are sent if they can be.
    """
    import pickle

    function, module = made.__wrapped__, made._self_module
    try:
        comes_back = (pickle.loads(pickle.dumps(function)) == function) is True or module == "__main__"
    except Exception:
        comes_back = False
    return None if comes_back or not module else home_of(made, module, everywhere=False)


def set_origin(made: S, origin: Origin) -> S:
    """Give a newly made action or stage its origin, and return it."""
    if isinstance(made, Action):
        _remember(made, "_self_origin", origin)
    else:
        assign(made, _origin=origin)
    return made


# Units as they are evaluated and inserted.


def as_stage(unit: Any) -> Any:
    """Return the stage of a bare action, any other unit as it is."""
    return one_action_stage(cast("Action[..., Any]", unit)) if isinstance(unit, Action) else unit


def stages_in(units: Iterable[Any]) -> Iterator[Stage]:
    """Yield the stages in these units, and those of their bare actions, in any order."""
    return (as_stage(each) for each in every_unit(units) if isinstance(each, (Action, Stage)))


def as_pipeline(unit: Unit) -> Pipeline:
    """Return the pipeline itself, or the pipeline of this one unit, made once."""
    if isinstance(unit, Pipeline):
        return unit
    if not isinstance(cast("object", unit), Unit):
        raise DefinitionError(no_unit(unit, "a run"))
    memo = memo_of(unit)
    made: Pipeline | None = getattr(memo, "pipeline", None)
    if made is None:
        made = memo.pipeline = Pipeline((unit,))
    return made


def insertable(
    units: Iterable[Any], who: str, how: str = "returned", kinds: str = "action, stage, pipeline or stream"
) -> tuple[Unit | Stream, ...]:
    """Return units as they are inserted, with plain pipelines flattened; raises `ReturnValueError` for anything else.

    Actions join the current stage if there is nothing else; among other units they are stages, and keep their place. `how`
    is "returned", "yielded", or the method that inserts them.
    """
    units = tuple(units)
    if {*map(type, units)} == {Stage}:  # most
        return units
    flat: list[Unit | Stream] = []
    is_mixed = not all(isinstance(unit, Action) for unit in units)
    for unit in units:
        if isinstance(unit, Pipeline) and unit.plain:
            flat.extend(map(as_stage, unit.units))  # the units of a pipeline run after the stage, actions too
        elif isinstance(unit, Unit):
            flat.append(as_stage(unit) if is_mixed else unit)
        elif isinstance(unit, Stream):
            flat.append(unit)
        else:
            did = "inserted" if how.endswith(".insert") else how
            raise ReturnValueError(f"{who} {did} {_not_insertable(unit, how, kinds)}")
    return tuple(flat)


def _not_insertable(thing: object, how: str, kinds: str) -> str:
    if isinstance(thing, Template):
        return f"no stage: {no_unit(thing)}"
    found = f"the {type(thing).__name__} {shortened(thing)}"
    if how.endswith(".insert") and isinstance(thing, (list, tuple, set, frozenset, types.GeneratorType)):
        return f"{found}: units are inserted one by one, so write {how}(*units)"
    if how.endswith(".insert") and callable(thing):
        return f"{found}: decorate it with @action"
    if how == "returned":
        return (
            f"a mix of units and data: {found} is not a unit. "
            f"Return the units, and write the data by ctx.store or collect="
        )
    return f"{found}, which is not an {kinds}"
