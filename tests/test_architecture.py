"""The architecture (DESIGN section 5), read from the source with `ast`.

A check takes a package, as a dictionary from the path of each file to its source, and returns its violations. flowdeco
must have none; and each check must find the violation in a tiny package that has one.
"""

import ast
import os
import subprocess
import sys
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import flowdeco

PACKAGE = Path(flowdeco.__file__).parent
FLOWDECO = {str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}

# From the bottom up: a module imports from its own layer and from those before it. A folder is one layer.
LAYERS = [
    {"errors", "events"},
    {"model"},
    {"engine"},
    {"middleware"},
    {"drivers", "durable", "executors"},
    {"show", "observers", "__init__"},
    {"running"},
    {"cli", "testing", "pytest_plugin", "__main__"},
]
PURE = set().union(*LAYERS[:4])
IO = {
    "threading", "asyncio", "sqlite3", "concurrent", "multiprocessing", "queue", "selectors", "socket", "subprocess",
}  # fmt: skip
TYPES = "TYPE_CHECKING"  # stands for the function of an import that only type checkers see

# A definition runs and shows itself, a run shows itself, and `cached` stores outcomes. All imports that point up lead to `running`: a late one in
# a function of its own, and one for the types that the methods return. Only these may close a cycle.
DOORS = {
    (module, "running", function)
    for module in ("model.runnable", "engine.runs", "middleware")
    for function in ("_running", TYPES)
}

# Where each library is imported: wrapt and typing_extensions always, pytest by its plugin, the extras when they are used.
REQUIRED = {*sys.stdlib_module_names, "annotationlib", "wrapt", "typing_extensions"}  # the first is new in 3.14
LEAVES = {
    "argcomplete": {"cli.arguments"},
    "cloudpickle": {"executors", "durable.codec"},
    "opentelemetry": {"observers.otel"},
    "rich": {"show.live", "show.progress"},
    "IPython": {"show.live"},
    "starlette": {"cli.ui.server"},
    "uvicorn": {"cli.ui.server"},
    "xxhash": {"durable.digests"},
    "pytest": {"pytest_plugin"},
}
MOST_ENTRIES = 16


# -- reading


class Import(NamedTuple):
    """`module` imports `target` in `function` ("" at module level, `TYPES` for the type checker)."""

    module: str
    target: str
    function: str = ""


def name_of(path):
    """The dotted name of a file: that of its folder for an `__init__.py` below the root."""
    parts = Path(path).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


@cache
def tree_of(source):
    return ast.parse(source)


def trees(files):
    """The name and the syntax tree of each module."""
    return {name_of(path): tree_of(source) for path, source in files.items()}


def is_type_checking(node):
    """Whether this is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING"


def import_nodes(node, function=""):
    """Each import statement, and the function that it is in; `import_module("name")` counts as one."""
    match node:
        case ast.Import() | ast.ImportFrom():
            yield node, function
        case ast.Call(func=ast.Name("import_module"), args=[ast.Constant(str(name))]):
            yield ast.Import([ast.alias(name)]), function
        case ast.If() if is_type_checking(node):
            for child in node.body:
                yield from import_nodes(child, TYPES)
            for child in node.orelse:
                yield from import_nodes(child, function)
        case _:
            inner = node.name if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
            for child in ast.iter_child_nodes(node):
                yield from import_nodes(child, inner)


def targets(node, folder, modules):
    """The dotted names of the modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        parents = ["flowdeco", *folder.parts]
        base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
    # `from flowdeco import drivers` imports a module, `from flowdeco.model.store import Store` a name of one
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [name for name in names if name.removeprefix("flowdeco.") in modules] or [base]


def imports(files):
    """All imports of all modules; flowdeco's own modules are named as in `trees`."""
    modules = set(map(name_of, files))
    for path, source in files.items():
        for node, function in import_nodes(tree_of(source)):
            for target in targets(node, Path(path).parent, modules):
                own = target.split(".")[0] == "flowdeco"
                within = target.removeprefix("flowdeco").lstrip(".") or "__init__"
                yield Import(name_of(path), within if own else target, function), own


def own_imports(files):
    """Those of flowdeco's own modules, but for the doors."""
    return [each for each, own in imports(files) if own and each not in DOORS]


def other_imports(files):
    """Those of other libraries."""
    return [each for each, own in imports(files) if not own]


def top(name):
    return name.split(".")[0]


# -- the checks


def layer_of(module):
    return next((number for number, names in enumerate(LAYERS) if top(module) in names), -1)


def unknown_modules(files):
    """Modules that were not given a layer."""
    return [module for module in trees(files) if layer_of(module) < 0]


def upward_imports(files):
    """Imports from a higher layer."""
    return [each for each in own_imports(files) if layer_of(each.target) > layer_of(each.module)]


def cycles(files):
    """Modules each of which imports the next; type-only imports count: they too must be known to read the module."""
    graph = defaultdict(set)
    for each in own_imports(files):
        graph[each.module].add(each.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def io(files):
    """What the pure layers must not have: imports that do I/O, `async def`."""
    pure = {module: tree for module, tree in trees(files).items() if top(module) in PURE}
    imported = [each for each in other_imports(files) if each.module in pure and each.function != TYPES]
    return [f"{each.module}: {each.target}" for each in imported if top(each.target) in IO] + [
        f"{module}: async def {node.name}"
        for module, tree in pure.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef)
    ]


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def defined_in(tree):
    """The private names that a module defines: functions, classes, variables, slots, attributes of `self`."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=value):
                yield from (each.value for each in ast.walk(value) if isinstance(each, ast.Constant))


NAMEDTUPLE = {"_replace", "_asdict", "_fields", "_make", "_field_defaults"}


def used_in(tree):
    """The private names that a module takes from elsewhere: `thing._x`, but for `self._x`, and `from … import _x`."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.Attribute(value=ast.Name(id="self" | "cls"))
                | ast.Attribute(value=ast.Call(func=ast.Name(id="super")))
            ):
                continue
            case ast.Attribute(attr=name):
                yield name
            case ast.ImportFrom(names=names):
                yield from (alias.name for alias in names)


def foreign_privates(files):
    """Private names used outside of the module that defines them."""
    defined = {module: set(filter(is_private, defined_in(tree))) for module, tree in trees(files).items()}
    anywhere = set().union(*defined.values()) - NAMEDTUPLE
    return [
        f"{module}: {name}"
        for module, tree in trees(files).items()
        for name in used_in(tree)
        if name in anywhere and name not in defined[module]
    ]


def wrapt_users(files):
    """The files that import wrapt, but for the first."""
    return sorted({each.module for each in other_imports(files) if top(each.target) == "wrapt"})[1:]


def entries(files):
    """The entries of the package root, if they are too many."""
    root = sorted({Path(path).parts[0] for path in files})
    return root if len(root) > MOST_ENTRIES else []


def misplaced_extras(files):
    """Extras imported outside of their leaf, or before they are used."""
    return [
        each
        for each in other_imports(files)
        if top(each.target) not in REQUIRED
        and (
            each.module not in LEAVES.get(top(each.target), ())
            or (not each.function and (each.module, each.target) != ("pytest_plugin", "pytest"))
        )
    ]


IMPORTED = """
import atexit, os, signal, sys, threading
import wrapt, typing_extensions
heavy = {"asyncio", "sqlite3", "logging", "concurrent.futures", "multiprocessing", "rich", "dask", "cloudpickle"}
before = set(sys.modules)  # wrapt imports some of them
def state():
    return {
        "modules": heavy & (set(sys.modules) - before), "threads": threading.active_count(), "environ": {**os.environ},
        "atexit": atexit._ncallbacks(), "signals": list(map(signal.getsignal, signal.valid_signals())),
        "sys": [sys.path[:], sys.meta_path[:], sys.excepthook, sys.displayhook, threading.excepthook],
    }
sys.path.insert(0, sys.argv[1])
old = state()
from flowdeco import *
new = state()
print(*(name for name in old if old[name] != new[name]))
"""


def side_effects(folder):
    """Effects of `from flowdeco import *`, with the package in this folder: its output, and kinds of global state."""
    command = [sys.executable, "-W", "error", "-c", IMPORTED, str(folder)]
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environ, cwd=folder)
    return (out.stdout + out.stderr).split()


# -- the package


CHECKS = [
    unknown_modules, upward_imports, cycles, io, foreign_privates, wrapt_users, entries, misplaced_extras,
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_passes(check):
    """Nothing is found."""
    assert check(FLOWDECO) == []


def test_each_door_is_used():
    """The list of exceptions has no entry too many."""
    assert DOORS <= {each for each, _ in imports(FLOWDECO)}


def test_importing_flowdeco_has_no_side_effect():
    """No event loop, database or logging is loaded; no thread, handler or hook is added; nothing is printed."""
    assert side_effects(PACKAGE.parent) == []


def test_the_front_door_is_a_list():
    """`__init__` has imports for the type checker, a version and `__all__`; `lazily` exports the same at run time."""
    tree = tree_of(FLOWDECO["__init__.py"])
    (shown,) = [node for node in tree.body if is_type_checking(node)]
    assert {type(node) for node in tree.body} == {ast.Expr, ast.ImportFrom, ast.Assign, ast.If}
    assert {type(node) for node in shown.body} == {ast.ImportFrom}
    assert [ast.unparse(node).partition("(")[0] for node in shown.orelse] == ["__getattr__, __dir__ = lazily"]


def test_flowdeco_configures_no_logging():
    """After a run, no logger has a handler or a level of its own."""
    script = """
import logging, flowdeco
flowdeco.Stage("s").run(skip=["nothing"])
loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
print([logger.name for logger in loggers if logger.handlers or (logger.level and logger.parent)])
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# -- the checks themselves: (check, files of a tiny package, whether the check finds something)


FROM_A = {"model/a.py": "from flowdeco.model.b import x"}
LATE_C = {"model/b.py": "def f():\n    from flowdeco.model import c", "model/c.py": ""}
DOOR = "if TYPE_CHECKING:\n    from flowdeco.running import Run\ndef _running():\n    from flowdeco import running\n"

PLANTED = [
    (unknown_modules, {"new.py": ""}, True),
    (unknown_modules, {"model/new.py": "", "__init__.py": ""}, False),
    # cycles: direct, through others, in a function, for the type checker; a door is none
    (cycles, {"model/a.py": "import flowdeco.model.a"}, True),
    (cycles, FROM_A | {"model/b.py": "from .a import y"}, True),
    (cycles, FROM_A | LATE_C | {"model/c.py": "import flowdeco.model.a"}, True),
    (cycles, FROM_A | {"model/b.py": "if TYPE_CHECKING:\n    from flowdeco.model.a import y"}, True),
    (cycles, FROM_A | LATE_C, False),
    (cycles, {"model/runnable.py": DOOR, "running.py": "from flowdeco.model.runnable import Options"}, False),
    (cycles, {"model/units.py": DOOR, "running.py": "import flowdeco.model.units"}, True),
    # upward imports: of a module, of a name, relative, late, for the type checker
    (upward_imports, {"engine/a.py": "from flowdeco import drivers", "drivers/__init__.py": ""}, True),
    (upward_imports, {"engine/a.py": "from flowdeco.drivers.sync import run"}, True),
    (upward_imports, {"engine/a.py": "from ..drivers.sync import run"}, True),
    (upward_imports, {"model/a.py": "class A:\n    def f(self):\n        import flowdeco.engine.runs"}, True),
    (upward_imports, {"errors.py": "if TYPE_CHECKING:\n    from flowdeco.model.store import Key"}, True),
    (upward_imports, {"show/a.py": "def f():\n    from flowdeco import running", "running.py": ""}, True),
    (upward_imports, {"model/runnable.py": DOOR, "running.py": ""}, False),
    (upward_imports, {"model/runnable.py": DOOR.replace("_running", "other"), "running.py": ""}, True),
    (upward_imports, {"cli/a.py": "from flowdeco.engine.runs import Run"}, False),
    (io, {"model/a.py": "import threading"}, True),
    (io, {"engine/a.py": "from asyncio import run"}, True),
    (io, {"engine/a.py": "def f():\n    import concurrent.futures"}, True),
    (io, {"model/a.py": "class A:\n    async def f(self): pass"}, True),
    (io, {"model/a.py": "if TYPE_CHECKING:\n    import asyncio\nimport types"}, False),
    (io, {"drivers/a.py": "import asyncio"}, False),
    (foreign_privates, {"a.py": "class A:\n    __slots__ = ('_x', 'y')", "b.py": "def f(a): return a._x"}, True),
    (foreign_privates, {"a.py": "class A:\n    def f(self): self._x = 1", "b.py": "print(other()._x)"}, True),
    (foreign_privates, {"a.py": "def _f(): pass", "b.py": "from flowdeco.a import _f"}, True),
    (foreign_privates, {"a.py": "class A:\n    _x: int", "b.py": "class B(A):\n    def f(self): return self._x"}, False),
    (foreign_privates, {"a.py": "class A:\n    _x: int\ndef f(a): return a._x, a._replace, os._exit"}, False),
    (wrapt_users, {"a.py": "import wrapt", "b.py": "def f():\n    from wrapt import ObjectProxy"}, True),
    (wrapt_users, {"a.py": "import wrapt\nfrom wrapt import ObjectProxy", "b.py": ""}, False),
    (entries, {f"{number}.py": "" for number in range(MOST_ENTRIES + 1)}, True),
    (entries, {f"{number % 2}/{number}.py": "" for number in range(MOST_ENTRIES + 1)}, False),
    (misplaced_extras, {"show/live.py": "import rich.live"}, True),
    (misplaced_extras, {"cli/run.py": "def f():\n    from rich.live import Live"}, True),
    (misplaced_extras, {"show/live.py": "def f():\n    import pandas"}, True),
    (misplaced_extras, {"engine/a.py": "def f():\n    import_module('cloudpickle').dumps(1)"}, True),
    (misplaced_extras, {"show/live.py": "if TYPE_CHECKING:\n    from rich.live import Live"}, False),
    (misplaced_extras, {"pytest_plugin.py": "import pytest", "a.py": "import wrapt, sys"}, False),
]  # fmt: skip


@pytest.mark.parametrize(("check", "files", "expected"), PLANTED)
def test_a_planted_violation_is_found(check, files, expected):
    """And nothing else is."""
    assert bool(check(files)) is expected


def test_a_cycle_is_reported_in_the_order_of_its_imports():
    """Each module imports the next, the last one is the first again."""
    found = cycles(FROM_A | LATE_C | {"model/c.py": "import flowdeco.model.a"})
    assert set(zip(found, found[1:])) == {("model.a", "model.b"), ("model.b", "model.c"), ("model.c", "model.a")}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import sqlite3", ["modules"]),
        ("import os; os.environ['A'] = 'b'", ["environ"]),
        ("import atexit; atexit.register(print)", ["atexit"]),
        ("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)", ["signals"]),
        ("import sys; sys.excepthook = print", ["sys"]),
        ("from threading import *; Thread(target=Event().wait, daemon=True).start()", ["threads"]),
        ("print('hello')", ["hello"]),
        ("import types", []),
    ],
)
def test_a_planted_side_effect_is_found(source, expected, tmp_path):
    """In a package of one line."""
    (tmp_path / "flowdeco").mkdir()
    (tmp_path / "flowdeco" / "__init__.py").write_text(source)
    assert side_effects(tmp_path) == expected


if __name__ == "__main__":  # the files of the pure layers, for the report of their coverage
    print(",".join(str(Path("flowdeco", path)) for path in FLOWDECO if top(name_of(path)) in PURE))
