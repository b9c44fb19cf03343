"""One recorded step, performed again where the run had come to it, and compared with what it did then."""

from collections import Counter

import pytest
from scripted import performed, terms_of

from flowdeco import Context, Run, Stage, Status, Store, action, parallel, pipeline, stage
from flowdeco.cli.walk import walk
from flowdeco.durable import MemoryJournal
from flowdeco.durable.digests import digest
from flowdeco.engine.evaluation import evaluate_run
from flowdeco.engine.one_step import OneStep, Place, Witness, differences
from flowdeco.engine.outcome import ActionRecord
from flowdeco.engine.reading import read_steps
from flowdeco.engine.requests import CAUGHT_UP, Begin, Save
from flowdeco.engine.rows import outcomes
from flowdeco.errors import CodeChangedError
from flowdeco.middleware import atomic, cached, recover, retry
from flowdeco.model.definitions import as_pipeline
from flowdeco.model.deltas import NOTHING, Delta
from flowdeco.model.keys import Local

CALLS = []


@pytest.fixture(autouse=True)
def no_calls():
    """Each test has its own."""
    CALLS.clear()


def act(name, value=None, error=None):
    """An action that notes its call, and what it sees."""

    @action(name=name, returns=name)
    def body(ctx: Context):
        CALLS.append((name, sorted(ctx.store)))
        if error is not None:
            raise error
        return value

    return body


def noting(call):
    CALLS.append(("enter", call.name))
    yield


@stage
def new(n):
    act("n", n)


own = act("own", 8)


@action(name="inserts")
def inserts():
    CALLS.append(("inserts", []))
    return [new(7), own]


GENTLE = recover(on=ValueError)
FLOWS = {
    "plain": Stage("s", [act("a", 1), act("b", 2)]) >> act("c", 3),
    "inserted": Stage("s", [inserts, act("b", 2)]) >> act("c", 3),
    "layers": pipeline(act("a", 1), Stage("s", [act("b", 2), act("c", 3)], use=[noting]), name="in", use=[noting]),
    "group": act("a", 1) >> parallel(act("b", 2) >> act("c", 3), act("d", 4)) >> act("e", 5),
    "nested": parallel(
        pipeline(act("a", 1), parallel(act("b", 2), act("c", 3) >> act("d", 4)), act("e", 5)), act("f", 6)
    ),
    "failed": act("a", 1) >> Stage("s", [act("b", 2), act("bad", error=ValueError("no"))]),
    "recovered": pipeline(act("a", 1), act("bad", error=ValueError("no")), name="in", use=[GENTLE]) >> act("c", 3),
    "recovered stage": Stage("s", [act("a", 1), act("bad", error=ValueError("no"))], use=[GENTLE]) >> act("c", 3),
    "lost": parallel(act("a", 1), act("b", 2) >> act("bad", error=ValueError("no")), tolerate=1) >> act("c", 3),
    "atomic": pipeline(act("a", 1), act("b", 2), name="in", use=[atomic]) >> act("c", 3),
}


def recorded(flow):
    """The run of a flow, as its journal has it."""
    journal = MemoryJournal()
    as_pipeline(flow).run(journal=journal, run_id="run-1", check=False)
    CALLS.clear()
    return journal, *read_steps(journal.read("run-1"), journal.codec)


def replayed(flow, journal, store, steps, place):
    """What the step at a place does now, None if it was not reached; the others are not called."""
    past = OneStep(steps, place)
    witness = Witness(journal, "run-1", lambda function: "code", digest, past)
    run = Run("run-1", as_pipeline(flow), Store(dict(store)))
    before = journal.read("run-1")

    def answer(request):
        if request is CAUGHT_UP or isinstance(request, Begin):
            return past.called is None
        return None if isinstance(request, Save) else performed(request)

    terms = terms_of(recorder=witness, past=past, most_records=0)
    walk(evaluate_run(run, terms, ()), answer, lambda branch: branch.sealed or branch.id in past.way)
    assert journal.read("run-1") == before
    if witness.seen is None:
        return None
    assert past.called.name == steps[place.branch][place.number].name
    return outcomes([witness.seen], journal.codec)[place.branch][place.number]


@pytest.mark.parametrize("name", FLOWS)
def test_each_step_is_performed_alone_and_does_the_same(name):
    """The steps before it are restored and not called, those after it and in other branches do not begin."""
    journal, store, steps = recorded(FLOWS[name])
    FLOWS[name].run(check=False)
    seen = dict(each for each in CALLS if each[0] != "enter")
    places = [
        Place(branch, at) for branch, mine in steps.items() for at, did in mine.items() if did.unit.kind == "action"
    ]
    assert len(places) >= 3
    for place in places:
        CALLS.clear()
        before = steps[place.branch][place.number]
        now = replayed(FLOWS[name], journal, store, steps, place)
        called = [each for each in CALLS if each[0] != "enter"]
        assert called == [(before.name, seen[before.name])]
        assert list(differences(before, now, digest)) == []
        assert Counter(each[1] for each in CALLS if each[0] == "enter").most_common(1)[:1] in (
            [], [("in", 1)], [("s", 1)],
        )  # fmt: skip


def test_another_unit_in_its_place_is_a_changed_pipeline():
    """So is one that does not lead there; a layer that answers in place of the action is left out."""
    before = Stage("s", [act("a", 1), act("b", 2)])
    journal, store, steps = recorded(before)
    for flow in (Stage("s", [act("a", 1), act("c", 2)]), Stage("t", [act("a", 1), act("b", 2)])):
        past = OneStep(steps, Place("0", 2))
        witness = Witness(journal, "run-1", lambda function: "code", digest, past)
        run = Run("run-1", as_pipeline(flow), Store(dict(store)))
        terms = terms_of(recorder=witness, past=past)
        walk(evaluate_run(run, terms, ()), performed, lambda branch: True)
        assert (type(run.error), witness.seen, past.called) == (CodeChangedError, None, None)
        assert str(run.error).startswith("the pipeline no longer leads to this step: ")
    layers = (noting, cached("nowhere"), retry(on=ValueError, attempts=2))
    assert OneStep(steps, Place("0", 2)).layers_of(layers) == (layers[0], layers[2])


def did(status=Status.COMPLETED, *, writes=None, **more):
    """What came of a step."""
    return ActionRecord("a", act("a"), status, 0.0, 0.0, writes=writes, **more)


def delta(puts=(), deletes=(), appends=(), changes=()):
    """Writes to a store."""
    return Delta(dict(puts), list(deletes), dict(appends), dict(changes))


class Odd:
    """A value that is equal to itself only."""

    def __init__(self, value):
        self.value = value


FAILURE = did(Status.FAILED, error=ValueError("no"), result=1)
ONE, TWO = Stage("one"), Stage("two")


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        (did(), did(), []),
        (did(attempts=2, fingerprint="x"), did(), []),
        (did(), did(Status.SUSPENDED), ["status"]),
        (did(recovered=True), did(), []),
        (FAILURE, FAILURE._replace(recovered=True), ["status"]),
        (FAILURE, FAILURE._replace(error=ValueError("no"), result=2), []),
        (FAILURE, FAILURE._replace(error=KeyError("no"), result=2), ["error"]),
        (FAILURE._replace(recovered=True), FAILURE._replace(recovered=True, result=2), ["result"]),
        (did(), FAILURE._replace(status=Status.COMPLETED, result=did().result), ["error"]),
        (did(result=1), did(result=2), ["result"]),
        (did(result=Odd(1)), did(result=Odd(1)), []),
        (did(result=Odd(1)), did(result=Odd(2)), ["result"]),
        (did(result=lambda: 1), did(result=(n for n in ())), ["result"]),
        (did(), did(writes=NOTHING), []),
        (did(writes=delta({"k": 1})), did(), ["the value of 'k'"]),
        (did(), did(writes=delta({"k": 1})), ["the value of 'k'"]),
        (did(writes=delta({"k": 1, "l": 1})), did(writes=delta({"k": 1, "l": 2})), ["the value of 'l'"]),
        (did(writes=delta({Local("k"): 1})), did(writes=delta({Local("k"): 2})), ["the value of 'k'"]),
        (did(writes=delta(appends={"k": [1]})), did(writes=delta(appends={"k": [2]})), ["the value of 'k'"]),
        (did(writes=delta(changes={"k": [1]})), did(writes=delta(changes={"k": [2]})), ["the value of 'k'"]),
        (did(writes=delta(deletes=["k", "l"])), did(writes=delta(deletes=["l", "k"])), []),
        (did(writes=delta(deletes=["k"])), did(), ["the deleted keys"]),
        (did(inserted=(ONE,)), did(inserted=(ONE,)), []),
        (did(inserted=(ONE,)), did(inserted=(Stage("one"),)), []),
        (did(inserted=(ONE,)), did(inserted=(TWO,)), ["the inserted units"]),
        (did(inserted=(ONE,)), did(inserted=(ONE, TWO)), ["the inserted units"]),
        (did(switches=(("a", True),)), did(switches=(("a", False),)), ["the switched selectors"]),
        (did(result=1, switches=(("a", True),)), did(result=2), ["result", "the switched selectors"]),
    ],
)
def test_what_differs_is_named(before, now, found):
    """Values by their content; a failure has no effect, unless it was recovered."""
    assert list(differences(before, now, digest)) == found
