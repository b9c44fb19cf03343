"""Values as text: the same in every process, whatever its addresses and its order of hashes.

The text of a value is in names of stages, in fingerprints and in the ids of steps. It is that of `repr`, but for what
`repr` takes from the process: sets are sorted, functions and classes go by their qualified names, and an object without
a `repr` of its own by its type.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Iterable
from enum import Enum
from inspect import unwrap
from operator import is_
from os import PathLike
from typing import Any, Final, TypeAlias, cast
from weakref import WeakKeyDictionary

from flowdeco.errors import without_addresses
from flowdeco.model.contents import ATOMS
from flowdeco.model.functions import as_written

__all__ = ["content_of", "defaults_of", "keep_defaults", "string_of", "text_of"]

_SORTABLE: Final = (frozenset({str}), frozenset({bytes}), frozenset({int, bool}))

Opaque: TypeAlias = "Callable[[Any, tuple[int, ...]], str]"


def text_of(value: Any) -> str:
    """Return the text of a value; an object without a `repr` of its own is described by its type alone."""
    return _text(value, _type_name, ())


def string_of(value: Any) -> str:
    """Return what the `str` of its class makes of a value, without addresses; of one without its own, the text."""
    kind = _class_of(value)
    return text_of(value) if kind.__str__ is object.__str__ else _own_text(value, kind, str)


def content_of(value: Any) -> str:
    """Return the text of a value; an object without a `repr` of its own is described by its attributes as well."""
    return _text(value, _with_attributes, ())


def _type_name(value: Any, inside: tuple[int, ...]) -> str:
    return str(type(value).__qualname__)


def _instance(value: Any, inside: tuple[int, ...]) -> str:
    return f"{type(value).__qualname__}()"  # and not the class itself


def _with_attributes(value: Any, inside: tuple[int, ...]) -> str:
    attributes: dict[str, Any] = {}
    for cls in type(value).__mro__:
        slots: Any = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            attributes |= {name: getattr(value, name)} if hasattr(value, name) else {}
    attributes |= getattr(value, "__dict__", {})
    own = {
        name: part
        for name, part in attributes.items()
        if name != "__weakref__" and not isinstance(getattr(_class_of(value), name, None), functools.cached_property)
    }
    return _fields(type(value).__qualname__, own.items(), _with_attributes, inside)


def _text(value: Any, opaque: Opaque, inside: tuple[int, ...]) -> str:
    kind = _class_of(value)
    if kind in ATOMS:
        return repr(value)
    if id(value) in inside:
        return "…"
    described = _SHOWN.get(kind.__repr__)
    if _extends(kind, Enum):
        return f"{kind.__qualname__}.{value.name}" if value.name else f"{kind.__qualname__}({value.value!r})"
    if described is not None:
        return described(value, kind, opaque, (*inside, id(value)))
    if _extends(kind, (type, *_CALLABLE)):
        return str(value.__qualname__)
    if _extends(kind, types.ModuleType):
        return str(value.__name__)
    if _extends(kind, PathLike):
        return repr(value.__fspath__())
    if _is_date(kind):
        return str(value)
    fields = _shown_fields(value, kind)
    if fields is not None:
        return _fields(kind.__qualname__, fields, opaque, (*inside, id(value)))
    return _own_text(value, kind)


def _class_of(value: Any) -> Any:
    return cast("Any", type(value))


def _extends(kind: Any, of: Any) -> bool:
    return issubclass(kind, of)  # the class of a proxy is its own, not that of its object, which `isinstance` takes


def _own_text(value: Any, kind: Any, made: Callable[[Any], str] = repr) -> str:
    """Return what the `repr` of its class makes of a value, or its `str`, without addresses."""
    try:
        text = made(value)
    except Exception:
        return str(kind.__qualname__)
    return without_addresses(text).replace(hex(id(value)), "").replace(str(id(value)), "")


_CALLABLE: Final = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GeneratorType,
    types.CoroutineType,
    types.AsyncGeneratorType,
)


def _is_date(kind: Any) -> bool:
    module = sys.modules.get("datetime")  # not loaded for this
    return module is not None and _extends(kind, (module.date, module.time))


# Values that consist of others.


def _joined(parts: Iterable[Any], opaque: Opaque, inside: tuple[int, ...]) -> str:
    found = list(parts)
    if ATOMS.issuperset(map(type, found)):  # a million numbers take no longer than by `repr`
        return repr(found)[1:-1]
    return ", ".join([_text(part, opaque, inside) for part in found])


def _fields(name: str, fields: Iterable[tuple[str, Any]], opaque: Opaque, inside: tuple[int, ...]) -> str:
    return f"{name}({', '.join(f'{field}={_text(part, opaque, inside)}' for field, part in fields)})"


def _prefixed(value: Any, kind: Any, plain: type, text: str) -> str:
    return text if kind is plain else f"{kind.__qualname__}({text})"


def _of_list(value: Any, kind: Any, opaque: Opaque, inside: tuple[int, ...]) -> str:
    return _prefixed(value, kind, list, f"[{_joined(value, opaque, inside)}]")


def _of_tuple(value: Any, kind: Any, opaque: Opaque, inside: tuple[int, ...]) -> str:
    last = "," if len(value) == 1 else ""
    return _prefixed(value, kind, tuple, f"({_joined(value, opaque, inside)}{last})")


def _of_set(value: Any, kind: Any, opaque: Opaque, inside: tuple[int, ...]) -> str:
    kinds = frozenset(map(type, value))
    if any(kinds <= sortable for sortable in _SORTABLE):
        parts = list(map(repr, sorted(value)))
    else:
        parts = sorted(_text(part, opaque, inside) for part in value)
    if not parts:
        return f"{kind.__qualname__}()"
    return _prefixed(value, kind, set, f"{{{', '.join(parts)}}}")


def _of_dict(value: Any, kind: Any, opaque: Opaque, inside: tuple[int, ...]) -> str:
    if kind is dict and ATOMS.issuperset(map(type, value)) and ATOMS.issuperset(map(type, value.values())):
        return repr(value)
    items = value.items()
    parts = [f"{_text(key, opaque, inside)}: {_text(part, opaque, inside)}" for key, part in items]
    return _prefixed(value, kind, dict, f"{{{', '.join(parts)}}}")


def _of_partial(value: Any, kind: Any, opaque: Opaque, inside: tuple[int, ...]) -> str:
    parts = [_text(part, opaque, inside) for part in (value.func, *value.args)]
    parts += [f"{name}={_text(part, opaque, inside)}" for name, part in value.keywords.items()]
    return f"{kind.__qualname__}({', '.join(parts)})"


def _of_error(value: Any, kind: Any, opaque: Opaque, inside: tuple[int, ...]) -> str:
    return f"{kind.__qualname__}({_joined(value.args, opaque, inside)})"


def _of_object(value: Any, kind: Any, opaque: Opaque, inside: tuple[int, ...]) -> str:
    return opaque(value, inside)


def _of_namespace(value: Any, kind: Any, opaque: Opaque, inside: tuple[int, ...]) -> str:
    return _fields(kind.__qualname__, list(value.__dict__.items()), opaque, inside)


# By the `repr` that a class has or inherits: one with its own is not taken for what it extends.
_CLASSES: Final[dict[Any, Callable[[Any, Any, Opaque, tuple[int, ...]], str]]] = {
    list: _of_list,
    UserList: _of_list,
    deque: _of_list,
    tuple: _of_tuple,
    set: _of_set,
    frozenset: _of_set,
    dict: _of_dict,
    UserDict: _of_dict,
    OrderedDict: _of_dict,
    defaultdict: _of_dict,
    Counter: _of_dict,
    types.MappingProxyType: _of_dict,
    functools.partial: _of_partial,
    BaseException: _of_error,
    types.SimpleNamespace: _of_namespace,
    object: _of_object,
}
_SHOWN: Final = {cls.__repr__: shown for cls, shown in _CLASSES.items()}


def _shown_fields(value: Any, kind: Any) -> list[tuple[str, Any]] | None:
    """Return the fields that a generated `repr` shows, by name; None for one that was written."""
    if _extends(kind, tuple) and hasattr(kind, "_fields") and _is_generated(kind):
        return list(zip(kind._fields, value, strict=False))
    fields: Any = getattr(kind, "__dataclass_fields__", None)
    if fields is not None and _is_generated(kind):
        return [(name, getattr(value, name, ...)) for name, field in fields.items() if field.repr and _is_field(field)]
    fields = getattr(kind, "__attrs_attrs__", None)
    if fields is not None and _is_generated(kind):
        return [(field.name, getattr(value, field.name, ...)) for field in fields if field.repr]
    if str(getattr(kind.__repr__, "__module__", "")).startswith("pydantic"):
        return [(name or "", part) for name, part in value.__repr_args__()]
    return None


def _is_field(field: Any) -> bool:
    return getattr(field._field_type, "name", "_FIELD") == "_FIELD"  # and not a ClassVar or InitVar


def _is_generated(kind: Any) -> bool:
    function = unwrap(kind.__repr__)
    written_in = getattr(getattr(function, "__code__", None), "co_filename", "")
    return written_in.startswith("<") or function.__module__ in ("collections", "flowdeco.model.tuples")


# Defaults as the code has them: a call may fill them.


_kept: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_latest: dict[int, tuple[types.CodeType, tuple[Any, ...], str]] = {}
_MOST: Final = 4096


def keep_defaults(function: Any) -> None:
    """Remember the defaults of a function as they are now, when it becomes an action."""
    function = as_written(function)
    if not isinstance(function, types.FunctionType) or function in _kept:
        return
    values = *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()
    if ATOMS.issuperset(map(type, values)):
        return  # nothing can change them
    code, known = function.__code__, _latest.get(id(function.__code__))
    if known is not None and len(known[1]) == len(values) and all(map(is_, known[1], values)):
        _kept[function] = known[2]  # the same objects, in another call of the function around it
        return
    if len(_latest) >= _MOST:
        _latest.clear()
    _kept[function] = text = _defaults_text(function)
    _latest[id(code)] = code, values, text  # kept, so that its id is not reused


def defaults_of(function: types.FunctionType) -> str:
    """Return the text of a function's defaults, as they were when it became an action."""
    return _kept.get(function) or _defaults_text(function)


def _defaults_text(function: types.FunctionType) -> str:
    return _text((function.__defaults__, function.__kwdefaults__), _instance, ())
