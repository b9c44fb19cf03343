"""References: an importable definition is pickled as one, and loaded from it again."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

from flowdeco.errors import UnreferencedError
from flowdeco.model.tuples import NamedTuple


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

    template: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def load(self) -> Any:
        """Call the template."""
        return self.template(*self.args, **self.kwargs)


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


def importable(
    origin: Imported, wanted: Any, what: str, kinds: tuple[type, ...], accept: Callable[[Any], bool]
) -> Imported | Part:
    """Return a reference that leads to the definition: its own name, or where a module has what a function made.

    `kinds` are the classes of definitions that have parts. Raises `UnreferencedError` if there is no such reference.
    """
    where = f"{origin.module}:{origin.qualname}"
    if "<" in origin.qualname:  # of a function that another one made, or of a lambda
        home = home_of(wanted, origin.module, kinds)
        if home is not None:
            return home
        reason = (
            "it is a lambda: define it with `def`"
            if "<lambda>" in origin.qualname
            else f"it is defined inside a function ({where}): move it to module level, or make it a stage template there"
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


def home_of(wanted: Any, module: str, kinds: tuple[type, ...]) -> Imported | Part | None:
    """Return where a loaded module has this very object: under a name, in a definition, a list or a dict.

    The module of its function is searched first, `__main__` last: a script has names that other modules have, too.
    """
    names = dict.fromkeys((module, *_homes, *sys.modules))
    if module != "__main__" and names.pop("__main__", 0) is None:
        names["__main__"] = None
    for name in names:
        space: Any = getattr(sys.modules.get(name), "__dict__", None)
        if type(space) is not dict:
            continue
        for qualname, value in _named(name, cast("dict[str, Any]", space)):
            path = _path_to(wanted, value, kinds)
            if path is not None:
                _homes[name] = None
                base = Imported(name, qualname)
                return Part(base, path) if path else base
    return None


def _named(module: str, space: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a module has, and what its classes have."""
    for name, value in _held(space):
        yield name, value
        if isinstance(value, type) and value.__dict__.get("__module__") == module and value.__qualname__ == name:
            yield from ((f"{name}.{inner}", part) for inner, part in _held(value.__dict__))


def _held(space: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [pair for pair in list(space.items()) if type(pair[1]) not in _PLAIN]


def _path_to(wanted: Any, value: Any, kinds: tuple[type, ...]) -> tuple[int | str, ...] | None:
    if value is wanted:
        return ()
    steps: Any
    kind = cast("Any", type(value))
    parts: list[Any]
    if kind is dict:
        parts = list(value.values())
    elif kind in (list, tuple):
        parts = value[:_MOST]
    elif issubclass(kind, kinds):
        parts = list(value)
    else:
        return None
    within = set(map(type, parts))
    if type(wanted) not in within and not any(issubclass(each, kinds) for each in within):  # as in almost all of them
        return None
    steps = list(value) if kind is dict else range(len(parts))
    for step, part in zip(steps, parts, strict=False):
        if kind is dict and type(step) is not str:
            continue
        if part is wanted:
            return (step,)
        if issubclass(cast("Any", type(part)), kinds):
            path = _path_to(wanted, part, kinds)
            if path is not None:
                return (step, *path)
    return None


_MOST: Final = 10_000  # items of a list; it may be data
_PLAIN: Final = frozenset(
    {types.FunctionType, types.BuiltinFunctionType, property, classmethod, staticmethod, str, int}
)
