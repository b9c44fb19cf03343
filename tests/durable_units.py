"""What the tests of durable runs share: definitions that can be referenced, and what they note of their calls.

A durable run remembers units by reference, so everything here is at module level. `CALLS` has the names of the actions
as they are called, `BROKEN` those that are to fail; both are empty when a test begins.
"""

import asyncio
import os
import time

from flowdeco import Context, Stage, Suspend, action, parallel, pipeline, stage, stream

CALLS = []
BROKEN = set()
STEP_IDS = []


class Crash(BaseException):
    """What no middleware catches, as if the process had ended."""


CRASHING = []  # so many calls until one of them crashes


def call(name):
    """Note a call; fail if the test says so."""
    CALLS.append(name)
    if name in BROKEN:
        raise RuntimeError(f"{name} is broken")
    if CRASHING:
        CRASHING[0] -= 1
        if CRASHING[0] < 0:
            CRASHING.clear()
            raise Crash(name)


def clear():
    """Forget all calls; mend everything."""
    for noted in (CALLS, BROKEN, STEP_IDS, CRASHING):
        noted.clear()
    YIELDED[:] = "abc"


class OneRun:
    """The run "r": sync or async, in any kind of journal."""

    def __init__(self, how, journal):
        self.how, self.journal = how, journal

    def _did(self, flow, method, *args, **options):
        if self.how == "sync":
            return getattr(flow, method)(*args, journal=self.journal, **options)
        return asyncio.run(getattr(flow, f"a{method}")(*args, journal=self.journal, **options))

    def run(self, flow, **options):
        """Start it."""
        return self._did(flow, "run", run_id="r", **options)

    def resume(self, flow, *inputs, **options):
        """Resume it."""
        return self._did(flow, "resume", "r", *inputs, **options)


# -- plain actions


@action
def first():
    call("first")
    return 1


@action
def second(first):
    call("second")
    return first + 1


@action
def third(second):
    call("third")
    return second + 1


line = first >> second >> third


@action(collect="items")
def item(value=0):
    call(f"item {value}")
    return value


@action
async def waits(first):
    await asyncio.sleep(0)
    call("waits")
    return first + 10


@action
def fragile(ctx: Context):
    STEP_IDS.append(ctx.step_id)
    call("fragile")
    return "mended"


@action(returns=("left", "right"))
def pair():
    call("pair")
    return "l", "r"


@action(returns=None)
def discarded():
    call("discarded")
    return "seen in run.result only"


@action
def nothing():
    call("nothing")


# -- what changes the store by its context, and in place


@action
def writes(ctx: Context):
    call("writes")
    ctx.store["written"] = {"deep": [1]}
    ctx.store["gone"] = 1
    ctx.store.append("appended", "a")
    del ctx.store["given"]


@action
def takes_away(ctx: Context):
    call("takes_away")
    del ctx.store["gone"]
    ctx.store.append("appended", "b")


@action
def changes_argument(written):
    call("changes_argument")
    written["deep"].append(2)


@action
def changes_by_context(ctx: Context):
    call("changes_by_context")
    ctx.store["written"]["deep"].append(3)
    ctx.store.get("written")["more"] = True
    for key, value in ctx.store.items():
        if key == "written":
            value["items"] = "seen"


# -- dynamic stages and actions


@stage(tags=["visit"])
def visit(place):
    """One place, with a dynamic action."""

    @action(collect="visits")
    def go():
        call(f"go {place}")
        return place

    @action
    def look():
        call(f"look {place}")
        return souvenir.bind(place=place).with_options(name=f"souvenir {place}")


@action(collect="souvenirs")
def souvenir(place):
    call(f"souvenir {place}")
    return f"magnet of {place}"


@action
def plan():
    call("plan")
    return [visit("rome"), visit("oslo")]


@action
def plan_beside_data(ctx: Context):
    call("plan_beside_data")
    ctx.insert(visit("bonn"), item.bind(value=5))
    return "planned"


@action
def plan_deep():
    call("plan_deep")
    return pipeline(item.bind(value=1), plan.with_options(name="plan inside"), name="deep", use=[noting])


def tour(*places):
    """The source of a stream: it gives the same whenever it is called."""
    for place in places:
        yield visit(place)


async def async_tour(*places):
    """The same as an async generator."""
    for place in places:
        await asyncio.sleep(0)
        yield visit(place)


YIELDED = ["a", "b", "c"]


def unsteady():
    """The source of a stream that may give something else the next time."""
    for place in YIELDED:
        yield visit(place)


@action
def streams_unsteadily():
    call("streams_unsteadily")
    return stream(unsteady)


@action
def streams():
    call("streams")
    return stream(tour, "a", "b", "c")


@action
def streams_later():
    call("streams_later")
    return [item.bind(value=7), stream(async_tour, "d", "e")]


@action
def streams_bare():
    call("streams_bare")
    return stream(visit(place) for place in "xy")


@action
def streams_list(ctx: Context):
    call("streams_list")
    ctx.insert(stream([visit("x")]))


@action
def generates():
    call("generates")
    yield visit("g")
    yield visit("h")
    return "told beside"


@action
async def generates_async():
    call("generates_async")
    yield item.bind(value=8)
    await asyncio.sleep(0)
    yield item.bind(value=9)


@stage
def countdown(left):
    """A loop: it returns its next round."""

    @action(collect="rounds")
    def count():
        call(f"count {left}")
        return left

    @action
    def again():
        call(f"again {left}")
        return countdown(left - 1) if left > 1 else None


@action
def polls(ctx: Context):
    """Return the same stage, a static one, until it has been seen often enough."""
    call("polls")
    ctx.store.append("polled", len(ctx.store.get("polled", [])))
    return polling if len(ctx.store["polled"]) < 4 else None


polling = Stage("polling", [polls])


@action
def local_closure():
    call("local_closure")

    @action
    def inner():
        call("inner")

    return inner


@action
def local_stage():
    call("local_stage")
    return Stage("local", [action(name="in local")(lambda: None)])


# -- switches


@action
def disables(ctx: Context):
    call("disables")
    ctx.disable("third", "tag:visit")


@action
def enables(ctx: Context):
    call("enables")
    ctx.enable("tag:visit")


# -- waits


@stage
def gate(key):
    """Wait for a value from outside."""

    @action(returns=f"gate {key}")
    def wait(ctx: Context):
        call(f"wait {key}")
        return ctx.wait_for(key)


@action
def waits_for_two(ctx: Context):
    call("waits_for_two")
    return [ctx.wait_for("one"), ctx.wait_for("two")]


@action
def opens_gates():
    call("opens_gates")
    return [gate("a"), gate("b")]


@action
def suspends(ctx: Context):
    call("suspends")
    if "go" not in ctx.store:
        raise Suspend("until somebody says go")
    return "went"


# -- middleware that writes


def noting(call):
    """Collect when it begins and ends; write at the end."""
    call.store.append("notes", f"+{call.level} {call.name}")
    yield
    call.store.append("notes", f"-{call.level} {call.name}")


ENTERED = []


def watched(call):
    """Note outside of the store that it is entered and left."""
    ENTERED.append(f"+{call.level} {call.name}")
    try:
        yield
    finally:
        ENTERED.append(f"-{call.level} {call.name}")


def cached(call):
    """Supply an outcome instead of calling."""
    ENTERED.append(f"cached {call.name}")
    call.outcome = "from the cache"
    return
    yield


def bypass(call):
    """Skip what is inside."""
    ENTERED.append(f"bypassed {call.name}")
    return
    yield


def inserting(call):
    """Insert a stage when the inside is over."""
    yield
    call.insert(visit(f"after {call.name}"))


def giving(call):
    """Supply a value that cannot be written down."""
    ENTERED.append("+giving")
    with open(os.devnull) as opened:
        yield {"handle": opened}
    ENTERED.append("-giving")


@action
def uses_handle(handle):
    call("uses_handle")
    return handle.readable()


# -- for groups


@action
def slow(ctx: Context, seconds=0.05):
    call(f"slow {ctx.stage.name}")
    time.sleep(seconds)
    return


def pid_of_call(n):
    """Return in which process it was called."""
    return [n, os.getpid()]


@action(collect="squares")
def square(n):
    return n * n


@action(collect="where")
def where():
    return os.getpid()


@action
def fails_there(ctx: Context, marker):
    """Fail as long as a file is there, in whichever process."""
    if os.path.exists(marker):
        raise RuntimeError("fails there")
    return "fine there"


# -- for runs in several processes


@action
def waits_for_file(folder):
    """Say that it has begun, and wait until a file is there."""
    open(os.path.join(folder, "begun"), "w").close()
    while not os.path.exists(os.path.join(folder, "go on")):
        time.sleep(0.005)
    return "went on"


held = first >> waits_for_file >> second


@stage
def number(n, run):
    """One of many small steps."""

    @action(collect="numbers")
    def one():
        return [run, n]


@action
def all_numbers(n, run):
    return [number(each, run) for each in range(n)]


numbers = first >> all_numbers >> parallel(second, item) >> third
long_held = first >> all_numbers >> parallel(second, item) >> waits_for_file >> third
