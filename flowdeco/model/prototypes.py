"""Facts that the calls of a stage template share, so that a call costs little more than its body.

The body is run in each call, and makes new functions of the same code. A `Prototype` has what was found for the latest
function of one code: its options, once checked, and its step, once read. Another function takes them over if everything
that they came from is the same, object by object: its options, annotations, and the values of the names in them. A
prototype belongs to its template, and refers neither to functions and their closures nor to the values of defaults.
"""

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Mapping
from operator import is_
from typing import Annotated, Any, Final, TypeAlias, Union, cast, get_args, get_origin

from flowdeco.model.contents import ATOMS
from flowdeco.model.definitions import Action, ActionOptions, checked_options, make_action
from flowdeco.model.functions import annotations_of
from flowdeco.model.identity import keep_defaults
from flowdeco.model.keys import Key
from flowdeco.model.names import LITERALS, NO_LOCALS, local_variables, names_of, parsed
from flowdeco.model.references import Called, Imported, Member
from flowdeco.model.sentinels import MISSING, UNSET
from flowdeco.model.tuples import NamedTuple

__all__ = ["Body", "Likeness", "Pattern", "Prototype", "Seen", "made_action"]

_MOST: Final = 64  # prototypes of a template: its body may compile code
_OPTIONS: Final = "name", "tags", "returns", "collect", "use", "timeout", "description"
_GIVEN: Final = None, (), UNSET, None, (), None, None
_COMPARED: Final[frozenset[Any]] = ATOMS | {tuple, list, Key, type(UNSET)}
_UNIONS: Final = Union, types.UnionType


class Prototype:
    """The facts about the functions of one code: `checked` options, with the given ones, and what steps know."""

    __slots__ = ("checked", "code", "read")

    def __init__(self, code: types.CodeType) -> None:
        self.code = code  # kept, so that its id is not reused
        self.checked: tuple[str, tuple[Any, ...], ActionOptions] | None = None
        self.read: Any = None  # in `steps`

    def made(
        self, function: Any, given: tuple[Any, ...], origin: Imported | Called, index: int
    ) -> tuple[Action[..., Any], Likeness | None]:
        """Return the action of a function with these options, and its likeness to others, None if it has none."""
        known, options = self.checked, None
        if (
            known is not None
            and function.__name__ is known[0]
            and (all(map(is_, given, known[1])) or all(map(_is_alike, given, known[1])))
        ):
            options = known[2]
        if options is None:
            options = checked_options(function, **_named(given))
            if not given[4] and all(type(value) in _COMPARED for value in given):  # a layer may refer to anything
                copied = tuple(list(cast("list[Any]", value)) if type(value) is list else value for value in given)
                self.checked = function.__name__, copied, options
        if function.__defaults__ or function.__kwdefaults__:
            keep_defaults(function)
        place = Member(origin, index) if "<locals>" in function.__qualname__ else None
        local = local_variables(function)
        return Action(function, options, None, place, local), None if local else (self, function, options)


Likeness: TypeAlias = tuple[Prototype, types.FunctionType, ActionOptions]  # of an action


def made_action(function: Any, given: tuple[Any, ...]) -> Action[..., Any]:
    """Return a function as an action with these options; of an action, a copy with those that are not the defaults."""
    options = _named(given)
    if isinstance(function, Action):
        existing = cast("Action[..., Any]", function)
        return existing.with_options(**options) if options else existing
    return make_action(function, **options)


def _named(given: tuple[Any, ...]) -> dict[str, Any]:
    return {name: value for name, value, default in zip(_OPTIONS, given, _GIVEN, strict=True) if value is not default}


def _is_alike(one: Any, other: Any) -> bool:
    if type(one) is not list or type(other) is not list:
        return one is other
    items, others = cast("list[Any]", one), cast("list[Any]", other)  # it may have been changed, or be a new one
    return len(items) == len(others) and all(map(is_, items, others))


class Pattern:
    """What the stages of one template share: the prototypes of their actions, and what `steps` knows of the latest stage."""

    __slots__ = ("layout", "prototypes")

    def __init__(self) -> None:
        self.prototypes: dict[int, Prototype] = {}  # by the id of the code
        self.layout: Any = None

    def prototype(self, code: types.CodeType) -> Prototype:
        """Return the prototype of the functions of this code."""
        found = self.prototypes.get(id(code))
        if found is None or found.code is not code:
            if len(self.prototypes) >= _MOST:
                self.prototypes = {}
            found = self.prototypes[id(code)] = Prototype(code)
        return found


class Body:
    """A body that is running: the actions that it has evaluated so far, and the likeness of each.

    That of a template waits in the memo of its stage until the steps are read.
    """

    __slots__ = ("actions", "likenesses", "origin", "pattern")

    def __init__(self, origin: Imported | Called, pattern: Pattern | None) -> None:
        self.origin = origin
        self.pattern = pattern
        self.actions: list[Action[..., Any]] = []
        self.likenesses: list[Likeness | None] = []

    def add(self, function: Any, given: tuple[Any, ...]) -> Action[..., Any]:
        """Make an action of a function with these options, unless it is one, and add it."""
        pattern, actions = self.pattern, self.actions
        likeness: Likeness | None = None
        if pattern is None or type(function) is not types.FunctionType or hasattr(function, "__wrapped__"):
            made = made_action(function, given)
        else:
            made, likeness = pattern.prototype(function.__code__).made(function, given, self.origin, len(actions))
        actions.append(made)
        self.likenesses.append(likeness)
        return made


# What a step is read from.


class Seen(NamedTuple):
    """All that the reading of a function came from: `names` are those in its annotations that are strings."""

    code: types.CodeType
    module: dict[str, Any]
    annotations: Mapping[str, Any]
    names: tuple[tuple[tuple[str, ...], Any], ...]
    defaults: tuple[Any, ...]  # their number and names, not their values

    @classmethod
    def of(cls, function: types.FunctionType) -> Seen | None:
        """Return what can be seen of a function, None if its annotations may mean something else in another call."""
        found: list[tuple[str, ...]] = []
        annotations = annotations_of(function)
        if function.__dict__ or getattr(cast("Any", function), "__type_params__", None):
            return None
        visible = names_of(function, NO_LOCALS)
        for annotation in annotations.values():
            value = annotation
            if type(value) is str:
                paths = _paths(parsed(value))
                if paths is None or any(path[0] in visible for path in paths):
                    return None
                found += paths
                value = visible.of_text(value)
            if not _is_settled(value):
                return None
        names = tuple((path, _value(path, function.__globals__)) for path in found)
        if any(value is MISSING for _, value in names):
            return None
        return cls(function.__code__, function.__globals__, dict(annotations), names, _defaults(function))

    def fits(self, function: types.FunctionType) -> bool:
        """Whether the same can be seen of another function of the same code."""
        if function.__code__ is not self.code or function.__globals__ is not self.module or function.__dict__:
            return False
        if (function.__defaults__ or function.__kwdefaults__ or self.defaults) and _defaults(function) != self.defaults:
            return False
        if annotations_of(function) != self.annotations:
            return False
        for path, value in self.names:  # noqa: SIM110 - for each action of each stage: without a generator
            if _value(path, self.module) is not value:
                return False
        return True


def _defaults(function: types.FunctionType) -> tuple[Any, ...]:
    positional, named = function.__defaults__, function.__kwdefaults__
    return (len(positional or ()), *(named or ())) if positional or named else ()


def _value(path: tuple[str, ...], module: dict[str, Any]) -> Any:
    name = path[0]
    found = module.get(name, MISSING)
    if found is MISSING:
        found = getattr(builtins, name, MISSING)
    for attribute in path[1:]:
        found = getattr(found, attribute, MISSING)
    return found


def _paths(node: ast.AST | None) -> list[tuple[str, ...]] | None:
    """Return the names in an annotation, with their attributes; None if it is more than names and subscripts."""
    match node:
        case ast.Constant(None):
            return []
        case ast.Name(name):
            return [(name,)]
        case ast.Attribute(owner, name):
            paths = _paths(owner) if isinstance(owner, (ast.Name, ast.Attribute)) else None
            return paths and [(*paths[0], name)]
        case ast.BinOp(left, ast.BitOr(), right):
            return _all_paths(left, right)
        case ast.Subscript(generic, ast.Tuple([first, *rest])):  # a string is a key, or it is not settled
            return _all_paths(generic, first, *(part for part in rest if not isinstance(part, ast.Constant)))
        case ast.Subscript(generic, part):
            return _all_paths(generic, part)
        case _:
            return None


def _all_paths(*nodes: ast.AST) -> list[tuple[str, ...]] | None:
    found = list(map(_paths, nodes))
    return None if None in found else [path for paths in found for path in paths or ()]


def _is_settled(annotation: Any) -> bool:
    """Whether the meaning of an annotation is in itself, and does not depend on names, nor on a class of this call."""
    if annotation is None or annotation is Any or annotation is ...:
        return True
    arguments = get_args(annotation)
    if not arguments:
        return isinstance(annotation, type) and "<locals>" not in annotation.__qualname__
    origin = get_origin(annotation)
    if origin in LITERALS:
        return ATOMS.issuperset(map(type, arguments))
    if origin is Annotated:
        arguments, metadata = arguments[:1], arguments[1:]
        if not all(type(each) is str or (type(each) is Key and _is_settled(each.type)) for each in metadata):
            return False
    elif not (isinstance(origin, type) or origin in _UNIONS):
        return False
    return all(map(_is_settled, arguments))
