"""Any flow that waits, interrupted and killed anywhere and answered in any order, comes to what it would have come to.

The model is one function, `expected`: each part contributes to one list, and the n-th question of a key gets its n-th
answer.
"""

import asyncio
import random
import time
from collections import Counter
from itertools import count

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support import examples

from flowdeco import Context, Sleep, Stage, action, durable, parallel, pipeline, stage
from flowdeco.durable import MemoryJournal
from flowdeco.middleware import atomic, retry
from flowdeco.testing import FlowRunner

law = settings(
    max_examples=examples(20, 1000),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
HOUR = 3600.0


class Interrupted(BaseException):
    """The process has ended here: no middleware catches it."""


class World:
    """The clock, the number of calls until the next interruption, and how often actions were called."""

    def __init__(self):
        self.now = 2_000_000_000.0
        self.left = None
        self.counts = Counter()

    def called(self, name):
        """Note a call, and return how many there were; to be interrupted, raise."""
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Interrupted(name)
        self.counts[name] += 1
        return self.counts[name]


world = World()


# The parts of flows.


@action(collect="log")
def asking(name: str, times: int, ctx: Context):
    """Ask so many times."""
    world.called(name)
    return [ctx.wait_for(f"answer.{name}", timeout=10**9) for _ in range(times)]


@action(collect="log")
def sleeping(name: str, hours: int, ctx: Context):
    """Sleep, for a short time first."""
    world.called(name)
    ctx.sleep(0)
    ctx.sleep(hours * HOUR)
    return name


@action(collect="log")
async def dozing(name: str, hours: int, ctx: Context):
    """The same, as a coroutine."""
    world.called(name)
    await ctx.sleep(0)
    await ctx.sleep(hours * HOUR)
    return name


@action(collect="log")
def flaky(name: str, failures: int):
    """Fail so many times."""
    if world.called(name) <= failures:
        raise ValueError(name)
    return name


@stage
def turn(name: str, turns: int, number: int):
    """One turn of a loop: it asks, and inserts the next one."""

    @action(collect="log")
    def ask(ctx: Context):
        world.called(name)
        return ctx.wait_for(f"answer.{name}")

    @action
    def again():
        return [turn(name, turns, number + 1)] if number + 1 < turns else []


def napping(call):
    """Sleep before the target."""
    yield Sleep(HOUR)
    yield


PATIENT = retry(on=ValueError, attempts=4, wait=HOUR, wait_max=10 * HOUR, jitter=False)
LAYERS = {"nap": napping, "retry": PATIENT, "atomic": atomic}


def unit(part):
    """Return the unit of a part."""
    kind, name, *rest = part
    if kind == "ask":
        return Stage(name, [asking.bind(name=name, times=rest[0])])
    if kind == "sleep":
        return Stage(name, [(dozing if rest[0] % 2 else sleeping).bind(name=name, hours=rest[0])])
    if kind == "loop":
        return turn(name, rest[0], 0)
    if kind == "flaky":
        actions = [each for inner in rest[2] for each in unit(inner)]
        return Stage(name, [*actions, flaky.bind(name=name, failures=rest[0])], use=[LAYERS[each] for each in rest[1]])
    units = [unit(inner) for inner in rest[0]]
    return parallel(*units, name=name) if kind == "group" else pipeline(*units, name=name, use=[napping])


def expected(part):
    """Return what a part contributes to the log."""
    kind, name, *rest = part
    if kind == "ask":
        return [[f"{name} {number}" for number in range(rest[0])]]
    if kind == "loop":
        return [f"{name} {number}" for number in range(rest[0])]
    if kind == "sleep":
        return [name]
    inner = rest[2] if kind == "flaky" else rest[0]
    return [line for each in inner for line in expected(each)] + ([name] if kind == "flaky" else [])


LAYERED = st.frozensets(st.sampled_from(["nap", "retry", "atomic"])).map(
    lambda names: ["retry", *sorted(names - {"retry"})]
)
SIMPLE = st.one_of(
    st.tuples(st.just("ask"), st.integers(1, 2)),
    st.tuples(st.just("sleep"), st.integers(0, 3)),
    st.tuples(st.just("loop"), st.integers(1, 2)),
)
# Once: of two answers to one key, a process that is killed just after it has dropped a failed attempt leaves the last one.
STEPS = st.one_of(st.tuples(st.just("ask"), st.just(1)), st.tuples(st.just("sleep"), st.integers(0, 3)))
FLAKY = st.builds(
    lambda failures, layers, steps: ("flaky", failures, tuple(layers), steps),
    st.integers(0, 2), LAYERED, st.lists(STEPS, max_size=2),
)  # fmt: skip


PARTS = st.recursive(
    st.one_of(SIMPLE, FLAKY),
    lambda inner: st.tuples(st.sampled_from(["group", "seq"]), st.lists(inner, min_size=1, max_size=3)),
    max_leaves=5,
)


def with_names(part, numbers):
    """Return the part with names: a tuple of kind, name and the rest."""
    kind, *rest = part
    name = f"{kind}{next(numbers)}"
    if kind == "flaky":
        failures, layers, steps = rest
        return kind, name, failures, layers, [with_names(each, numbers) for each in steps]
    if kind in ("group", "seq"):
        return kind, name, [with_names(each, numbers) for each in rest[0]]
    return kind, name, *rest


FLOWS = PARTS.map(lambda part: with_names(part, count()))


@pytest.fixture(autouse=True)
def wall(monkeypatch):
    """The wall clock of the world."""
    monkeypatch.setattr(time, "time", lambda: world.now)


def has_retry_in_group(part, inside=False):
    """Whether a branch of a group has another attempt: its lists conflict with those of others, resumed from memory."""
    kind, _, *rest = part
    if kind == "flaky":
        return inside
    return kind in ("group", "seq") and any(has_retry_in_group(each, inside or kind == "group") for each in rest[0])


def run_sync(flow, *args, how="run", **options):
    """By `run`, or `resume`."""
    return getattr(flow, how)(*args, **options)


def run_async(flow, *args, how="run", **options):
    """By `arun`, or `aresume`."""
    return asyncio.run(getattr(flow, f"a{how}")(*args, **options))


def killed(journal, since, chance):
    """Cut the journal somewhere in the rows of this leg, as if the process had been killed then."""
    run = journal._runs["r"]
    at = list(run.rows)
    early = [each for each in at if each < since]
    kept = at[: len(early) + chance.randrange(len(at) - len(early) + 1)]
    run.rows = {each: run.rows[each] for each in kept}
    run.state, run.waits = ("running", None, None), ()


def answers_to(questions, given, chance):
    """Return answers to some of the open questions: for each, the next one of its key."""
    found = {}
    for key in dict.fromkeys(wait.key for wait in questions if wait.is_open):
        if chance.random() < 0.7:
            found[key] = f"{key.removeprefix('answer.')} {given[key]}"
            given[key] += 1
    return found


@pytest.mark.parametrize("run", [run_sync, run_async])
@law
@given(part=FLOWS, seed=st.integers(0, 2**16))
def test_any_flow_that_waits_comes_to_the_same(run, part, seed):
    """With a journal, killed and interrupted, its clock set back and forth, answered at once or before."""
    global world
    world, chance, given = World(), random.Random(seed), Counter()
    journal, flow = MemoryJournal(), pipeline(unit(part), name="flow")
    world.left = chance.choice([None, 0, 1, 2, 5])
    finished = run(flow, journal=journal, run_id="r", check=False, suspend_after=0)
    for _ in range(300):
        if finished.status == "completed":
            break
        since = journal._runs["r"].written
        inputs = answers_to(durable.read(journal, "r").waits, given, chance)
        if inputs and chance.random() < 0.5:
            durable.answer(journal, "r", inputs)
            inputs = None
        world.now += chance.choice([0, 60, HOUR, 5 * HOUR, -60])
        world.left = chance.choice([None, None, 0, 1, 2, 5])
        finished = run(flow, "r", inputs, how="resume", journal=journal, check=False, suspend_after=0)
        if finished.status != "completed" and chance.random() < 0.3:
            killed(journal, since, chance)
    assert dict(finished.store) == ({"log": expected(part)} if expected(part) else {})
    assert dict(durable.read(journal, "r").store) == dict(finished.store)


@law
@given(part=FLOWS, seed=st.integers(0, 2**16))
def test_any_flow_that_asks_comes_to_the_same_in_memory(part, seed):
    """Without a journal, interrupted anywhere; its sleeps take no time in the test runner."""
    global world
    assume(not has_retry_in_group(part))
    world, chance, given, runner = World(), random.Random(seed), Counter(), FlowRunner()
    flow = pipeline(unit(part), name="flow")
    world.left = chance.choice([None, 0, 1, 2, 5])
    finished = runner.run(flow, check=False)
    for _ in range(300):
        if finished.status == "completed":
            break
        inputs = answers_to(finished.waits, given, chance)
        world.left = chance.choice([None, None, 0, 1, 2, 5])
        finished = runner.resume(flow, finished, inputs, check=False)
    assert dict(finished.store) == ({"log": expected(part)} if expected(part) else {})
