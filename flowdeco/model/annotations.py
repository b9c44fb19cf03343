"""The meaning of annotations: where a parameter is looked up, and whether a result may be data or units.

Annotations that are strings are evaluated with the names visible to their function. A name that exists only for the type
checker stands for itself: it is compared by its name.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Union, cast, get_args, get_origin

from flowdeco.model.functions import signature_of, underlying
from flowdeco.model.streams import Stream
from flowdeco.model.units import Unit

__all__ = ["EMPTY", "annotated_parameters", "is_context", "meaning", "return_annotation"]

EMPTY: Final = inspect.Parameter.empty


def annotated_parameters(function: Any, name: str) -> Iterator[tuple[inspect.Parameter, Any]]:
    """Yield the parameters that can be supplied, each with its evaluated annotation; `name` is the name of the action."""
    home = _home(function)
    annotations = _annotations(home)
    for parameter in signature_of(function, name).parameters.values():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield parameter, _evaluated(annotations.get(parameter.name, parameter.annotation), home)


def return_annotation(function: Any) -> Any:
    """Return the evaluated annotation of the result; `EMPTY` for none."""
    home = _home(function)
    return _evaluated(_annotations(home).get("return", EMPTY), home)


def is_context(annotation: Any) -> bool:
    """Whether a parameter with this annotation receives the context."""
    # Recognised by name, so that neither this layer nor users at run time have to import the context.
    if isinstance(annotation, _Unknown):
        return annotation.name.rpartition(".")[2] == "Context"
    return isinstance(annotation, type) and (annotation.__module__, annotation.__name__) == (
        "flowdeco.engine.context",
        "Context",
    )


_UNIT_NAMES: Final = frozenset({"Action", "Stage", "Pipeline", "Parallel", "Stream", "Unit"})


def meaning(annotation: Any) -> tuple[bool, bool]:
    """Return whether a result with this annotation may be data, and whether it may be units."""
    if annotation in (EMPTY, Any, object):
        return True, True
    if annotation in (None, types.NoneType):
        return False, False
    if isinstance(annotation, _Unknown):
        return annotation.name.rpartition(".")[2] not in _UNIT_NAMES, True
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return meaning(arguments[0])
    if origin is Union or origin is types.UnionType:
        data, units = zip(*map(meaning, arguments), strict=True)
        return any(data), any(units)
    cls = cast("type[Any]", origin or annotation)
    if not isinstance(cls, type):
        return True, True  # a type variable, a new type: anything
    if issubclass(cls, (Unit, Stream)):
        return False, True
    return _meaning_of_elements(cls, arguments) if _iterates(cls) else (True, False)


def _iterates(cls: type[Any]) -> bool:
    return issubclass(cls, (list, tuple)) or cls.__name__ in (
        "Sequence", "Iterable", "Iterator", "Generator", "Collection", "MutableSequence",
        "AsyncIterable", "AsyncIterator", "AsyncGenerator",
    )  # fmt: skip


def _meaning_of_elements(cls: type, arguments: tuple[Any, ...]) -> tuple[bool, bool]:
    if not arguments:
        return True, True
    data, units = meaning(arguments[0])
    if cls.__name__ == "Generator" and len(arguments) == 3 and arguments[2] not in (None, types.NoneType):
        data = True
    return data, units


# Evaluation of annotations.


class _Unknown:
    """A name in a string annotation that exists only for the type checker."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> _Unknown:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unknown(f"{self.name}.{name}")

    def __getitem__(self, item: Any) -> _Unknown:
        return self

    def __or__(self, other: Any) -> _Unknown:
        return self

    __ror__ = __or__

    def __call__(self, *args: Any) -> Any:  # typing accepts a callable as a type
        raise TypeError(f"{self.name} is not known at run time")


class _Names(dict[str, Any]):
    """The names visible to a function's annotations: its closure, its module, the builtins."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self._globals = getattr(function, "__globals__", {})
        closure = getattr(function, "__closure__", None) or ()
        for name, cell in zip(function.__code__.co_freevars if closure else (), closure, strict=True):
            try:
                self[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue

    def __missing__(self, name: str) -> Any:
        if name in self._globals:
            return self._globals[name]
        return getattr(builtins, name, None) or _Unknown(name)


def _home(function: Any) -> Any:
    """Return the function as it was written: it has the annotations, and sees the names in them."""
    while True:
        function = inspect.unwrap(underlying(function))
        if isinstance(function, functools.partial):
            function = cast("functools.partial[Any]", function).func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif isinstance(function, (types.FunctionType, types.BuiltinFunctionType, type)):
            return function
        else:
            call: object = getattr(cast("object", type(function)), "__call__", None)
            return call if isinstance(call, types.FunctionType) else function


def _annotations(function: Any) -> Mapping[str, Any]:
    if sys.version_info >= (3, 14):  # pragma: no cover - annotations are evaluated on access
        import annotationlib

        try:
            return cast("Mapping[str, Any]", annotationlib.get_annotations(function))
        except NameError:
            return cast(
                "Mapping[str, Any]", annotationlib.get_annotations(function, format=annotationlib.Format.STRING)
            )
        except TypeError:
            return {}
    return cast("Mapping[str, Any]", getattr(function, "__annotations__", None) or {})


def _evaluated(annotation: Any, function: Any) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {}, _Names(function))
    except Exception:
        return _Unknown(annotation)
