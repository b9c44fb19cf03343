"""OpenTelemetry: spans and durations of runs, stages and actions, by observers (extra `opentelemetry`).

    from flowdeco.observers import otel

    flow.run(observers=[otel.spans(), otel.metrics()])

The current span around `flow.run` is the parent of the run's span, the run's span that of its stages, a stage's that of
its actions. Inside an action, its span is the current one: spans that the action opens become its children, and so does
a run that it starts.

It is an observer rather than a middleware: an observer sees skipped stages and the cost of middleware, changes nothing
in the run, and reaches every stage by being named once. Its spans are current without a middleware, because an observer
is called in the context (see `contextvars`) in which the stage or action is then performed. That context follows the
work into threads and into the event loop, and each branch of a group has its own. So the span of a middleware around a
stage comes between those of the stage and of its actions.

Another process has no access to the span, only to its identity: a call that an executor ships (processes, Dask) takes
the trace context with it, in the W3C format or the one that `opentelemetry.propagate` is set to. There,
`get_current_span()` is a remote parent that records nothing; spans that the action opens become its children if that
process has a tracer provider of its own. In workers without OpenTelemetry, nothing is done.
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
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

__all__ = ["metrics", "spans"]

NAMES: Final = 100  # of inserted units, at most


def spans(tracer_provider: TracerProvider | None = None) -> Callable[[Event], None]:
    """Return an observer that makes spans, with the global tracer provider if none is given.

    Spans are named `run NAME`, `stage NAME`, `action NAME`. Attributes: `flowdeco.run`, `flowdeco.pipeline`,
    `flowdeco.stage`, `flowdeco.action`, `flowdeco.status`, and if they apply `flowdeco.inserted_by`, `flowdeco.branch`,
    `flowdeco.attempts`, `flowdeco.recovered`, `flowdeco.cached`. A failure is recorded, and sets the status to ERROR, on
    each span that it passes through. Insertions, skipped steps and messages of `ctx.emit` are events of the span in which
    they happen. Restored steps of a resumed run have no span. One observer can serve any number of runs.
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
    """An open span of ours: `context` was current before it, `outer` is the span of ours that encloses it."""

    step: tuple[str, str]  # kind and name
    span: Span
    context: Context
    outer: _Open | None


# The innermost open span by the id of its observer. Each branch of a group, each task and each thread sees its own.
_innermost: Final[ContextVar[Mapping[int, _Open]]] = ContextVar("flowdeco_otel")
_NONE: Final[Mapping[int, _Open]] = {}


class _Spans:
    def __init__(self, tracer_provider: TracerProvider | None) -> None:
        from opentelemetry import context, trace

        self._trace = trace
        self._context = context
        self._tracer = trace.get_tracer("flowdeco", flowdeco.__version__, tracer_provider)

    def __call__(self, event: Event) -> None:
        handler = _HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event)

    def run_started(self, event: RunStarted) -> None:
        self._start(("run", event.run_id), event.pipeline, run=event.run_id, pipeline=event.pipeline)
        if _companion not in COMPANIONS.get():
            COMPANIONS.set((*COMPANIONS.get(), _companion))

    def run_finished(self, event: RunFinished) -> None:
        self._end(("run", event.run_id), event)
        if not _innermost.get(_NONE):  # it was not inside another run
            COMPANIONS.set(tuple(companion for companion in COMPANIONS.get() if companion is not _companion))

    def stage_started(self, event: StageStarted) -> None:
        self._start(
            ("stage", event.stage), event.stage,
            run=event.run_id, stage=event.stage, inserted_by=event.inserted_by, branch=event.branch,
        )  # fmt: skip

    def stage_finished(self, event: StageFinished) -> None:
        if not event.restored:  # a restored stage has not begun
            self._end(("stage", event.stage), event)

    def action_started(self, event: ActionStarted) -> None:
        self._start(
            ("action", event.action), event.action,
            run=event.run_id, stage=event.stage, action=event.action, inserted_by=event.inserted_by,
        )  # fmt: skip

    def action_finished(self, event: ActionFinished) -> None:
        self._end(("action", event.action), event)

    def units_inserted(self, event: UnitsInserted) -> None:
        units: dict[str, Any] = {"flowdeco.units": event.units[:NAMES], "flowdeco.units.count": len(event.units)}
        self._trace.get_current_span().add_event("units inserted", units)

    def message(self, event: Message) -> None:
        payload = {key: value if isinstance(value, _PLAIN) else repr(value) for key, value in event.payload.items()}
        self._trace.get_current_span().add_event(event.kind, payload)

    def _start(self, step: tuple[str, str], title: str, **attributes: str | None) -> None:
        """Open a span with the attributes that are not None, and make it the current one."""
        context = self._context.get_current()
        named = {f"flowdeco.{name}": value for name, value in attributes.items() if value is not None}
        span = self._tracer.start_span(f"{step[0]} {title}", context, attributes=named)
        self._set_innermost(_Open(step, span, context, _innermost.get(_NONE).get(id(self))))
        inner = self._trace.set_span_in_context(span, context)
        self._context.attach(self._context.set_value(_OURS, (*_our_spans(context), span), inner))

    def _end(self, step: tuple[str, str], event: RunFinished | StageFinished | ActionFinished) -> None:
        """Close the span of a step, and make the one around it the current one."""
        opened = _innermost.get(_NONE).get(id(self))
        if event.status == "skipped" and (opened is None or opened.step != step):  # it has never begun
            kind, name = step
            self._trace.get_current_span().add_event(f"{kind} skipped", {f"flowdeco.{kind}": name})
            return
        while opened is not None and opened.step != step:
            opened.span.end()  # an interrupt prevented the event of its end
            opened = opened.outer
        if opened is None:
            return
        self._set_innermost(opened.outer)
        # Not by a token, which is unknown in a context that a driver brings back from the event loop. And an earlier
        # observer has left its own span already, and with it this one, which it encloses.
        if opened.span in _our_spans(self._context.get_current()):
            self._context.attach(opened.context)
        self._finish(opened.span, event)

    def _set_innermost(self, opened: _Open | None) -> None:
        others = {observer: each for observer, each in _innermost.get(_NONE).items() if observer != id(self)}
        _innermost.set(others if opened is None else {**others, id(self): opened})

    def _finish(self, span: Span, event: RunFinished | StageFinished | ActionFinished) -> None:
        span.set_attribute("flowdeco.status", str(event.status))
        if not isinstance(event, RunFinished):
            for attempt, error in enumerate(event.failures, 1):
                span.record_exception(error, {"flowdeco.attempt": attempt})
            if event.attempts > 1:
                span.set_attribute("flowdeco.attempts", event.attempts)
            if event.recovered:
                span.set_attribute("flowdeco.recovered", True)
            if isinstance(event, ActionFinished) and event.cached:
                span.set_attribute("flowdeco.cached", True)
        if event.error is not None and event.status == "failed":
            span.record_exception(event.error)
            description = f"{type(event.error).__name__}: {event.error}"
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, description))
        span.end()

    def __repr__(self) -> str:
        return "flowdeco.observers.otel.spans()"


def _our_spans(context: Context) -> tuple[Any, ...]:
    """Return the spans of all observers of ours that are open in a context, the innermost last."""
    return cast("tuple[Any, ...]", context.get(_OURS, ()))


_OURS: Final = "flowdeco-spans"
_PLAIN: Final = (str, bool, int, float)
_HANDLERS: Final[dict[type, Callable[[_Spans, Any], None]]] = {
    RunStarted: _Spans.run_started,
    RunFinished: _Spans.run_finished,
    StageStarted: _Spans.stage_started,
    StageFinished: _Spans.stage_finished,
    ActionStarted: _Spans.action_started,
    ActionFinished: _Spans.action_finished,
    UnitsInserted: _Spans.units_inserted,
    Message: _Spans.message,
}


# Metrics.


def metrics(meter_provider: MeterProvider | None = None) -> Callable[[Event], None]:
    """Return an observer that records the durations of runs, stages and actions, by default for the global provider.

    The histograms `flowdeco.run.duration`, `flowdeco.stage.duration` and `flowdeco.action.duration`, in seconds, have
    the status as an attribute, and the pipeline, stage and action by name; all stages of a template count under its name.
    """
    try:
        from opentelemetry import metrics as api
    except ImportError as error:
        raise DefinitionError("otel.metrics() needs OpenTelemetry: pip install 'flowdeco[opentelemetry]'") from error
    if meter_provider is not None and not callable(getattr(meter_provider, "get_meter", None)):
        raise DefinitionError(
            f"metrics() takes a meter provider, or nothing, not {shortened(meter_provider)}: "
            f"write observers=[otel.metrics()]"
        )
    meter = api.get_meter("flowdeco", flowdeco.__version__, meter_provider)
    histograms = {
        kind: meter.create_histogram(f"flowdeco.{name}.duration", "s", f"how long {name}s take")
        for kind, name in ((RunFinished, "run"), (StageFinished, "stage"), (ActionFinished, "action"))
    }

    def observe(event: Event) -> None:
        if not isinstance(event, (RunFinished, StageFinished, ActionFinished)) or event.status == "skipped":
            return
        if isinstance(event, StageFinished) and event.restored:
            return
        named = {"flowdeco.status": str(event.status)}
        for name in ("pipeline", "stage", "action"):
            if hasattr(event, name):
                named[f"flowdeco.{name}"] = str(getattr(event, name)).partition("[")[0]
        histograms[type(event)].record(event.elapsed, named)

    return observe


# Into other processes.


def _companion() -> tuple[Any, dict[str, str]]:
    """Return the context manager to enter around a shipped call, and its argument: the trace context."""
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return remote_parent, carrier


@contextmanager
def remote_parent(carrier: dict[str, str]) -> Generator[None, None, None]:
    """In a worker, make the span of the caller the parent of spans that are opened there."""
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
