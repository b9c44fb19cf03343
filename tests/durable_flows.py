"""Flows of the model as definitions that a journal can refer to: what an action does is plain data, bound to it.

The same parts as in `test_laws`, but nothing here is a closure. Where those trace their layers, these write to the store.
"""

import asyncio
import itertools
from collections import Counter
from dataclasses import replace
from functools import partial

from model import Act, Par, Pipe, Stg, named

from flowdeco import Bail, Context, Stage, action, parallel, pipeline, stream

HOPELESS = 99  # who fails so often fails always


class Hopeless(Exception):
    """A failure that no retry tries again."""


class World:
    """What outlives a run: how often actions were called. The tests of crashes have one that outlives the process."""

    def __init__(self):
        self.trace = []
        self.counts = Counter()

    def called(self, name):
        """Note a call, and return how many there were; to be interrupted, raise."""
        self.trace.append(name)
        self.counts[name] += 1
        return self.counts[name]

    def ends(self, name):
        """Called when an action has done its work."""


world = World()


def enter(other):
    """Have all actions live in this world."""
    global world
    world = other


# -- layers


def noted(call, *, name):
    """Collect when it is entered and left."""
    call.store.append("notes", f"+{name}")
    try:
        yield
    finally:
        call.store.append("notes", f"-{name}")


def again(call, *, name):
    """Retry, more often than anything here can fail."""
    call.store.append("notes", f"+{name}")
    for _ in range(50):
        try:
            yield
            break
        except ValueError:
            pass
    call.store.append("notes", f"-{name}")


def swallow(call, *, name):
    """Recover every failure."""
    try:
        yield
    except Exception:
        call.store.append("notes", f"!{name}")


def leave(call, *, name):
    """Skip the target."""
    call.store.append("notes", f"+{name}")
    yield from ()


LAYERS = {"around": noted, "retry": again, "swallow": swallow, "leave": leave}


def layers(given):
    """Make middleware of what a part says."""
    return [partial(LAYERS[kind], name=name) for kind, name in given]


# -- actions


def begin(part, home, ctx):
    """Do what the part says; return the units that it returns."""
    calls = world.called(part.name)
    if part.writes:
        ctx.store[f"{part.name} wrote"] = part.name
    ctx.insert(*units(part.inserted))
    if part.disables:
        ctx.disable(part.disables)
    if part.fails >= HOPELESS:
        raise Hopeless(part.name)
    if calls <= part.fails:
        raise ValueError(part.name)
    if part.bails:
        raise Bail(part.name)
    returned = units(part.returned)
    if part.loops:
        if home is None:
            home = Stg(part.name, (part,), tag=part.tag)
        less = tuple(replace(each, loops=max(0, each.loops - 1)) for each in home.actions)
        returned.append(stg(replace(home, actions=less)))
    world.ends(part.name)
    return returned


@action
def plain(part, home, ctx: Context):
    returned = begin(part, home, ctx)
    if part.how == "stream" and returned:
        return stream(units, part.returned)
    if part.how == "generator" and returned:
        return (unit for unit in returned)
    if part.value is not None and returned:  # the data, with units inserted beside it
        ctx.insert(*returned)
        return part.value
    return returned or part.value


@action
async def coroutine(part, home, ctx: Context):
    await asyncio.sleep(0)
    return plain(part, home, ctx)


@action
def generator(part, home, ctx: Context):
    yield from begin(part, home, ctx)
    return part.value


@action
async def async_generator(part, home, ctx: Context):
    for unit in begin(part, home, ctx):
        yield unit


def act(part, home=None):
    """Return the action."""
    function = coroutine if part.asynchronous else plain
    if part.how == "generator function":
        function = async_generator if part.asynchronous and part.value is None else generator
    return function.bind(part=part, home=home).with_options(
        name=part.name,
        collect="collected" if part.collects else None,
        returns=None if part.collects else part.name,
        use=layers(part.use),
        tags=["t"] * part.tag,
    )


# -- the rest


def stg(part):
    """Return the stage."""
    return Stage(
        part.name,
        [act(each, part) for each in part.actions],
        data=None if part.data is None else {"k": part.data},
        use=layers(part.use),
        use_actions=layers(part.use_actions),
        tags=["t"] * part.tag,
    )


def pipe(part):
    """Return the pipeline."""
    if not part.name:
        return pipeline(*units(part.units))
    given = {field: layers(getattr(part, field)) for field in ("use", "use_stages", "use_actions")}
    return pipeline(*units(part.units), name=part.name, **given)


LIMIT = 1  # of the groups that are made


def par(part):
    """Return the parallel group."""
    branches = [stream(units, part.units)] if part.streamed else units(part.units)
    failures = f"{part.name} lost" if part.lists else None
    return parallel(
        *branches, name=part.name, limit=LIMIT, tolerate=part.tolerate, enough=part.enough or None, failures=failures
    )


MAKERS = {Act: act, Stg: stg, Pipe: pipe, Par: par}


def unit(part):
    """Return the definition of a part."""
    return MAKERS[type(part)](part)


def units(parts):
    """Return the definitions of parts; also as the function of a stream."""
    return [unit(part) for part in parts]


# -- what a run came to


def records(run):
    """What must be the same, but for the attempts: a run that is resumed counts them anew."""
    return [
        (s.name, str(s.status), s.inserted_by, s.recovered, repr(s.error),
         [(a.name, str(a.status), a.inserted_by, a.recovered, repr(a.error)) for a in s.actions])
        for s in run.stages
    ]  # fmt: skip


def came_to(run):
    """What a run came to."""
    store = {key: repr(value) if key.endswith(" lost") else value for key, value in run.store.items()}
    return str(run.status), store, run.result, run.reason, records(run)


# -- flows by chance: as those of `test_laws`, from a seed, and of a kind whose outcome does not hang on when it was killed


def some_layers(chance, *kinds, often=0.2):
    """A few layers; they are given names later."""
    return tuple(chance.choice(kinds) for _ in range(2) if chance.random() < often)


def random_act(chance, inside, sure):
    """An action; `sure` ones do not fail."""
    fails = 0 if sure else chance.choice([0] * 8 + [1, 2, HOPELESS])
    use = some_layers(chance, "around", "swallow")
    return Act(
        value=chance.choice([None, 1, 2]),
        collects=chance.random() < 0.4,
        writes=chance.random() < 0.3,
        inserted=inside if chance.random() < 0.3 else (),
        returned=inside if chance.random() < 0.7 else (),
        how=chance.choice(["list", "list", "generator", "generator function", "stream"]),
        loops=chance.choice([0] * 6 + [1, 2]),
        disables=chance.choice([None] * 8 + ["tag:t", "s4", "a5"]),
        fails=fails,
        bails=not sure and chance.random() < 0.03,
        use=(*use, "retry") if 0 < fails < HOPELESS else use,  # else it would matter whether a killed call had counted
        tag=chance.random() < 0.15,
        asynchronous=chance.random() < 0.15,
    )


def random_part(chance, depth, sure):
    """A unit with units in it."""

    def several(most):
        return tuple(random_part(chance, depth - 1, sure) for _ in range(chance.randrange(most + 1))) if depth else ()

    kind = chance.random()
    if not depth or kind < 0.4:
        return random_act(chance, several(2), sure)
    if kind < 0.65:
        return Stg(
            actions=tuple(random_act(chance, several(1), sure) for _ in range(chance.randrange(4))),
            data=None if sure else chance.choice([None, 0, 1]),
            use=some_layers(chance, "around", "retry", "swallow"),
            use_actions=some_layers(chance, "around", often=0.1),
            tag=chance.random() < 0.1,
        )
    if kind < 0.8:
        return Pipe(
            name=chance.choice(["", "p"]),
            units=several(3),
            use=some_layers(chance, "around", "retry", "swallow"),
            use_stages=some_layers(chance, "around", often=0.1),
        )
    return Par(
        units=several(4),
        streamed=chance.random() < 0.4,
        tolerate=chance.choice([0, 0, 1, 2]),
        enough=0 if sure else chance.choice([0, 0, 0, 1, 2]),  # which ones count depends on their timing
        lists=chance.random() < 0.5,
    )


def random_flow(chance, sure):
    """A pipeline with everything in it, each part with a name of its own."""
    units = tuple(random_part(chance, chance.randrange(4), sure) for _ in range(chance.randrange(1, 5)))
    return named(Pipe("p", units), itertools.count(1))
