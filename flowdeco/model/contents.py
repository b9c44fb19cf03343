"""The content of values: whether two of them agree, and the parts that one consists of.

1. Two values agree if they are one object, or equal values of one type: `True` and `1` do not agree, NaN and NaN do, and
   containers agree item by item.
2. Arrays and frames agree if their types of data, their shapes and their items do. Their libraries are never imported
   here: classes are recognised by their names.
3. An `__eq__` is trusted if it returns True. If it returns anything else, or raises, the content decides if there is any,
   and so it does for objects without an `__eq__` of their own: the parts that `pickle` would write. So a value agrees with
   its copy from another process.
4. Reading is not writing: attributes in which a value caches something (`functools.cached_property`) do not count.
"""

from __future__ import annotations

import copyreg
import gc
import types
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import lru_cache
from math import isnan
from typing import Any, Final, TypeAlias, cast

from flowdeco.model.tuples import NamedTuple

__all__ = ["ATOMS", "Digest", "Parts", "agree", "mutable_parts", "taken_apart"]

ATOMS: Final = frozenset({str, int, float, bool, bytes, complex, type(None)})  # immutable, and without parts
_KEPT: Final = 1024  # classes that are remembered
_PROTOCOL: Final = 5  # of pickle: with it, buffers are not copied
_SLICE: Final = 4 << 20  # bytes

_Pairs: TypeAlias = "list[tuple[Any, Any]] | None"
_Compare: TypeAlias = "Callable[[Any, Any], _Pairs]"


def agree(one: Any, other: Any) -> bool:
    """Whether two values are one object, or equal values of one type."""
    waiting = [(one, other)]
    met: dict[tuple[int, int], tuple[Any, Any]] = {}  # pairs with parts; they are kept so that no id is reused
    while waiting:
        one, other = waiting.pop()
        if one is other:
            continue
        if type(one) is not type(other):
            return False
        if type(one) in ATOMS:
            if not (one == other or _are_nan(one, other)):
                return False
            continue
        pair = id(one), id(other)
        if pair not in met:  # a value that contains itself agrees with another one unless a part differs
            met[pair] = one, other
            parts = _parts(one, other)
            if parts is None:
                return False
            waiting += parts
    return True


def _are_nan(one: Any, other: Any) -> bool:
    if type(one) is complex:
        return agree(one.real, other.real) and agree(one.imag, other.imag)
    return type(one) is float and isnan(one) and isnan(other)


def _parts(one: Any, other: Any) -> _Pairs:
    """Return the pairs that must agree for two values of one type to do so; None if they do not agree."""
    kind = cast("Any", type(one))
    equal = kind.__eq__
    try:
        by_item = _BY_ITEM.get(equal) or _BY_LIBRARY.get(_known(kind).library)
        if by_item is not None:
            return by_item(one, other)
        if _is_generated(equal) and hasattr(kind, "__dataclass_fields__"):
            return _in_fields(one, other)
        if equal is not object.__eq__ and _says_equal(one, other):
            return []
        if kind.__name__ == "PickleBuffer":
            return [] if memoryview(one) == memoryview(other) else None
        parts = taken_apart(one)
        if equal is not object.__eq__ and not _has_content(parts):
            return None
        return _in_contents(parts, taken_apart(other))
    except Exception:  # what cannot be taken apart cannot be compared
        return None


def _in_fields(one: Any, other: Any) -> _Pairs:
    from dataclasses import fields  # which the program has loaded, if it has dataclasses

    return [(getattr(one, each.name), getattr(other, each.name)) for each in fields(one) if each.compare]


def _is_generated(equal: Any) -> bool:
    """Whether an `__eq__` was made by `@dataclass`: it compares the fields."""
    return getattr(getattr(equal, "__code__", None), "co_filename", "") == "<string>"


def _says_equal(one: Any, other: Any) -> bool:
    try:
        return (one == other) is True
    except Exception:
        return False


def _has_content(parts: Parts) -> bool:
    """Whether there is more to an object than its class."""
    return bool(parts.state or parts.items or parts.pairs) or not all(isinstance(arg, type) for arg in parts.args)


def _in_contents(one: Parts, other: Parts) -> _Pairs:
    pairs: list[tuple[Any, Any]] = [(one.maker, other.maker), (one.args, other.args), (one.state, other.state)]
    for mine, theirs in ((one.items, other.items), (one.pairs, other.pairs)):
        pairs.append((list(mine or ()), list(theirs or ())))
    return pairs


# Containers.


def _in_rows(one: Any, other: Any) -> _Pairs:
    if len(one) != len(other):
        return None
    kinds = list(map(type, one))
    if ATOMS.issuperset(kinds) and kinds == list(map(type, other)) and one == other:  # in C, for lists of numbers
        return []
    return list(zip(one, other, strict=True))


def _in_dicts(one: dict[Any, Any], other: dict[Any, Any]) -> _Pairs:
    keys = _in_sets(one.keys(), other.keys())
    return None if keys is None else keys + [(one[mine], other[theirs]) for mine, theirs in keys]


def _in_sets(one: AbstractSet[Any], other: AbstractSet[Any]) -> _Pairs:
    """Return pairs of items: equal ones, and those that agree all the same, because there is a NaN in them."""
    if len(one) != len(other):
        return None
    theirs = {item: item for item in other}
    pairs = [(item, theirs.pop(item)) for item in one if item in theirs]
    left = list(theirs.values())
    matched = {id(item) for item, _ in pairs}
    for item in one:
        if id(item) not in matched:
            at = next((at for at, candidate in enumerate(left) if agree(item, candidate)), None)
            if at is None:
                return None
            pairs.append((item, left.pop(at)))
    return pairs


def _in_order(one: Any, other: Any) -> _Pairs:
    if isinstance(one, OrderedDict):
        return [(list(cast("OrderedDict[Any, Any]", one).items()), list(other.items()))]
    name = "typecode" if hasattr(one, "typecode") else "maxlen"
    return [(getattr(one, name), getattr(other, name)), (list(one), list(other))]


_CONTAINERS: Final[tuple[tuple[Any, _Compare], ...]] = (
    (list, _in_rows),
    (tuple, _in_rows),
    (dict, _in_dicts),
    (set, _in_sets),
    (frozenset, _in_sets),
    (OrderedDict, _in_order),
    (deque, _in_order),
    (array, _in_order),
)
# A subclass is compared by its items unless it defines an `__eq__` of its own.
_BY_ITEM: Final[dict[Any, _Compare]] = {cast("Any", kind).__eq__: by_item for kind, by_item in _CONTAINERS}


# The content of an object.


class Digest(NamedTuple):
    """A short hash of the content of a value, by which it can be compared with its content later on.

    `whole` is the hash of the content and of everything that the value has cached, in `cached` attributes.
    """

    content: bytes
    cached: int
    whole: bytes

    def differs(self, later: Digest) -> bool:
        """Whether the value has been changed; that it has cached more by now is no change."""
        return self.content != later.content or (self.cached == later.cached and self.whole != later.whole)


class Parts(NamedTuple):
    """The content of an object as `pickle` takes it apart: what makes it, from what, its state, and its items."""

    maker: Any
    args: tuple[Any, ...]
    state: Any = None
    items: Iterator[Any] | None = None
    pairs: Iterator[tuple[Any, Any]] | None = None
    cached: int = 0  # how many attributes are left out because they are caches


def taken_apart(value: Any, *, with_caches: bool = False) -> Parts:
    """Return the content of an object; raises as `pickle` would for one whose content cannot be seen."""
    kind = cast("Any", type(value))
    known = _known(kind)
    if known.library == "numpy":
        return _of_array(value)
    if known.library == "pandas":
        return _of_pandas(value)
    if known.library == "polars":
        return _of_polars(value)
    reduce = cast("Callable[[Any], Any] | None", copyreg.dispatch_table.get(kind))
    reduced = value.__reduce_ex__(_PROTOCOL) if reduce is None else reduce(value)
    if isinstance(reduced, str):
        return Parts(reduced, ())
    parts = Parts(*reduced[:5])
    if with_caches or not known.caches or not parts.state:
        return parts
    state = _without(parts.state, known.caches)
    return parts._replace(state=state, cached=_size(parts.state) - _size(state))


_PLAIN: Final = frozenset({list, tuple, dict, set, frozenset})
_NAMED: Final = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)


def mutable_parts(value: Any) -> frozenset[int]:
    """Return the ids of the objects in a value, itself included, that may be changed in place.

    An array is one, and so is that which it is a view of; whether frames share a buffer is not seen.
    """
    met: dict[int, Any] = {}  # kept, so that no id is used again
    mutable: set[int] = set()
    waiting = [value]
    while waiting:  # level by level: a tenth of the time that it takes part by part
        level = {id(part): part for part in waiting if type(part) not in ATOMS and id(part) not in met}
        met |= level
        plain = [part for part in level.values() if type(part) in _PLAIN]
        mutable.update([id(part) for part in plain if type(part) is not tuple and type(part) is not frozenset])
        waiting = gc.get_referents(*plain)
        for part in level.values() if len(plain) < len(level) else ():
            if type(part) not in _PLAIN and not isinstance(part, _NAMED):
                inner, is_mutable = _inner(part)
                waiting += inner
                mutable.update([id(part)] * is_mutable)
    return frozenset(mutable)


def _inner(value: Any) -> tuple[Iterable[Any], bool]:
    """Return the values in an object, and whether it may be changed in place: if there is more to it than what made it."""
    kind = cast("Any", type(value))
    library = _known(kind).library
    if library == "numpy" and value.base is not None:
        return (value.base,), True
    if library or kind is bytearray or kind is array:
        return (), True
    try:
        parts = taken_apart(value)
    except Exception:  # its content cannot be seen
        return (), False
    inner: list[Any] = [*parts.args, *(parts.items or ())]
    for key, item in parts.pairs or ():
        inner += (key, item)
    whole: Any = parts.state
    states = cast("tuple[Any, ...]", whole) if isinstance(whole, tuple) else (whole,)
    for state in states:  # made for the occasion, perhaps: its own id is not one of the value
        inner += cast("dict[Any, Any]", state).values() if isinstance(state, dict) else (state,)
    return inner, parts[2:5] != (None, None, None)


class _Known(NamedTuple):
    """What is known of a class: the library of an array or frame, and the attributes in which instances cache things."""

    library: str
    caches: frozenset[str]


@lru_cache(_KEPT)
def _known(kind: type) -> _Known:
    found: dict[str, Any] = {}
    for cls in reversed(kind.__mro__):
        found.update(vars(cls))
    # An attribute hides a descriptor that has no `__set__`, which is how `functools.cached_property` works.
    caches = (
        name
        for name, descriptor in found.items()
        if hasattr(descriptor, "__get__")
        and not hasattr(descriptor, "__set__")
        and not isinstance(descriptor, _METHODS)
    )
    bases = ((cls.__module__.partition(".")[0], cls.__name__) for cls in kind.__mro__)
    library = next((library for library, name in bases if name in _CLASSES.get(library, ())), "")
    if library == "numpy" and kind.__module__ != "numpy":
        library = ""  # a subclass of arrays may hold more than its items
    return _Known(library, frozenset(caches))


_CLASSES: Final = {
    "numpy": {"ndarray", "generic"},
    "pandas": {"DataFrame", "Series"},
    "polars": {"DataFrame", "Series"},
}
_METHODS: Final = (
    types.FunctionType, classmethod, staticmethod, types.BuiltinFunctionType, types.MethodDescriptorType,
    types.WrapperDescriptorType, types.ClassMethodDescriptorType, type,
)  # fmt: skip


def _without(state: Any, caches: AbstractSet[str]) -> Any:
    """Return a state without caches: it is a dict of attributes, or a pair of that and a dict of slots."""
    if isinstance(state, tuple):
        return tuple(_without(part, caches) for part in cast("tuple[Any, ...]", state))
    if not isinstance(state, dict):
        return state
    kept = {name: part for name, part in cast("dict[Any, Any]", state).items() if name not in caches}
    if isinstance(kept.get("__dict__"), dict):  # as pydantic has it
        kept["__dict__"] = _without(kept["__dict__"], caches)
    return kept


def _size(state: Any) -> int:
    """Return the number of attributes in a state."""
    if isinstance(state, tuple):
        return sum(map(_size, cast("tuple[Any, ...]", state)))
    if not isinstance(state, dict):
        return 0
    attributes = cast("dict[Any, Any]", state)
    return len(attributes) + _size(attributes.get("__dict__"))


# Arrays and frames.


def _in_arrays(one: Any, other: Any) -> _Pairs:
    if one.dtype != other.dtype or one.shape != other.shape:
        return None
    if one.dtype.names:
        return [(one[name], other[name]) for name in one.dtype.names]
    if one.dtype.hasobject:
        return [(one.tolist(), other.tolist())]
    if one.dtype.kind == "c":
        return [(one.real, other.real), (one.imag, other.imag)]
    equal = one == other
    if one.dtype.kind in "fmM":  # NaN and NaT
        equal |= (one != one) & (other != other)  # noqa: PLR0124
    return [] if equal.all() else None


def _in_polars(one: Any, other: Any) -> _Pairs:
    same = _schema(one) == _schema(other) and one.equals(other, null_equal=True)
    return [] if same else None


def _schema(value: Any) -> list[tuple[str, Any]]:
    return list(value.schema.items()) if hasattr(value, "schema") else [(value.name, value.dtype)]


_BY_LIBRARY: Final[dict[str, _Compare]] = {"numpy": _in_arrays, "polars": _in_polars}


def _of_array(value: Any) -> Parts:
    """Take an array apart: by fields, into a list of objects, or into slices of its buffer, so that only a slice is copied.

    It has the parts of its copy: neither items between its own, nor the gaps in records, are among them.
    """
    if not hasattr(value, "__array_finalize__"):
        value = value.reshape(1)  # a scalar
    dtype, shape = value.dtype, value.shape
    if dtype.names:
        return Parts(type(value), (dtype.names, shape, [value[name] for name in dtype.names]))
    if dtype.hasobject:
        return Parts(type(value), (dtype.str, shape, value.tolist()))
    turned = value.flags.f_contiguous and not value.flags.c_contiguous
    rows = value.T if turned else value if shape else value.reshape(1)
    step = max(1, _SLICE * len(rows) // max(1, rows.nbytes))
    slices = (rows[at : at + step] for at in range(0, len(rows), step))
    contents = [memoryview((each if each.flags.c_contiguous else each.copy()).view("u1")) for each in slices]
    return Parts(type(value), (dtype.str, shape, turned, contents))


def _of_pandas(value: Any) -> Parts:
    """Take a frame apart by columns: how it lays them out together, and what it caches, is not content."""
    more = [getattr(value, name, None) for name in value._metadata]
    if hasattr(value, "columns"):
        columns = [_of_column(value.iloc[:, at]) for at in range(value.shape[1])]
        return Parts(type(value), (value.columns, value.index, columns, value.attrs, more))
    return Parts(type(value), (value.index, _of_column(value), value.attrs, more))


def _of_column(series: Any) -> Any:
    """Return the array of a column: that of numpy, without a copy, if it has one."""
    is_numpy = type(series.dtype).__module__.partition(".")[0] == "numpy"
    return series.to_numpy() if is_numpy else series.array


def _of_polars(value: Any) -> Parts:
    columns = value.get_columns() if hasattr(value, "get_columns") else [value]
    contents: list[Any] = []
    for column in columns:
        whole = column.rechunk()
        plain = column.dtype.is_numeric() and not column.null_count()
        contents.append(whole.to_numpy() if plain else whole.__getstate__())
    return Parts(type(value), ([(name, str(dtype)) for name, dtype in _schema(value)], contents))
