"""Streams are begun, pulled and closed by hand: each request is looked at, and answered as the test says."""

import pytest
from scripted import terms_of
from support import one, step, text_of, wants

from flowdeco import Stage, Store, Suspend, parallel, pipeline, stream
from flowdeco.engine.branch import Branch
from flowdeco.engine.history import History, Rehearsal
from flowdeco.engine.open_scopes import OpenScope, OpenStream
from flowdeco.engine.outcome import Scope
from flowdeco.engine.requests import CAUGHT_UP, Await, Chore, Deferred, Raised
from flowdeco.engine.streams import close_stream, close_streams, open_stream, pull
from flowdeco.errors import Cancelled, DefinitionError, ReturnValueError, WiringError
from flowdeco.model.sentinels import UNSET

A, B = one([], "a"), one([], "b")
NO = ValueError("no")


def branch_with(past=None, **terms):
    """The branch of a run, in a stage."""
    flow = pipeline(Stage("s"))
    branch = Branch(terms_of(past=past, **terms), Store(), OpenScope(None, flow, None, 0.0))
    branch.scope = OpenScope(branch.base, flow.units[0], None, 0.0)
    return branch


def rehearsal(*, has_more=True):
    """The first walk through a history, which has more steps of the branch, or no more."""
    return Rehearsal({"0": {9: None}} if has_more else {}, pipeline=pipeline(), code=None)


class Did:
    """A walk that was driven to its end: its requests, and what it returned."""

    def __init__(self, walk, *answers):
        self.requests = []
        left = iter(answers)
        try:
            request = walk.send(None)
            while True:
                self.requests.append(request)
                answer = next(left)
                request = walk.send(Raised(answer) if isinstance(answer, BaseException) else answer)
        except StopIteration as ended:
            self.value = ended.value
        assert list(left) == []


def agenda(branch):
    """What is on the agenda, the next thing first."""
    return list(reversed(branch.agenda))


# -- beginning


def units():
    return [A, B]


def test_a_stream_is_begun_by_calling_its_function_and_iterating_over_the_result():
    """Both are calls of user code. Then it is on the agenda, to be pulled."""
    branch, made = branch_with(), stream(max, 1, 2)
    did = Did(open_stream(branch, made, "s/a"), [A], "iterator")
    assert did.requests == [(Chore(max, "stream"), (1, 2), None), (Chore(iter, "stream"), ([A],), None)]
    assert did.value is None
    ((begun, by),) = branch.agenda
    assert (begun.stream, begun.iterator, begun.is_async, by) == (made, "iterator", False, "s/a")


def test_a_stream_of_an_iterable_is_begun_by_iterating_over_it():
    """Each time that it runs."""
    made = stream([A])
    for _ in range(2):
        assert Did(open_stream(branch_with(), made, "s/a"), iter([A])).requests == [
            (Chore(iter, "stream"), ([A],), None)
        ]


class Asynchronous:
    """An asynchronous iterable."""

    def __aiter__(self):
        return self

    async def __anext__(self):
        raise StopAsyncIteration


async def later():
    return [A]


def test_streams_may_be_asynchronous():
    """What a coroutine function returns is awaited; an asynchronous iterable has an iterator of its own kind."""
    coroutine, items = later(), Asynchronous()
    branch = branch_with()
    did = Did(open_stream(branch, stream(later), "s/a"), coroutine, items, items)
    called, awaited, begun = did.requests
    assert called == (Chore(later, "stream"), (), None)
    assert (type(awaited), awaited.awaitable) == (Await, coroutine)
    assert begun == (Chore(aiter, "stream"), (items,), None)
    assert branch.agenda[0][0].is_async
    coroutine.close()


@pytest.mark.parametrize(
    "source", [iter([A]), (unit for unit in [A]), Asynchronous()], ids=["iter", "generator", "async"]
)
def test_an_iterator_can_be_gone_through_once(source):
    """The error says what can be called again."""
    made = stream(source)
    assert Did(open_stream(branch_with(), made, "s/a"), source).value is None
    did = Did(open_stream(branch_with(), made, "s/a"))
    assert type(did.value) is DefinitionError
    assert did.requests == []
    assert str(did.value).startswith(
        f"the {made.name} inserted by s/a is used up: an iterator can be gone through once."
    )
    assert "Write stream(function, *args)" in str(did.value)


@pytest.mark.parametrize("answers", [(NO,), ([A], NO)], ids=["function", "iteration"])
def test_a_stream_that_cannot_be_begun_is_a_failure(answers):
    """With its place, and nothing on the agenda."""
    branch, error = branch_with(), ValueError("no")
    did = Did(open_stream(branch, stream(units), "s/a"), *[error if each is NO else each for each in answers])
    assert (did.value, branch.agenda) == (error, [])
    assert error.__notes__ == ["in the stream of units inserted by s/a, run 'run-1'"]


def test_awaiting_may_fail_as_well():
    """As the function itself."""
    coroutine = later()
    assert Did(open_stream(branch_with(), stream(later), "s/a"), coroutine, NO).value is NO
    coroutine.close()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (A, "the function of a stream inserted by s/a returned a single unit: a stream takes an iterable of units"),
        (5, "the function of a stream inserted by s/a returned an int, not an iterable"),
    ],
)
def test_the_function_of_a_stream_returns_an_iterable(returned, message):
    """Of units: a single one is not."""
    did = Did(open_stream(branch_with(), stream(units), "s/a"), returned)
    assert isinstance(did.value, ReturnValueError)
    assert message in str(did.value)


def stopped_branch():
    """A branch of a resumed run whose group has ended while it waited for the others."""
    parent = branch_with(History({}))
    base = OpenScope(parent.base, None, None, 0.0)
    base.place = Scope("g", "0.1", 0, None, None)
    branch = Branch(parent.terms, parent.store.fork(), base, parent, type("Conductor", (), {"id": "0.1"}), 0)
    branch.is_catching_up, branch.unit = True, A
    branch.stop()
    return branch


def test_a_branch_that_was_stopped_begins_no_stream_and_pulls_none():
    """It waits for the others to catch up first."""
    walks = (
        lambda branch: open_stream(branch, stream(units), "s/a"),
        lambda branch: pull(branch, OpenStream(stream(units), iter([A])), "s/a"),
    )
    for walk in walks:
        branch = stopped_branch()
        did = Did(walk(branch), None)
        assert did.requests == [CAUGHT_UP]
        assert isinstance(did.value, Cancelled)


# -- pulling


def opened(items=(), source=units):
    """An open stream."""
    return OpenStream(stream(source), items if hasattr(items, "__aiter__") else iter(items))


def test_what_a_stream_yields_runs_before_the_rest_of_it():
    """Pulling is a call of user code; at its end, nothing is left of it."""
    branch, made = branch_with(), opened()
    did = Did(pull(branch, made, "s/a"), B)
    assert did.requests == [(Chore(next, "stream"), (made.iterator, UNSET), None)]
    assert did.value is None
    assert agenda(branch) == [(B, "s/a"), (made, "s/a")]
    branch.agenda.clear()
    assert (Did(pull(branch, made, "s/a"), UNSET).value, branch.agenda) == (None, [])


def test_an_action_or_pipeline_is_yielded_as_well():
    """A plain pipeline as its units, in their order."""
    act, group = step([], "act"), parallel(A, B)
    branch, made = branch_with(), opened()
    Did(pull(branch, made, "s/a"), A >> group >> B)
    Did(pull(branch, made, "s/a"), act)
    assert [unit for unit, _ in agenda(branch)] == [act, made, A, group, B, made]


def test_an_asynchronous_stream_is_awaited_item_by_item():
    """Its end is a `StopAsyncIteration`; any other error is a failure, and so is that one of a stream that is not."""
    branch, made = branch_with(), opened(Asynchronous())
    did = Did(pull(branch, made, "s/a"), A)
    (awaited,) = did.requests
    assert (type(awaited), type(awaited.awaitable)) == (Await, Deferred)
    with pytest.raises(StopAsyncIteration):
        awaited.awaitable.__await__().send(None)
    branch.agenda.clear()
    assert Did(pull(branch, made, "s/a"), StopAsyncIteration()).value is None
    assert branch.agenda == []
    assert Did(pull(branch, made, "s/a"), NO).value is NO
    stop = StopAsyncIteration()
    assert Did(pull(branch, opened(), "s/a"), stop).value is stop


def test_a_stream_that_fails_is_closed_with_the_rest_of_the_agenda():
    """So it is on it once more; the error has its place."""
    branch, made, error = branch_with(), opened(), ValueError("no")
    assert Did(pull(branch, made, "s/a"), error).value is error
    assert branch.agenda == [(made, "s/a")]
    assert error.__notes__ == ["in a stream inserted by 's/a', run 'run-1'"]


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        (
            5,
            ReturnValueError,
            "the stream inserted by s/a yielded the int 5, which is not an action, stage, pipeline or stream",
        ),
        (Stage("needs", [wants("nowhere")]), WiringError, "nowhere"),
    ],
)
def test_what_cannot_run_is_refused_as_it_is_yielded(item, kind, message):
    """It is not a unit, or nothing supplies what it needs."""
    branch, made = branch_with(), opened()
    did = Did(pull(branch, made, "s/a"), item)
    assert type(did.value) is kind
    assert message in text_of(did.value)
    assert text_of(did.value).endswith("in a stream inserted by 's/a', run 'run-1'")
    assert branch.agenda == [(made, "s/a")]


# -- in a resumed run


def test_the_run_takes_over_the_streams_of_its_rehearsal():
    """By the branch, and their order in it; it begins others itself."""
    first, second, third = stream(units), stream(units), stream(units)
    past = rehearsal()
    for made, iterator in ((first, "one"), (second, "two")):
        Did(open_stream(branch_with(past), made, "s/a"), [A], iterator)
    branch = branch_with(History({}, streams=past.streams))
    for made in (first, second):
        assert Did(open_stream(branch, made, "s/b")).requests == []
    assert [(begun.iterator, by) for begun, by in branch.agenda] == [("one", "s/b"), ("two", "s/b")]
    assert branch.terms.past.streams == {}
    assert len(Did(open_stream(branch, third, "s/b"), [A], "three").requests) == 2
    assert branch.terms.past.streams == {}


def test_it_receives_what_they_have_yielded_then():
    """Without pulling again, until that is used up."""
    branch, made = branch_with(rehearsal()), opened()
    for answer in (A, StopAsyncIteration()):
        Did(pull(branch, made, "s/a"), answer)
    assert len(made.ahead) == 2
    branch = branch_with(History({}))
    assert Did(pull(branch, made, "s/a")).value is None
    assert agenda(branch) == [(A, "s/a"), (made, "s/a")]
    assert isinstance(Did(pull(branch, made, "s/a")).value, StopAsyncIteration)
    assert len(Did(pull(branch, made, "s/a"), UNSET).requests) == 1


def test_the_rehearsal_pulls_as_far_as_the_run_had_come():
    """Where nothing is left to restore it ends, unless a scope that had ended is gone through; values are not there yet."""
    needs = Stage("needs", [wants("nowhere")])
    for has_more, sealed in ((True, 0), (False, 1)):
        branch = branch_with(rehearsal(has_more=has_more))
        branch.sealed = sealed
        assert len(Did(open_stream(branch, stream(units), "s/a"), [needs], "iterator").requests) == 2
        assert Did(pull(branch, opened(), "s/a"), needs).value is None
        assert branch.agenda[-1] == (needs, "s/a")
    branch = branch_with(rehearsal(has_more=False))
    for walk in (pull(branch, opened(), "s/a"), open_stream(branch, stream(units), "s/a")):
        with pytest.raises(Suspend) as raised:
            Did(walk)
        assert raised.value is branch.terms.past.stop


def test_an_iterator_cannot_be_pulled_again_by_a_resume():
    """The error of the rehearsal says which stream."""
    did = Did(open_stream(branch_with(rehearsal()), stream(iter([A])), "s/a"))
    assert isinstance(did.value, DefinitionError)
    assert "inserted by s/a is used up" in str(did.value)


# -- closing


class Closable:
    """An iterator that can be closed."""

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration

    def close(self):
        return "closed"


class ClosableLater(Asynchronous):
    """An asynchronous one."""

    async def aclose(self):
        return "closed"


def test_a_stream_is_closed_in_the_way_of_its_iterator():
    """A call of user code, or awaited; nothing is done to one that cannot be closed."""
    branch, iterator = branch_with(), Closable()
    did = Did(close_stream(branch, opened(iterator)), None)
    ((chore, args, kwargs),) = did.requests
    assert (chore.name, chore.function(), args, kwargs, did.value) == ("stream", "closed", (), None, None)
    did = Did(close_stream(branch, opened(ClosableLater())), None)
    (awaited,) = did.requests
    assert (type(awaited), type(awaited.awaitable), did.value) == (Await, Deferred, None)
    with pytest.raises(StopIteration, match="closed"):
        awaited.awaitable.__await__().send(None)
    assert Did(close_stream(branch, opened([A]))).requests == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), Cancelled("cancelled"), SystemExit()], ids=repr)
def test_an_interrupt_while_a_stream_is_closed_is_passed_on(interrupt):
    """It is closed once more: the interrupt may have come before that was called. Other errors of closing are dropped."""
    branch, made = branch_with(), opened(Closable())
    did = Did(close_stream(branch, made), interrupt, None)
    assert (len(did.requests), did.value) == (2, interrupt)
    assert Did(close_stream(branch, made), KeyboardInterrupt(), interrupt).value is interrupt
    assert Did(close_stream(branch, made), NO).value is None


def test_streams_of_a_rehearsal_are_left_open_for_the_run():
    """Those that it does not take over are closed in its end."""
    assert Did(close_stream(branch_with(rehearsal()), opened(Closable()))).requests == []
    past = History({}, streams={("0", 0): opened(Closable()), ("0", 1): opened([A]), ("b", 0): opened(Closable())})
    did = Did(close_streams(past), NO, None)
    assert len(did.requests) == 2
    assert past.streams == {}
