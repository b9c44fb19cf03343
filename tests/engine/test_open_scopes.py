"""Scopes as they open: what they take over from around them, and what they begin with."""

from flowdeco import Stage, pipeline, stream
from flowdeco.engine.open_scopes import UNNUMBERED, OpenScope, OpenStream
from flowdeco.engine.outcome import Scope

FLOW, S = pipeline(Stage("s"), name="p"), Stage("s")


def layer(call):
    yield


def around():
    """The base of a branch in a pipeline, with something of everything."""
    outer = OpenScope(OpenScope(None, None, None, 0.0), FLOW, None, 0.0)
    outer.place = Scope("p", "p1", None, None, None)
    outer.values, outer.use_stages, outer.use_actions, outer.is_skipped = {"k": 1}, (layer,), (layer, layer), True
    return outer


def test_a_scope_takes_over_what_is_around_it():
    """Its place, values, layers of stages and actions; a stage, or the base of a branch, is in the same pipeline."""
    outer = around()
    for unit, inside in ((S, FLOW), (None, FLOW), (pipeline(S, name="q"), pipeline(S, name="q"))):
        scope = OpenScope(outer, unit, "s/a", 5.0, 3)
        assert (scope.outer, scope.unit, scope.by, scope.started, scope.number) == (outer, unit, "s/a", 5.0, 3)
        assert (scope.place, scope.values, scope.use_stages) == (outer.place, outer.values, (layer,))
        assert (scope.use_actions, scope.is_skipped, scope.pipeline) == ((layer, layer), True, inside)


def test_a_scope_begins_with_nothing():
    """Every one with lists of its own."""
    scope, other = OpenScope(None, FLOW, None, 0.0), OpenScope(None, FLOW, None, 0.0)
    assert (scope.number, scope.pipeline, scope.place, scope.values) == (UNNUMBERED, FLOW, None, {})
    assert (scope.use_stages, scope.use_actions, scope.local) == ((), (), frozenset())
    flags = (scope.is_skipped, scope.is_quiet, scope.is_bare, scope.is_atomic)
    assert (flags, scope.depth, scope.held) == ((False,) * 4, 0, 0)
    assert (scope.layers, scope.earlier, scope.mark, scope.before) == (None,) * 4
    assert (scope.records, scope.inserted) == ([], [])
    assert scope.records is not other.records
    assert scope.inserted is not other.inserted


def test_an_open_stream_knows_how_it_is_pulled():
    """Its rehearsal has pulled nothing yet."""

    async def units():
        yield S

    for made, is_async in ((iter([S]), False), (units(), True)):
        each = OpenStream(stream(list), made)
        assert (each.iterator, each.is_async, list(each.ahead)) == (made, is_async, [])
        assert each.stream == stream(list)
