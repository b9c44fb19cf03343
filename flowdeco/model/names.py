"""The value of an annotation that is a string, or has strings in it, and the names that it sees.

These are the names of the function's module, of the functions around it, and those that only the type checker knows. A
function that is made in another one sees its variables, although it may not close over them: they are copied when the
action is made, if its annotations need them.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import linecache
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, ForwardRef, Literal, TypeAlias, Union, get_args, get_origin

import typing_extensions

from flowdeco.model.functions import annotations_of, as_written
from flowdeco.model.keys import Key, alias_value, is_alias
from flowdeco.model.tuples import NamedTuple

__all__ = [
    "LITERALS",
    "NO_LOCALS",
    "Either",
    "Names",
    "Unknown",
    "Unresolved",
    "aliased",
    "local_variables",
    "names_of",
    "parsed",
    "union",
]

NO_LOCALS: Final[Mapping[str, Any]] = types.MappingProxyType({})
LITERALS: Final = (Literal, typing_extensions.Literal)


class Unknown:
    """A class whose name is known to the type checker only; a dotted name says where it is from."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name

    def __call__(self, *args: Any) -> Any:  # typing accepts a callable as a type
        raise TypeError(f"{self.name} is not known at run time")

    def is_ours(self, names: Iterable[str]) -> bool:
        """Whether it is one of these classes of flowdeco; of a name that is imported nowhere, nothing else is known."""
        path, _, name = self.name.rpartition(".")
        return name in names and (not path or path.partition(".")[0] == "flowdeco")


class Unresolved(NamedTuple):
    """Stands for metadata that cannot be evaluated."""

    text: str
    error: str


class Either(NamedTuple):
    """A union that `typing` does not make: of metadata that has no hash."""

    members: tuple[Any, ...]


def union(one: Any, other: Any) -> Any:
    try:
        return Union[one, other]  # noqa: UP007 - `|` takes classes only
    except TypeError:
        return Either((one, other))


# The value of an annotation that is a string, and the names in it.


def aliased(annotation: Any, names: dict[str, Any]) -> Any:
    """Return the value of an alias; if a name in it is for the type checker only, that of the rest of its expression."""
    try:
        return alias_value(annotation)
    except Exception:
        alias = annotation if is_alias(annotation) else get_origin(annotation)
    if alias.__module__ != names.get("__name__"):
        names = vars(sys.modules.get(alias.__module__, types))
    file = names.get("__file__") or ""
    bound = _bound_for_checkers(file, names).get(alias.__name__)
    if not isinstance(bound, ast.expr):
        return Unknown(f"{alias.__module__}.{alias.__name__}")
    return Names(names, file, {each.__name__: each for each in alias.__type_params__}).value(bound)


def names_of(function: Any, local: Mapping[str, Any]) -> Names:
    visible = {each.__name__: each for each in getattr(function, "__type_params__", ())}
    for owner in (getattr(function, "__annotate__", None), function):  # the first is new in 3.14
        visible.update(_closure(owner))
    visible.update(local)
    code = getattr(function, "__code__", None)
    return Names(getattr(function, "__globals__", {}), code.co_filename if code else "", visible)


@functools.lru_cache(maxsize=1024)
def parsed(text: str) -> ast.expr | None:
    """Return the expression of an annotation that is a string, None if it is not valid."""
    try:
        return ast.parse(f"({text.strip()}\n)", mode="eval").body
    except (SyntaxError, ValueError):
        return None


@functools.lru_cache(maxsize=1024)
def _compiled(node: ast.expr) -> types.CodeType:
    return compile(ast.Expression(node), "<annotation>", "eval")


class Names(dict[str, Any]):
    """The names visible to an annotation; a missing one is unknown, or an error if they are `strict`."""

    def __init__(self, module: dict[str, Any], file: str, visible: Mapping[str, Any], *, strict: bool = False) -> None:
        super().__init__(visible)
        self._module = module
        self._file = file
        self._strict = strict

    def __missing__(self, name: str) -> Any:
        if name in self._module:
            return self._module[name]
        if hasattr(builtins, name):
            return getattr(builtins, name)
        found = self._for_checkers(name)
        if isinstance(found, Unknown) and self._strict:
            raise NameError(f"name {name!r} is not defined")
        return found

    def _for_checkers(self, name: str) -> Any:
        """Return the object of a name that only the type checker knows, if its module has been imported otherwise."""
        bound = _bound_for_checkers(self._file, self._module).get(name)
        if bound is None:
            return Unknown(name)
        if isinstance(bound, ast.expr):
            return self._evaluated(bound) if self._strict else self.value(bound)
        found = sys.modules.get(bound.module)
        if found is not None and bound.name:
            # Another library may have a `__getattr__` that imports more, or warns.
            is_ours = bound.module.partition(".")[0] == "flowdeco"
            found = getattr(found, bound.name, None) if is_ours else vars(found).get(bound.name)
        return Unknown(".".join(filter(None, bound))) if found is None else found

    def of_text(self, text: str) -> Any:
        """Return the value of an annotation that is a string."""
        node = parsed(text)
        if node is not None:
            return self.value(node)
        if "Annotated" in text:
            return Annotated[Any, Unresolved(repr(text), "it is not valid Python")]
        return Unknown(text)

    def value(self, node: ast.expr) -> Any:
        """Return the value of an expression for a type; what cannot be evaluated in it is unknown."""
        match node:
            case ast.Constant(str(text)):
                return self.of_text(text)
            case ast.BinOp(left, ast.BitOr(), right):
                return union(self.value(left), self.value(right))
            case ast.Subscript(value, content):
                return self._subscripted(self.value(value), node, content)
            case ast.Attribute(value, name):
                owner = self.value(value)
                if isinstance(owner, Unknown):
                    return Unknown(f"{owner.name}.{name}")
                return getattr(owner, name, Unknown(ast.unparse(node)))
            case ast.Name(name):
                return self[name]
            case _:
                try:
                    return self._evaluated(node)
                except Exception:
                    return Unknown(ast.unparse(node))

    def _subscripted(self, generic: Any, node: ast.expr, content: ast.expr) -> Any:
        if isinstance(generic, Unknown):
            return generic
        try:
            if generic in LITERALS:
                return self._evaluated(node)
            parts = content.elts if isinstance(content, ast.Tuple) else [content]
            if generic is Annotated:
                return Annotated[(self.value(parts[0]), *map(self._metadatum, parts[1:]))]
            # A string may be an argument that is not a type, as in `Float[Array, "rows columns"]`.
            values = [part.value if isinstance(part, ast.Constant) else self.value(part) for part in parts]
            return generic[tuple(values) if isinstance(content, ast.Tuple) else values[0]]
        except Exception:
            return Unknown(ast.unparse(node))

    def _metadatum(self, node: ast.expr) -> Any:
        strictly = Names(self._module, self._file, self, strict=True)
        try:
            return strictly._evaluated(node)
        except Exception as error:
            failure = str(error) or type(error).__name__
        try:
            match node:  # the type of a key may be known to the type checker only
                case ast.Call(function, [name, declared]) if self.value(function) is Key:
                    known = self.value(declared)
                    return Key(strictly._evaluated(name), Any if isinstance(known, Unknown) else known)
                case _:
                    pass
        except Exception:
            pass
        return Unresolved(ast.unparse(node), failure)

    def _evaluated(self, node: ast.expr) -> Any:
        return eval(_compiled(node), self, self)


def _closure(function: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    cells = getattr(function, "__closure__", None) or ()
    for name, cell in zip(function.__code__.co_freevars if cells else (), cells, strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


# Names for the type checker.


class _Import(NamedTuple):
    """The module that a name is imported from, and its name there; none for the module itself."""

    module: str
    name: str = ""


_Bindings: TypeAlias = "dict[str, _Import | ast.expr]"
_read: Final[dict[str, tuple[list[str], _Bindings]]] = {}  # by file: the lines, and the names found in them


def _bound_for_checkers(file: str, module: dict[str, Any]) -> _Bindings:
    """Return the names that a file binds under `if TYPE_CHECKING` or tries to import, and the aliases in it."""
    linecache.checkcache(file)  # it may have been edited, and loaded again
    lines = linecache.getlines(file, module)
    known = _read.get(file)
    if known is None or known[0] is not lines:
        known = _read[file] = lines, _bound_in("".join(lines), module.get("__package__") or "")
    return known[1]


def _bound_in(source: str, package: str) -> _Bindings:
    found: _Bindings = {}
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a cell of a notebook
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            for statement in _statements(node):
                for name, bound in _bindings(statement, package):
                    found.setdefault(name, bound)
        elif type(node).__name__ == "TypeAlias":  # pragma: no cover - the `type` statement is new in 3.12
            alias: Any = node
            found.setdefault(alias.name.id, alias.value)
    return found


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements in a compound one, those of functions and classes not included."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.expr)):
            yield from _statements(child)


def _bindings(statement: ast.AST, package: str) -> Iterator[tuple[str, _Import | ast.expr]]:
    match statement:
        case ast.Import(names):
            for each in names:
                yield (
                    each.asname or each.name.partition(".")[0],
                    _Import(each.name if each.asname else each.name.partition(".")[0]),
                )
        case ast.ImportFrom(module, names, level):
            parents = package.split(".")[: -level + 1 or None] if level else []
            path = ".".join([*parents, *([module] if module else [])])
            for each in names:
                yield each.asname or each.name, _Import(path, each.name)
        case ast.ClassDef(name):
            yield name, _Import(package or "__main__", name)
        case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
            yield name, value
        case _:
            pass


# Local variables of the enclosing functions.

_MOST: Final = 1024
_locals: Final[dict[int, tuple[types.CodeType, frozenset[str]]]] = {}  # by identity: the local names that it needs


def local_variables(function: Any) -> Mapping[str, Any]:
    """Return the variables of the functions (and classes) being executed around it that its string annotations name.

    Otherwise they are lost: only names in its body are in its closure. Called where an action is made, so that an
    annotation that is a string means what it would mean otherwise.
    """
    if type(function) is not types.FunctionType or hasattr(function, "__wrapped__"):
        function = as_written(function)
        if type(function) is not types.FunctionType:
            return NO_LOCALS
    code = function.__code__
    known = _locals.get(id(code))  # a template makes functions of the same code in each call
    if known is not None and known[0] is code:
        return _values(code, known[1], inspect.currentframe())[0] if known[1] else NO_LOCALS
    if "." not in function.__qualname__:
        return _module_variables(function)
    wanted = _names_in_all(_texts(annotations_of(function).values()))
    values, names, is_whole = _values(code, wanted, inspect.currentframe())
    if is_whole or wanted - names <= {*_closure(function), *function.__globals__, *vars(builtins)}:
        if len(_locals) >= _MOST:
            _locals.clear()
        _locals[id(code)] = code, names
    return values


def _module_variables(function: types.FunctionType) -> Mapping[str, Any]:
    """Return the present values of the variables of its module that its keys name: a loop may give them others later."""
    texts = [text for text in _texts(annotations_of(function).values()) if "Annotated" in text]
    module = function.__globals__
    names = _names_in_all(texts) if texts else ()
    return {name: module[name] for name in names if isinstance(module.get(name), (str, int, Key))} or NO_LOCALS


def _values(
    code: types.CodeType, wanted: frozenset[str], frame: types.FrameType | None
) -> tuple[Mapping[str, Any], frozenset[str], bool]:
    """Return the present values of local names, those of the wanted names that are local, and whether all can be seen."""
    values: dict[str, Any] = {}
    local: frozenset[str] = frozenset()
    is_whole = not wanted
    for around in _enclosing(code, frame) if wanted else ():
        inside = around.f_code
        if inside.co_flags & inspect.CO_OPTIMIZED:
            here = (wanted - local).intersection(inside.co_varnames + inside.co_cellvars + inside.co_freevars)
        elif around.f_locals is around.f_globals:
            break
        else:  # the body of a class
            here = (wanted - local).intersection(around.f_locals)
        if here:
            local |= here
            now = around.f_locals
            values.update((name, now[name]) for name in here if name in now)
        is_whole = "<locals>" not in inside.co_qualname
    return values, local, is_whole


def _enclosing(code: types.CodeType, frame: types.FrameType | None) -> Iterator[types.FrameType]:
    """Yield the frames of the functions in which a function was defined, the innermost first."""
    while frame is not None:
        if _defines(frame.f_code, code):
            yield frame
            code = frame.f_code
        frame = frame.f_back


def _defines(outer: types.CodeType, code: types.CodeType) -> bool:
    for each in outer.co_consts:
        if each is code:
            return True
        is_generic = isinstance(each, types.CodeType) and each.co_name.startswith("<generic parameters")
        if is_generic and any(inner is code for inner in each.co_consts):  # pragma: no cover - new in 3.12
            return True  # one with type parameters is defined in a function of its own
    return False


def _names_in_all(texts: Iterable[str]) -> frozenset[str]:
    return frozenset[str]().union(*map(_names_in, texts))


def _texts(annotations: Iterable[Any]) -> Iterator[str]:
    for annotation in annotations:
        if isinstance(annotation, str):
            yield annotation
        elif isinstance(annotation, ForwardRef):
            yield annotation.__forward_arg__
        else:
            yield from _texts(get_args(annotation))


@functools.lru_cache(maxsize=1024)
def _names_in(text: str) -> frozenset[str]:
    node = parsed(text)
    names: set[str] = set()
    for each in () if node is None else ast.walk(node):
        if isinstance(each, ast.Name):
            names.add(each.id)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value != text:
            names |= _names_in(each.value)
    return frozenset(names)
