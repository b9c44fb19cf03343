"""The entry point of a run that a program started: the name of its pipeline, by which `wake` finds it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

from flowdeco.model.definitions import Action, Pipeline, as_pipeline
from flowdeco.model.units import every_unit

__all__ = ["entry_of"]


def entry_of(flow: Pipeline) -> str | None:
    """Return `module:name` of the module that has this very pipeline, or its only unit; None if none has.

    For a script it is `file.py:name`, provided that importing the file does not run it again.
    """
    wanted = [id(flow)]
    if len(flow) == 1 and flow == as_pipeline(flow[0]):
        wanted.append(id(flow[0]))
    functions = [unit.__wrapped__ for unit in every_unit([flow]) if isinstance(unit, Action)]
    near = dict.fromkeys(str(getattr(function, "__module__", None)) for function in functions)
    return _search(wanted, near) or _search(wanted, _own({name.partition(".")[0] for name in near}))


def _own(packages: set[str]) -> Iterator[str]:
    """Yield the modules of these packages, and those that nobody has installed: all others are very many."""
    for name, module in list(sys.modules.items()):
        package, file = name.partition(".")[0], getattr(module, "__file__", None)
        if package in packages or (
            package not in _STRANGERS
            and isinstance(file, str)
            and not ("site-packages" in file or "dist-packages" in file)
        ):
            yield name


_STRANGERS: Final = sys.stdlib_module_names - {"__main__"} | {"flowdeco"}


def _search(wanted: list[int], modules: Iterable[str]) -> str | None:
    for module in modules:
        space: Any = getattr(sys.modules.get(module), "__dict__", None)
        if type(space) is not dict:
            continue
        named = list(cast("dict[str, object]", space).items())
        names = {id(value): name for name, value in reversed(named)}
        if names.keys().isdisjoint(wanted):
            continue
        name = next(names[each] for each in wanted if each in names)
        found = dict(named)
        place = _script(found.get("__file__")) if module == "__main__" else found.get("__spec__") and module
        if place is not None:
            return f"{place}:{name}"
    return None


def _script(path: object) -> str | None:
    """Return the file of the main module, None if it has none or is run as it is imported."""
    if not isinstance(path, str) or not path.endswith(".py"):
        return None
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            guarded = re.search(r"^if __name__\s*==", file.read(), re.MULTILINE)
    except OSError:
        return None
    return shlex.quote(os.path.abspath(path)) if guarded else None
