"""Named tuples that are made eight times as fast as those of `typing`.

There are some sixty of them in a run, each made as its module is imported. `typing` compiles the annotation of every
field in case somebody evaluates it, and `collections` a constructor for each class; that alone was 6 of the 15 ms that an
import of flowdeco may take. Here, classes with as many fields share the code of their constructors, and all the rest.
"""

from __future__ import annotations

import collections
import functools
import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

__all__ = ["NamedTuple"]

if TYPE_CHECKING:
    from typing import NamedTuple
else:

    def _make(cls, iterable: Iterable[Any]) -> Any:
        """Make one of the items of an iterable."""
        made = tuple.__new__(cls, iterable)
        if len(made) != len(cls._fields):
            raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
        return made

    def _replace(self, /, **changes: Any) -> Any:
        """Return a copy with other values for some fields."""
        made = self._make(map(changes.pop, self._fields, self))
        if changes:
            raise _UNEXPECTED(f"Got unexpected field names: {list(changes)!r}")
        return made

    def _repr(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
        return f"{type(self).__name__}({shown})"

    # One that is made the long way, for the rest; none of ours has more fields.
    _sample = collections.namedtuple("_sample", [f"item_{at}" for at in range(32)])  # noqa: PYI024
    _GETTERS = [vars(_sample)[name] for name in _sample._fields]
    _COMMON = {
        **{name: value for name, value in vars(_sample).items() if name not in (*_sample._fields, "__doc__")},
        "_make": classmethod(_make),
        "_replace": _replace,
        "__repr__": _repr,
    }
    if "__replace__" in _COMMON:  # pragma: no cover - new in 3.13
        _COMMON["__replace__"] = _replace
    _UNEXPECTED = TypeError if "__replace__" in _COMMON else ValueError

    @functools.cache
    def _constructor(count: int) -> types.CodeType:
        names = "".join(f"_{index}, " for index in range(count))
        return eval(f"lambda _cls, {names}: new(_cls, ({names}))").__code__

    class _Made(type):
        """Makes the class that is written in place of a subclass: the annotations are its fields."""

        def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> type:
            annotations = space.get("__annotations__", {})
            fields = tuple(annotations)
            defaults = {field: space.pop(field) for field in fields if field in space}
            code = _constructor(len(fields)).replace(co_varnames=("_cls", *fields), co_name="__new__")
            new = types.FunctionType(code, {"new": tuple.__new__}, "__new__", tuple(defaults.values()))
            new.__annotations__, new.__qualname__ = annotations, f"{name}.__new__"
            own = {"__new__": new, "_fields": fields, "__match_args__": fields, "_field_defaults": defaults}
            return type(
                name, (tuple,), {**_COMMON, **own, **dict(zip(fields, _GETTERS[: len(fields)], strict=True)), **space}
            )

    NamedTuple = type.__new__(_Made, "NamedTuple", (), {})
