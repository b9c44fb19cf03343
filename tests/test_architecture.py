"""Imports point one way, and the pure part does no I/O (DESIGN section 5): read from the source, with `ast`."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import flowdeco

PACKAGE = Path(flowdeco.__file__).parent

# From the bottom up: a module imports from its own layer and from those before it. A folder is one layer.
LAYERS = [
    {"errors", "events", "lazy"},
    {"model"},
    {"engine"},
    {"middleware"},
    {"drivers", "durable", "executors"},
    {"show", "observers", "__init__"},
    {"running"},
    {"cli", "testing", "pytest_plugin", "__main__"},
]
PURE = set().union(*LAYERS[:4])
TYPES = "TYPE_CHECKING"  # stands for the function of an import that only type checkers see
FORBIDDEN = {
    "threading",
    "asyncio",
    "sqlite3",
    "concurrent",
    "multiprocessing",
    "queue",
    "selectors",
    "socket",
    "subprocess",
}

# A definition runs itself, and shows itself, as a run does. All imports that point upwards lead to `running`: a late one
# in a function of its own, and the types that the methods return. Only these may close a circle.
ALLOWED_UPWARDS = {
    ("model.runnable", "running", "_running"),
    ("model.runnable", "running", TYPES),
    ("engine.runs", "running", "_running"),
    ("engine.runs", "running", TYPES),
}


MODULES = {".".join(["flowdeco", *path.relative_to(PACKAGE).with_suffix("").parts]) for path in PACKAGE.rglob("*.py")}


class Import(NamedTuple):
    """`module` imports `target` in `function` ("" at module level, `TYPES` for the type checker)."""

    module: str
    target: str
    function: str = ""


def is_type_checking(node):
    """Whether this is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_of(module, source, package=""):
    """All imports of a module, as dotted names."""
    found = []

    def visit(node, function):
        if is_type_checking(node):
            for children, place in ((node.body, TYPES), (node.orelse, function)):
                for child in children:
                    visit(child, place)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(module, alias.name, function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            # `from flowdeco import drivers` imports a module; `from flowdeco.model.store import Store` a name of one
            names = [f"{base}.{alias.name}" for alias in node.names]
            modules = [name for name in names if base == "flowdeco" or name in MODULES]
            found.extend(Import(module, name, function) for name in modules or [base])
        inner = node.name if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(source), "")
    return found


def sources():
    """Dotted name within the package, its package, and source of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        package = ".".join(["flowdeco", *parts[:-1]])
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        yield name, package, path.read_text()


def imports_of_package():
    """All imports of all modules."""
    return [each for name, package, source in sources() for each in imports_of(name, source, package)]


def inside(imports):
    """Those within the package, by dotted name in it."""
    return [
        Import(each.module, each.target.removeprefix("flowdeco").lstrip(".") or "__init__", each.function)
        for each in imports
        if each.target.split(".")[0] == "flowdeco"
    ]


def is_pure(module):
    """Whether a module is of the part that does no I/O."""
    return module.split(".")[0] in PURE


def layer_of(module):
    """Number of the layer of a module; its first part says which."""
    (number,) = [number for number, names in enumerate(LAYERS) if module.split(".")[0] in names]
    return number


def upward(imports):
    """Imports from a higher layer, those for the type checker too, but for those that are allowed."""
    return [
        each
        for each in imports
        if layer_of(each.target) > layer_of(each.module)
        and (each.module, each.target, each.function) not in ALLOWED_UPWARDS
    ]


def cycle(imports):
    """A list of modules each of which imports the next, the last one the first; empty if there is none.

    Imports for the type checker count as well: one who reads a module has to know those that its types come from.
    """
    graph = {}
    for each in imports:
        if (each.module, each.target, each.function) not in ALLOWED_UPWARDS:
            graph.setdefault(each.module, set()).add(each.target)
    done = set()

    def search(module, path):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            found = search(target, [*path, module])
            if found:
                return found
        done.add(module)
        return []

    return next(filter(None, (search(module, []) for module in sorted(graph))), [])


def forbidden(module, source):
    """What the pure part must not have: imports that do I/O, `async def`."""
    imported = [each.target for each in imports_of(module, source) if each.function != TYPES]
    found = [target for target in imported if target.split(".")[0] in FORBIDDEN]
    found.extend(
        f"async def {node.name}" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.AsyncFunctionDef)
    )
    return found


# -- the package


def test_every_module_has_its_layer():
    """A new one must be given one."""
    known = set().union(*LAYERS)
    assert {name.split(".")[0] for name, _, _ in sources()} <= known


def test_no_import_points_upwards():
    """But for those to `running`, by which a definition runs and shows itself, and a run shows itself."""
    assert upward(inside(imports_of_package())) == []


def test_the_allowed_upward_imports_are_there():
    """The list of exceptions has no entry too many."""
    found = {(each.module, each.target, each.function) for each in inside(imports_of_package())}
    assert found >= ALLOWED_UPWARDS


def test_there_is_no_cycle():
    """Imports inside of functions and for the type checker count, but for those of the one door upwards, `running`.

    `flow.run()` returns a `Run`, and a `Run` has its `Pipeline`: the types themselves are a circle.
    """
    assert cycle(inside(imports_of_package())) == []


@pytest.mark.parametrize(("module", "source"), [(name, source) for name, _, source in sources() if is_pure(name)])
def test_the_pure_part_does_no_io(module, source):
    """No threads, no event loop, no database, no `async def` up to the evaluator."""
    assert forbidden(module, source) == []


def test_only_one_file_imports_wrapt():
    """`model.definitions`."""
    assert {each.module for each in imports_of_package() if each.target.split(".")[0] == "wrapt"} == {
        "model.definitions"
    }


def test_extras_are_imported_where_they_are_used():
    """At module level there are wrapt, typing-extensions and the standard library; the plugin is loaded by pytest."""
    known = {*sys.stdlib_module_names, "flowdeco", "wrapt", "typing_extensions"}
    found = {(each.module, each.target) for each in imports_of_package() if not each.function}
    found.remove(("pytest_plugin", "pytest"))
    assert {(module, target) for module, target in found if target.split(".")[0] not in known} == set()


def test_the_front_door_is_a_list():
    """`__init__` has imports for the type checker, a version and `__all__`; that the same is there to others is `lazy`'s."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (shown,) = [node for node in tree.body if is_type_checking(node)]
    assert {type(node) for node in tree.body} == {ast.Expr, ast.ImportFrom, ast.Assign, ast.If}
    assert {type(node) for node in shown.body} == {ast.ImportFrom}
    assert [ast.unparse(node).partition("(")[0] for node in shown.orelse] == ["__getattr__, __dir__ = lazily"]


def test_importing_flowdeco_loads_little_and_has_no_side_effect():
    """No event loop, no database, no threads of its own, no logging."""
    script = """
import sys, threading
import wrapt, typing_extensions
before = set(sys.modules)
from flowdeco import *
heavy = {"asyncio", "sqlite3", "logging", "concurrent.futures", "multiprocessing", "rich", "dask", "cloudpickle"}
print(sorted(heavy & (set(sys.modules) - before)), threading.active_count())
"""
    out = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert (out.stdout.strip(), out.stderr) == ("[] 1", "")


def test_flowdeco_configures_no_logging():
    """A library has no handlers."""
    script = """
import logging, flowdeco
flowdeco.Stage("s").run(skip=["nothing"])
loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
print([logger.name for logger in loggers if logger.handlers or (logger.level and logger.parent)])
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# -- the test itself


def test_a_planted_cycle_is_found():
    """Directly, through others, inside of a function, for the type checker; only by way of `running` it is allowed."""
    planted = [
        *imports_of("a", "from flowdeco.b import x"),
        *imports_of("b", "def f():\n    from flowdeco import c"),
        *imports_of("c", "import flowdeco.a"),
        *imports_of("d", "from flowdeco.a import x"),
    ]
    assert cycle(inside(planted)) == ["a", "b", "c"]
    assert cycle(inside(planted[1:])) == []
    typed = imports_of("a", "if TYPE_CHECKING:\n    from flowdeco.b import x")
    assert cycle(inside([*typed, *planted[1:]])) == ["a", "b", "c"]
    door = imports_of("model.runnable", "if TYPE_CHECKING:\n    from flowdeco.running import Run")
    back = imports_of("running", "from flowdeco.model.runnable import Options")
    assert cycle(inside([*door, *back])) == []
    other = imports_of("model.units", "if TYPE_CHECKING:\n    from flowdeco.running import Run")
    assert cycle(inside([*other, *imports_of("running", "import flowdeco.model.units")])) == ["model.units", "running"]


def test_a_planted_upward_import_is_found():
    """At module level, in a function, in another function than the allowed one; for the type checker as well."""
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from flowdeco.engine.runs import Run
    from flowdeco.running import Plan
else:
    from flowdeco import drivers
from flowdeco.model.store import Key
from flowdeco import events
def _running():
    from flowdeco import running
def other():
    from flowdeco import running
    import flowdeco.drivers.sync
"""
    assert [(each.target, each.function) for each in upward(inside(imports_of("model.runnable", source)))] == [
        ("engine.runs", TYPES),
        ("drivers", ""),
        ("running", "other"),
        ("drivers.sync", "other"),
    ]


def test_relative_imports_are_resolved():
    """They are imports like others."""
    source = "from .common import x\nfrom ..model.store import y\nfrom . import z\nfrom . import async_\nfrom .. import running"
    targets = ["drivers.common", "model.store", "drivers", "drivers.async_", "running"]
    assert imports_of("drivers.sync", source, "flowdeco.drivers") == [
        Import("drivers.sync", f"flowdeco.{target}") for target in targets
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import threading", ["threading"]),
        ("from asyncio import run", ["asyncio"]),
        ("def f():\n    import sqlite3", ["sqlite3"]),
        ("import concurrent.futures", ["concurrent.futures"]),
        ("class A:\n    async def f(self): pass", ["async def f"]),
        ("if TYPE_CHECKING:\n    import asyncio", []),
        ("import types", []),
    ],
)
def test_planted_io_is_found(source, expected):
    """Wherever it is, but not for the type checker."""
    assert forbidden("planted", source) == expected


if __name__ == "__main__":  # for the report of the pure part's coverage
    files = [Path("flowdeco", *name.split(".")) for name, _, _ in sources() if is_pure(name)]
    print(",".join(f"{file}/__init__.py" if (PACKAGE.parent / file).is_dir() else f"{file}.py" for file in files))
