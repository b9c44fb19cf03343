"""Fingerprints: a short hash of a function, which differs when the code of an action has changed.

Where the source is available the syntax tree is hashed, without name, docstrings, decorators and places: that
is the same in every version of Python, and wherever the function stands in its file. The source is only trusted if it
compiles to the very code that is loaded: a file may have been edited since, or rewritten on import. Otherwise the code
object is hashed. Defaults count; closures, bound values, and the functions that are called do not.
"""

from __future__ import annotations
import __future__

import ast
import functools
import linecache
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from typing import Any, Final, NamedTuple, TypeAlias, cast

__all__ = ["fingerprint"]

_KEPT: Final = 4096  # functions, and files, are remembered up to these numbers
_FILES: Final = 16

_Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda"

_known: dict[tuple[int, int, int], tuple[Any, str]] = {}
_codes: dict[int, tuple[types.CodeType, str]] = {}


def fingerprint(function: Any) -> str:
    """Return a short string that differs when the code, its constants or its defaults differ."""
    try:
        inner = getattr(function, "__wrapped__", None)
        while inner is not None:  # the function that a decorator hides
            function, inner = inner, getattr(inner, "__wrapped__", None)
        code, defaults, named = function.__code__, function.__defaults__, function.__kwdefaults__
    except AttributeError:
        return _hashed(_described(function))
    key = id(code), id(defaults), id(named)
    found = _known.get(key)
    if found is None:
        if len(_known) >= _KEPT:
            _known.clear()
        held = code, defaults, named  # kept, so that their ids are not reused
        found = _known[key] = held, _hashed(_described(function))
    return found[1]


def _hashed(text: str) -> str:
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _described(thing: Any) -> str:
    """Describe a callable; an object by the code of its class."""
    if isinstance(thing, types.FunctionType):
        return f"{_code_described(thing.__code__)}\n{_value_described((thing.__defaults__, thing.__kwdefaults__))}"
    if isinstance(thing, (types.MethodType, classmethod, staticmethod)):
        return _described(cast("Any", thing).__func__)
    if isinstance(thing, functools.partial):
        partial = cast("functools.partial[Any]", thing)
        return f"partial {len(partial.args)} {sorted(partial.keywords)}\n{_described(partial.func)}"
    call = next((vars(cls)["__call__"] for cls in type(thing).__mro__ if "__call__" in vars(cls)), None)
    if hasattr(thing, "__qualname__"):
        return f"{getattr(thing, '__module__', None)}:{thing.__qualname__}"
    target = _described(call) if isinstance(call, types.FunctionType) else ""
    return f"a {type(thing).__module__}:{type(thing).__qualname__}\n{target}"


# Values: defaults and constants.


def _value_described(value: Any) -> str:
    """Describe a value, the same in every process."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return f"{type(value).__name__} {value!r}" if type(value) is not str else ascii(value)
    if isinstance(value, types.CodeType):
        return _code_described(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return f"{{{', '.join(f'{_value_described(key)}: {_value_described(part)}' for key, part in items)}}}"
    name = str(type(value).__qualname__)
    if isinstance(value, AbstractSet):
        return f"{name}{sorted(map(_value_described, cast('Iterable[Any]', value)))}"
    if isinstance(value, (list, tuple)):
        return f"{name}{list(map(_value_described, cast('Iterable[Any]', value)))}"
    if isinstance(value, (type, types.ModuleType)) or callable(value):
        return str(getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or name)
    try:
        text = repr(value)
    except Exception:
        text = " at 0x"
    return f"a {name}" if " at 0x" in text else f"{name} {text}"


# Code.


def _code_described(code: types.CodeType) -> str:
    found = _codes.get(id(code))
    if found is None:
        node = _node_of(code)
        if len(_codes) >= _KEPT:
            _codes.clear()
        found = _codes[id(code)] = code, _hashed(_loaded_described(code) if node is None else _dumped(node))
    return found[1]


def _loaded_described(code: types.CodeType) -> str:
    """Describe a code object: all but its place in the file."""
    constants = code.co_consts[1:] if _has_docstring(code) else code.co_consts
    parts = [code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_flags & _MEANT]
    return f"{parts} {code.co_code.hex()} {list(map(_value_described, constants))}"


def _has_docstring(code: types.CodeType) -> bool:
    if sys.version_info >= (3, 14):
        return bool(code.co_flags & 0x4000000)
    first = code.co_consts[0] if code.co_consts else 0  # before 3.14 its place was always kept
    function = bool(code.co_flags & 0x2) and not code.co_name.startswith("<")
    return function and (first is None or isinstance(first, str))


_MEANT: Final = 0x04 | 0x08 | 0x20 | 0x80 | 0x200  # *args, **kwargs, generator, coroutine, async generator


def _same(one: Any, other: Any) -> bool:
    """Whether two constants are the same, code wherever it stands."""
    if not (isinstance(one, types.CodeType) and isinstance(other, types.CodeType)):
        return type(one) is type(other) and bool(one == other)
    return (
        one.co_code == other.co_code
        and one.co_names == other.co_names
        and one.co_varnames == other.co_varnames
        and one.co_freevars == other.co_freevars
        and one.co_flags == other.co_flags
        and len(one.co_consts) == len(other.co_consts)
        and all(map(_same, one.co_consts, other.co_consts))
    )


class _Source(NamedTuple):
    """A file: its syntax tree, and the functions that it compiles to by their qualified names."""

    lines: list[str]
    tree: ast.Module
    codes: dict[str, list[types.CodeType]]


_sources: dict[str, _Source] = {}
_FUTURE: Final = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names[2:])


def _source_of(code: types.CodeType) -> _Source | None:
    filename = code.co_filename
    linecache.checkcache(filename)
    lines = linecache.getlines(filename)
    if not lines:
        return None
    found = _sources.get(filename)
    if found is not None and found.lines is lines:
        return found
    text = "".join(lines)
    try:
        tree = ast.parse(text)
        module = compile(text, filename, "exec", code.co_flags & _FUTURE, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if len(_sources) >= _FILES:
        _sources.clear()
    codes: dict[str, list[types.CodeType]] = {}
    for compiled in _codes_in(module):
        codes.setdefault(compiled.co_qualname, []).append(compiled)
    _sources[filename] = made = _Source(lines, tree, codes)  # only when complete: other threads look for it there
    return made


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes_in(constant)


def _node_of(code: types.CodeType) -> _Function | None:
    """Return the syntax tree of the function that compiles to this code, None where there is none."""
    source = _source_of(code)
    if source is None:
        return None
    nodes = [
        node
        for compiled in source.codes.get(code.co_qualname, ())
        if _same(compiled, code)
        for node in _functions_at(source.tree, compiled.co_firstlineno)
        if getattr(node, "name", "<lambda>") == code.co_name
    ]
    return nodes[0] if len(set(map(_dumped, nodes))) == 1 else None


def _functions_at(node: ast.AST, line: int) -> Iterator[_Function]:
    """Yield the functions that begin at this line, with their decorators."""
    for child in ast.iter_child_nodes(node):
        decorators = [decorator.lineno for decorator in getattr(child, "decorator_list", ())]
        first = min([getattr(child, "lineno", line), *decorators])
        if first == line and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
        if first <= line <= (getattr(child, "end_lineno", None) or line):
            yield from _functions_at(child, line)


def _dumped(node: _Function) -> str:
    """Return the tree as a string, without empty fields: a newer Python, with more of them, gives the same."""
    fields = [(name, value) for name, value in _fields(node) if name != "name"]
    return " ".join(_tree_described(node, fields))


_SILENT: Final = frozenset({"decorator_list", "ctx", "kind", "type_comment"})


def _tree_described(node: Any, fields: Iterable[tuple[str, Any]] | None = None) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        yield _value_described(node.value)
    elif isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in _fields(node) if fields is None else fields:
            yield f"{name}="
            yield from _tree_described(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for part in cast("list[Any]", node):
            yield from _tree_described(part)
        yield "]"
    else:
        yield ascii(node)


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Yield the fields that count: those that are not empty, the body without its docstring."""
    for name, value in ast.iter_fields(node):
        if name in _SILENT or value is None or value == []:
            continue
        if name == "body" and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            value = value[ast.get_docstring(node, clean=False) is not None :]
        if isinstance(node, ast.JoinedStr):  # some versions have empty parts in it
            value = [part for part in value if not (isinstance(part, ast.Constant) and part.value == "")]
        yield name, value
