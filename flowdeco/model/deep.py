"""Recursion that Python's stack does not limit: groups may be nested as deep as a program inserts them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar, cast

__all__ = ["Deep", "evaluated"]

T = TypeVar("T")
Deep: TypeAlias = Generator[Any, Any, T]
"""A call of a generator function that yields further calls, and is sent what they return."""


def evaluated(call: Deep[T]) -> T:
    """Return what a call returns, after all calls inside it."""
    calls: list[Deep[Any]] = [call]
    answer: Any = None
    while calls:
        try:
            inner = calls[-1].send(answer)
        except StopIteration as end:
            answer = end.value
            calls.pop()
        else:
            answer = None
            calls.append(inner)
    return cast("T", answer)
