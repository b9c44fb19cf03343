"""The call of an action: its arguments and its context, its value once it is settled, and the messages it continues with."""

from types import SimpleNamespace
from typing import Annotated

import pytest
from scripted import in_stage, perform, performed, recorder
from support import step, wants

from flowdeco import Key, Stage, Suspend, action
from flowdeco.engine.calling import call_action, messages_after, settled, simple_arguments
from flowdeco.engine.effects import Execution
from flowdeco.engine.messages import MOST_TEXT, MessageRecord, Messages
from flowdeco.engine.outcome import ActionRecord, Status
from flowdeco.engine.requests import Await, Awaited, Raised
from flowdeco.engine.results import Begun, Exhausting, Yielded, exhaust
from flowdeco.errors import Cancelled, ContextEndedError, MissingInputError, StoreTypeError
from flowdeco.model.steps import step_of

ACTION = step([], "a")


def act_of(function, number=3, **options):
    """The execution of this action."""
    return Execution(step_of(action(function, **options)), None, number, 0.0)


def called(branch, act, values=None):
    """Call an action in this branch; return the requests, and what came of it."""
    requests = []
    return requests, perform(call_action(branch, act, values or {}), requests)


# -- arguments


def reads(n):
    pass


def reads_nothing():
    pass


def has_default(n, missing=1):
    pass


def has_context(ctx, n):
    pass


def by_keyword(*, n):
    pass


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        (reads, {"n": 1}, (1,)),
        (reads_nothing, {}, ()),
        (has_default, {"n": 1, "missing": 2}, (1, 2)),
        (reads, {}, None),
        (has_default, {"n": 1}, None),
        (has_context, {"n": 1}, None),
        (by_keyword, {"n": 1}, None),
    ],
)
def test_arguments_are_simple_if_all_of_them_are_in_the_store(function, inputs, expected):
    """And passed by position; anything else is gathered one by one."""
    assert simple_arguments(in_stage(Stage("s"), inputs), step_of(action(function))) == expected


def test_no_arguments_are_simple_where_perhaps_no_step_may_begin():
    """That is looked at by the call."""
    branch = in_stage(Stage("s"), {"n": 1})
    branch.stop()
    assert simple_arguments(branch, step_of(action(reads))) is None


@pytest.mark.parametrize(
    ("value", "durable", "is_simple"),
    [(1, True, True), (None, True, True), ("text", True, True), ([1], True, False), ([1], False, True)],
)
def test_in_a_durable_run_only_values_that_cannot_be_changed_are_simple(value, durable, is_simple):
    """Others are looked at, before and after."""
    branch = in_stage(Stage("s"), {"n": value}, recorder=recorder() if durable else None)
    assert simple_arguments(branch, step_of(action(reads))) == ((value,) if is_simple else None)


def test_an_action_is_called_with_what_its_parameters_name():
    """Values of its layers come before those of the store; its context knows the run, the step and the attempt."""
    seen = []

    def body(ctx, n, given, *, missing=3):
        seen.append(ctx)
        return n, given, missing

    branch, act = in_stage(Stage("s"), {"n": 1, "given": 0}), act_of(body)
    (request,), value = called(branch, act, {"given": 2})
    assert (request[0], request[2], value) == (act.step, {"missing": 3}, (1, 2, 3))
    (context,) = seen
    assert (context.run_id, context.stage, context.action.name, context.pipeline, context.attempt) == (
        "run-1", branch.scope.unit, "body", branch.scope.pipeline, 1,
    )  # fmt: skip
    assert context.step_id == act.context.step_id
    assert context.step_id != called(branch, act_of(body, number=4), {"given": 2})[1]


def test_what_is_missing_is_explained_before_anything_is_called():
    """By what became of the actions before it."""
    branch = in_stage(Stage("s", [step([], "n"), wants("n")]))
    branch.scope.records.append(ActionRecord("n", step([], "n"), Status.SKIPPED, 0.0, 0.0))
    requests, value = called(branch, Execution(step_of(wants("n")), None, 2, 0.0))
    assert (requests, type(value.error)) == ([], MissingInputError)
    assert "of stage 's' needs 'n'" in str(value.error)
    assert "skipped" in value.error.__notes__[0]


def test_a_value_of_the_wrong_type_is_a_failure_of_the_action():
    """It is not called, and there is nothing to explain."""

    def typed(n: Annotated[int, Key("n", int)]):
        pass

    requests, value = called(in_stage(Stage("s"), {"n": "text"}), act_of(typed))
    assert (requests, type(value.error), getattr(value.error, "__notes__", [])) == ([], StoreTypeError, [])


def test_an_action_that_may_not_begin_is_not_called():
    """Its layers may have taken their time."""
    branch = in_stage(Stage("s"), {"n": 1})
    branch.guarded = True
    assert called(branch, act_of(reads))[1] is None
    branch.stop()
    requests, value = called(branch, act_of(reads))
    assert (requests, type(value.error)) == ([], Cancelled)


# -- its context


def test_a_context_ends_with_the_call_of_its_action():
    """After that, it says whose it was."""
    contexts = []

    def keeps(ctx, fails):
        contexts.append(ctx)
        if fails:
            raise ERROR

    for fails in (False, True):
        act = act_of(keeps, name="a")
        called(in_stage(Stage("s"), {"fails": fails}), act)
        assert act.context is contexts[-1]
        with pytest.raises(ContextEndedError, match="'a'"):
            contexts[-1].store["k"] = 1


@pytest.mark.parametrize("layered", [False, True])
def test_messages_are_kept_for_all_attempts(layered):
    """By the layers of an action, if it has any; each has the number of failed attempts before it."""
    said = MessageRecord("log", 1.0, {"level": "INFO", "text": "before"})

    def speaks(ctx):
        ctx.emit("now")

    act = act_of(speaks)
    keeper = act
    if layered:
        keeper = act.layers = SimpleNamespace(attempt=3, messages=None)
    keeper.messages = Messages([said])
    called(in_stage(Stage("s")), act)
    before, now = keeper.messages.recorded()
    assert (before, now.kind, now.failures) == (said, "emit", 2 if layered else 0)
    assert act.context.attempt == (3 if layered else 1)
    first = act_of(speaks)
    if layered:
        first.layers = SimpleNamespace(attempt=1, messages=None)
    called(in_stage(Stage("s")), first)
    assert [each.kind for each in (first.layers or first).messages.recorded()] == ["emit"]
    silent = act_of(lambda ctx: None)
    silent.layers = SimpleNamespace(attempt=1, messages=None)
    called(in_stage(Stage("s")), silent)
    assert (silent.messages, silent.layers.messages) == (None, None)


def in_a_durable_run(inputs, function, **options):
    """A branch of one, and an action that is about to be called, under watch."""
    kept = recorder()
    branch, act = in_stage(Stage("s"), inputs, recorder=kept), act_of(function, **options)
    act.watch = kept.looks.watch(branch.store, branch.note_changed)
    return branch, act


def test_in_a_durable_run_every_value_is_looked_at_before_the_action_gets_it():
    """Its arguments, and what it reads through its context: what it changes in place is known."""

    def changes(ctx, n):
        n.append(1)
        ctx.store["m"].append(1)

    branch, act = in_a_durable_run({"n": [], "m": [], "other": []}, changes)
    called(branch, act)
    assert act.watch.with_changes(act.context.store.delta()).changes == {"n": [1], "m": [1]}


def test_frozen_values_are_not_looked_at():
    """By the promise of the key, from the first action on that has it."""
    branch, act = in_a_durable_run({"n": []}, lambda n: n.append(1), returns=Key("n", list, frozen=True))
    called(branch, act)
    assert branch.terms.recorder.looks.frozen == {"n"}
    assert not branch.terms.recorder.looks.known


# -- its value


def generator():
    yield 1
    yield 2
    return 3


async def async_generator():
    yield 1
    yield 2


async def coroutine(value=5):
    return value


def asked(value, answers=(), annotation=None):
    """What has to be asked for to settle a value, and what it comes to."""

    def function():
        pass

    if annotation is not None:
        function.__annotations__["return"] = annotation
    walk, requests = settled(step_of(action(function, name="a", timeout=7.0)), value), []
    try:
        requests.append(next(walk))
        for answer in answers:
            requests.append(walk.send(answer))
    except StopIteration as end:
        return requests, end.value
    walk.close()
    return requests, None


@pytest.mark.parametrize("value", [1, None, [1], {"k": 1}, iter([1]), object, Raised(ValueError())], ids=type)
def test_a_plain_value_is_settled(value):
    """Nothing is asked for; other iterators are data."""
    assert asked(value) == ([], value)


def test_a_coroutine_is_awaited():
    """Within the timeout of its action; what the driver has awaited already is not awaited again."""
    value = coroutine()
    (request,), result = asked(value, ["the value"])
    assert (type(request), request.awaitable, request.timeout, request.action) == (Await, value, 7.0, "a")
    assert result == "the value"
    again = coroutine()
    assert asked(Awaited(again)) == ([], again)
    raised = Raised(ValueError())
    assert asked(value, [raised])[1] is raised
    for each in (value, again):
        each.close()


@pytest.mark.parametrize("awaited", [False, True])
def test_a_generator_is_run_to_its_end(awaited):
    """By the driver, as one call of the user's code; it may be what a coroutine came to."""
    value = coroutine() if awaited else generator()
    requests, result = asked(value, [generator(), "its items"] if awaited else ["its items"])
    (chore, args, kwargs) = requests[-1]
    assert (chore.function, chore.name, chore.timeout, chore.is_async, kwargs) == (exhaust, "a", 7.0, False, None)
    assert (exhaust(*args), result, len(requests)) == (Yielded([1, 2]), "its items", 1 + awaited)
    if awaited:
        value.close()


@pytest.mark.parametrize("driver_awaited", [False, True])
def test_an_async_generator_is_awaited_to_its_end(driver_awaited):
    """All of it in one task, within one timeout."""
    value = async_generator()
    (request,), result = asked(Awaited(value) if driver_awaited else value, ["its items"])
    assert (type(request), type(request.awaitable), request.timeout, request.action) == (Await, Exhausting, 7.0, "a")
    assert result == "its items"
    assert performed(request) == Yielded([1, 2])


def test_an_iterator_that_may_have_units_in_it_is_begun():
    """Unless the annotation excludes them: its first item shows whether it has."""
    value = map(str, [1])
    ((chore, args, kwargs),), result = asked(value, ["begun"], annotation=list[Stage])
    assert (chore.function, chore.name, chore.timeout, args, kwargs) == (Begun, "a", 7.0, (value,), None)
    assert result == "begun"
    assert asked(value)[0][0][0].function is Begun
    assert asked(value, annotation=list[int]) == ([], value)
    file = open(__file__)  # noqa: SIM115
    assert asked(file, annotation=list[Stage]) == ([], file)
    file.close()


def test_the_value_of_a_call_is_settled():
    """Whatever it is."""
    requests, value = called(in_stage(Stage("s")), act_of(generator))
    assert (len(requests), list(value), value.value) == (2, [1, 2], 3)


# -- its messages in a resumed run

SAID = [MessageRecord("emit", float(number), {"number": number}, failures) for number, failures in enumerate((0, 1, 1))]


def ended(status, error, time=3.5, failures=0):
    return MessageRecord("ended", time, {"status": status, "error": error}, failures)


def earlier(status, error=None, messages=(), failures=()):
    return ActionRecord("a", ACTION, status, 3.0, 0.5, error=error, messages=messages, failures=failures)


ERROR, FIRST = ValueError("no"), ValueError("first")


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        (earlier(Status.RUNNING), None),
        (earlier(Status.SUSPENDED, Suspend("waits")), None),
        (earlier(Status.CANCELLED, KeyboardInterrupt()), [ended("cancelled", "KeyboardInterrupt")]),
        (earlier(Status.FAILED, ERROR), [ended("failed", "ValueError: no")]),
        (earlier(Status.RUNNING, None, SAID[:1]), SAID[:1]),
        (
            earlier(Status.SUSPENDED, Suspend("waits"), SAID, [FIRST]),
            [*SAID, ended("suspended", "Suspend: waits", failures=1)],
        ),
        (
            earlier(Status.FAILED, ERROR, SAID, [FIRST]),
            [
                SAID[0], ended("failed", "ValueError: first"),
                *(each._replace(failures=0) for each in SAID[1:]), ended("failed", "ValueError: no"),
            ],
        ),
    ],
)  # fmt: skip
def test_an_action_that_runs_again_continues_the_messages_of_before(then, expected):
    """With the reason why it had ended; of a failure, attempts no longer count, and a mere wait is no message."""
    found = messages_after(then)
    assert (found if found is None else list(found.recorded())) == expected


def test_the_reason_why_an_action_had_ended_is_cut():
    """As any text of a message."""
    (message,) = messages_after(earlier(Status.FAILED, ValueError("x" * 2 * MOST_TEXT))).recorded()
    assert MOST_TEXT < len(message.payload["error"]) < MOST_TEXT + 100
