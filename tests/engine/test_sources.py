"""The units of a group, one at a time: those of its definition, or those of its stream."""

import pytest
from scripted import terms_of
from support import one, step, text_of, wants

from flowdeco import Stage, Store, parallel, pipeline, stage, stream
from flowdeco.engine.branch import Branch
from flowdeco.engine.history import History, Rehearsal
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.requests import Chore, Raised
from flowdeco.engine.sources import Listed, Streamed
from flowdeco.errors import ReturnValueError, WiringError
from flowdeco.model.sentinels import UNSET

A, B = one([], "a"), one([], "b")
NO = ValueError("no")


def driven(walk, *answers):
    """What a walk comes to, given these answers to its requests."""
    left = iter(answers)
    try:
        request = walk.send(None)
        while True:
            answer = next(left)
            answer = Raised(answer) if isinstance(answer, BaseException) else answer
            request = walk.send(request[0].function(*request[1]) if answer is performed else answer)
    except StopIteration as ended:
        assert list(left) == []
        return ended.value


def performed():
    """Instead of an answer: what the call returns."""


def branch_with(past=None):
    """The branch in which a group is run."""
    flow = pipeline(Stage("s"))
    branch = Branch(terms_of(past=past), Store(), OpenScope(None, flow, None, 0.0))
    branch.scope = OpenScope(branch.base, flow.units[0], None, 0.0)
    return branch


def streamed(source, *, bound=2, exceed=None, branch=None):
    """The source of a group of a stream."""
    group = parallel(stream(source), name="g")
    return Streamed(branch or branch_with(), group, group.stream, bound, exceed)


def test_the_units_of_a_definition_come_in_their_order():
    """Nothing is asked for, and so many are known from the start."""
    source = Listed((A, B))
    assert (source.count, source.bound) == (0, 2)
    assert [driven(source.next()), source.count] == [A, 1]
    assert [driven(source.next()), source.count] == [B, 2]
    assert [driven(source.next()), driven(source.next()), source.count, source.bound] == [UNSET, UNSET, 2, 2]
    assert driven(source.close()) is None


def test_a_stream_is_begun_when_its_first_unit_is_wanted():
    """And pulled for each; at its end there is nothing to close."""
    source = streamed([A])
    assert driven(source.close()) is None
    assert driven(source.next(), performed, performed) is A
    assert source.count == 1
    assert driven(source.next(), performed) is UNSET
    assert source.count == 1
    assert driven(source.close()) is None


def test_a_stream_that_has_not_ended_is_closed():
    """An interrupt of that is passed on."""
    source, interrupt = streamed(unit for unit in [A]), KeyboardInterrupt()
    driven(source.next(), performed, performed)
    closing = source.close()
    chore, _, _ = closing.send(None)
    assert isinstance(chore, Chore)
    closing.close()
    assert driven(source.close(), interrupt, None) is interrupt


def test_more_units_than_the_journal_knows_of_are_announced():
    """Twice as many then; a journal that cannot be written ends the stream."""
    unsaved, announced = None, []

    def exceed():
        announced.append((source.count, source.bound))
        yield "save"
        return unsaved

    source = streamed([A, A, A, A, A, B], exceed=exceed)
    assert [driven(source.next(), performed, performed), driven(source.next(), performed), announced] == [A, A, []]
    assert driven(source.next(), performed, None) is A
    assert driven(source.next(), performed) is A
    assert announced == [(3, 4)]
    unsaved = OSError("full")
    refused = driven(source.next(), performed, None)
    assert (type(refused), refused.error, announced) == (Raised, unsaved, [(3, 4), (5, 8)])


@pytest.mark.parametrize("at", ["beginning", "pulling"])
def test_a_stream_that_fails_is_a_failure_with_its_place(at):
    """That of the group."""
    error = ValueError("no")
    source = streamed(list if at == "beginning" else [A])
    found = driven(source.next(), *([error] if at == "beginning" else [performed, error]))
    assert (type(found), found.error, source.count) == (Raised, error, 0)
    (note,) = error.__notes__
    assert note.startswith("in the stream of ")
    assert note.endswith("of the parallel group 'g', run 'run-1'")


@stage
def template(kind):
    step([], kind)


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        (
            5,
            ReturnValueError,
            "of the parallel group 'g' yielded the int 5, which is not an action, stage, pipeline or parallel group",
        ),
        (template, ReturnValueError, "yielded no stage"),
        (stream([A]), ReturnValueError, "of the parallel group 'g' yielded another stream"),
        (Stage("n", [wants("nowhere")]), WiringError, "nowhere"),
    ],
    ids=["data", "template", "stream", "wiring"],
)
def test_an_item_that_cannot_be_a_branch_is_refused(item, kind, message):
    """It does not count as one."""
    source = streamed([item])
    found = driven(source.next(), performed, performed)
    assert type(found.error) is kind
    assert message in text_of(found.error)
    assert "in the stream of" in found.error.__notes__[-1]
    assert source.count == 0


@pytest.mark.parametrize("how", ["rehearsed", "sealed"])
def test_wiring_is_not_checked_where_nothing_is_performed(how):
    """There, the store need not have what the branches will read. What is not a unit is refused all the same."""
    past = Rehearsal({"0": {9: None}}, pipeline=pipeline(), code=None) if how == "rehearsed" else History({})
    branch = branch_with(past)
    branch.sealed = int(how == "sealed")
    needs = Stage("needs", [wants("nowhere")])
    source = streamed(list, branch=branch)
    assert driven(source.next(), [needs], performed, needs) is needs
    assert type(driven(source.next(), 5).error) is ReturnValueError


def test_in_a_rehearsal_a_stream_is_begun_even_if_no_step_of_its_branch_is_left():
    """The branches of the group may have some: they decide how far it is pulled."""
    past = Rehearsal({}, pipeline=pipeline(), code=None)
    source = streamed(list, branch=branch_with(past))
    assert driven(source.next(), [A], performed, A) is A
