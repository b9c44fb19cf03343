"""Fingerprints: a short hash of a function, which differs when the code of an action has changed.

The code that is loaded is hashed, instruction by instruction: not its file, which may have been edited since, nor its
names, docstrings, annotations and places. Defaults count as they were when the function became an action, because a call
may fill them; closures, bound values, and the functions that are called do not.

Another version of Python compiles the same source to other instructions. Therefore a fingerprint begins with that
version, and those of two versions are not comparable.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, cast

from flowdeco.model.functions import as_written
from flowdeco.model.identity import defaults_of, text_of

__all__ = ["fingerprint"]

_KEPT: Final = 4096  # functions are remembered up to this number

_known: dict[tuple[int, int, int], tuple[Any, str]] = {}
_PYTHON: Final = (sys.implementation.cache_tag or "").removeprefix("cpython-") + "O" * bool(sys.flags.optimize)


def fingerprint(function: Any) -> str:
    """Return a short string that differs when the code, its constants or its defaults differ."""
    return _of_described(_described(function))


@functools.lru_cache(_KEPT)  # a template makes functions of the same code without end
def _of_described(text: str) -> str:
    return f"{_PYTHON}:{_hashed(text)}"


def _hashed(text: str) -> str:
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _described(thing: Any) -> str:
    """Describe a callable; an object by the code of its class."""
    if isinstance(thing, functools.partial):
        partial = cast("functools.partial[Any]", thing)
        return f"partial {len(partial.args)} {sorted(partial.keywords)}\n{_described(partial.func)}"
    target = as_written(thing)
    kind = cast("Any", type(thing))
    if not isinstance(target, types.FunctionType):
        named, article = (target, "") if hasattr(target, "__qualname__") else (kind, "a ")
        return f"{article}{getattr(named, '__module__', None)}:{named.__qualname__}"
    text = _function_described(target)
    return f"a {kind.__module__}:{kind.__qualname__}\n{text}" if target is getattr(kind, "__call__", None) else text


def _function_described(function: types.FunctionType) -> str:
    code, defaults, named = function.__code__, function.__defaults__, function.__kwdefaults__
    key = id(code), id(defaults), id(named)
    found = _known.get(key)
    if found is None:
        if len(_known) >= _KEPT:
            _known.clear()
        held = code, defaults, named  # kept, so that their ids are not reused
        found = _known[key] = held, _hashed(f"{_code_described(code)}\n{defaults_of(function)}")
    return found[1]


@functools.lru_cache(_KEPT)
def _code_described(code: types.CodeType) -> str:
    return _hashed(" ".join(_parts(code)))


_MEANT: Final = 0x04 | 0x08 | 0x20 | 0x80 | 0x200  # *args, **kwargs, generator, coroutine, async generator
_HAS_NAME: Final = frozenset({*dis.hasname, *dis.haslocal, *dis.hasfree})
_HAS_CONSTANT: Final = frozenset(dis.hasconst)
_PLACES: Final = frozenset({"__doc__", "__qualname__", "__firstlineno__", "__static_attributes__"})


def _parts(code: types.CodeType) -> Iterator[str]:
    """Yield what a code object does: its parameters, its instructions with the names and constants that they refer to.

    A docstring is among its constants, and shifts their numbers.
    """
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    yield f"{counts} {code.co_varnames[:count]} {code.co_flags & _MEANT}"
    held = ""  # an instruction that may load what the body of a class says about its place
    for each in dis.get_instructions(code):
        if each.opname == "STORE_NAME" and each.argval in _PLACES:
            held = ""
            continue
        if held:
            yield held
        held = "" if each.opname == "EXTENDED_ARG" else f"{each.opname} {_argument(each)}"
    yield held
    if code.co_flags & 0x02:  # of a function, whose instructions are all in it
        yield code.co_exceptiontable.hex()


def _argument(each: dis.Instruction) -> str:
    if each.opcode in _HAS_CONSTANT:
        value = each.argval
        return _code_described(value) if isinstance(value, types.CodeType) else text_of(value)
    return str(each.argval if each.opcode in _HAS_NAME else each.arg)
