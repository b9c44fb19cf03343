"""OpenTelemetry: a span for each run, stage and action, by an observer (extra `opentelemetry`).

    from flowdeco.observers import otel

    flow.run(observers=[otel.spans()])

What is open around `flow.run` is the parent of the run's span, the run's span that of its stages, a stage's that of its
actions; and inside an action, its span is the current one: what the action opens itself becomes a child of it, and so
does a run that it starts.

It is an observer, not a middleware, because it then sees what middleware does not (what is skipped, what other
middleware costs), changes nothing in the run, and reaches into everything by being named once. That its spans are
*current* needs no middleware: an observer is called in the context in which the stage or action is then performed (see
`contextvars`), and that context goes along into threads, into the event loop, and is each branch's own in a group. So a
middleware around a stage that opens a span gets it between that of the stage and those of its actions.

In other processes there is no span to be had, only its identity: with a call that an executor ships (processes, Dask)
travels the trace context, in the W3C format or whatever `opentelemetry.propagate` is set to. There, `get_current_span()`
is a remote parent that records nothing; what the action opens becomes a child of its span if that process has a tracer
provider of its own. Where OpenTelemetry is not installed in the workers, nothing is done there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import flowdeco
from flowdeco.errors import DefinitionError, shortened
from flowdeco.events import (
    ActionFinished,
    ActionStarted,
    Event,
    Message,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    UnitsInserted,
)
from flowdeco.executors import COMPANIONS

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, TracerProvider

__all__ = ["spans"]

NAMES: Final = 100  # of inserted units, at most


def spans(tracer_provider: TracerProvider | None = None) -> Callable[[Event], None]:
    """Return an observer that makes spans, with the global tracer provider if none is given.

    Spans are named `run NAME`, `stage NAME`, `action NAME`. Attributes: `flowdeco.run`, `flowdeco.pipeline`,
    `flowdeco.stage`, `flowdeco.action`, `flowdeco.status`, where it applies `flowdeco.inserted_by`, `flowdeco.branch`,
    `flowdeco.attempts`, `flowdeco.recovered`. A failure is recorded, and sets the status to ERROR, on each span that it
    passes through. What is inserted, what is skipped and what an action tells by `ctx.emit` are events of the span in
    which that happens. What a resumed run restores has no span. One observer can serve any number of runs.
    """
    try:
        import opentelemetry.trace  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        message = "flowdeco.observers.otel needs OpenTelemetry: pip install 'flowdeco[opentelemetry]'"
        raise DefinitionError(message) from error
    if tracer_provider is not None and not callable(getattr(tracer_provider, "get_tracer", None)):
        raise DefinitionError(
            f"spans() takes a tracer provider, or nothing, not the {type(cast('object', tracer_provider)).__name__} "
            f"{shortened(tracer_provider)}: write observers=[otel.spans()]"
        )
    return _Spans(tracer_provider)


class _Open(NamedTuple):
    """A span that is open, what is current around it, and the span of ours that is open around it."""

    kind: str
    name: str
    span: Span
    outside: Context
    around: _Open | None


# For each observer the innermost open span. Each branch of a group, each task and each thread sees its own.
_open: Final[ContextVar[Mapping[int, _Open]]] = ContextVar("flowdeco_otel")


class _Spans:
    def __init__(self, tracer_provider: TracerProvider | None) -> None:
        from opentelemetry import context, trace

        self._trace = trace
        self._context = context
        self._tracer = trace.get_tracer("flowdeco", flowdeco.__version__, tracer_provider)

    def __call__(self, event: Event) -> None:
        take = _TAKE.get(type(event))
        if take is not None:
            take(self, event)

    def _run_begins(self, event: RunStarted) -> None:
        attributes = {"flowdeco.run": event.run_id, "flowdeco.pipeline": event.pipeline}
        self._begin("run", event.run_id, event.pipeline, attributes)
        if _companion not in COMPANIONS.get():
            COMPANIONS.set((*COMPANIONS.get(), _companion))

    def _run_ends(self, event: RunFinished) -> None:
        self._end("run", event.run_id, event)
        if not _open.get(_NONE):  # it was not inside another run
            COMPANIONS.set(tuple(companion for companion in COMPANIONS.get() if companion is not _companion))

    def _stage_begins(self, event: StageStarted) -> None:
        attributes = {"flowdeco.run": event.run_id, "flowdeco.stage": event.stage}
        if event.inserted_by is not None:
            attributes["flowdeco.inserted_by"] = event.inserted_by
        if event.branch is not None:
            attributes["flowdeco.branch"] = event.branch
        self._begin("stage", event.stage, event.stage, attributes)

    def _stage_ends(self, event: StageFinished) -> None:
        if not event.restored:  # which has not begun
            self._end("stage", event.stage, event)

    def _action_begins(self, event: ActionStarted) -> None:
        attributes = {"flowdeco.run": event.run_id, "flowdeco.stage": event.stage, "flowdeco.action": event.action}
        if event.inserted_by is not None:
            attributes["flowdeco.inserted_by"] = event.inserted_by
        self._begin("action", event.action, event.action, attributes)

    def _action_ends(self, event: ActionFinished) -> None:
        self._end("action", event.action, event)

    def _inserts(self, event: UnitsInserted) -> None:
        units: dict[str, Any] = {"flowdeco.units": event.units[:NAMES], "flowdeco.units.count": len(event.units)}
        self._trace.get_current_span().add_event("units inserted", units)

    def _tells(self, event: Message) -> None:
        told = {key: value if isinstance(value, _PLAIN) else repr(value) for key, value in event.payload.items()}
        self._trace.get_current_span().add_event(event.kind, told)

    def _begin(self, kind: str, name: str, title: str, attributes: dict[str, str]) -> None:
        outside = self._context.get_current()
        span = self._tracer.start_span(f"{kind} {title}", outside, attributes=attributes)
        every = _open.get(_NONE)
        _open.set({**every, id(self): _Open(kind, name, span, outside, every.get(id(self)))})
        inside = self._trace.set_span_in_context(span, outside)
        self._context.attach(self._context.set_value(_MARK, (*_marks(outside), span), inside))

    def _end(self, kind: str, name: str, event: RunFinished | StageFinished | ActionFinished) -> None:
        every = _open.get(_NONE)
        opened = every.get(id(self))
        if opened is None or (opened.kind, opened.name) != (kind, name):
            if event.status == "skipped":  # it never began
                self._trace.get_current_span().add_event(f"{kind} skipped", {f"flowdeco.{kind}": name})
                return
            while opened is not None and (opened.kind, opened.name) != (kind, name):
                opened.span.end()  # an interrupt kept it from being told that it is over
                opened = opened.around
            if opened is None:
                return
        others = {observer: span for observer, span in every.items() if observer != id(self)}
        _open.set({**others, id(self): opened.around} if opened.around is not None else others)
        # Not by a token: what a driver carries back from the event loop's context knows none. And an observer that came
        # before this one has been told first: it has left its own span, and with that this one's as well.
        if opened.span in _marks(self._context.get_current()):
            self._context.attach(opened.outside)
        self._finish(opened.span, event)

    def _finish(self, span: Span, event: RunFinished | StageFinished | ActionFinished) -> None:
        span.set_attribute("flowdeco.status", str(event.status))
        if not isinstance(event, RunFinished):
            if event.attempts > 1:
                span.set_attribute("flowdeco.attempts", event.attempts)
            if event.recovered:
                span.set_attribute("flowdeco.recovered", True)
        if event.error is not None and event.status == "failed":
            span.record_exception(event.error)
            description = f"{type(event.error).__name__}: {event.error}"
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, description))
        span.end()

    def __repr__(self) -> str:
        return "flowdeco.observers.otel.spans()"


def _marks(context: Context) -> tuple[Any, ...]:
    return cast("tuple[Any, ...]", context.get(_MARK, ()))


_MARK: Final = "flowdeco-spans"
_NONE: Final[Mapping[int, _Open]] = {}
_PLAIN: Final = (str, bool, int, float)
_TAKE: Final[dict[type, Callable[[_Spans, Any], None]]] = {
    RunStarted: _Spans._run_begins,
    RunFinished: _Spans._run_ends,
    StageStarted: _Spans._stage_begins,
    StageFinished: _Spans._stage_ends,
    ActionStarted: _Spans._action_begins,
    ActionFinished: _Spans._action_ends,
    UnitsInserted: _Spans._inserts,
    Message: _Spans._tells,
}


# Into other processes.


def _companion() -> tuple[Any, dict[str, str]]:
    """Return what is to be opened around a call that is shipped, and with what."""
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return remote_parent, carrier


@contextmanager
def remote_parent(carrier: dict[str, str]) -> Generator[None, None, None]:
    """In a worker, make the span that the call comes from the parent of what is opened there."""
    try:
        from opentelemetry import context, propagate
    except ImportError:
        yield
        return
    token = context.attach(propagate.extract(carrier))
    try:
        yield
    finally:
        context.detach(token)
