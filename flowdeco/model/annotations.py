"""The meaning of annotations: where a parameter is looked up, and what a result may be.

A key is found in `Annotated`, in every member of a union, and in the value of an alias; not in the elements of a list,
which have no place in the store. Annotations that are strings mean the same as others: they are evaluated with the names
visible where the function was defined. A name that exists only for the type checker stands for the object that it was
imported as, if that has been loaded, and otherwise for a class of its own. A key must be known: one that cannot be
evaluated is an error.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, ForwardRef, NewType, Union, get_args, get_origin

import typing_extensions

from flowdeco.errors import DefinitionError
from flowdeco.model.functions import annotations_of, as_written, signature_of
from flowdeco.model.keys import AnyKey, Key, is_alias
from flowdeco.model.names import LITERALS, NO_LOCALS, Either, Names, Unknown, Unresolved, aliased, names_of
from flowdeco.model.streams import Stream
from flowdeco.model.tuples import NamedTuple
from flowdeco.model.units import Unit

__all__ = ["EMPTY", "Annotations", "Declared", "Meaning"]

EMPTY: Final = inspect.Parameter.empty


class Declared(NamedTuple):
    """The annotation of a parameter without its metadata, the key in it, and whether it asks for the context."""

    annotation: Any
    key: AnyKey | None
    context: bool


class Meaning(NamedTuple):
    """What a result with some annotation may be; `none`: a None is among the values, as in `T | None`.

    `named`: the annotation names units, and does not just leave room for them, as `Any` does.
    """

    data: bool
    units: bool
    none: bool = False
    named: bool = False


# What an annotation says.


_QUALIFIERS: Final = frozenset(
    getattr(module, name)
    for module in (typing, typing_extensions)
    for name in ("Final", "ClassVar", "Required", "NotRequired", "ReadOnly")
    if hasattr(module, name)
)
_UNIT_NAMES: Final = frozenset({"Action", "Stage", "Pipeline", "Parallel", "Stream", "Unit"})
_DEEPEST: Final = 5  # of nested aliases, unions and lists; recursive aliases have no end


_ANYTHING: Final = Meaning(True, True)
_DATA: Final = Meaning(True, False)
_UNITS: Final = Meaning(False, True, named=True)


class _KeyError(Exception):
    """A key that cannot be evaluated, or two that exclude each other."""


def _members(annotation: Any) -> tuple[Any, ...] | None:
    """Return the members of a union, None for anything else."""
    if isinstance(annotation, Either):
        return annotation.members
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else None


def _is_class(annotation: Any) -> bool:
    return isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)


def _is_context(annotation: Any) -> bool:
    # Recognised by name, so that neither this layer nor users at run time have to import the context.
    if isinstance(annotation, Unknown):
        return annotation.is_ours(("Context",))
    return isinstance(annotation, type) and (annotation.__module__, annotation.__name__) == (
        "flowdeco.engine.context",
        "Context",
    )


def _key_among(metadata: Iterable[Any]) -> Any:
    """Return the key: the first `Key`, else the first string or what cannot be evaluated; None for none."""
    found: list[Any] = [item for item in metadata if isinstance(item, (str, Key, Unresolved))]
    typed: list[Any] = [item for item in found if isinstance(item, Key)]
    return next(iter(typed or found), None)


class Annotations:
    """The annotations of a function, as they are to be read; `local` are the `local_variables` around it."""

    def __init__(self, function: Any, local: Mapping[str, Any] = NO_LOCALS) -> None:
        self._function = function
        self._home = as_written(function)
        self._annotations = annotations_of(self._home)
        self._local = local
        self._visible: Names | None = None

    def parameters(self, name: str) -> Iterator[tuple[inspect.Parameter, Declared]]:
        """Yield the parameters that can be supplied, each with its declaration; `name` is the name of the action.

        Raises `DefinitionError` for a key that cannot be evaluated.
        """
        for parameter in signature_of(self._function, name).parameters.values():
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                try:
                    yield parameter, self._declared(self._annotations.get(parameter.name, parameter.annotation))
                except _KeyError as error:
                    raise DefinitionError(f"parameter {parameter.name!r} of action {name!r}: {error}") from None

    def returned(self) -> tuple[Any, Meaning]:
        """Return the evaluated annotation of the result (`EMPTY` for none), and its meaning."""
        annotation = self._plain(self._annotations.get("return", EMPTY))
        return annotation, self._meaning(annotation)

    def _declared(self, annotation: Any) -> Declared:
        annotation = self._plain(annotation)
        if _is_class(annotation):
            return Declared(annotation, None, _is_context(annotation))
        key = self._key(annotation)
        if key == "":
            raise _KeyError("a key is a non-empty string, not ''")
        if isinstance(key, Unresolved):
            raise _KeyError(
                f"its key {key.text} cannot be evaluated ({key.error}). The annotation is a string: it sees the names of "
                f"its module, and the variables of the functions around it if the action is made in them, but no import "
                f"under `if TYPE_CHECKING`. Import the name at run time, or write the key as a string"
            )
        while get_origin(annotation) is Annotated:
            annotation = self._plain(get_args(annotation)[0])
        members = _members(annotation) or (annotation,)
        return Declared(annotation, key, any(map(_is_context, map(self._bare, members))))

    def _bare(self, annotation: Any) -> Any:
        annotation = self._plain(annotation)
        return self._bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation

    def _key(self, annotation: Any, depth: int = 0) -> Any:
        annotation = self._plain(annotation)
        if depth > _DEEPEST:
            return None
        if get_origin(annotation) is Annotated:
            declared, *metadata = get_args(annotation)
            if Key in [each for each in metadata if isinstance(each, type)]:
                raise _KeyError('its key is the class Key itself: write Key("name"), or the name as a string')
            key = _key_among(metadata)
            return key if key is not None else self._key(declared, depth + 1)
        keys = [self._key(member, depth + 1) for member in _members(annotation) or ()]
        found = {getattr(key, "name", key): key for key in keys if key is not None}
        if len(found) > 1:
            names = " and ".join(map(repr, found))
            raise _KeyError(f"it has the keys {names}, and can have only one: keep one")
        return next(iter(found.values()), None)

    def _meaning(self, annotation: Any, depth: int = 0) -> Meaning:
        annotation = self._plain(annotation)
        if annotation is EMPTY or annotation is Any or annotation is object or depth > _DEEPEST:
            return _ANYTHING
        if annotation is None or annotation is types.NoneType:
            return Meaning(False, False, True)
        if _is_class(annotation):
            return self._of_class(annotation, (), depth)
        if isinstance(annotation, Unknown):
            return _UNITS if annotation.is_ours(_UNIT_NAMES) else _ANYTHING
        members, origin, arguments = _members(annotation), get_origin(annotation), get_args(annotation)
        if members is not None:
            return _either([self._meaning(member, depth + 1) for member in members])
        if origin is Annotated:
            return self._meaning(arguments[0], depth + 1)
        if origin in LITERALS:
            return Meaning(any(value is not None for value in arguments), False, None in arguments)
        if isinstance(annotation, NewType):
            return self._meaning(annotation.__supertype__, depth + 1)
        # A type variable may be anything.
        return self._of_class(origin, arguments, depth) if isinstance(origin, type) else _ANYTHING

    def _of_class(self, cls: type[Any], arguments: tuple[Any, ...], depth: int) -> Meaning:
        if issubclass(cls, (Unit, Stream)):
            return _UNITS
        if cls.__name__ in _AWAITABLES and arguments:
            return self._meaning(arguments[-1], depth + 1)
        if not _iterates(cls):
            return _DATA
        if not arguments:  # of a generator function, perhaps units
            return Meaning(True, "Iter" in cls.__name__ or "Generator" in cls.__name__)
        item = self._meaning(arguments[0], depth + 1)._replace(none=False)
        if cls.__name__ == "Generator" and len(arguments) == 3:
            end = self._meaning(arguments[2], depth + 1)
            return _either([item, end])._replace(none=end.none and end.data)
        return item

    # Its value.

    def _plain(self, annotation: Any) -> Any:
        """Return an annotation as an object: not a string, an alias or a qualified one."""
        if isinstance(annotation, str):
            annotation = self._names.of_text(annotation)
        for _ in range(_DEEPEST):
            if _is_class(annotation):
                break
            origin = get_origin(annotation)
            if isinstance(annotation, ForwardRef):
                annotation = self._names.of_text(annotation.__forward_arg__)
            elif is_alias(annotation) or is_alias(origin):
                annotation = aliased(annotation, getattr(self._home, "__globals__", {}))
            elif origin in _QUALIFIERS:
                annotation = get_args(annotation)[0]
            else:
                break
            if isinstance(annotation, str):
                annotation = self._names.of_text(annotation)
        return annotation

    @property
    def _names(self) -> Names:
        if self._visible is None:
            self._visible = names_of(self._home, self._local)
        return self._visible


def _either(members: list[Meaning]) -> Meaning:
    data, units, none, named = (any(found) for found in zip(*members, strict=True))
    return Meaning(data, units, none and all(member.data or not member.units for member in members), named)


_AWAITABLES: Final = frozenset({"Awaitable", "Coroutine", "Future", "Task"})


def _iterates(cls: type[Any]) -> bool:
    return issubclass(cls, (list, tuple)) or cls.__name__ in (
        "Sequence", "Iterable", "Iterator", "Generator", "Collection", "MutableSequence",
        "AsyncIterable", "AsyncIterator", "AsyncGenerator",
    )  # fmt: skip
