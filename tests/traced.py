"""Definitions for traces in other processes: at module level, where a worker can import them."""

from flowdeco import Context, action


@action(collect="parents")
def whose_child() -> tuple[int, int, bool]:
    """What a worker knows of the span around the call: trace, span, and whether it is of another process."""
    from opentelemetry import trace

    current = trace.get_current_span().get_span_context()
    return current.trace_id, current.span_id, current.is_remote


@action(collect="spans")
def own_span() -> tuple[int, int]:
    """Open a span with a provider of the worker's own: its trace, and its parent."""
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider().get_tracer("worker").start_as_current_span("inner") as span:
        return span.get_span_context().trace_id, span.parent.span_id


@action
def tells(ctx: Context) -> None:
    ctx.emit("told", pages=3)
