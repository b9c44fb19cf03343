"""Units and the algebra of `>>`: the base of everything that a pipeline can contain, pipelines, parallel groups.

Two laws hold for all units:

    (a >> b) >> c == a >> (b >> c)      L1
    pipeline() >> a == pipeline(a)      L2

Each kind of unit has its own methods for the selectors that name it, and for selecting some of its parts.
"""
# The functions of this module read the private attributes of its own classes.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Never, NoReturn, Self, cast, overload

from typing_extensions import TypeVar, Unpack

from flowdeco.errors import DefinitionError, printable, selector_suggestion, shortened, suggestion
from flowdeco.model.contents import agree
from flowdeco.model.keys import AnyKey
from flowdeco.model.options import Duration, Middleware, checked, checked_selectors, described
from flowdeco.model.references import Parted, Referenced, named, reduced
from flowdeco.model.runnable import Runnable, Shows

if TYPE_CHECKING:
    from flowdeco.model.options import ParallelChanges, PipelineChanges

__all__ = ["Parallel", "Pipeline", "Unit", "parallel", "pipeline"]

T = TypeVar("T")

DEEPEST: Final = 200  # what walks a definition, or shows one, has Python's 1,000 frames


_FINAL: Final = frozenset({"Action", "Stage", "Parallel"})
_OWN: Final = frozenset({"flowdeco.model.definitions", __name__})


class Unit(Runnable, Referenced):
    """A part of a pipeline: an action, a stage, a pipeline, a parallel group."""

    __slots__ = ()
    name: str
    tags: frozenset[str]

    def __rshift__(self, other: Unit) -> Pipeline:
        """Chain: the right side runs after the left side."""
        return _chain(self, other)

    def __irshift__(self, other: Unit) -> Pipeline:  # wrapt's own would go to the function
        return _chain(self, other)

    def __rrshift__(self, other: Never) -> NoReturn:
        raise DefinitionError(no_unit(other))

    def __or__(self, other: Never) -> NoReturn:
        raise DefinitionError("units are not combined by `|`: write a >> b, or parallel(a, b)")

    def _given(self) -> dict[str, Any]:
        raise NotImplementedError

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        base = next((each for each in cls.__mro__[1:] if each.__module__ in _OWN and each.__name__ in _FINAL), None)
        if base is not None:
            raise DefinitionError(
                f"the class {cls.__qualname__} cannot extend {base.__name__}: a run knows {base.__name__} as it is. Write a "
                f"function that returns one"
            )

    def _selectors(self) -> list[str]:
        return [*(f"tag:{tag}" for tag in self.tags), self.name]

    def _all_selectors(self) -> list[str]:
        """Return every selector that names this unit or, for a stage, one of its actions."""
        return self._selectors()

    def _actions(self) -> tuple[Any, ...]:
        """Return the actions of a stage, or an action itself."""
        return ()

    def _selected(self, wanted: frozenset[str], keep: bool) -> Unit | None:
        """Return the unit with only the wanted parts, or (not `keep`) without them; None if nothing is left."""
        raise NotImplementedError


def options_of(unit: Unit) -> dict[str, Any]:
    """Return the options of a unit by name, as its class takes them: its own, which must not be changed."""
    return unit._given()


def stage_selectors(unit: Unit) -> list[str]:
    """Return every selector that names this unit as a whole; a pipeline or group counts if it was given a name."""
    return unit._selectors()


class NotAUnit(Referenced):
    """The base of values that users take for units; `instead` is the correction."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The name in messages; that of a template selects all its stages."""
        raise NotImplementedError

    def instead(self) -> str:
        """Return the message for one where a unit is expected: its name, and the correct way to write it."""
        raise NotImplementedError


class Pulled(NotAUnit):
    """The base of streams, whose units may be the branches of a group."""

    __slots__ = ()


class Template(NotAUnit, Shows):
    """The base of stage templates, which make a stage when they are called."""

    __slots__ = ()

    def instead(self) -> str:
        """Return the message: a template must be called."""
        return f"the stage template {self.name!r} gives a stage when you call it: write {self.name}(...)"


def no_unit(thing: object, place: str = "`>>`") -> str:
    """Return the message for a value where a unit is expected, with the correction."""
    if isinstance(thing, NotAUnit):
        return thing.instead()
    kind = type(thing).__name__
    found = f"{kind} {described(thing)}"
    if kind in ("list", "tuple", "set", "frozenset", "generator"):
        if place == "`>>`":
            instead = "write ... >> pipeline(*units), or >> parallel(*units)"
            return f"`>>` takes one unit, not a {kind}: {instead}{_ORDERED.get(kind, '')}"
        return f"{place} takes the units one by one, not in a {kind}: write {place}(*units){_ORDERED.get(kind, '')}"
    if callable(thing):
        return (
            f"{place} takes actions, stages, pipelines and parallel groups, not the {found}: decorate it with @action"
        )
    hint = ": if a call of an action returned it, write the action, and do not call it" if place == "`>>`" else ""
    return f"{place} takes actions, stages, pipelines and parallel groups, not the {found}{hint}"


_ORDERED: Final[dict[str, str]] = dict.fromkeys(("set", "frozenset"), ", with units in a list: a set has no order")


def checked_units(units: Iterable[Any], place: str) -> tuple[Unit, ...]:
    """Return the units, with pipelines without options flattened."""
    flat: list[Unit] = []
    for unit in _each(units, place):
        if not isinstance(unit, Unit):
            raise DefinitionError(no_unit(unit, place))
        flat.extend(unit.units if isinstance(unit, Pipeline) and unit.plain else (unit,))
    return tuple(flat)


def _each(units: Any, place: str) -> Iterable[Any]:
    """Return the units; raises `DefinitionError` for a single one, although a stage can be iterated over."""
    if type(units) is tuple:
        return cast("Iterable[Any]", units)
    if isinstance(units, (Unit, NotAUnit)) or not isinstance(units, Iterable):
        raise DefinitionError(
            f"{place.capitalize()} takes a collection of units, not the {type(cast('object', units)).__name__} "
            f"{described(units)}; {place}(...) takes them one by one"
        )
    if isinstance(units, (set, frozenset)):
        raise DefinitionError(f"{place.capitalize()} takes a list of units, and a set has no order: write [...]")
    return cast("Iterable[Any]", units)


def _chain(left: Unit, right: Any) -> Pipeline:
    for side, other in ((left, right), (right, left)):
        if isinstance(side, Pipeline) and side.plain and not side.units and isinstance(other, Pipeline):
            return other  # the unit of `>>` (L2)
    return Pipeline(checked_units((left, right), "`>>`"))


# Values.


class Memo:
    """Facts about a unit that are worked out once and then kept; they are not part of its value.

    Each is set by the one function that returns it, and missing until then: there are as many memos as units, and most
    of their facts are never needed.
    """

    __slots__ = ("called", "layout", "needs", "pipeline", "stage", "step", "steps", "values")
    called: str  # `Stage._content`
    layout: Any  # `steps_of`: shared with other stages of its template
    needs: Any  # in `wiring`
    pipeline: Pipeline  # `as_pipeline`
    stage: Any  # `one_action_stage`
    step: Any  # `step_of`
    steps: Any  # `steps_of`
    values: str  # `values_of`


class Equal:
    """Equal by type and content, as `_content` returns it."""

    __slots__ = ()

    def _content(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not type(self):
            return NotImplemented
        mine, its = self._content(), cast("Equal", other)._content()
        try:
            return mine == its
        except Exception:  # arrays and frames are not compared as wholes
            return agree(mine, its)


class Value(Equal):
    """A frozen value."""

    __slots__ = ()
    memo: Memo

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable: use with_options to get a changed copy")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable")


def assign(target: object, **attributes: Any) -> None:
    """Set attributes of a frozen value while it is being made."""
    for name, value in attributes.items():
        object.__setattr__(target, name, value)


def check_known(what: str, known: Iterable[str], options: Iterable[str], instead: Mapping[str, str] = {}) -> None:
    """Raise `DefinitionError` for an option that is not among those known; `instead` is what to write for some others."""
    for name in options:
        if name not in known:
            hint = f"Write {instead[name]}" if name in instead else suggestion(name, known)
            raise DefinitionError(f"{what} has no option {name!r}. {hint}")


U = TypeVar("U", bound=Unit)


def member_named(owner: Unit, name: object, members: Sequence[U], what: str) -> U:
    """Return the member of this name; a `KeyError` for none or several."""
    if not isinstance(name, str):
        raise TypeError(f"{owner!r} is looked up by the name of {_article(what)}, not by {shortened(name)}")
    found = [member for member in members if member.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise KeyError(
            f"{len(found)} {what}s of {owner!r} are named {name!r}: give them different names by with_options(name=...)"
        )
    raise KeyError(f"no {what} {name!r} in {owner!r}. {suggestion(name, [member.name for member in members])}")


def _article(what: str) -> str:
    return f"an {what}" if what == "action" else f"a {what}"


# Pipelines.


class Option(Generic[T]):
    """An option of a pipeline or group, as an attribute; `shown` makes the value to show, if it is another one."""

    def __init__(self, default: Any, doc: str, shown: Callable[[Any, Any], T] | None = None) -> None:
        self.default = default
        self.__doc__ = doc
        self._shown = shown

    def __set_name__(self, owner: type[Composite], name: str) -> None:
        self._name = name
        owner.DEFAULTS = {**owner.DEFAULTS, name: self.default}

    @overload
    def __get__(self, unit: None, owner: type) -> Self: ...
    @overload
    def __get__(self, unit: Composite, owner: type) -> T: ...
    def __get__(self, unit: Composite | None, owner: type) -> Any:
        if unit is None:
            return self
        value = unit._options[self._name]
        return value if self._shown is None else self._shown(unit, value)


class Composite(Value, Unit, Parted):
    """An immutable sequence of units with options: the base of pipelines and parallel groups."""

    __slots__ = ("_options", "depth", "memo", "units")
    DEFAULTS: ClassVar[dict[str, Any]] = {}  # its options, by name
    INSTEAD: ClassVar[dict[str, str]] = {}  # what to write for options that it does not have
    units: tuple[Unit, ...]
    depth: int
    _options: dict[str, Any]

    if TYPE_CHECKING:

        def __init__(self, units: Iterable[Unit] = (), **options: Any) -> None: ...

    @property
    def plain(self) -> bool:
        """Whether no option was given."""
        return self._options == self.DEFAULTS

    def _assign(self, units: tuple[Unit, ...], kind: str, options: Mapping[str, Any]) -> None:
        check_known(type(self).__name__, self.DEFAULTS, options, self.INSTEAD)
        own = dict(self.DEFAULTS)
        own.update((name, value) for name, value in checked(kind, options).items() if value is not None)
        depth = max((unit.depth for unit in units if isinstance(unit, Composite)), default=0)
        depth += type(self) is not Pipeline or own != self.DEFAULTS  # a plain pipeline becomes part of another
        if depth > DEEPEST:
            raise DefinitionError(
                f"{own['name']!r} is the outermost of {depth} nested pipelines and groups, and at most {DEEPEST} can "
                f"be nested: chain units with `>>`, or have an action return them"
            )
        assign(self, units=units, depth=depth, memo=Memo(), _options=own)

    def _with(self, units: Iterable[Unit], changes: Mapping[str, Any]) -> Self:
        check_known(repr(self), self.DEFAULTS, changes, self.INSTEAD)
        return type(self)(units, **{**self._options, **changes})

    def _given(self) -> dict[str, Any]:
        return self._options

    def _selectors(self) -> list[str]:
        return [f"tag:{tag}" for tag in self.tags] if self.name == self.DEFAULTS["name"] else super()._selectors()

    def _selected(self, wanted: frozenset[str], keep: bool) -> Unit | None:
        if not wanted.isdisjoint(self._selectors()):
            return self if keep else None
        parts = [part._selected(wanted, keep) for part in self.units]
        left = [part for part in parts if part is not None]
        return self._with(left, {}) if left or not (keep or self.units) else None

    def _member(self, where: int | str) -> Unit:
        if not isinstance(where, int):
            return member_named(self, where, self.units, "unit")
        try:
            return self.units[where]
        except IndexError:
            count = len(self.units)
            raise IndexError(
                f"no unit {where} in {self!r}: it has {count}{', counted from 0' if count else ''}"
            ) from None

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
        reduction = _composite_of, (type(self), self.units, self._options)
        return reduced(f"{type(self).__name__.lower()} {self.name!r}", named("option", self._options), reduction, self)


def _composite_of(cls: type[Composite], units: tuple[Unit, ...], options: dict[str, Any]) -> Any:
    return cls(units, **options)


class Pipeline(Composite):
    """An immutable sequence of units, made by `>>` or `pipeline`.

    `flow[0]` and `flow["clean"]` are units (a KeyError lists the names); slices such as `flow["clean":]` and
    `flow[:"load"]` are pipelines, the end excluded.
    """

    __slots__ = ()
    name: Option[str] = Option("pipeline", "The name in records and messages.")  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]
    title: Option[str] = Option(None, "The human-readable name.", lambda unit, title: title or unit.name)
    tags: Option[frozenset[str]] = Option(frozenset(), 'The tags, found by selectors such as `"tag:slow"`.')  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]
    description: Option[str] = Option("", "The explanation.")
    use: Option[tuple[Middleware, ...]] = Option((), "Middleware around the whole run of the pipeline.")
    use_stages: Option[tuple[Middleware, ...]] = Option((), "Middleware around each stage.")
    use_actions: Option[tuple[Middleware, ...]] = Option((), "Middleware around each action.")
    timeout: Option[float | None] = Option(None, "The time for the whole run of the pipeline, in seconds.")

    def __init__(self, units: Iterable[Unit] = (), **options: Any) -> None:
        self._assign(checked_units(units, "pipeline"), "a pipeline", options)
        check_layers(self.use_actions, self.units)

    def with_options(self, **changes: Unpack[PipelineChanges]) -> Pipeline:
        """Return a copy with another name, title, tags, description, use, use_stages or use_actions."""
        return self._with(self.units, changes)

    @overload
    def __getitem__(self, where: int | str) -> Unit: ...
    @overload
    def __getitem__(self, where: slice) -> Pipeline: ...
    def __getitem__(self, where: Any) -> Any:
        if isinstance(where, slice):
            cut = cast("slice[Any, Any, Any]", where)
            return self._with(self.units[self._index(cut.start) : self._index(cut.stop) : cut.step], {})
        return self._member(where)

    def _index(self, edge: Any) -> Any:
        return self.units.index(member_named(self, edge, self.units, "unit")) if isinstance(edge, str) else edge

    def only(self, *selectors: str) -> Pipeline:
        """Return the pipeline with only the selected parts; a selector that matches nothing is a `DefinitionError`."""
        return self._filtered(selectors, keep=True)

    def without(self, *selectors: str) -> Pipeline:
        """Return the pipeline without the selected parts; a selector that matches nothing is a `DefinitionError`."""
        return self._filtered(selectors, keep=False)

    def _filtered(self, selectors: tuple[str, ...], *, keep: bool) -> Pipeline:
        wanted = frozenset(checked_selectors(selectors, "only" if keep else "without"))
        known = selectors_in(self.units)
        wrong = sorted(wanted - known)
        if wrong:
            raise DefinitionError(
                f"{'only' if keep else 'without'}({', '.join(map(repr, wrong))}) matches nothing in {shortened(self)}. "
                f"{selector_suggestion(wrong, known)}"
            )
        parts = (unit._selected(wanted, keep) for unit in self.units)
        return self._with((part for part in parts if part is not None), {})

    def __repr__(self) -> str:
        names = " >> ".join(unit.name for unit in self.units) or "empty"
        timeout = f" timeout={self.timeout:g}" if self.timeout is not None else ""
        return printable(f"<Pipeline {names}>" if self.plain else f"<Pipeline {self.name}: {names}{timeout}>")


def pipeline(
    *units: Unit,
    name: str = "pipeline",
    title: str | None = None,
    tags: Iterable[str] = (),
    description: str = "",
    use: Iterable[Middleware] = (),
    use_stages: Iterable[Middleware] = (),
    use_actions: Iterable[Middleware] = (),
    timeout: Duration | None = None,
) -> Pipeline:
    """Return a pipeline of these units; without options the same as chaining them with `>>`.

    `use` wraps the whole run of the pipeline, `use_stages` each of its stages, `use_actions` each action. `timeout` is
    in seconds, for each attempt at the whole of it.

    >>> from flowdeco import Stage
    >>> pipeline(Stage("a"), Stage("b")) == Stage("a") >> Stage("b")
    True
    """
    return Pipeline(
        units, name=name, title=title, tags=tags, description=description, use=use, use_stages=use_stages,
        use_actions=use_actions, timeout=timeout,
    )  # fmt: skip


# Parallel groups.


class Parallel(Composite):
    """Units that each start from the store as it is; their writes are merged in branch order when all have finished.

    Made by `parallel`. Its branches are its `units`, or those that its `stream` yields.
    """

    __slots__ = ()
    INSTEAD = {each: f"pipeline(parallel(...), {each}=...)" for each in Pipeline.DEFAULTS} | {
        "executor": "flow.run(executor=...)"
    }
    name: Option[str] = Option("parallel", "The name in records and messages.")  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]
    limit: Option[int | None] = Option(None, "The number of branches that may run at once, None for all of them.")
    merge = Option["Mapping[str, Callable[[Any, Any], Any]]"](
        {}, "The functions that combine values which several branches wrote to one key.",
        lambda group, merge: types.MappingProxyType(merge),
    )  # fmt: skip
    tags: Option[frozenset[str]] = Option(frozenset(), 'The tags, found by selectors such as `"tag:slow"`.')  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]
    tolerate: Option[float] = Option(
        0, "The number of branches that may fail, or their share of all branches, below 1."
    )
    failures: Option[AnyKey | None] = Option(None, "The key of the list of failed branches.")
    enough: Option[int | None] = Option(
        None, "The number of completed branches that completes the group, None for all of them."
    )
    stream: Option[Any] = Option(None, "The `Stream` whose units are its branches; None for a group of fixed branches.")

    def __init__(self, units: Iterable[Unit] = (), **options: Any) -> None:
        branches, stream = _branches(units, options.get("stream"))
        self._assign(branches, "a parallel group", {**options, "stream": stream})
        if self.enough is not None and stream is None and self.enough > len(branches):
            branches_of = "1 branch of" if len(branches) == 1 else f"{len(branches)} branches of"
            raise DefinitionError(
                f"enough={self.enough} is more than the {branches_of} the parallel group {self.name!r}"
            )

    def with_options(self, **changes: Unpack[ParallelChanges]) -> Parallel:
        """Return a copy with another name, limit, merge, tags, tolerate, failures or enough."""
        return self._with(self.units, changes)

    def __getitem__(self, where: int | str) -> Unit:
        return self._member(where)

    def __repr__(self) -> str:
        branches = " | ".join(unit.name for unit in self.units) or "empty"
        return printable(f"<Parallel {self.name}: {branches if self.stream is None else self.stream.name}>")


def _branches(units: Iterable[Any], stream: Any) -> tuple[tuple[Unit, ...], Any]:
    """Return the units of a group, or its stream."""
    branches: list[Any] = [] if stream is None else [stream]
    branches += _each(units, "parallel")
    for unit in branches:
        if not isinstance(unit, (Unit, Pulled)):
            raise DefinitionError(no_unit(unit, "parallel"))
        if isinstance(unit, Pulled) and len(branches) > 1:
            raise DefinitionError(
                f"the {unit.name} stands alone in its parallel group, and there are {len(branches)} units: give the others "
                f"a group of their own, or have the stream yield them"
            )
    if branches and isinstance(branches[0], Pulled):
        return (), branches[0]
    return tuple(branches), None


def parallel(
    *units: Unit | Pulled,
    name: str = "parallel",
    limit: int | None = None,
    merge: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    tags: Iterable[str] = (),
    tolerate: float = 0,
    failures: AnyKey | None = None,
    enough: int | None = None,
    **unknown: Never,
) -> Parallel:
    """Return a group whose units are branches: each starts from the store as it is, and does not see the others (L9).

    Their writes are merged in branch order, so that the result does not depend on timing, and reach the store when all
    have finished. `merge` maps a key to a function that combines the values that several branches wrote, two at a time;
    without one, different values raise a `WriteConflictError`. At most `limit` branches run at once.

    `parallel(stream(function, *args))` pulls a branch whenever one may begin: at most `limit` at once (32 by default), and
    no more than twice as many that wait to be merged.

    `tolerate` branches may fail, a number or a share below 1: these merge nothing, and are listed under the key
    `failures` as pairs of name and exception. The group completes when `enough` branches have, and ends the others.
    """
    return Parallel(
        cast("Iterable[Any]", units), name=name, limit=limit, merge=merge, tags=tags, tolerate=tolerate,
        failures=failures, enough=enough, **unknown,
    )  # fmt: skip


def every_unit(units: Iterable[Any]) -> Iterator[Any]:
    """Yield these units and all that are in them: the stages and actions of pipelines and groups, in any order."""
    waiting = list(units)
    while waiting:
        unit = waiting.pop()
        yield unit
        if isinstance(unit, Composite):
            waiting.extend(unit.units)


def check_layers(layers: Iterable[Any], units: Iterable[Unit]) -> None:
    """Raise the `DefinitionError` of a layer that does not suit an action in these units, as its signature shows."""
    checks = [layer.check_signature for layer in layers if hasattr(layer, "check_signature")]
    for unit in every_unit(units) if checks else ():
        for action in unit._actions():
            for check in checks:
                check(action)


def selectors_in(units: Iterable[Any]) -> set[str]:
    """Return every selector that names one of these units, or anything in them."""
    return {name for unit in every_unit(units) if isinstance(unit, Unit) for name in unit._all_selectors()}
