"""Packages whose names are imported when they are first used: `flowdeco` itself, and `flowdeco.durable`."""

import ast
import os
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import flowdeco
import flowdeco.durable
from flowdeco.model.lazy import lazily

ROOT = Path(__file__).parents[1]
LAZY = [flowdeco, flowdeco.durable]
NAMES = {
    "Action", "Bail", "Context", "Key", "Parallel", "Pipeline", "Run", "Sleep", "Stage", "StageTemplate", "Status",
    "Store", "Suspend", "action", "parallel", "pipeline", "stage", "stream", "__version__",
}  # fmt: skip


def in_process(script):
    """What a script prints in a fresh interpreter, with warnings as errors."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path},
    ).stdout  # fmt: skip


def shown_to_type_checkers(package):
    """What a package imports under `if TYPE_CHECKING:`: name by name, where from."""
    tree = ast.parse(Path(package.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {alias.name: node.module for node in block.body for alias in node.names}


def searched(package):
    """The modules that `lazily` is told to take the names from."""
    tree = ast.parse(Path(package.__file__).read_text())
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "lazily"]
    return [f"{package.__name__}.{ast.literal_eval(each)}" for each in call.args[1:]]


def test_the_front_door_exports_what_the_design_lists():
    """No more and no less."""
    assert (sorted(flowdeco.__all__), len(flowdeco.__all__)) == (sorted(NAMES), len(NAMES))


@pytest.mark.parametrize("package", LAZY)
def test_what_is_exported_is_what_type_checkers_see(package):
    """The same objects under the same names, from the same modules."""
    shown = shown_to_type_checkers(package)
    own = {name for name, value in vars(package).items() if getattr(value, "__module__", "") == package.__name__}
    assert set(package.__all__) - {"__version__"} >= set(shown)
    assert sorted(set(shown.values())) == sorted(searched(package))
    for name, module in shown.items():
        assert getattr(package, name) is getattr(import_module(module), name)
        assert name not in own


@pytest.mark.parametrize("package", LAZY)
def test_dir_lists_what_is_exported(package):
    """And submodules, but nothing that the package needs for itself."""
    listed = {name for name in dir(package) if not isinstance(getattr(package, name), ModuleType)}
    assert {name for name in listed if not name.startswith("__")} == set(package.__all__) - {"__version__"}
    assert listed >= {"__all__", "__doc__", "__file__", "__name__"}


def test_a_star_brings_everything():
    """Also where nothing was used before."""
    script = "from flowdeco import *\nimport flowdeco\nprint(sorted(set(globals()) & set(flowdeco.__all__)))"
    assert in_process(script) == f"{sorted(NAMES)}\n"


def test_nothing_is_imported_before_it_is_used():
    """Neither by the package, nor by asking for a submodule that does not need it, nor by asking for nonsense."""
    script = """
import sys, flowdeco, flowdeco.errors
from flowdeco.model import keys
print(flowdeco.__version__ and hasattr(flowdeco, "Nope"), "action" in dir(flowdeco))
print(*sorted(name for name in sys.modules if name.startswith(("flowdeco", "wrapt", "asyncio"))))
print(flowdeco.action is sys.modules["flowdeco.model.declare"].action, "wrapt" in sys.modules, "action" in vars(flowdeco))
"""
    assert in_process(script).splitlines() == [
        "False True",
        "flowdeco flowdeco.errors flowdeco.model "
        + " ".join(f"flowdeco.model.{name}" for name in ("keys", "lazy", "sentinels", "tuples")),
        "True True True",
    ]


def test_the_modules_behind_it_are_its_attributes():
    """As type checkers believe."""
    look_up, _ = lazily("flowdeco", "model.store", also=["events"])
    assert (look_up("model"), look_up("events")) == (flowdeco.model, flowdeco.events)
    assert in_process("import flowdeco\nprint(flowdeco.errors.Bail is flowdeco.Bail)") == "True\n"
    modules = (
        "flowdeco.durable, flowdeco.events, flowdeco.executors, flowdeco.middleware, flowdeco.model, flowdeco.testing"
    )
    assert (
        in_process(f"import flowdeco, sys\nprint([sys.modules[m.__name__] is m for m in ({modules})])").count("True")
        == 6
    )


def test_a_wrong_name_is_the_error_that_it_always_is():
    """In the words of Python, which adds what was probably meant."""
    with pytest.raises(AttributeError, match=r"^module 'flowdeco' has no attribute 'Nope'$") as caught:
        flowdeco.Nope  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("Nope", flowdeco)
    with pytest.raises(ImportError, match=r"^cannot import name 'Nope' from 'flowdeco'"):
        from flowdeco import Nope  # noqa: F401
    script = """
import flowdeco, sys
sys.stderr = sys.stdout
try: flowdeco.acton
except AttributeError: sys.excepthook(*sys.exc_info())
"""
    assert "module 'flowdeco' has no attribute 'acton'. Did you mean: 'action'?" in in_process(script)


def test_a_name_that_is_exported_and_is_nowhere_is_a_wrong_name(tmp_path, monkeypatch):
    """Found where it is used, in whatever package."""
    front = tmp_path / "front"
    front.mkdir()
    (front / "__init__.py").write_text(
        "from flowdeco.model.lazy import lazily\n"
        "__all__ = ['here', 'nowhere']\n"
        "__getattr__, __dir__ = lazily(__name__, 'part')\n"
    )
    (front / "part.py").write_text("__all__ = ['here']\nhere = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    package = import_module("front")
    assert package.here == 1
    with pytest.raises(AttributeError, match=r"^module 'front' has no attribute 'nowhere'$"):
        package.nowhere


def test_threads_may_be_the_first_to_ask():
    """Many at once, for different names: each gets what all get."""
    script = """
import sys, threading
import flowdeco
sys.setswitchinterval(1e-6)
names = [name for name in flowdeco.__all__ if name != "__version__"] * 4
start, found = threading.Barrier(len(names)), []
def ask(name):
    start.wait()
    found.append((name, getattr(flowdeco, name)))
threads = [threading.Thread(target=ask, args=(name,)) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found) == len(names), all(value is getattr(flowdeco, name) for name, value in found))
"""
    assert in_process(script) == "True True\n"


def test_pickles_do_not_know_of_it():
    """They lead to the modules that define things."""
    for name in sorted(NAMES - {"__version__"}):
        thing = getattr(flowdeco, name)
        assert pickle.loads(pickle.dumps(thing)) is thing
        assert b"flowdeco\x94" not in pickle.dumps(thing)


def test_a_definition_loads_no_engine():
    """Half of the time of the import: a module that defines actions need not run any."""
    script = """
import sys
from flowdeco import Stage, action, parallel, pipeline, stage, stream
print([name for name in sys.modules if name.startswith("flowdeco.engine")])
"""
    assert in_process(script) == "[]\n"
