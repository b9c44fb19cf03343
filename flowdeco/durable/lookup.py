"""Names in a journal, `module:qualname`: looked up among loaded modules only.

A journal outlives the layout of this package: names that were written before a move are followed to where they are now.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from typing import Any, Final, cast

from flowdeco.errors import JournalError, shortened

__all__ = ["class_of", "current", "find", "lookup", "lookup_class", "lookup_instance", "place", "reference"]

# The present places of objects that older journals refer to, by the old module, or by module and name.
_MODEL: Final = "annotations declare definitions functions options paths references store wiring"
_ENGINE: Final = "context journal requests runs"
_MOVED: Final = {
    **{f"flowdeco.{name}": f"flowdeco.model.{name}" for name in _MODEL.split()},
    **{f"flowdeco.{name}": f"flowdeco.engine.{name}" for name in _ENGINE.split()},
    "flowdeco.returned": "flowdeco.engine.results",
}
_RENAMED: Final = {
    ("flowdeco.definitions", "_composite_of"): ("flowdeco.model.units", "_composite_of"),
    ("flowdeco.middleware", "_Recover"): ("flowdeco.middleware", "Recover"),
    ("flowdeco.middleware", "_Retry"): ("flowdeco.middleware", "Retry"),
    **dict.fromkeys((("flowdeco.store", "_key"), ("flowdeco.model.store", "_key")), ("flowdeco.model.keys", "_key")),
    ("flowdeco.wiring", "Problem"): ("flowdeco.errors", "Problem"),
}


def current(module: str, name: str) -> tuple[str, str]:
    """Return the module and name by which something of this package is found now, whatever it was called before."""
    return _RENAMED.get((module, name)) or (_MOVED.get(module, module), name)


def lookup(where: Any) -> Any:
    """Return the object at `module:qualname`; raises `JournalError` if no loaded module has it.

    Nothing is imported, and no object is asked for an attribute: only the dicts of modules and classes are read.
    """
    if type(where) is not str:
        raise JournalError(f"a name was expected, not {type(where).__name__}")
    module, _, qualname = where.partition(":")
    if module not in sys.modules:
        module, qualname = current(module, qualname)
    found: Any = sys.modules.get(module)
    if not issubclass(type(found), types.ModuleType):
        raise JournalError(f"{where} refers to the module {module!r}, which is not loaded")
    space: Mapping[str, Any] = object.__getattribute__(found, "__dict__")
    for part in qualname.split("."):
        if part.startswith("__") or part not in space:
            raise JournalError(f"there is no {where}")
        found = space[part]
        space = type.__dict__["__dict__"].__get__(found) if issubclass(type(found), type) else {}
    return found


def lookup_class(where: Any, base: type = object, what: str = "a class", meta: type = type) -> Any:
    """Return the class at `module:qualname`, one that is derived from `base`."""
    found = lookup(where)
    if not (issubclass(type(found), meta) and issubclass(found, base)):
        raise JournalError(f"{where} is not {what}")
    return found


def lookup_instance(where: Any, kind: type) -> Any:
    """Return the instance of a class at `module:qualname`."""
    found = lookup(where)
    if not issubclass(type(found), kind):
        raise JournalError(f"{where} is not an instance of {kind.__name__}")
    return found


def class_of(value: Any) -> Any:
    """Return the class of a value, whatever its `__class__` says."""
    return cast("Any", type(value))


def find(where: str) -> Any:
    """Return the object at `module:qualname`, None if there is none."""
    try:
        return lookup(where)
    except JournalError:
        return None


def place(thing: Any) -> str:
    """Return the `module:qualname` that a class or function states; it may lead to another object."""
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(qualname, str)):
        raise TypeError(f"the {type(thing).__qualname__} has no name to refer to it by: {shortened(thing)}")
    return f"{module}:{qualname}"


def reference(thing: Any, what: str) -> str:
    """Return the `module:qualname` that leads to it; raises `TypeError` if that leads to another object."""
    where = place(thing)
    if find(where) is not thing:
        reason = "it is defined inside a function" if "<locals>" in where else "another object, or none, has that name"
        raise TypeError(f"the {what} {where} cannot be referred to: {reason}. Move it to module level, or register it")
    return where
