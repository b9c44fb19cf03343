"""Insertions are refused if nothing can supply what they need: certainly nothing, as far as can be seen from here."""

from types import SimpleNamespace

import pytest
from scripted import in_stage
from support import one, step, wants

from flowdeco import Stage, parallel, stream
from flowdeco.engine.insertions import check_insertion
from flowdeco.engine.layers import Layers
from flowdeco.engine.outcome import ActionRecord, Status
from flowdeco.errors import WiringError
from flowdeco.middleware import recover
from flowdeco.model.keys import Local
from flowdeco.model.steps import step_of


def gives(name):
    """An action that certainly returns data, and inserts nothing."""
    return wants(name=name, returns=int)


NEEDS_K = Stage("needs k", [wants("k", returns=int)])
GIVES_K = Stage("k", [gives("k")])


def refused(branch, *units, is_action=True):
    """The message of the refusal with its notes; None if an action, or middleware, may insert these."""
    try:
        check_insertion(branch, units, **({"is_action": True} if is_action else {}))
    except WiringError as error:
        return "\n".join([str(error), *getattr(error, "__notes__", ())])
    return None


def supplies_anything(call):
    yield {"k": 1}


def with_rest(branch, *actions):
    """Have these actions of the stage still to come."""
    branch.agenda.extend((step_of(each), None) for each in reversed(actions))
    return branch


@pytest.mark.parametrize("is_action", [True, False])
@pytest.mark.parametrize(
    ("units", "inputs", "is_refused"),
    [
        ([NEEDS_K], {}, True),
        ([NEEDS_K], {"k": 1}, False),
        ([GIVES_K], {}, False),
        ([GIVES_K, NEEDS_K], {}, False),
        ([NEEDS_K, GIVES_K], {}, True),
        ([GIVES_K >> NEEDS_K], {}, False),
        ([stream([GIVES_K]), NEEDS_K], {}, False),
        ([parallel(GIVES_K, NEEDS_K)], {}, True),
        ([Stage("t", [wants("k")], use=[supplies_anything])], {}, False),
    ],
)
def test_units_are_refused_if_nothing_before_them_supplies_what_they_need(units, inputs, is_refused, is_action):
    """Whether an action inserts them or middleware does."""
    message = refused(in_stage(Stage("s"), inputs), *units, is_action=is_action)
    assert (message is not None) is is_refused
    assert not is_refused or "needs 'k'" in message


@pytest.mark.parametrize(
    ("inserted", "rest", "waiting", "is_refused"),
    [
        ([wants("k", returns=int)], [], [], True),
        ([gives("k"), wants("k", returns=int)], [], [], False),
        ([NEEDS_K, gives("k")], [], [], False),
        ([wants("k", returns=int)], [gives("k")], [], True),
        ([wants("k", returns=int)], [], [GIVES_K], True),
        ([NEEDS_K], [gives("k")], [], False),
        ([NEEDS_K], [], [GIVES_K], False),
        ([wants("l", returns=int), gives("l")], [], [], True),
        ([gives("l")], [wants("k", returns=int)], [NEEDS_K], False),
    ],
)
def test_inserted_actions_run_before_the_rest_of_their_stage_and_units_after_it(inserted, rest, waiting, is_refused):
    """And after what was inserted there before; what is not new is not checked again."""
    branch = with_rest(in_stage(Stage("s")), *rest)
    branch.scope.inserted = [(unit, "s/x") for unit in waiting]
    message = refused(branch, wants("nothing", name="has all of them looked at", returns=int), *inserted)
    assert ("needs 'k'" in message or "needs 'l'" in message) is is_refused


def test_units_of_middleware_run_right_after_its_target():
    """What actions have inserted in it comes later."""
    branch = in_stage(Stage("s"))
    branch.scope.inserted = [(GIVES_K, "s/x")]
    assert "needs 'k'" in refused(branch, NEEDS_K, is_action=False)
    assert "needs 'k'" in refused(branch, wants("k"), is_action=False)
    local = in_stage(Stage("s", [gives("k")], local=True))
    local.store.put(Local("k"), 1)
    assert "needs 'k'" in refused(local, wants("k"), is_action=False)


def test_the_message_says_what_supplies_it_too_late():
    """An action of the stage, a unit after it."""
    branch = with_rest(in_stage(Stage("s")), step([], "k", 1))
    message = refused(branch, wants("k", returns=int))
    assert "has 1 problem" in message
    assert "comes later" in message
    branch = in_stage(Stage("s"))
    branch.agenda.insert(0, (GIVES_K, None))
    branch.scope.depth += 1
    assert "comes later" in refused(branch, wants("k"))
    assert "comes later" in refused(branch, NEEDS_K)
    assert "comes later" in refused(branch, NEEDS_K, is_action=False)


def test_the_message_says_why_an_action_before_it_did_not_supply_it():
    """As that of a missing parameter."""
    act = step([], "k")
    branch = in_stage(Stage("s", [act]))
    branch.scope.records.append(ActionRecord("k", act, Status.SKIPPED, 0.0, 0.0))
    assert "action 'k' supplies 'k', and was skipped" in refused(branch, NEEDS_K)


def test_the_message_says_that_another_branch_supplies_it():
    """Of any group around it: branches do not see each other."""
    outer, inner = parallel(GIVES_K, one([], "x"), name="outer"), parallel(one([], "l", 1), one([], "y"), name="inner")
    branch = in_stage(Stage("s"))
    middle, root = in_stage(Stage("t")), in_stage(Stage("u"))
    branch.parent, branch.conductor, branch.index = middle, SimpleNamespace(group=inner), 1
    middle.parent, middle.conductor, middle.index = root, SimpleNamespace(group=outer), 1
    assert "another branch of the parallel group 'outer'" in refused(branch, NEEDS_K)
    assert "another branch of the parallel group 'inner'" in refused(branch, wants("l"))
    middle.index = 0
    assert "another branch" not in refused(branch, NEEDS_K)


@pytest.mark.parametrize("where", ["use_stages", "use_actions", "layers"])
@pytest.mark.parametrize("outer", [False, True])
def test_where_middleware_may_supply_it_nothing_is_refused(where, outer):
    """Around the stage, or anything around that."""
    branch = in_stage(Stage("s"))
    scope = branch.scope.outer if outer else branch.scope
    for layer, is_refused in ((supplies_anything, False), (supplies_nothing, True)):
        if where == "layers":
            terms = branch.terms
            scope.layers = Layers("r", branch.store, branch.scope.pipeline, None, None, (layer,), terms.gate)
        else:
            setattr(scope, where, (layer,))
        assert (refused(branch, NEEDS_K if outer else wants("k", returns=int)) is not None) is is_refused


def writes_anything(call):
    yield
    call.store["k"] = 1


@pytest.mark.parametrize("where", ["use_actions", "layers"])
@pytest.mark.parametrize(
    ("layer", "is_refused"), [(supplies_anything, True), (recover(on=Exception), True), (writes_anything, False)]
)
def test_units_run_outside_of_the_stage_that_inserts_them(where, layer, is_refused):
    """Its middleware has ended then: the values that it yields are gone, unlike those that it wrote to the store."""
    branch = in_stage(Stage("s"))
    if where == "layers":
        terms, pipeline = branch.terms, branch.scope.pipeline
        branch.scope.layers = Layers("r", branch.store, pipeline, None, None, (layer,), terms.gate)
    else:
        branch.scope.use_actions = (layer,)
    branch.scope.values = {"k": 1}
    assert (refused(branch, NEEDS_K) is not None) is is_refused
    assert (refused(branch, wants("k", returns=int), NEEDS_K) is not None) is is_refused
    assert refused(branch, wants("k", returns=int)) is None
    assert refused(branch, wants("k", name="l", returns=int), Stage("needs l", [wants("l")])) is None


def supplies_nothing(call):
    yield


supplies_nothing.supplies = False


def test_what_middleware_has_supplied_is_not_in_the_store():
    """It may be this very value."""
    branch = in_stage(Stage("s"))
    branch.scope.outer.values = {"k": 1}
    assert refused(branch, NEEDS_K) is None


def test_skipped_units_need_nothing():
    """They do not run."""
    assert refused(in_stage(Stage("s"), skip=frozenset({"needs k"})), NEEDS_K) is None
    supplies = in_stage(Stage("s"), skip=frozenset({"k"}))
    assert "needs 'k'" in refused(supplies, GIVES_K, NEEDS_K)


def test_in_a_local_stage_inserted_actions_see_its_results():
    """Inserted units do not."""
    local = Stage("s", [step([], "k", 1)], local=True)
    branch = in_stage(local)
    branch.store.put(Local("k"), 1)
    assert refused(branch, wants("k")) is None
    assert "needs 'k'" in refused(branch, NEEDS_K)
