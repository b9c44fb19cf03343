"""Streams: units that are pulled one at a time, when they are to begin."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import Any, cast, overload

from typing_extensions import ParamSpec

from flowdeco.errors import DefinitionError, shortened
from flowdeco.model.contents import agree
from flowdeco.model.options import described
from flowdeco.model.references import reduced
from flowdeco.model.units import Pulled, Template, Unit, Value

__all__ = ["Stream", "not_iterated", "stream"]

P = ParamSpec("P", default=...)


class Stream(Pulled):
    """Units that are pulled one at a time, to run in sequence or as the branches of a group; made by `stream`."""

    __slots__ = ("args", "begun", "source")

    def __init__(self, source: Any, args: tuple[Any, ...]) -> None:
        self.source = source
        self.args = args
        self.begun = False  # which an iterator can be once

    @property
    def name(self) -> str:
        """The name in messages and among pending units."""
        return f"stream of {described(self.source) if callable(self.source) else shortened(self.source)}"

    def instead(self) -> str:
        """Return the message: a stream is returned or inserted."""
        return (
            "a stream cannot be chained: return it from an action, pass it to ctx.insert, or have its units run in "
            "parallel: parallel(stream(...))"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stream):
            return NotImplemented
        if self.source is not other.source and not (callable(self.source) and self.source == other.source):
            return False  # iterables are not compared by their items
        return agree(self.args, other.args)

    def __hash__(self) -> int:
        return hash((Stream, len(self.args)))

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        values = {"source": self.source, "arguments": self.args}
        return reduced(f"the {self.name}", values, (Stream, (self.source, self.args)))

    def __copy__(self) -> Stream:
        return Stream(self.source, self.args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        import copy  # rarely

        return Stream(*copy.deepcopy((self.source, self.args), memo))


def not_iterated(unit: Unit | Template) -> str:
    """Return the message for one unit, or a template of stages, where a stream takes several: its parts are not units."""
    what = (
        f"the stage template {unit.name!r}"
        if isinstance(unit, Template)
        else f"the {type(unit).__name__} {unit.name!r}"
    )
    call = "(...)" if isinstance(unit, Template) else ""
    return (
        f"a stream takes an iterable of units, or a function that returns one, and {what} is not: "
        f"put it in a list, as in stream([{unit.name}{call}]), or return it without stream"
    )


@overload
def stream(source: Iterable[Unit] | AsyncIterable[Unit], /) -> Stream: ...
@overload
def stream(
    source: Callable[P, Iterable[Unit] | AsyncIterable[Unit]], /, *args: P.args, **kwargs: P.kwargs
) -> Stream: ...
def stream(source: Any, /, *args: Any, **kwargs: Any) -> Stream:
    """Return units to be pulled lazily, one at a time, after the current stage; or as the branches of a group.

    The source is an iterable (async or not), or a function that returns one, with its arguments. In a durable run it
    must be a function that returns the same units again: a resume calls it a second time.
    """
    if kwargs:
        raise DefinitionError(f"stream takes positional arguments for its function, not {', '.join(kwargs)}=")
    if isinstance(source, (Value, Template)):
        raise DefinitionError(not_iterated(cast("Unit | Template", source)))
    if callable(source):
        return Stream(source, args)
    kind = type(source).__name__
    if args:
        raise DefinitionError(f"stream takes arguments for a function, and the {kind} is not one")
    if isinstance(source, (str, bytes, Mapping)) or not isinstance(source, (Iterable, AsyncIterable)):
        raise DefinitionError(f"stream takes an iterable of units or a function, not the {kind}")
    return Stream(cast("Any", source), ())
