"""The laws, for any flow: generated pipelines, compared with a model that is obviously right."""

import asyncio
import gc
import itertools
import logging
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model import Act, Par, Pipe, Stg, named, parents, predict
from support import again, around, examples, swallow

from flowdeco import Bail, Context, Stage, action, parallel, pipeline, stream
from flowdeco.show.inserters import Inserters
from flowdeco.show.tree import grown

# Thorough enough to find what the tests of the modules do not; the whole suite stays below a minute and a half.
many = settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
some = settings(max_examples=examples(30), deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def no_test_hangs():
    """Shrinking a failure may take its time."""


@pytest.fixture(autouse=True, scope="module")
def no_warnings_of_selectors():
    """Most of the generated ones match nothing."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


# -- flows, as values


def layers(*kinds):
    """A few layers; they are given names later."""
    return st.lists(st.sampled_from(kinds), max_size=2).map(tuple)


EVERY_LAYER = ("around", "around", "retry", "swallow")
SELECTORS = ["tag:t", *(f"{letter}{number}" for letter in "apg" for number in range(3, 12, 2)), "s2/a3", "s4/a5", "s5"]


def acts(units):
    """Actions that insert some of these units."""
    return st.builds(
        Act,
        value=st.none() | st.integers(0, 9),
        collects=st.booleans(),
        writes=st.booleans(),
        inserted=units,
        returned=units,
        how=st.sampled_from(["list", "generator", "generator function", "stream"]),
        loops=st.sampled_from([0, 0, 0, 0, 2]),
        disables=st.sampled_from([None] * 5 + SELECTORS[:4]),
        fails=st.sampled_from([0, 0, 0, 0, 0, 1, 1, 2, 99]),
        bails=st.sampled_from([False] * 15 + [True]),
        use=layers(*EVERY_LAYER),
        tag=st.sampled_from([False, False, False, True]),
        asynchronous=st.sampled_from([False, False, False, True]),
    )


def composed(children):
    """Units made of others."""
    several = st.lists(children, max_size=3).map(tuple)
    stages = st.builds(
        Stg,
        actions=st.lists(acts(several), max_size=3).map(tuple),
        data=st.none() | st.integers(0, 2),
        use=layers(*EVERY_LAYER),
        use_actions=layers("around", "retry"),
        tag=st.sampled_from([False, False, False, True]),
    )
    pipes = st.builds(
        Pipe,
        name=st.sampled_from(["", "p"]),
        units=several,
        use=layers(*EVERY_LAYER, "leave"),
        use_stages=layers("around", "retry"),
        use_actions=layers("around"),
    )
    groups = st.builds(
        Par,
        units=several,
        streamed=st.booleans(),
        tolerate=st.sampled_from([0, 0, 1, 2]),
        enough=st.sampled_from([0, 0, 0, 1, 2]),
        lists=st.booleans(),
    )
    return stages | stages | pipes | groups


UNITS = st.recursive(acts(st.just(())), composed, max_leaves=12)


@st.composite
def flows(draw):
    """A pipeline with everything in it, each part with a name of its own."""
    numbers = itertools.count(1)
    units = draw(st.lists(UNITS, min_size=1, max_size=4))
    return named(Pipe("p", tuple(units)), numbers)


# -- flows, as definitions


def leave(call):
    """Middleware that skips its target."""
    yield from ()


class Builder:
    """Makes definitions of a flow; they write what they do into a trace."""

    def __init__(self):
        self.trace = []
        self.limit = 1

    def layer(self, kind, name):
        outer = around(self.trace, name)
        inner = {"around": None, "retry": again(2), "swallow": swallow, "leave": leave}[kind]
        if inner is None:
            return outer

        def both(call):
            self.trace.append(f"+{name}")
            try:
                yield from inner(call)
            finally:
                self.trace.append(f"-{name}")

        return both

    def layers(self, given):
        return [self.layer(kind, name) for kind, name in given]

    def unit(self, part):
        return getattr(self, type(part).__name__.lower())(part)

    def units(self, parts):
        return [self.unit(part) for part in parts]

    def stg(self, part):
        return Stage(
            part.name,
            self.units(part.actions),
            data=None if part.data is None else {"k": part.data},
            use=self.layers(part.use),
            use_actions=self.layers(part.use_actions),
            tags=["t"] * part.tag,
        )

    def pipe(self, part):
        if not part.name:
            return pipeline(*self.units(part.units))
        given = {field: self.layers(getattr(part, field)) for field in ("use", "use_stages", "use_actions")}
        return pipeline(*self.units(part.units), name=part.name, **given)

    def par(self, part):
        branches = [stream(self.units, part.units)] if part.streamed else self.units(part.units)
        failures = f"{part.name} lost" if part.lists else None
        return parallel(
            *branches, name=part.name, limit=self.limit, tolerate=part.tolerate, enough=part.enough or None,
            failures=failures,
        )  # fmt: skip

    def act(self, part):
        def begin(ctx):
            self.trace.append(part.name)
            calls = self.trace.count(part.name)
            if part.writes:
                ctx.store[f"{part.name} wrote"] = calls
            ctx.insert(*self.units(part.inserted))
            if part.disables:
                ctx.disable(part.disables)
            if calls <= part.fails:
                raise ValueError(part.name)
            if part.bails:
                raise Bail(part.name)
            units = self.units(part.returned)
            if calls <= part.loops:
                units.append(ctx.stage)
            return units

        def plain(ctx: Context):
            units = begin(ctx)
            if not units:
                return part.value
            if part.value is not None:  # data, and units beside it
                ctx.insert(*units)
                return part.value
            return {"list": list, "stream": stream}.get(part.how, lambda units: (unit for unit in units))(units)

        async def coroutine(ctx: Context):
            await asyncio.sleep(0)
            return plain(ctx)

        def generator(ctx: Context):
            yield from begin(ctx)
            return part.value

        async def async_generator(ctx: Context):
            for unit in begin(ctx):
                yield unit

        function = coroutine if part.asynchronous else plain
        if part.how == "generator function":
            function = async_generator if part.asynchronous and part.value is None else generator
        collect = "collected" if part.collects else None
        return action(name=part.name, collect=collect, use=self.layers(part.use), tags=["t"] * part.tag)(function)


def run_sync(flow, **options):
    """By `run`."""
    return flow.run(**options)


def run_async(flow, **options):
    """By `arun`."""
    return asyncio.run(flow.arun(**options))


def observed(run, part, skip, limit=1):
    """What `predict` predicts, as it happened."""
    builder = Builder()
    builder.limit = limit
    finished = run(builder.unit(part), skip=skip, check=False)
    if finished.error is not None and not isinstance(finished.error, ValueError):
        assert type(finished.error).__name__ in ("WriteConflictError", "RunError", "ExceptionGroup"), finished.error
    records = [
        (s.name, s.status.value, s.inserted_by, s.attempts, s.recovered,
         [(a.name, a.status.value, a.inserted_by, a.attempts, a.recovered) for a in s.actions])
        for s in finished.stages
    ]  # fmt: skip
    return finished.status.value, builder.trace, records, stored(finished), finished.result


def stored(finished):
    """The store, with lists of lost branches by their names: exceptions are not compared."""
    return {
        key: tuple(name for name, _ in value) if key.endswith(" lost") else value
        for key, value in finished.store.items()
    }


SKIPS = st.frozensets(st.sampled_from(SELECTORS), max_size=2)


@pytest.mark.parametrize("run", [run_sync, run_async])
@many
@given(flow=flows(), skip=SKIPS)
def test_any_flow_does_what_the_model_says(run, flow, skip):
    """L4 to L9: order, store, records, onion, with failures, retries, skips, bails, in both drivers."""
    assert observed(run, flow, skip) == predict(flow, skip)


@some
@given(flow=flows(), skip=SKIPS)
def test_both_drivers_do_the_same(flow, skip):
    """L8."""
    assert observed(run_sync, flow, skip) == observed(run_async, flow, skip)


@pytest.mark.parametrize("run", [run_sync, run_async])
@some
@given(flow=flows())
def test_groups_come_to_the_same_however_their_branches_are_timed(run, flow):
    """L9: side by side or one at a time, where none ends early (which ends the others where they are)."""

    def harmless(part):
        fields = {
            field: tuple(map(harmless, getattr(part, field)))
            for field in ("units", "actions", "inserted", "returned")
            if hasattr(part, field)
        }
        if isinstance(part, Act):
            fields.update(fails=0, bails=False)
        if isinstance(part, Stg):
            fields.update(data=None)
        if isinstance(part, Par):
            fields.update(enough=0)
        return replace(part, **fields)

    flow = harmless(flow)
    _, trace, *one_at_a_time = observed(run, flow, frozenset())
    _, other_trace, *side_by_side = observed(run, flow, frozenset(), limit=None)
    assert side_by_side == one_at_a_time
    assert sorted(other_trace) == sorted(trace)


@many
@given(flow=flows(), skip=SKIPS)
def test_every_stage_is_in_the_tree_once_below_its_inserter(flow, skip):
    """Read from top to bottom, the tree is the order of the run."""
    run = run_sync(Builder().unit(flow), skip=skip, check=False)
    inserters = Inserters(run.stages)
    found = [inserters.find(record.inserted_by, record.scope) for record in run.stages]
    assert found == parents(predict(flow, skip)[2])
    places, below = [], {}

    def look(nodes, inserter):
        for node in nodes:
            part = node.part
            if part.kind == "stage":
                if part.record is not None:
                    places.append(part.record)
                    below[part.record] = inserter
            else:
                look(grown(part.parts, part.inserted_by), part.parent if part.kind != "branch" else inserter)
            look(node.inserted, part.record)

    look(grown(run.ran().parts), None)
    assert places == list(range(len(run.stages)))
    loops = {
        at for at, parent in enumerate(found) if parent is not None and run.stages[at].name == run.stages[parent].name
    }
    assert all(below[at] == found[at] for at in range(len(found)) if at not in loops and not loops & {found[at]})


# -- the algebra


PARTS = st.sampled_from(
    [
        Stage("a"),
        Stage("b", data={"k": 1}),
        action(name="c")(lambda: 1),
        pipeline(Stage("d"), name="d"),
        pipeline(name="e"),
        parallel(Stage("f")),
        pipeline(Stage("g")),
        pipeline(),
    ]
)
FLOWS = st.lists(PARTS, max_size=4).map(lambda units: pipeline(*units)) | PARTS


@some
@given(a=FLOWS, b=FLOWS, c=FLOWS)
def test_chaining_is_associative(a, b, c):
    """L1."""
    assert (a >> b) >> c == a >> (b >> c)
    assert hash((a >> b) >> c) == hash(a >> (b >> c))


@some
@given(a=FLOWS)
def test_the_empty_pipeline_is_the_unit_of_chaining(a):
    """L2."""
    flow = pipeline(a)
    assert pipeline() >> a == a >> pipeline() == (a if isinstance(a, type(flow)) else flow)
    assert pipeline().run().status == "completed"


@some
@given(flow=flows(), skip=SKIPS)
def test_no_run_changes_a_definition(flow, skip):
    """L3: it is as it was, and runs again in the same way."""
    builder = Builder()
    made = builder.unit(flow)
    before = repr(made), hash(made), [repr(unit) for unit in made], list(made)
    seen = []
    for _ in range(2):
        builder.trace.clear()
        finished = made.run(skip=skip, check=False)
        seen.append(
            (builder.trace.copy(), stored(finished), [(s.name, s.status, s.inserted_by) for s in finished.stages])
        )
    assert seen[0] == seen[1]
    assert (repr(made), hash(made), [repr(unit) for unit in made], list(made)) == before


# -- in constant memory, without recursion


def rounds_of(make, rounds):
    """A unit that returns itself, and a list that holds the number of rounds."""
    left = [rounds]

    def count():
        left[0] -= 1
        return unit if left[0] else None

    unit = make(action(name="count")(count))
    return unit, left


@pytest.mark.parametrize(
    ("make", "rounds"),
    [
        (lambda act: Stage("loop", [act]), 10_000),
        (lambda act: act, 3_000),
        (lambda act: pipeline(act, name="loop"), 10_000),
        (lambda act: Stage("s", [act]) >> Stage("t"), 2_000),
        (lambda act: parallel(Stage("s")) >> act, 500),
    ],
    ids=["stage", "action", "named pipeline", "pipeline", "with a group"],
)
def test_a_unit_may_return_itself_for_long(make, rounds):
    """It is a loop."""
    unit, left = rounds_of(make, rounds)
    finished = unit.run(history=10)
    assert left == [0]
    assert finished.status == "completed"
    assert len(finished.stages) <= 10


def test_arun_loops_for_long_as_well():
    """Without recursion."""
    unit, left = rounds_of(lambda act: Stage("loop", [act]), 5_000)
    asyncio.run(unit.arun(history=1))
    assert left == [0]


def peak_of(run):
    """Peak of the memory that a run allocates."""
    gc.collect()
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "make", [lambda act: Stage("loop", [act]), lambda act: pipeline(act, name="loop")], ids=["stage", "named pipeline"]
)
def test_a_loop_runs_in_constant_memory(make):
    """With a bounded history."""
    short = peak_of(lambda: rounds_of(make, 1_000)[0].run(history=100))
    long = peak_of(lambda: rounds_of(make, 4_000)[0].run(history=100))
    assert long < short + 100_000


def test_a_stream_runs_in_constant_memory():
    """However long it is."""

    def streaming(length):
        return action(name="a")(lambda: stream(Stage("s") for _ in range(length)))

    short = peak_of(lambda: streaming(1_000).run(history=100))
    long = peak_of(lambda: streaming(4_000).run(history=100))
    assert long < short + 100_000


@pytest.mark.parametrize(
    ("wrap", "depth"),
    [
        (lambda unit: unit, 5_000),
        (lambda unit: [unit], 2_000),
        (lambda unit: (one for one in [unit]), 2_000),
        (lambda unit: stream([unit]), 2_000),
        (lambda unit: pipeline(unit, name="p"), 2_000),
    ],
    ids=["stage", "list", "generator", "stream", "named pipeline"],
)
def test_insertions_nest_deeply(wrap, depth):
    """Each stage inserts the next."""
    reached = []

    def descend(level):
        def body():
            reached.append(level)
            return wrap(Stage(f"s{level + 1}", [descend(level + 1)])) if level < depth else None

        return action(name="descend")(body)

    finished = Stage("s0", [descend(0)]).run(history=1)
    assert reached[-1] == depth
    assert finished.stages[-1].name == f"s{depth}"


def test_a_long_chain_of_dynamic_actions_is_no_recursion():
    """Each inserts the next, in one stage."""
    reached = []

    def descend(level):
        def body():
            reached.append(level)
            return descend(level + 1) if level < 3_000 else None

        return action(name="descend")(body)

    finished = Stage("s", [descend(0)]).run()
    assert len(finished.stages[0].actions) == len(reached) == 3_001


def test_a_wide_insertion_is_as_cheap_as_a_deep_one():
    """10,000 stages at once, in order."""
    made = [Stage(f"s{number}") for number in range(1000)] * 10
    finished = action(name="a")(lambda: made).run()
    assert [record.stage for record in finished.stages[1:]] == made
