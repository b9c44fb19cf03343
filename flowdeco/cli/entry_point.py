"""Entry points: from `module:flow` or `file.py:flow` to the unit that it names.

A file is imported by its full dotted name (with the packages above it), and the directory of the topmost package is put
on `sys.path`. So its definitions pickle, and processes that a run starts can import them as well.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final, NamedTuple

from flowdeco.errors import FlowdecoError, frames_of_users, suggestion

__all__ = ["Entry", "EntryError", "load", "names_in", "parameters_in", "tags_in"]


class EntryError(FlowdecoError):
    """An entry point that does not lead to a unit."""


class Entry(NamedTuple):
    """A unit, and its place: if it is in a file, `reference` leads to it from any directory."""

    unit: Any
    reference: str
    module: ModuleType
    in_file: bool


def load(entry: str) -> Entry:
    """Import the unit of an entry point; raises `EntryError`, which names the units that are there instead."""
    where, name = _split(entry)
    in_file = where.endswith(".py") or os.sep in where
    module = _import_file(where) if in_file else _import_module(where)
    if not name:
        name = _only_unit(module, where)
    unit = _member(module, where, name)
    return Entry(unit, f"{os.path.abspath(where) if in_file else where}:{name}", module, in_file)


def _split(entry: str) -> tuple[str, str]:
    if "::" in entry:  # as pytest has it
        raise EntryError(f"an entry point has one colon: write {entry.replace('::', ':')}, not {entry}")
    called = re.fullmatch(r"(.*?:)([\w.]+)[\[(].*", entry, re.DOTALL)
    if called is not None:
        raise EntryError(_call_error(called[1].removesuffix(":"), called[2], entry))
    where, colon, name = entry.rpartition(":")
    if not colon or name.endswith(".py") or os.sep in name:  # a colon of the path
        where, name = entry, ""
    if not where or (colon and where != entry and not name):
        raise EntryError(f"an entry point is module:flow or file.py:flow, not {entry!r}")
    return where, name


def _call_error(where: str, name: str, entry: str) -> str:
    return (
        f"{entry}: an entry point is a name, not a call. For a stage of the template {name!r} write "
        f"one = {name}(...) in {where}, and name that: {where}:one"
    )


# Modules.


def _import_file(where: str) -> ModuleType:
    path = Path(where)
    if path.is_dir():
        raise _directory_error(where)
    if not path.is_file():
        raise EntryError(f"there is no file {where!r}. {_suggest_files(path)}".rstrip())
    if path.suffix != ".py":
        raise _suffix_error(where)
    name, root = _dotted_name(path.resolve())
    _add_to_path(root)
    module = _import(name, where)
    found = getattr(module, "__file__", None)
    if found is None or not os.path.samefile(found, path):
        raise EntryError(f"{where!r} cannot be imported: {name!r} is {found or 'a built-in module'}. Rename the file")
    return module


def _dotted_name(path: Path) -> tuple[str, Path]:
    """Return the dotted name of a file, and the directory that must be on `sys.path` to import it."""
    parts = [] if path.stem == "__init__" else [path.stem]
    root = path.parent
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    return ".".join(parts), root


def _directory_error(where: str) -> EntryError:
    return EntryError(f"{where!r} is a directory: name a file in it, as in {os.path.join(where, 'file.py:flow')}")


def _suffix_error(where: str) -> EntryError:
    return EntryError(f"{where!r} is not a Python file: an entry point is module:flow or file.py:flow")


def _import_module(where: str) -> ModuleType:
    if os.path.isfile(where):
        raise _suffix_error(where)
    if not all(part.isidentifier() for part in where.split(".")):
        if os.path.isdir(where):
            raise _directory_error(where)
        raise EntryError(f"{where!r} is neither a module nor a file: an entry point is module:flow or file.py:flow")
    _add_to_path(Path.cwd())
    module = _import(where, where)
    if hasattr(module, "__path__") and getattr(module, "__file__", None) is None:  # a namespace package
        raise _directory_error(where if os.path.isdir(where) else next(iter(module.__path__)))
    return module


def _add_to_path(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
        importlib.invalidate_caches()


def _import(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise EntryError(f"there is no module {name!r}. {_suggest_files(Path(name))}".rstrip()) from None
        raise _import_error(where, error) from error
    except (Exception, SystemExit) as error:
        raise _import_error(where, error) from error


def _import_error(where: str, error: BaseException) -> EntryError:
    if isinstance(error, SyntaxError):
        return EntryError(f"{where} cannot be imported: {error.msg} ({error.filename}:{error.lineno})")
    place = ""
    traceback = frames_of_users(error.__traceback__)
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith("<frozen") and "importlib" not in file:
            place = f" ({file}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    why = 'it exits; put what it does under `if __name__ == "__main__":`' if isinstance(error, SystemExit) else ""
    return EntryError(f"{where} cannot be imported: {why or f'{type(error).__name__}: {error}'}{place}")


def _suggest_files(path: Path) -> str:
    try:
        found = [str(path.parent / other.name) for other in path.parent.glob("*.py")]
    except OSError:
        return ""
    if not found:
        return ""
    from difflib import get_close_matches

    # By their stems: the suffix, which they have in common, would make all of them similar.
    stems = get_close_matches(path.name.removesuffix(".py"), [Path(other).stem for other in found], n=3)
    close = [repr(str(path.parent / f"{stem}.py")) for stem in stems]
    return f"Did you mean {' or '.join(close)}?" if close else suggestion("", found)


# Members.


def units_of(module: ModuleType) -> dict[str, Any]:
    """Return the public units of a module by name; of several names for one unit, the first."""
    from flowdeco.model.definitions import Unit

    found: dict[int, tuple[str, Any]] = {}
    for name, value in vars(module).items():
        if isinstance(value, Unit) and not name.startswith("_"):
            found.setdefault(id(value), (name, value))
    return dict(found.values())


def _candidates(module: ModuleType) -> tuple[str, list[str]]:
    """Return the names of the pipelines of a module, or of its units if it has no pipeline, and which of both they are."""
    from flowdeco.model.definitions import Pipeline

    units = units_of(module)
    pipelines = [name for name, unit in units.items() if isinstance(unit, Pipeline)]
    return ("pipelines", pipelines) if pipelines else ("units", list(units))


def _only_unit(module: ModuleType, where: str) -> str:
    """Return the name of the unit to use where none is named: the only one, or the only pipeline."""
    kind, names = _candidates(module)
    if not names:
        raise EntryError(
            f"{where} has no action, stage, pipeline or group at its top level: decorate a function with @action"
        )
    if len(names) > 1:
        listed = ", ".join(f"{where}:{name}" for name in names)
        raise EntryError(f"{where} has {len(names)} {kind}: name one of {listed}")
    return names[0]


def _member(module: ModuleType, where: str, name: str) -> Any:
    from flowdeco.model.definitions import Stream, Template, Unit, no_unit

    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise EntryError(f"{where} has no {name!r}. {suggestion(name, units_of(module), 'Its units')}") from None
    if isinstance(found, Unit):
        return found
    if isinstance(found, Template):
        raise EntryError(
            f"the stage template {name!r} gives a stage when you call it: "
            f"write one = {name}(...) in {where}, and name that: {where}:one"
        )
    if isinstance(found, Stream):
        raise EntryError(no_unit(found))
    kind = type(found).__name__
    cures = ["decorate it with @action"] if isinstance(found, FunctionType) else []
    if names := _candidates(module)[1]:
        cures.append(f"name one of {', '.join(names)}")
    raise EntryError(
        f"{where}:{name} is not an action, stage, pipeline or group, but {'an' if kind[0] in 'aeiou' else 'a'} {kind}"
        f"{': ' if cures else ''}{', or '.join(cures)}"
    )


def names_in(path: str, *, templates: bool = True) -> list[str]:
    """Return the names that the top level of a file defines, read from its source: completion runs no code."""
    return [name for name in dict.fromkeys(_defined(_parsed(path), templates)) if not name.startswith("_")]


def tags_in(path: str) -> list[str]:
    """Return the selectors of the tags in a file, as far as its source has them as texts."""
    given = [node.value for node in ast.walk(_parsed(path)) if isinstance(node, ast.keyword) and node.arg == "tags"]
    texts = (each.value for node in given for each in ast.walk(node) if isinstance(each, ast.Constant))
    return [f"tag:{text}" for text in dict.fromkeys(texts) if isinstance(text, str)]


def parameters_in(path: str) -> list[str]:
    """Return the parameters of the actions that a file defines, also inside of stages, without those that others supply.

    They are read from its source, as `names_in`: so these are guesses.
    """
    actions = [node for node in ast.walk(_parsed(path)) if isinstance(node, _DEFINITIONS) and _has(node, "action")]
    supplied = {node.name for node in actions}
    supplied |= {keyword.value.value for node in actions for keyword in _options(node)}
    taken = [
        each.arg
        for node in actions
        for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if each.annotation is None or "Context" not in ast.unparse(each.annotation)
    ]
    return [name for name in dict.fromkeys(taken) if name not in supplied]


def _parsed(path: str) -> ast.Module:
    """Return the syntax tree of a file, an empty one if it cannot be read."""
    try:
        return ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _has(node: ast.FunctionDef | ast.AsyncFunctionDef, decorator: str) -> bool:
    return any(ast.unparse(each).partition("(")[0].rpartition(".")[2] == decorator for each in node.decorator_list)


def _options(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Any]:
    """Yield the options that name the keys to which an action writes."""
    for call in node.decorator_list:
        for keyword in call.keywords if isinstance(call, ast.Call) else ():
            if keyword.arg in ("returns", "collect") and isinstance(keyword.value, ast.Constant):
                yield keyword


_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


def _defined(tree: ast.Module, templates: bool) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, _DEFINITIONS):
            is_template = _has(node, "stage") and bool(ast.unparse(node.args))
            if node.decorator_list and (templates or not is_template):
                yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
