"""A returned value whose effect is refused is the action's failure: for its middleware, its events and its records."""

import asyncio
import threading

import pytest

from flowdeco import Context, Key, Sleep, Stage, action, parallel, pipeline, stage, stream
from flowdeco.durable import MemoryJournal, SqliteJournal
from flowdeco.errors import DefinitionError, ReturnValueError, RunError, SerializationError, StoreTypeError, WiringError
from flowdeco.events import ActionFinished
from flowdeco.middleware import cached, recover, retry


@action
def needs(nothing_supplies_this): ...


async def sleeps(ctx: Context):
    """Forgets to await."""
    ctx.sleep(1)


async def yields():
    """Yields a mix."""
    yield 1
    yield Stage("x")


def writes(ctx: Context):
    """Writes a value that is not written to a journal."""
    ctx.store["lock"] = threading.Lock()


def inserts(ctx: Context):
    """Inserts by its context, and returns data."""
    ctx.disable("other")
    ctx.store["mine"] = 1
    ctx.insert(needs)
    return 1


def action_record(run, name):
    """The only record of an action of that name."""
    (found,) = [record for each in run.stages for record in each.actions if record.name == name]
    return found


REFUSED = {
    "a wrong number of parts": (lambda: (1, 2, 3), {"returns": ("x", "y")}, ReturnValueError),
    "no parts": (lambda: 1, {"returns": ("x", "y")}, ReturnValueError),
    "the wrong type": (lambda: "s", {"returns": Key("n", int)}, StoreTypeError),
    "the wrong type of items": (lambda: 1, {"collect": Key("n", dict)}, StoreTypeError),
    "a mix": (lambda: [Stage("x"), 3], {}, ReturnValueError),
    "a mix that was yielded": (yields, {}, ReturnValueError),
    "hidden units": (lambda: {"x": Stage("x")}, {}, ReturnValueError),
    "a key that holds no list": (lambda: 1, {"collect": "text"}, StoreTypeError),
    "an insertion": (lambda: needs, {}, WiringError),
    "an insertion by the context": (inserts, {}, WiringError),
    "a forgotten sleep": (sleeps, {}, RunError),
    "a stream that cannot be repeated": (lambda: stream([Stage("x")]), {}, DefinitionError),
    "a value that cannot be written": (lambda: [threading.Lock()], {}, SerializationError),
    "a write that cannot be written": (writes, {}, SerializationError),
    "an item that cannot be written": (lambda: [threading.Lock()], {"collect": "xs"}, SerializationError),
    "a result that is not stored": (lambda: [threading.Lock()], {"returns": None}, SerializationError),
    "a stage that cannot be referred to": (lambda: Stage("x", [action(lambda: 1, name="b")]), {}, SerializationError),
}


@pytest.fixture(params=REFUSED)
def refused(request):
    """An action whose effect is refused; the error; the options of the run."""
    function, options, error = REFUSED[request.param]
    durable = error is SerializationError or request.param == "a stream that cannot be repeated"
    return action(**{"name": "a", **options})(function), error, {"journal": MemoryJournal()} if durable else {}


@pytest.mark.parametrize("place", ["action", "stage"])
def test_recover_sees_a_refused_effect(run, refused, place):
    """The record and the event are those of a recovered failure, nothing of the effect is left, and the run continues."""
    refused, error, options = refused
    heard, use = [], [recover(on=error)]
    inner = refused.with_options(use=use) if place == "action" else refused
    flow = Stage("s", [inner], use_actions=use if place == "stage" else (), data={"text": "t"}) >> Stage("other")
    finished = run(flow, observers=[heard.append], **options)
    record = action_record(finished, "a")
    assert (finished.status, record.status, record.recovered, type(record.error)) == (
        "completed",
        "failed",
        True,
        error,
    )
    [event] = [each for each in heard if isinstance(each, ActionFinished)]
    assert (event.status, event.recovered, event.error) == ("failed", True, record.error)
    assert dict(finished.store) == {"text": "t"}
    assert [each.status for each in finished.stages] == ["completed", "completed"]


def test_retry_calls_an_action_again_whose_effect_was_refused(run, refused):
    """As often as it does after an exception."""
    refused, error, options = refused
    flow = Stage("s", [refused.with_options(use=[retry(on=error, attempts=3, wait=0)])], data={"text": "t"})
    record = action_record(run(flow, check=False, **options), "a")
    assert (record.status, record.attempts, [type(each) for each in record.failures]) == ("failed", 3, [error] * 2)


def test_an_attempt_with_a_right_value_counts(run):
    """Nothing of the refused ones is left: writes, insertions, items."""
    calls = []

    @action(returns=("x", "y"), use=[retry(on=ReturnValueError, wait=0)])
    def parts(ctx: Context):
        calls.append(ctx.attempt)
        ctx.store[f"attempt {ctx.attempt}"] = ctx.store.get("attempt 1")
        ctx.store.append("items", ctx.attempt)
        ctx.insert(Stage(f"s{ctx.attempt}"))
        return (1, 2, 3)[: 4 - ctx.attempt]

    finished = run(Stage("s", [parts], data={"items": [0]}))
    assert dict(finished.store) == {"items": [0, 2], "attempt 2": None, "x": 1, "y": 2}
    assert (calls, [each.name for each in finished.stages]) == ([1, 2], ["s", "s2"])


def test_any_middleware_sees_it_where_it_waits_for_the_outcome(run):
    """A generator or an async one: the exception is raised at its `yield`, and passes through it with its place in a note."""
    seen = []

    def sees(call):
        try:
            yield
        except StoreTypeError as error:
            seen.append(type(error))
            raise

    async def sees_too(call):
        try:
            yield
        except StoreTypeError as error:
            seen.append(type(error))
            raise

    flow = action(name="a", returns=Key("n", int), use=[sees, sees_too])(lambda: "s")
    with pytest.raises(StoreTypeError) as raised:
        run(flow)
    assert seen == [StoreTypeError] * 2
    assert any("action 'a' of stage 'a'" in note for note in raised.value.__notes__)


def test_a_refused_outcome_is_not_cached(run, tmp_path):
    """A failure is not."""
    calls = []

    @action(returns=Key("n", int), use=[cached(tmp_path / "cache")])
    def a(text: str):
        calls.append(text)
        return text

    for _ in range(2):
        with pytest.raises(StoreTypeError):
            run(a, {"text": "x"})
    assert calls == ["x", "x"]


@action(returns=("x", "y"), use=[recover(on=ReturnValueError, outcome=(0, 0))])
def wrong_parts():
    """Returns a part too many."""
    return 1, 2, 3


@action
def inserts_it():
    """Inserts it."""
    return [Stage("inserted", [wrong_parts])]


@pytest.mark.parametrize(
    "flow",
    [inserts_it, parallel(wrong_parts), pipeline(parallel(parallel(wrong_parts)))],
    ids=["inserted", "group", "nested"],
)
def test_it_is_recovered_wherever_the_action_is_and_a_resume_restores_that(run, flow):
    """In an inserted stage, in groups; the recovered outcome counts."""
    journal, fails = MemoryJournal(), [True]

    @action
    def last(x):
        if fails:
            raise OSError
        return x

    whole = flow >> last
    failed = run(whole, check=False, journal=journal)
    assert action_record(failed, "wrong_parts").recovered
    fails.clear()
    resumed = whole.resume(failed.id, journal=journal)
    assert (resumed["x"], resumed["y"], resumed["last"]) == (0, 0, 0)
    record = action_record(resumed, "wrong_parts")
    assert (record.restored, record.recovered, type(record.error)) == (True, True, ReturnValueError)


def test_a_pause_of_retry_survives_a_suspension(run):
    """The refused attempt is journaled, and the next one is the last."""
    journal = MemoryJournal()

    @action(returns=Key("n", int), use=[retry(on=StoreTypeError, attempts=2, wait=0.05, jitter=False)])
    def a(ctx: Context):
        return "s" if ctx.attempt == 1 else ctx.attempt

    suspended = run(a, journal=journal, suspend_after=0.01)
    assert suspended.status == "suspended"
    finished = a.resume(suspended.id, journal=journal)
    assert (finished["n"], [type(each) for each in action_record(finished, "a").failures]) == (2, [StoreTypeError])


@pytest.mark.parametrize("codec", ["json", "pickle"])
@pytest.mark.parametrize("value", [1j, [1, "a"], object()])
def test_a_value_is_tried_with_the_codec_of_its_journal(run, value, codec, tmp_path):
    """JSON knows fewer than pickle."""
    journal = SqliteJournal(tmp_path / "r.db", codec=codec)
    finished = run(action(lambda: value, name="a").with_options(use=[recover(on=SerializationError)]), journal=journal)
    assert action_record(finished, "a").recovered is (codec == "json" and type(value) is object)


def test_an_insertion_that_middleware_still_supplies_is_not_refused_early(run):
    """On its way out, it may write or insert what is missing."""

    def supplies(call):
        yield
        call.store["nothing_supplies_this"] = 1

    finished = run(action(lambda: needs, name="a").with_options(use=[recover(on=WiringError), supplies]))
    assert (finished.status, [each.name for each in finished.stages[0].actions]) == ("completed", ["a", "needs"])


def test_an_outcome_that_middleware_supplies_is_checked_when_all_of_it_has_ended(run):
    """It is not the action's value: no layer of the action sees that failure."""
    seen = []

    def supplies(call):
        yield
        call.outcome = "text"

    def sees(call):
        yield
        seen.append(call.outcome)

    flow = action(name="a", returns=Key("n", int), use=[recover(on=Exception), sees, supplies])(lambda: 1)
    with pytest.raises(StoreTypeError):
        run(flow)
    assert seen == ["text"]


@stage
def side_by_side():
    """An action that is tried while others run."""

    @action(collect="found", use=[recover(on=StoreTypeError)])
    async def fine(number: int = 1):
        await asyncio.sleep(0)
        return number


def test_what_is_tried_leaves_no_trace_in_a_group(run):
    """Each branch has its own overlay; items are collected once."""

    def naps(call):
        yield Sleep(0)
        yield

    flow = parallel(*(side_by_side.with_options(name=f"s{n}", use_actions=[naps]) for n in range(4)))
    assert run(Stage("first", data={"found": [0]}) >> flow)["found"] == [0, 1, 1, 1, 1]
