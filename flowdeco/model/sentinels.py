"""Objects that stand for no value, where None is one; they stay the same objects in copies and pickles."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["MISSING", "UNSET"]


class _Sentinel:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self) -> str:
        return self._name


MISSING: Final[Any] = _Sentinel("MISSING")  # a value that is not there
UNSET: Final[Any] = _Sentinel("UNSET")  # an option that was not given
