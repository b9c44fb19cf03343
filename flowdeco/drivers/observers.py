"""The observers of a run: they receive its events, and have no say in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from flowdeco.drivers.interrupts import is_cancellation
from flowdeco.engine.requests import Gate
from flowdeco.errors import DefinitionError, meant_by, shortened
from flowdeco.model.options import described

if TYPE_CHECKING:
    from flowdeco.events import Event

__all__ = ["checked_observers", "notifier"]


def checked_observers(observers: Any) -> list[Callable[[Event], object]]:
    """Return the observers as a list of their own; raises `DefinitionError` for anything but plain callables."""
    __tracebackhide__ = True
    if callable(observers) or not isinstance(observers, Iterable):
        instead = "not None" if observers is None else f"write observers=[{shortened(observers)}]"
        raise DefinitionError(f"observers is a list of callables: {instead}")
    listening = list(cast("Iterable[Any]", observers))
    for observer in listening:
        if not callable(observer):
            raise DefinitionError(f"an observer is a callable that takes an event, not {shortened(observer)}")
        if inspect.iscoroutinefunction(observer):
            raise DefinitionError(
                f"an observer is a plain function, and {shortened(observer)} is `async def`: nothing would await it"
            )
    return listening


def notifier(observers: list[Callable[[Event], object]], run_id: str, gate: Gate) -> Callable[[Event], None] | None:
    """Return the function that passes an event on to these observers, None if there are none."""
    listening = list(observers)
    if not listening:
        return None
    from flowdeco.events import Message  # loaded only if there is an observer

    def notify(event: Event) -> None:
        for observer in list(listening):
            if observer not in listening:  # it raised in another thread meanwhile
                continue
            try:
                observer(event._replace(payload=dict(event.payload)) if type(event) is Message else event)
            except BaseException as error:  # an observer has no say in the run
                if is_cancellation(meant := meant_by(error)):
                    gate.pending = meant
                    continue
                try:
                    listening.remove(observer)
                except ValueError:  # it raised in another thread at the same time
                    continue
                from flowdeco.engine.run_logger import run_logger  # logging is loaded only if it is used

                run_logger(run_id).exception(
                    "run %s: the observer %s raised and is dropped", run_id, described(observer)
                )

    return notify
