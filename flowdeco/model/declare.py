"""The decorators `@action` and `@stage`, and stage templates: stages with parameters.

A `@stage` body is run to find the actions that it evaluates. They join the innermost stage whose body is running, in
definition order.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from enum import Enum
from os import PathLike
from types import CodeType
from typing import Any, Final, Generic, Never, NoReturn, cast, overload

from typing_extensions import ParamSpec, TypeVar

from flowdeco.errors import DefinitionError, EmptyStageError, shortened, suggestion, told
from flowdeco.model.contents import ATOMS
from flowdeco.model.definitions import (
    Action,
    Stage,
    Stream,
    Template,
    Unit,
    bound_of,
    no_unit,
    options_of,
    set_origin,
    stage_like,
)
from flowdeco.model.identity import string_of, text_of
from flowdeco.model.keys import AnyKey
from flowdeco.model.options import Duration, Middleware, Returns, described, first_paragraph
from flowdeco.model.prototypes import Body, Pattern, made_action
from flowdeco.model.references import Called, Imported, Member, importable, load, origin_of
from flowdeco.model.sentinels import UNSET
from flowdeco.model.tuples import NamedTuple
from flowdeco.model.units import Memo, Parallel, every_unit

__all__ = ["StageTemplate", "action", "bound_arguments", "name_in_group", "stage"]

P = ParamSpec("P", default=...)
R = TypeVar("R", default=Any)

_running_body: ContextVar[Body | None] = ContextVar("flowdeco.body", default=None)


class _ActionDecorator:
    """The result of `@action(...)` with options; a class, so that the signature of the function is kept."""

    def __init__(self, given: tuple[Any, ...]) -> None:
        self._given = given

    def __call__(self, function: Callable[P, R]) -> Action[P, R]:
        body = _running_body.get()
        made: Any = made_action(function, self._given) if body is None else body.add(function, self._given)
        return cast("Action[P, R]", made)


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
    timeout: Duration | None = None,
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
    timeout: Duration | None = None,
    description: str | None = None,
) -> Any:
    """Make a function an action of workflows; it is still called as before.

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
    decorator = _ActionDecorator((name, tags, returns, collect, use, timeout, description))
    return decorator if function is None else decorator(function)


class StageTemplate(Template, Generic[P]):
    """A `@stage` function with parameters: a call runs its body and returns a stage named after the arguments.

    Two calls with equal arguments return equal stages.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[P, object]
    _sample: Stage
    _signature: inspect.Signature
    _filling: _Filling | None
    _pattern: Pattern

    def __init__(
        self, function: Callable[P, object], signature: inspect.Signature, sample: Stage, filling: _Filling | None
    ) -> None:
        copied: dict[str, Any] = {name: getattr(function, name, None) for name in functools.WRAPPER_ASSIGNMENTS}
        name = sample.name
        if filling is not None and filling.names:
            name = copied["__name__"] or name  # each of its stages has another name
        elif filling is not None and "name" in filling.texts:
            name = _filled(name, {}, str)  # without doubled braces
        self.__dict__.update(
            copied, __name__=name, __wrapped__=function, _signature=signature, _sample=sample, _filling=filling,
            _pattern=Pattern(),
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The name that selects all stages of the template."""
        return self.__name__

    @property
    def description(self) -> str:
        """The explanation: by default, the first paragraph of the docstring."""
        return self._sample.description

    @property
    def tags(self) -> frozenset[str]:
        """The tags of all its stages; those that name a parameter differ from stage to stage."""
        own = self._sample.tags
        return own if self._filling is None else own - self._filling.tags

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Stage:
        name, sample, filling = self.__name__, self._sample, self._filling
        if filling is not None:
            sample = Stage(**filling.filled(options_of(sample), self.arguments(args, kwargs)))
            name = sample.name
        if filling is None or not filling.names:
            name = f"{name}[{_shown_arguments(args, kwargs)}]"
        return _declared(name, self.__wrapped__, sample, Called(self, args, kwargs), self._pattern)

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name, defaults included."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def stage_name(self, arguments: Mapping[str, Any]) -> str:
        """Return the name of a stage with these arguments, by name."""
        return f"{self.__name__}[{_shown_arguments((), arguments)}]"

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
        own, what = Imported(self.__module__, self.__qualname__), f"stage template {self.__name__!r}"
        return load, (importable(own, self, what, lambda found: found is self, "move it to module level"),)


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
    timeout: Duration | None = None,
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
    timeout: Duration | None = None,
    description: str | None = None,
) -> Any:
    """Make a stage of the actions that the function's body evaluates, in definition order.

    Without parameters the body runs once, now, and the result is a `Stage`; with parameters the result is a
    `StageTemplate`, and each call returns a stage. `data` is merged into the store when the stage begins. Results that
    the actions of a template store under their own names are local to each of its stages: share them by `returns=` or
    `collect=`, or all of them by `local=False`. `timeout` is in seconds, for each attempt at the whole stage. Raises
    `EmptyStageError` if the body evaluates no action.

    >>> @stage(tags=["greeting"])
    ... def greet(name: str):
    ...     @action(returns="greeting")
    ...     def hello():
    ...         return f"hello {name}"
    >>> greet("you").name, greet("you").run()["greeting"]
    ('greet[you]', 'hello you')
    """
    options = {
        "name": name, "title": title, "tags": tags, "data": data, "use": use, "use_actions": use_actions,
        "local": local, "timeout": timeout, "description": description,
    }  # fmt: skip
    return _StageDecorator(options) if function is None else _stage_of(function, options)


def _stage_of(function: Any, options: dict[str, Any]) -> Any:
    who = described(function)
    if isinstance(function, type):
        raise DefinitionError(f"@stage goes on a function, not on the class {who}: write `def {who}():`")
    if isinstance(function, (Unit, Template)) or not callable(function):
        raise DefinitionError(f"@stage goes on a function, not on the {type(function).__name__} {shortened(function)}")
    if any(is_other(function) for is_other in _NOT_PLAIN):
        raise DefinitionError(
            f"@stage goes on a plain function, and {who} is not one: its body only declares actions. "
            f"Write `def`; the actions in it may be `async def` or yield"
        )
    name = options["name"]
    if name is None:
        name = getattr(function, "__name__", None)
        if not name:
            raise DefinitionError(
                f"the {type(function).__name__} {shortened(function)} has no name: write @stage(name=...)"
            )
    description = options["description"]
    if description is None:
        description = first_paragraph(function.__doc__)
    # A stage without actions checks all options here, not only when a template is called.
    signature = inspect.signature(function)
    is_template = bool(signature.parameters)
    local = is_template if options["local"] is None else options["local"]
    given: dict[str, Any] = {**options, "name": name, "description": description, "local": local}
    sample = Stage(**given)
    if is_template:
        return StageTemplate(function, signature, sample, _filling(function, signature, options))
    return _declared(name, function, sample, Imported(function.__module__, function.__qualname__))


_NOT_PLAIN: Final = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def _declared(
    name: str, function: Any, sample: Stage, origin: Imported | Called, pattern: Pattern | None = None
) -> Stage:
    """Run the body and return the stage of the actions that it evaluated, with the options of the sample."""
    body = Body(origin, pattern)
    token = _running_body.set(body)
    try:
        returned = function(*origin.args, **origin.kwargs) if isinstance(origin, Called) else function()
    finally:
        _running_body.reset(token)
    if returned is not None:
        _check_returned(returned, name)
    actions, memo = tuple(body.actions), Memo()
    if not actions:
        raise EmptyStageError(
            f"stage {name!r} has no actions: decorate {_functions_in(function)} in its body with @action, "
            f"or write Stage({name!r}) for a stage that only carries data"
        )
    if pattern is not None:
        memo.steps, memo.needs = body, UNSET
    if None in body.likenesses:
        for index, member in enumerate(actions):
            if origin_of(member) is None and "<locals>" in str(getattr(member.__wrapped__, "__qualname__", "")):
                set_origin(member, Member(origin, index))
    return stage_like(sample, name, actions, origin, memo)


def _functions_in(function: Any) -> str:
    """Return the names of the functions that a body defines, as far as its code tells."""
    inner = [
        each for each in getattr(getattr(function, "__code__", None), "co_consts", ()) if isinstance(each, CodeType)
    ]
    names = [
        repr(code.co_name) for code in inner if code.co_flags & inspect.CO_OPTIMIZED and code.co_name.isidentifier()
    ]
    return f"functions ({', '.join(names)})" if names else "functions"


def _check_returned(returned: Any, name: str) -> None:
    first: Any = returned
    if isinstance(first, (list, tuple)) and first:
        first = cast("list[Any]", first)[0]
    if isinstance(first, (Unit, Stream, Template)) and not isinstance(first, Action):
        raise DefinitionError(
            f"the body of stage {name!r} returned units, and only units returned by an action are run: "
            f"move the `return` into an @action of the stage"
        )


# Options of a template that name its parameters.


class _Filling(NamedTuple):
    """The options of a template that have its parameters in braces, as for `str.format`: texts, and some of the tags.

    `names` if its name is one of them: then it is the name of a stage, without the arguments behind it.
    """

    function: Any
    texts: dict[str, str]
    tags: frozenset[str]
    names: bool

    def filled(self, options: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
        """Return the options for a call with these arguments, by name."""
        texts = {option: self._filled(option, text, named) for option, text in self.texts.items()}
        tags = {self._filled("tag", tag, named) if tag in self.tags else tag for tag in options["tags"]}
        return {**options, **texts, "tags": tags}

    def _filled(self, option: str, text: str, named: Mapping[str, Any]) -> str:
        try:
            return _filled(text, named, _shown if option == "name" else _plain)
        except Exception as error:
            raise DefinitionError(
                f"the {option} {text!r} of the stage template {described(self.function)} cannot be filled in with "
                f"{', '.join(f'{name}={shortened(value)}' for name, value in named.items())} ({told(error)})"
            ) from error


def _filling(function: Any, signature: inspect.Signature, options: dict[str, Any]) -> _Filling | None:
    """Return which of these options are filled in, None for none; a `DefinitionError` for a name that is not a parameter."""
    given: dict[str, str | None] = {option: options[option] for option in ("name", "title", "description")}
    texts = {option: text for option, text in given.items() if text is not None and _has_braces(text)}
    tags = frozenset[str](filter(_has_braces, cast("Iterable[str]", options["tags"])))
    if not (texts or tags):
        return None
    found = {text: _named_in(text, signature.parameters) for text in (*texts.values(), *tags)}
    return _Filling(function, texts, tags, bool(found.get(given["name"] or "")))


def _has_braces(text: str) -> bool:
    return "{" in text or "}" in text


def _named_in(text: str, parameters: Iterable[str]) -> list[str]:
    """Return the parameters in braces in an option."""
    from string import Formatter  # not loaded for templates without them

    found: list[str] = []
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise DefinitionError(f"{text!r} cannot be filled in ({error}): write {{{{ and }}}} for braces") from None
    for _, field, spec, _ in parts:
        if field is None:
            continue
        name = re.split(r"[.\[]", field, maxsplit=1)[0]
        if name not in parameters:
            raise DefinitionError(
                f"{text!r} names {field!r} in braces, and the template has no such parameter. "
                f"{suggestion(name, parameters)} Write {{{{ and }}}} for braces"
            )
        found += [name, *_named_in(spec or "", parameters)]
    return found


def _filled(text: str, arguments: Mapping[str, Any], shown: Callable[[Any], str]) -> str:
    return cast("str", _formatter(shown).vformat(text, (), arguments))


@functools.cache  # of the three functions below
def _formatter(shown: Callable[[Any], str]) -> Any:
    from string import Formatter

    class Filling(Formatter):
        def format_field(self, value: Any, format_spec: str) -> str:
            return cast("str", super().format_field(value, format_spec)) if format_spec else shown(value)

        def convert_field(self, value: Any, conversion: Any) -> Any:
            match conversion:
                case "r":
                    return text_of(value)
                case "s":
                    return string_of(value)
                case "a":
                    return text_of(value).encode("ascii", "backslashreplace").decode()
                case _:
                    return super().convert_field(value, conversion)

    return Filling()


# Names of the stages of a template.


_LONGEST: Final = 40


def name_in_group(unit: Unit | Stream) -> str:
    """Return the name of a unit that tells it from other branches of its group: with its bound values."""
    actions: list[Any] = []
    for each in every_unit(() if isinstance(unit, Parallel) else (unit,)):  # an inner group names its own branches
        actions += each.actions if isinstance(each, Stage) else [each] if isinstance(each, Action) else []
    found = [bound for bound in map(bound_arguments, actions) if bound]
    return f"{unit.name}[{found[0]}]" if len(found) == 1 else unit.name


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
    shown = list(map(_shown, args))
    if kwargs:
        shown += [f"{name}={_shown(value)}" for name, value in kwargs.items()]
    return ", ".join(shown)


def _shown(value: object) -> str:
    """Return an argument for a name: the same in every process, short, and in one line."""
    text = _plain(value)
    if len(text) > _LONGEST:
        text = _last_parts(text) if isinstance(value, PathLike) else _elided(text)
    return text if text.isprintable() else repr(text)[1:-1]


def _plain(value: Any) -> str:
    kind = cast("Any", type(value))
    if kind is str:
        return cast("str", value)
    if kind not in ATOMS:
        if isinstance(value, PathLike):
            return str(cast("PathLike[Any]", value).__fspath__())
        if issubclass(kind, str) and not issubclass(kind, Enum):
            return str.__str__(value)
    return text_of(value)


def _last_parts(path: str) -> str:
    """Return the last parts of a path that there is room for, and a checksum of the whole."""
    room = _LONGEST - len("…") - len(_checksum(path))
    cut = next((at for at, letter in enumerate(path) if letter in "/\\" and len(path) - at <= room), None)
    return _elided(path) if cut is None else f"…{path[cut:]}{_checksum(path)}"


def _elided(text: str) -> str:
    """Return both ends of a string, and a checksum of the whole in place of the rest."""
    checksum = _checksum(text)
    head = _LONGEST // 3
    return f"{text[:head]}…{text[head + 1 + len(checksum) - _LONGEST :]}{checksum}"


def _checksum(text: str) -> str:
    from zlib import crc32  # not loaded for short names; it differs for strings that differ in a few characters

    return f"~{crc32(text.encode('utf-8', 'surrogatepass')):08x}"
