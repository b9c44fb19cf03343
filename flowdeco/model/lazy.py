"""Packages whose names are imported when they are first used, by the hooks of PEP 562."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["lazily"]


def lazily(
    package: str, *modules: str, also: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose `__all__` has names of these modules of it.

    A module may be in a sub-package: "model.store". They are imported in this order until one has the name, so each
    should follow those that it imports itself. The modules and sub-packages are attributes of the package as
    well, as if it had imported them, and so are the modules in `also`, which export nothing through it. Hide
    `__getattr__` from type checkers: with it, they accept any name.
    """
    attributes = {*also, *(module.partition(".")[0] for module in modules)}

    def __getattr__(name: str) -> Any:
        own = vars(sys.modules[package])
        if name in attributes:
            return import_module(f"{package}.{name}")
        if name in own["__all__"]:
            for module in (import_module(f"{package}.{each}") for each in modules):
                if name in module.__all__:
                    return own.setdefault(name, getattr(module, name))
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        own = vars(sys.modules[package])
        parts = {name for name, value in own.items() if name.startswith("__") or isinstance(value, ModuleType)}
        return sorted(parts.union(own["__all__"]))

    return __getattr__, __dir__
