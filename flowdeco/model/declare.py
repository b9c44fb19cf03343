"""The decorators `@action` and `@stage`, and stage templates: stages with parameters.

A `@stage` body is run to find the actions that it evaluates. They join the innermost stage whose body is running, in
definition order.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from os import PathLike
from typing import Any, Final, Generic, Never, NoReturn, cast, overload

from typing_extensions import ParamSpec, TypeVar

from flowdeco.errors import DefinitionError, EmptyStageError
from flowdeco.model.definitions import (
    Action,
    Stage,
    Stream,
    Template,
    Unit,
    bound_of,
    make_action,
    no_unit,
    options_of,
    origin_of,
    set_origin,
)
from flowdeco.model.options import UNSET, Middleware, Returns, first_paragraph
from flowdeco.model.references import Called, Imported, Member, load, require_importable
from flowdeco.model.store import AnyKey

__all__ = ["StageTemplate", "action", "bound_arguments", "name_in_group", "stage"]

P = ParamSpec("P", default=...)
R = TypeVar("R", default=Any)

_collecting: ContextVar[list[Action[..., Any]] | None] = ContextVar("flowdeco.collecting", default=None)


class _ActionDecorator:
    """The result of `@action(...)` with options; a class, so that the signature of the function is kept."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    def __call__(self, function: Callable[P, R]) -> Action[P, R]:
        made: Action[P, R] = _joined(_made(function, self._options))
        return made


def _made(function: Any, options: dict[str, Any]) -> Action[..., Any]:
    if isinstance(function, Action):
        existing = cast("Action[..., Any]", function)
        return existing.with_options(**options) if options else existing
    return make_action(function, **options)


def _joined(made: Any) -> Any:
    collected = _collecting.get()
    if collected is not None:
        collected.append(made)
    return made


@overload
def action(function: Callable[P, R], /) -> Action[P, R]: ...
@overload
def action(
    *,
    name: str | None = None,
    tags: Iterable[str] = (),
    returns: Returns = ...,
    collect: AnyKey | None = None,
    use: Iterable[Middleware] = (),
    timeout: float | None = None,
    description: str | None = None,
) -> _ActionDecorator: ...
def action(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    tags: Iterable[str] = (),
    returns: Returns = UNSET,
    collect: AnyKey | None = None,
    use: Iterable[Middleware] = (),
    timeout: float | None = None,
    description: str | None = None,
) -> Any:
    """Make a function part of workflows; it is still called as before.

    Parameters are read from the store by name, or by the key in `Annotated[T, "dotted.key"]`. The result is stored
    under `returns` (default: the name; a tuple of keys unpacks; None discards), or appended to the list under
    `collect`; a returned stage runs right after the current stage, a returned action right after this one. `timeout` is
    in seconds, for each attempt. `action(an_action)` returns it unchanged.

    >>> @action
    ... def double(n: int) -> int:
    ...     return 2 * n
    >>> double(21), double.run({"n": 4})["double"]
    (42, 8)
    """
    given = {
        "name": (name, None),
        "tags": (tags, ()),
        "returns": (returns, UNSET),
        "collect": (collect, None),
        "use": (use, ()),
        "timeout": (timeout, None),
        "description": (description, None),
    }
    options = {option: value for option, (value, default) in given.items() if value != default}
    decorator = _ActionDecorator(options)
    return decorator if function is None else decorator(function)


class StageTemplate(Template, Generic[P]):
    """A `@stage` function with parameters: a call runs its body and returns a stage named after the arguments.

    Two calls with equal arguments return equal stages.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[P, object]
    _options: dict[str, Any]

    def __init__(self, function: Callable[P, object], options: dict[str, Any]) -> None:
        copied: dict[str, Any] = {name: getattr(function, name, None) for name in functools.WRAPPER_ASSIGNMENTS}
        self.__dict__.update(copied, __name__=options["name"], __wrapped__=function, _options=options)

    @property
    def name(self) -> str:
        """The name that selects all stages of the template."""
        return self.__name__

    @property
    def description(self) -> str:
        """The explanation: by default, the first paragraph of the docstring."""
        return cast("str", self._options["description"])

    @property
    def tags(self) -> frozenset[str]:
        """The tags of all its stages."""
        return frozenset(self._options["tags"])

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Stage:
        name = f"{self.__name__}[{_shown_arguments(args, kwargs)}]"
        return _declared(name, self.__wrapped__, self._options, Called(self, args, kwargs))

    def __rshift__(self, other: Never) -> NoReturn:
        raise DefinitionError(no_unit(self))

    def __rrshift__(self, other: Never) -> NoReturn:
        raise DefinitionError(no_unit(self))

    def __getattr__(self, name: str) -> NoReturn:
        if hasattr(Stage, name):
            raise AttributeError(f"{no_unit(self)}.{name}")
        raise AttributeError(f"a StageTemplate has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a StageTemplate is immutable: cannot set {name!r}")

    def __repr__(self) -> str:
        return f"<StageTemplate {self.__name__}{inspect.signature(self.__wrapped__)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        reference = Imported(self.__module__, self.__qualname__)
        require_importable(reference, f"stage template {self.__name__!r}", lambda found: found is self)
        return load, (reference,)

    def __copy__(self) -> StageTemplate[P]:
        return self

    def __deepcopy__(self, memo: object) -> StageTemplate[P]:
        return self


class _StageDecorator:
    """The result of `@stage(...)` with options."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    @overload  # the two overlap; type checkers take the first that fits
    def __call__(self, function: Callable[[], object]) -> Stage: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, function: Callable[P, object]) -> StageTemplate[P]: ...  # type: ignore[overload-cannot-match]
    def __call__(self, function: Any) -> Any:
        return _stage_of(function, self._options)


@overload
def stage(function: Callable[[], object], /) -> Stage: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def stage(function: Callable[P, object], /) -> StageTemplate[P]: ...  # type: ignore[overload-cannot-match]
@overload
def stage(
    *,
    name: str | None = None,
    title: str | None = None,
    tags: Iterable[str] = (),
    data: Mapping[str, Any] | None = None,
    use: Iterable[Middleware] = (),
    use_actions: Iterable[Middleware] = (),
    local: bool | None = None,
    description: str | None = None,
) -> _StageDecorator: ...
def stage(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    title: str | None = None,
    tags: Iterable[str] = (),
    data: Mapping[str, Any] | None = None,
    use: Iterable[Middleware] = (),
    use_actions: Iterable[Middleware] = (),
    local: bool | None = None,
    description: str | None = None,
) -> Any:
    """Make a stage of the actions that the function's body evaluates, in definition order.

    Without parameters the body runs once, now, and the result is a `Stage`; with parameters the result is a
    `StageTemplate`, and each call returns a stage. `data` is merged into the store when the stage begins. Results that
    the actions of a template store under their own names are local to each of its stages: share them by `returns=` or
    `collect=`, or all of them by `local=False`. Raises `EmptyStageError` if the body evaluates no action.

    >>> @stage(tags=["greeting"])
    ... def greet(name: str):
    ...     @action(returns="greeting")
    ...     def hello():
    ...         return f"hello {name}"
    >>> greet("you").name, greet("you").run()["greeting"]
    ('greet[you]', 'hello you')
    """
    options = {
        "name": name,
        "title": title,
        "tags": tags,
        "data": data,
        "use": use,
        "use_actions": use_actions,
        "local": local,
        "description": description,
    }
    return _StageDecorator(options) if function is None else _stage_of(function, options)


def _stage_of(function: Any, options: dict[str, Any]) -> Any:
    described = getattr(function, "__qualname__", repr(function))
    if isinstance(function, type):
        raise DefinitionError(f"@stage goes on a function, not on the class {described}: write `def {described}():`")
    if isinstance(function, (Unit, Template)) or not callable(function):
        raise DefinitionError(f"@stage goes on a function, not on the {type(function).__name__} {function!r}")
    if any(is_other(function) for is_other in _NOT_PLAIN):
        raise DefinitionError(
            f"@stage goes on a plain function, and {described} is not one: its body only declares actions. "
            f"Write `def`; the actions in it may be `async def` or yield"
        )
    name = options["name"]
    if name is None:
        name = getattr(function, "__name__", None)
        if not name:
            raise DefinitionError(f"the {type(function).__name__} {function!r} has no name: write @stage(name=...)")
    description = options["description"]
    if description is None:
        description = first_paragraph(function.__doc__)
    # A stage without actions checks all options here, not only when a template is called.
    is_template = bool(inspect.signature(function).parameters)
    local = is_template if options["local"] is None else options["local"]
    given: dict[str, Any] = {**options, "name": name, "description": description, "local": local}
    checked = options_of(Stage(**given))
    if is_template:
        return StageTemplate(function, checked)
    return _declared(name, function, checked, Imported(function.__module__, function.__qualname__))


_NOT_PLAIN: Final = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def _declared(name: str, function: Any, options: dict[str, Any], origin: Imported | Called) -> Stage:
    """Run the body and return the stage of the actions that it evaluated."""
    collected: list[Action[..., Any]] = []
    token = _collecting.set(collected)
    try:
        returned = function(*origin.args, **origin.kwargs) if isinstance(origin, Called) else function()
    finally:
        _collecting.reset(token)
    first: Any = returned
    if isinstance(first, (list, tuple)) and first:
        first = cast("list[Any]", first)[0]
    if isinstance(first, (Unit, Stream, Template)) and not isinstance(first, Action):
        raise DefinitionError(
            f"the body of stage {name!r} returned units, and only units returned by an action are run: "
            f"move the `return` into an @action of the stage"
        )
    if not collected:
        raise EmptyStageError(
            f"stage {name!r} has no actions: decorate functions in its body with @action, "
            f"or write Stage({name!r}) for a stage that only carries data"
        )
    named: dict[str, Any] = {**options, "name": name}
    made = set_origin(Stage(actions=collected, **named), origin)
    for index, member in enumerate(collected):
        if origin_of(member) is None and "<locals>" in str(getattr(member.__wrapped__, "__qualname__", "")):
            set_origin(member, Member(origin, index))
    return made


_LONGEST: Final = 40


def name_in_group(unit: Unit | Stream) -> str:
    """Return the name of a unit that tells it from other branches of its group: with its bound values."""
    bound = bound_arguments(unit)
    return f"{unit.name}[{bound}]" if bound else unit.name


def bound_arguments(unit: object) -> str:
    """Return the bound values of an action, or of the only action of a stage, as stages of templates show theirs."""
    if isinstance(unit, Stage) and len(unit.actions) == 1:
        unit = unit.actions[0]
    if not isinstance(unit, Action):
        return ""
    bound = bound_of(cast("Action[..., Any]", unit))
    try:
        return _shown_arguments((), bound)
    except Exception:  # of a user's `__repr__`
        return ", ".join(bound)


def _shown_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    return ", ".join([*map(_shown, args), *(f"{name}={_shown(value)}" for name, value in kwargs.items())])


def _shown(value: object) -> str:
    plain: object = cast("PathLike[Any]", value).__fspath__() if isinstance(value, PathLike) else value
    text = plain if isinstance(plain, str) else repr(plain)
    if len(text) > _LONGEST:
        text = _elided(text)
    return text if text.isprintable() else repr(text)[1:-1]


def _elided(text: str) -> str:
    """Return both ends of a string, because paths differ at their ends, and a checksum of the whole in place of the rest."""
    from zlib import crc32  # not loaded for short names; it differs for strings that differ in a few characters

    checksum = f"~{crc32(text.encode('utf-8', 'surrogatepass')):08x}"
    head = _LONGEST // 3
    return f"{text[:head]}…{text[head + 1 + len(checksum) - _LONGEST :]}{checksum}"
