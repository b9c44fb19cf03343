"""Packages whose names are imported when they are first used, by the hooks of PEP 562."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["lazily"]


def lazily(package: str, *modules: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package that exports, in `__all__`, names of these modules of it.

    The modules are attributes of it as well, as if it had imported them. From type checkers, hide the first one: with it,
    every name is right.
    """

    def __getattr__(name: str) -> Any:
        own = vars(sys.modules[package])
        if name in modules:
            return import_module(f"{package}.{name}")
        if name in own["__all__"]:
            for module in map(__getattr__, modules):
                if name in module.__all__:
                    return own.setdefault(name, getattr(module, name))
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        own = vars(sys.modules[package])
        parts = {name for name, value in own.items() if name.startswith("__") or isinstance(value, ModuleType)}
        return sorted(parts.union(own["__all__"]))

    return __getattr__, __dir__
