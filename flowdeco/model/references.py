"""References: an importable definition is pickled as one, and loaded from it again."""
# The functions of this module read the private attributes of its own classes.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NoReturn, Self, TypeAlias, cast

from flowdeco.errors import UnreferencedError
from flowdeco.model.contents import ATOMS
from flowdeco.model.paths import all_parts, culprit
from flowdeco.model.tuples import NamedTuple


class Referenced:
    """The base of definitions, which are pickled by reference, and never copied."""

    __slots__ = ()

    def _made_from(self) -> Origin | None:
        return None

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class Parted(Referenced):
    """The base of definitions that consist of others."""

    __slots__ = ()


class Imported(NamedTuple):
    """The object at `module:qualname`."""

    module: str
    qualname: str

    def load(self) -> Any:
        """Import the object."""
        __import__(self.module)
        found: Any = sys.modules[self.module]
        for part in self.qualname.split("."):
            found = getattr(found, part)
        return found


class Part(NamedTuple):
    """A part of the definition, or the list or dict of definitions, at `module:qualname`: by places and keys."""

    base: Imported
    path: tuple[int | str, ...]

    def load(self) -> Any:
        """Import the definition, and get the part from it."""
        found: Any = self.base.load()
        for step in self.path:
            found = found[step] if type(step) is str else tuple(found)[cast("int", step)]
        return found


class Called(NamedTuple):
    """The stage that a template makes for these arguments."""

    template: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def load(self) -> Any:
        """Call the template."""
        return self.template(*self.args, **self.kwargs)

    def normalised(self) -> Called:
        """Return the call with all arguments by name, defaults included."""
        return Called(self.template, (), self.template.arguments(self.args, self.kwargs))


class Member(NamedTuple):
    """An action by its place in the stage that declared it."""

    stage: Imported | Called
    position: int

    def load(self) -> Any:
        """Get the stage, and the action from it."""
        return self.stage.load().actions[self.position]


class Changed(NamedTuple):
    """Another definition with some options changed."""

    base: Any
    changes: dict[str, Any]

    def load(self) -> Any:
        """Change the base."""
        return self.base.with_options(**self.changes)


class Method(NamedTuple):
    """An action of a class, bound to an object."""

    base: Any
    instance: Any

    def load(self) -> Any:
        """Bind it to the object."""
        return self.base.__get__(self.instance, type(self.instance))


class Narrowed(NamedTuple):
    """A stage with only some of its actions, given by their places."""

    base: Any
    places: tuple[int, ...]

    def load(self) -> Any:
        """Narrow the base."""
        return self.base.narrowed(self.places)


class Bound(NamedTuple):
    """An action with some values fixed."""

    base: Any
    values: dict[str, Any]

    def load(self) -> Any:
        """Bind the base."""
        return self.base.bind(**self.values)


Origin: TypeAlias = Imported | Part | Called | Member | Method | Changed | Narrowed | Bound


def load(origin: Origin) -> Any:
    """Return the definition that a pickled reference stands for."""
    return origin.load()


def origin_of(unit: Referenced) -> Origin | None:
    """Return the origin of an action or stage, None for one that was made directly, and for other definitions."""
    return unit._made_from()


def reference(unit: Referenced, origin: Origin, what: str) -> tuple[Any, ...]:
    """Return how a unit that was not made directly is pickled; raises `UnreferencedError`."""
    home = home_of_copy(unit)
    return reduced(what, values_in(origin), (load, (origin,))) if home is None else (load, (home,))


def values_in(origin: Origin) -> Mapping[str, Any]:
    """Return the values that a reference carries, by their description in messages; not those that surely pickle."""
    match origin:
        case Called(_, args, kwargs) | Member(Called(_, args, kwargs)):
            if ATOMS.issuperset(map(type, (*args, *kwargs.values()))):
                return {}
            called = origin.stage if isinstance(origin, Member) else origin
            return named("argument", cast("Called", called).normalised().kwargs)
        case Bound(_, values):
            return named("value", values)
        case Changed(_, changes):
            return named("option", changes)
        case Method(_, instance):
            return {"object": instance}
        case _:
            return {}


def named(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by their description in messages."""
    return {f"{what} {name!r}": value for name, value in values.items()}


_CURE: Final = "move it to module level, or make it a stage template there"


def importable(
    origin: Imported, wanted: Any, what: str, accept: Callable[[Any], bool], cure: str = _CURE
) -> Imported | Part:
    """Return a reference that leads to the definition: its own name, or where a module has what a function made.

    `cure` is the advice for one that is defined inside a function. Raises `UnreferencedError` if there is none.
    """
    where = f"{origin.module}:{origin.qualname}"
    if "<" in origin.qualname:  # of a function that another one made, or of a lambda
        home = home_of(wanted, origin.module)
        if home is not None:
            return home
        reason = (
            "it is a lambda: define it with `def`"
            if "<lambda>" in origin.qualname
            else f"it is defined inside a function ({where}): {cure}"
        )
    else:
        try:
            found = origin.load()
        except (ImportError, AttributeError, KeyError) as error:
            reason = f"{where} cannot be imported ({error})"
        else:
            if accept(found):
                return origin
            reason = f"{where} is a different object now: give the two different names there"
    raise UnreferencedError(f"cannot pickle {what}: {reason}")


# Definitions that a function made, and a module has under a name.


_homes: dict[str, None] = {}  # modules in which some were found


def module_at_work() -> str:
    """Return the module being executed: an action of an object, which has no module of its own, may get a name there."""
    frame = cast("types.FrameType", inspect.currentframe())
    while frame.f_code.co_name != "<module>" and frame.f_back is not None:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__"))


def home_of(wanted: Any, module: str, *, everywhere: bool = True) -> Part | None:
    """Return where a loaded module has this very object: under a name, in a definition, a list or a dict.

    The module of its function is searched first, `__main__` last: a script has names that other modules have, too.
    Not `everywhere`: only this module, because a search of all may take 0.1 s.
    """
    index = _index.get()
    if index is None:
        names = dict.fromkeys((module, *_homes, *sys.modules) if everywhere else (module,))
        if module != "__main__" and names.pop("__main__", 0) is None:
            names["__main__"] = None
        found = next((place for place, part in _places(names) if part is wanted), None)
    else:
        if not index:
            index.append({id(part): place for place, part in _places(["__main__", *reversed(sys.modules)])})
        found = index[0].get(id(wanted))
    if found is None:
        return None
    name, qualname, path = found
    _homes[name] = None
    return Part(Imported(name, qualname), path)


def home_in_module(definition: Any) -> Part | None:
    """Return where a loaded module has this action, stage or template, which a function made; None if none has."""
    origin = origin_of(definition)
    own = origin.stage if isinstance(origin, Member) else origin
    module, name = own if isinstance(own, Imported) else (definition.__module__, definition.__qualname__)
    return home_of(definition, str(module)) if "<" in str(name) else None


def home_of_copy(unit: Any) -> Part | None:
    """Return where a loaded module has this changed copy of what a function made, if it does not have the original."""
    origin, root = origin_of(unit), unit
    while isinstance(origin, (Changed, Bound, Narrowed)):
        root = origin.base
        origin = origin_of(root)
    own = origin.stage if isinstance(origin, Member) else origin
    function = getattr(root, "__wrapped__", None)  # of an action
    qualname = own.qualname if isinstance(own, Imported) else str(getattr(function, "__qualname__", ""))
    if root is unit or isinstance(own, (Called, Method)) or "<" not in qualname or home_in_module(root) is not None:
        return None
    return home_of(unit, "")


_Path: TypeAlias = "tuple[int | str, ...]"
_Place: TypeAlias = "tuple[str, str, _Path]"  # the module, the name there, the path from that
_index: ContextVar[list[dict[int, _Place]] | None] = ContextVar("flowdeco.index", default=None)  # once it is needed


@contextmanager
def searched_once() -> Generator[None]:
    """Have modules searched once for all definitions that are pickled in this block, and not for each of them."""
    token = _index.set([])
    try:
        yield
    finally:
        _index.reset(token)


def _places(modules: Iterable[str]) -> Iterator[tuple[_Place, Any]]:
    """Yield the definitions that modules have, each with its place."""
    for module in modules:
        space: Any = getattr(sys.modules.get(module), "__dict__", None)
        if type(space) is dict:
            for qualname, value in _named(module, cast("dict[str, Any]", space)):
                for path, part in _inside(value):
                    yield (module, qualname, path), part


def _named(module: str, space: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the definitions and collections that a module has, and that its classes have."""
    for name, value in list(space.items()):
        if isinstance(value, type):
            if value.__dict__.get("__module__") == module and value.__qualname__ == name:
                yield from ((f"{name}.{inner}", part) for inner, part in list(value.__dict__.items()) if _may_be(part))
        elif _may_be(value):
            yield name, value


def _may_be(value: Any) -> bool:
    return issubclass(cast("Any", type(value)), (Referenced, dict, list, tuple))


def _inside(value: Any) -> Iterator[tuple[_Path, Any]]:
    """Yield a definition and those in it, or those in a collection, each with the path to it."""
    items: Iterable[tuple[int | str, Any]] = ()
    kind = cast("Any", type(value))
    if issubclass(kind, Referenced):
        yield (), value
        items = enumerate(cast("Iterable[Any]", value)) if issubclass(kind, Parted) else ()
    elif kind is dict and _has_some(list(value.values())):
        items = [(key, part) for key, part in cast("dict[Any, Any]", value).items() if type(key) is str]
    elif kind in (list, tuple) and _has_some(value[:_MOST]):
        items = enumerate(cast("list[Any]", value)[:_MOST])
    for step, part in items:
        if issubclass(cast("Any", type(part)), Referenced):
            for path, inner in _inside(part):
                yield (step, *path), inner


def _has_some(parts: Iterable[Any]) -> bool:
    """Whether there are definitions among them; in almost all collections there are none."""
    return any(issubclass(kind, Referenced) for kind in set(map(type, parts)))


_MOST: Final = 10_000  # items of a list; it may be data


# Values that are pickled with a reference.


def _is_main(module: str) -> bool:
    """Whether this is the module of the script, also by its second name in a process of a pool: elsewhere, it is another."""
    return sys.modules.get(module) is sys.modules["__main__"]


def reduced(
    what: str, values: Mapping[str, Any], reduction: tuple[Any, ...], unit: Referenced | None = None
) -> tuple[Any, ...]:
    """Return how a definition is pickled: as given, unless one of these values, by their descriptions, cannot be pickled.

    Then it is the place where a module has the unit; if there is none, pickle raises `UnreferencedError`. Not so
    cloudpickle, which writes more, and has errors of its own.
    """
    for name, value in values.items():
        found = None if type(value) in ATOMS else culprit(value, name, pickles, _parts)
        if found is not None:
            path, error = found
            cloudpickle: Any = getattr(sys.modules.get("cloudpickle"), "Pickler", None)
            home = None if unit is None else home_of(unit, "")
            if home is not None and (cloudpickle is None or not _is_main(home.base.module)):
                return load, (home,)
            if cloudpickle is not None:
                cloudpickle.dispatch_table[_Refused] = _reduction_of
            return _itself, (_Refused(reduction, f"cannot pickle {what}: its {path}: {error}", error),)
    return reduction


class _Refused(NamedTuple):
    """Stands in a pickle for a definition that only cloudpickle can write: that has a table of reductions by class."""

    reduction: tuple[Any, ...]
    message: str
    cause: Exception

    def __reduce__(self) -> NoReturn:
        raise UnreferencedError(self.message) from self.cause


def _reduction_of(refused: _Refused) -> tuple[Any, ...]:
    return refused.reduction


def _itself(definition: Any) -> Any:
    return definition


def pickles(value: Any) -> None:
    """Raise the error with which `pickle` refuses a value; nothing of it is kept, and large buffers are not copied."""
    import pickle

    pickle.Pickler(cast("Any", _Nowhere), 5, buffer_callback=lambda buffer: None).dump(value)


def can_pickle(value: Any) -> bool:
    """Whether a value can be pickled."""
    try:
        pickles(value)
    except Exception:
        return False
    return True


class _Nowhere:
    """A file that forgets what is written."""

    @staticmethod
    def write(data: object) -> None: ...


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    return () if isinstance(value, Referenced) else all_parts(value)  # the error of a definition names the part
