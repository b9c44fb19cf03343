"""Nothing is ignored in silence: selectors that select nothing, units that would never run, options without effect."""

import copy
import itertools
import logging
import operator
import pickle
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps

import pytest
from support import actions_run, names

from flowdeco import Action, Context, Key, Sleep, Stage, action, parallel, pipeline, stage, stream
from flowdeco.durable import MemoryJournal, SqliteJournal
from flowdeco.durable.fingerprint import fingerprint
from flowdeco.errors import DefinitionError, MissingInputError, ReturnValueError, WiringError, close_selectors
from flowdeco.middleware import recover, retry
from flowdeco.model.definitions import as_pipeline
from flowdeco.model.functions import attribute_uses, function_run
from flowdeco.model.selectors import check_skip


@action
def one() -> None: ...


@action
def between() -> None: ...


FIRST, SECOND = Stage("first", [one]), Stage("second", [one])


def firsts():
    return [FIRST]


@action(tags=["etl"])
def extract() -> int:
    return 1


@action
def load(extract: int) -> None: ...


@stage(tags=["dynamic"])
def process(kind):
    @action
    def handle() -> str:
        return kind


FLOW = extract >> process("databases") >> load


@pytest.fixture
def warnings(caplog):
    """The warnings that were logged, as strings."""
    caplog.set_level(logging.WARNING, "flowdeco.run")
    return lambda: [record.getMessage() for record in caplog.records]


# -- selectors of a definition


@pytest.mark.parametrize("select", [FLOW.only, FLOW.without], ids=["only", "without"])
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("extrct", "'extract'"),
        ("Extract", "'extract'"),
        ("tag:elt", "'tag:etl'"),
        ("etl", "'tag:etl'"),
        ("tags:etl", "'tag:etl'"),
        ("tag:load", "'load'"),
        ("handle", "'process/handle'"),
        ("process/handel", "'process/handle'"),
        ("proces", "'process'"),
        ("process[database]", "'process[databases]'"),
    ],
)
def test_a_selector_that_matches_nothing_in_the_definition_is_an_error(select, wrong, right):
    """A typo gives neither an empty pipeline nor the whole one, also beside selectors that match."""
    for selectors in ([wrong], ["load", wrong], [wrong, "tag:dynamic"]):
        with pytest.raises(DefinitionError, match=f"{wrong!r}.*Did you mean {right}".replace("[", r"\[")):
            select(*selectors)


def test_every_selector_that_matches_nothing_is_named():
    """With the corrections of each."""
    with pytest.raises(DefinitionError, match=r"only\('extrct', 'lod'\).*'extract' by 'extrct'\?.*'load' by 'lod'\?"):
        FLOW.only("extrct", "lod", "process")


def test_selectors_match_at_any_depth_of_the_definition():
    """In nested pipelines and groups; each counts, also where another one covers it."""
    nested = pipeline(pipeline(FLOW, name="inner"), parallel(FIRST, SECOND, name="group"))
    assert nested.without("inner", "load", "tag:etl", "process/handle", "group", "first/one") == pipeline()
    assert nested.only("second/one") == pipeline(parallel(SECOND, name="group"))
    assert FLOW.without() == FLOW


def test_a_tag_is_compared_without_its_prefix():
    """`tag:chec` is not like `tag:file`; the prefix alone makes no two tags alike."""
    assert close_selectors("tag:chec", ["tag:file", "go"]) == []
    assert close_selectors("tag:fil", ["tag:file", "fill"]) == ["tag:file"]
    assert close_selectors("tag:", ["tag:file", "go"]) == []
    assert close_selectors("slow", ["tag:slow", "slot"]) == ["tag:slow"]


# -- skip


def test_a_middleware_whose_code_cannot_be_read_may_insert():
    """It is not written in Python: so a selector that matches nothing may be right."""
    check_skip(as_pipeline(between), ["unknown"], [operator.methodcaller("unknown")])
    with pytest.raises(DefinitionError, match="matches nothing"):
        check_skip(as_pipeline(between), ["unknown"], [])


def test_a_skip_that_can_match_nothing_is_refused_before_the_run(run):
    """All actions say by their annotation that they insert nothing."""
    calls = []

    @action
    def work() -> int:
        calls.append("work")
        return 1

    for options in ({}, {"check": False}, {"journal": MemoryJournal()}):
        with pytest.raises(DefinitionError, match=r"skip=\['wrok'\].*Did you mean 'work'"):
            run(work, skip=["work", "wrok"], **options)
    assert calls == []


def provides(call):
    yield {"connection": call.name}


def watches(call):
    call.logger.debug("%s of %s", call.level, call.pipeline.name)
    try:
        yield
    except ValueError:
        call.store["failed"] = call.attempt


def inserts(call):
    yield
    if call.name != "first":
        call.insert(FIRST)


def supplies(call):
    call.outcome = None
    return
    yield


def forwards(call):
    yield from inserts(call)


@action
def looks(ctx: Context) -> None:
    ctx.logger.debug("%s of %s", ctx.action.name, ctx.stage.name)


@action
def adds(ctx: Context) -> None:
    ctx.insert(*[FIRST][:0])


@action
def passes(ctx: Context) -> None:
    adds(ctx)


@action
def unannotated():
    return None


@action
def streams() -> list[Stage]:
    return []


@pytest.mark.parametrize(
    "flow",
    [
        between,
        looks,
        pipeline(between, use=[provides], use_stages=[watches], use_actions=[retry(on=OSError)]),
        Stage("s", [between.with_options(use=[recover(on=OSError)])], use=[watches]),
        parallel(between, pipeline(between, name="inner")),
    ],
    ids=lambda unit: unit.name,
)
def test_where_nothing_can_be_inserted_a_selector_must_match(flow):
    """Neither a context nor a middleware inserts anything if its code does not name `insert`."""
    with pytest.raises(DefinitionError, match=r"'nothing'\] matches nothing"):
        flow.run(skip=["nothing"])


@pytest.mark.parametrize(
    "flow",
    [
        adds,
        passes,
        unannotated,
        streams,
        pipeline(between, use=[forwards]),
        pipeline(between, use_stages=[inserts]),
        pipeline(between, use_actions=[supplies]),
        Stage("s", [between], use_actions=[recover(on=OSError, outcome=[FIRST])]),
        parallel(between, pipeline(unannotated, name="inner")),
    ],
    ids=lambda unit: unit.name,
)
def test_where_something_may_be_inserted_it_is_a_warning_at_the_end(flow, run, warnings):
    """The selector may be meant for that."""
    run(flow, skip=["nothing"])
    assert [text for text in warnings() if "skip=['nothing'] matched nothing" in text] == warnings()
    assert len(warnings()) == 1


def test_a_selector_that_came_too_late_is_not_proposed_again(run, warnings):
    """A stage that disables itself: the selector is right, and what is wrong beside it is still corrected."""
    run(Stage("S", [action(name="x")(lambda ctx: ctx.disable("S", "T"))]) >> Stage("T2"))
    too_late, wrong = warnings()
    assert too_late.endswith("nothing that ran after it matches. 'S' had begun before, or the run did not come to it.")
    assert wrong.endswith("Did you mean 'T2'?")


def test_a_skipped_unit_that_the_run_did_not_come_to_is_not_proposed_again(run, warnings):
    """A failure before it was recovered around both."""

    @action
    def fails():
        raise ValueError

    lost = pipeline(fails, Stage("later"), name="p", use=[recover(on=ValueError)])
    run(lost >> between, skip=["later", "latter"], use=[inserts])
    (text,) = warnings()
    assert text.endswith("'later' had begun before, or the run did not come to it. Did you mean 'later'?")


def test_the_middleware_of_the_caller_may_insert_as_well(run, warnings):
    """It is among those that are looked at."""
    run(between, use=[inserts], skip=["first"])
    assert warnings() == []
    with pytest.raises(DefinitionError):
        run(between, use=[watches], skip=["first"])


def test_a_skip_of_an_earlier_leg_is_not_refused(run):
    """Only selectors that are given now are: those of the journal were accepted, by another definition."""
    fails = [True]

    @action(name="work")
    def before():
        raise OSError

    @action(name="work")
    def after() -> int:
        return 1 if fails else 0

    failed = before.run(skip=["later"], check=False)
    assert after.resume(failed, on_change="ignore").status == "completed"
    with pytest.raises(DefinitionError, match="'latr'"):
        after.resume(before.run(check=False), skip=["latr"], on_change="ignore")


def test_a_finished_run_is_returned_whatever_it_is_to_skip():
    """It is only read."""
    journal = MemoryJournal()
    before = extract.run()
    assert extract.resume(before, skip=["wrong"]) is before
    before = extract.run(journal=journal)
    assert extract.resume(before.id, skip=["wrong"], journal=journal).status == "completed"


def test_a_skip_that_matched_before_an_interruption_has_matched(run, warnings):
    """A restored action that was skipped, and one in a stage that has ended."""
    fails = [True]

    @action
    def last():
        if fails:
            raise OSError

    flow = Stage("s", [between, extract]) >> last
    journal = MemoryJournal()
    failed = run(flow, skip=["s/between", "tag:etl"], journal=journal, check=False)
    fails.clear()
    assert flow.resume(failed.id, journal=journal).status == "completed"
    assert warnings() == []


def test_the_uses_of_a_parameter_are_the_attributes_that_code_names():
    """None where the parameter may go elsewhere: into another function or a closure."""
    read = ("logger", "pipeline", "store", "attempt")
    watched = attribute_uses(watches.__code__, 0)
    assert watched is not None
    assert {name for _, name in watched} == {*read, "level"}
    assert attribute_uses(inserts.__code__, 0) == {("LOAD", "insert"), ("LOAD", "name")}
    assert attribute_uses(forwards.__code__, 0) is None
    assert attribute_uses((lambda call: lambda: call.name).__code__, 0) is None
    assert attribute_uses((lambda: 1).__code__, 0) is None


def test_the_function_that_a_call_runs_has_its_first_argument_somewhere():
    """Behind those of a partial, and behind `self`."""

    class Layer:
        def __call__(self, call):
            yield

        def method(self, call):
            yield

    assert function_run(watches) == (watches, 0)
    assert function_run(Layer()) == (Layer.__call__, 1)
    assert function_run(Layer().method) == (Layer.method, 1)
    assert function_run(partial(partial(watches, 1), 2)) == (watches, 2)
    assert function_run(print) is None


# -- ctx.disable and ctx.enable


def switching(**selectors):
    """An action that disables and enables."""

    @action
    def switches(ctx: Context) -> None:
        for how, selector in selectors.items():
            getattr(ctx, how.rstrip("_"))(selector)

    return switches


@pytest.mark.parametrize("how", ["disable", "enable"])
@pytest.mark.parametrize("wrong", ["frst", "switches", "first/two", "tag:none"])
def test_a_switch_that_selects_nothing_is_a_warning(run, warnings, how, wrong):
    """A misspelt name; what has run already. It names selector and action."""
    run(switching(**{how: wrong}) >> FIRST)
    (text,) = warnings()
    assert f"action switches/switches {how}d {wrong!r}" in text
    if wrong == "frst":
        assert "Did you mean 'first' or" in text


@pytest.mark.parametrize(
    "selector", ["first", "first/one", "process", "process/handle", "tag:dynamic", "inner", "deep"]
)
def test_a_switch_that_selects_something_is_none(run, warnings, selector):
    """At any depth, also what is skipped for another reason, or inserted later."""

    @action
    def later():
        return process("late")

    inner = pipeline(pipeline(FIRST, name="deep"), name="inner")
    run(switching(disable=selector) >> later >> inner >> FIRST, skip=["inner"])
    assert warnings() == []


def test_a_switch_in_a_branch_counts_for_what_comes_after_the_group(run, warnings):
    """It takes effect there when the group has ended."""
    run(parallel(switching(disable="first"), switching(disable="scond")) >> FIRST >> SECOND)
    assert [text.partition("disabled ")[2].partition(",")[0] for text in warnings()] == ["'scond'"]


def test_a_switch_of_a_dropped_attempt_is_no_warning(run, warnings):
    """It never took effect."""
    attempts = []

    @action
    def off(ctx: Context) -> None:
        attempts.append(ctx)
        if len(attempts) == 1:
            ctx.disable("nothing")

    @action
    def flaky() -> None:
        if len(attempts) == 1:
            raise OSError

    run(Stage("s", [off, flaky], use=[retry(on=OSError, wait=0)]))
    assert warnings() == []


def test_a_restored_switch_is_warned_of_as_well(warnings):
    """In the leg that ends the run; a run that does not complete warns of nothing: it may still match."""
    fails = [True]

    @action
    def last():
        if fails:
            raise OSError

    flow, journal = switching(disable="nothing") >> last, MemoryJournal()
    failed = flow.run(journal=journal, check=False)
    assert warnings() == []
    fails.clear()
    flow.resume(failed.id, journal=journal)
    assert ["disabled 'nothing'" in text for text in warnings()] == [True]


# -- ctx.pending


@pytest.mark.parametrize(
    ("switches", "skip", "expected"),
    [
        ({"disable": "first"}, [], ["second", "process[x]"]),
        ({"disable": "tag:dynamic"}, [], ["first", "second"]),
        ({"disable": "process", "enable": "process[x]"}, [], ["first", "second", "process[x]"]),
        ({}, ["second", "process"], ["first"]),
        ({"enable": "second"}, ["second"], ["first", "process[x]"]),
        ({"disable": "first/one"}, [], ["first", "second", "process[x]"]),
    ],
)
@pytest.mark.parametrize("same", [True, False], ids=["same action", "earlier action"])
def test_pending_is_what_will_run(run, switches, skip, expected, same):
    """Neither what is disabled, also by the action itself, nor what is skipped; a stage without some actions is."""
    seen = []

    @action
    def look(ctx: Context) -> None:
        for how, selector in switches.items() if same else ():
            getattr(ctx, how)(selector)
        seen.extend(unit.name for unit in ctx.pending)

    run((look if same else switching(**switches) >> look) >> FIRST >> SECOND >> process("x"), skip=skip)
    assert seen == expected


def test_pending_of_a_branch_is_without_what_it_disabled(run):
    """The switch takes effect for the rest of the run when the group has ended."""
    seen = []

    @action
    def look(ctx: Context) -> None:
        seen.extend(unit.name for unit in ctx.pending)

    run(parallel(switching(disable="first") >> look) >> FIRST >> SECOND)
    assert seen == ["second"]


# -- returned values


@pytest.mark.parametrize(
    "make",
    [
        lambda: [[FIRST], [SECOND]],
        lambda: ([FIRST],),
        lambda: [[[FIRST]]],
        lambda: {FIRST},
        lambda: frozenset([FIRST]),
        lambda: deque([FIRST]),
        lambda: {"next": FIRST},
        lambda: {FIRST: 1},
        lambda: {"count": 1, "next": FIRST},
        lambda: OrderedDict(next=[FIRST]),
        lambda: {"next": FIRST}.values(),
        lambda: {"next": FIRST}.items(),
        lambda: {FIRST: 1}.keys(),
        lambda: [1, FIRST, 2],
        lambda: [("a", FIRST)],
        lambda: ("text", between),
        lambda: {"s": stream([FIRST])},
        lambda: iter([FIRST]),
        lambda: iter({FIRST}),
        lambda: map(process, ["a", "b"]),
        lambda: filter(None, [FIRST]),
        lambda: zip(["a"], [FIRST], strict=True),
        lambda: enumerate([FIRST]),
        lambda: reversed([FIRST]),
        lambda: itertools.chain([FIRST], [SECOND]),
        lambda: itertools.islice([FIRST], 1),
        lambda: [[process]],
        lambda: {process},
    ],
)
def test_units_that_would_be_stored_are_refused(run, make):
    """In a nested list, another collection, an iterator that is not a generator: the error names the action and a unit."""
    # kedro-org/kedro#2859

    @action
    def more():
        return make()

    with pytest.raises(ReturnValueError, match=r"'more'.*(<Stage|<Action|<stream|process\(\.\.\.\))"):
        run(more)


def test_units_in_a_collection_are_refused_from_generators_and_middleware(run):
    """Wherever a returned value comes from."""

    @action
    def yields():
        yield [FIRST]

    @action
    def returns():
        yield SECOND
        return {FIRST}

    def gives(call):
        call.outcome = {"next": FIRST}
        return
        yield

    @action
    async def awaited():
        return iter([FIRST])

    for more in (yields, returns, between.with_options(use=[gives]), awaited):
        with pytest.raises(ReturnValueError, match=f"{more.name!r}.*first"):
            run(more)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (list[Stage], ["first"]),
        (list[Stage], [1]),
        (Stage, "first"),
        (Action, 3),
        (list[Stage] | None, [["first"]]),
        ("list[Stage]", ("first",)),
        (list[Stage], {"first": 1}),
        (list[Stage], map(str, [1])),
    ],
)
def test_data_where_the_annotation_promises_units_is_refused(run, annotation, value):
    """The names of stages, for one."""

    def more():
        return value

    more.__annotations__["return"] = annotation
    with pytest.raises(
        ReturnValueError, match=f"'more' is annotated to return units, and returned the {type(value).__name__}"
    ):
        run(action(more))


def test_yielded_data_where_the_annotation_promises_units_is_refused(run):
    """By a generator."""

    @action
    def more() -> list[Stage]:
        yield "first"

    with pytest.raises(ReturnValueError, match=r"'more' is annotated .*whose first element is the str 'first'"):
        run(more)


@pytest.mark.parametrize(
    "make",
    [
        lambda: [[1], [2]],
        lambda: {"a": {"b": [1]}},
        lambda: set(),
        lambda: deque([1]),
        lambda: {"f": len},
        lambda: [[], {}, set()],
        lambda: [Stage, Action],
    ],
)
def test_data_is_stored_as_it_is(run, make):
    """The same object."""
    value = make()
    assert run(action(name="v")(lambda: value))["v"] is value


@pytest.mark.parametrize("make", [iter, reversed, enumerate, lambda items: map(str, items), itertools.cycle])
def test_iterators_of_data_give_what_they_would_have_given(run, make):
    """Although their first item was looked at; an empty one is empty."""
    expected = list(itertools.islice(make([3, 1, 2]), 5))
    stored = run(action(name="v")(lambda: make([3, 1, 2])))["v"]
    assert list(itertools.islice(stored, 5)) == expected
    assert list(run(action(name="v")(lambda: make([])))["v"]) == []


@pytest.mark.parametrize("make", [iter, reversed, enumerate, lambda items: map(str, items), dict.fromkeys])
def test_an_iterator_of_data_is_found_as_what_it_is(run, make):
    """By its class, which a `Key` checks, and its repr; middleware finds it so, too; a copy gives the same items."""
    kind, seen = type(iter(make([1]))), []

    def sees(call):
        seen.append((yield))

    stored = run(action(name="v", returns=Key("v", kind), use=[sees])(lambda: iter(make([3, 1]))))["v"]
    assert seen == [stored]
    assert isinstance(stored, kind)
    assert repr(stored).startswith(f"<{kind.__name__} object")
    assert list(copy.copy(stored)) == list(make([3, 1]))
    assert list(pickle.loads(pickle.dumps(iter_of(make)))) == list(make([3, 1]))


def iter_of(make):
    """Return an iterator as an action returns it, from which nothing has been taken."""
    return action(name="v")(lambda: iter(make([3, 1]))).run()["v"]


@pytest.mark.parametrize("make", [iter, reversed, lambda items: iter(tuple(items))])
def test_an_iterator_of_a_list_is_stored_as_it_is(run, make):
    """The same object: a copy of it is looked at."""
    value = make([1, 2])
    assert run(action(name="v")(lambda: value))["v"] is value


def test_an_iterator_that_is_annotated_as_data_is_left_alone(run):
    """The same object, and nothing is taken from it."""
    taken = []

    @action
    def v() -> Iterator[int]:
        return value

    value = map(taken.append, [1, 2])
    assert run(v)["v"] is value
    assert taken == []


@pytest.mark.parametrize("make", [iter, enumerate, dict.fromkeys])
@pytest.mark.parametrize("read", [0, 1])
def test_an_iterator_of_data_survives_a_journal(make, read):
    """As it would have without being looked at, begun or not."""
    journal = MemoryJournal()
    fails = [True]

    @action
    def before(v) -> None:
        list(itertools.islice(v, read))

    @action
    def last(v) -> list[object]:
        if fails:
            raise OSError
        return list(v)

    flow = action(name="v")(lambda: iter(make([1, 2]))) >> before >> last
    failed = flow.run(journal=journal, check=False)
    fails.clear()
    assert flow.resume(failed.id, journal=journal)["last"] == list(make([1, 2]))[read:]


def test_an_iterator_in_branches_and_from_an_inserted_stage(run):
    """Each is what was returned."""

    @action
    def a():
        return map(str, [1])

    flow = parallel(a, a.with_options(name="b")) >> action(
        lambda: Stage("inserted", [a.with_options(name="c")]), name="i"
    )
    store = run(flow).store
    assert [(isinstance(store[name], map), list(store[name])) for name in "abc"] == [(True, ["1"])] * 3


def test_other_iterators_are_left_alone(run, tmp_path):
    """A file is more than its lines."""
    (tmp_path / "rows").write_text("a\nb\n")
    with (tmp_path / "rows").open() as rows:
        assert run(action(name="v")(lambda: rows))["v"] is rows
        assert rows.read() == "a\nb\n"


def test_a_long_collection_costs_as_much_as_a_short_one():
    """Only its ends are looked at: here there are no others."""

    class Ends(list):
        looked = 0

        def __getitem__(self, index):
            Ends.looked += 1
            return super().__getitem__(index)

        def __iter__(self):
            raise AssertionError("looked at every element")

    rows = Ends([0] * 1000)
    rows.append([Ends([0] * 1000)])
    assert action(name="v")(lambda: rows).run()["v"] is rows
    assert Ends.looked <= 3


# -- order


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ([FIRST, between, SECOND], ["last", "first/one", "between/between", "second/one"]),
        ([between, FIRST], ["last", "between/between", "first/one"]),
        (
            [between, FIRST >> SECOND, between],
            ["last", "between/between", "first/one", "second/one", "between/between"],
        ),
        ([between, stream(firsts), between], ["last", "between/between", "first/one", "between/between"]),
        ([between, parallel(FIRST)], ["last", "between/between", "first/one"]),
        ([between, between], ["plan/between", "plan/between", "last"]),
    ],
)
@pytest.mark.parametrize("how", ["list", "generator", "insert", "middleware"])
@pytest.mark.parametrize("resumes", [False, True], ids=["", "resumed"])
def test_a_list_keeps_its_order(run, units, expected, how, resumes):
    """Actions alone join the stage; among other units, each is a stage of its own. Also where they are restored."""
    fails = [True] * resumes

    def adds(call):
        yield
        call.insert(*units)

    @action(use=[adds] if how == "middleware" else [])
    def plan(ctx: Context):
        if how == "insert":
            ctx.insert(*units)
        return units if how == "list" else (unit for unit in units) if how == "generator" else 1

    @action
    def last():
        return None

    @action
    def end():
        if fails:
            raise OSError

    journal = MemoryJournal() if resumes else None
    flow = Stage("plan", [plan, last]) >> end
    finished = run(flow, journal=journal, check=False)
    if resumes:
        fails.clear()
        finished = flow.resume(finished.id, journal=journal)
    ran = [each.replace("plan/last", "last") for each in actions_run(finished)]
    assert ran == ["plan/plan", *expected, "end/end"]


def test_a_stage_of_an_inserted_action_survives_json(tmp_path):
    """As it survives pickling."""
    fails = [True]

    @action
    def plan():
        return [between, FIRST]

    @action
    def end():
        if fails:
            raise OSError

    flow, journal = plan >> end, SqliteJournal(tmp_path / "runs.db", codec="json")
    failed = flow.run(journal=journal, check=False)
    fails.clear()
    finished = flow.resume(failed.id, journal=journal)
    assert actions_run(finished) == ["plan/plan", "between/between", "first/one", "end/end"]


def test_each_call_of_insert_is_a_list_of_its_own(run):
    """As is the returned one."""

    @action
    def plan(ctx: Context) -> list[Stage]:
        ctx.insert(FIRST)
        ctx.insert(between)
        return [SECOND]

    assert actions_run(run(plan)) == ["plan/plan", "plan/between", "first/one", "second/one"]


def test_units_that_a_generator_yields_and_returns_are_one_list(run):
    """The returned ones come last."""

    @action
    def plan():
        yield FIRST
        return between

    assert actions_run(run(plan)) == ["plan/plan", "first/one", "between/between"]


# -- names in a stage


def test_two_functions_of_one_name_are_refused():
    """By the body of `@stage`, and by `Stage`: the error has the name, and where both functions are."""
    with pytest.raises(DefinitionError, match=r"'twice' has two actions named 'read'.*test_noops.*test_noops"):

        @stage
        def twice() -> None:
            @action
            def read() -> int:
                return 1

            @action
            def read() -> int:  # noqa: F811
                return 2

    def other(): ...

    for actions in ([extract, action(name="extract")(other)], [extract, load, extract.with_options(name="load")]):
        with pytest.raises(DefinitionError, match="two actions named"):
            Stage("s", actions)

    def decorated(function):
        @wraps(function)
        def wrapper(*args):
            return function(*args)

        return wrapper

    with pytest.raises(DefinitionError, match="two actions named 'x'"):
        Stage("s", [action(name="x")(decorated(function)) for function in (other, firsts)])

    @stage
    def template(n):
        action(name="a")(extract.__wrapped__)
        action(name="a")(other)

    with pytest.raises(DefinitionError, match=r"'template\[1\]' has two actions named 'a'"):
        template(1)


def test_functions_that_a_loop_makes_under_one_name_do_not_replace_the_results_of_each_other():
    """Whether they differ in closures or in defaults."""
    with pytest.raises(
        DefinitionError, match=r"'looped' has several actions named 'each', made of one function .*test_noops"
    ):

        @stage
        def looped():
            for name in "ab":

                @action
                def each(name=name):
                    return name

    def made(number, **options):
        return action(name="made", **options)(lambda: number)

    @stage
    def template(n):
        action(name="made")(lambda: n)

    for options in ({}, {"returns": "k"}, {"returns": ("k", Key("l"))}, {"returns": "k", "tags": ["x"]}):
        with pytest.raises(DefinitionError, match="would replace the one before: give each a name of its own"):

            @stage
            def replacing():
                made(1, **options)  # noqa: B023
                made(2, **options)  # noqa: B023

    for options in ({"collect": "xs"}, {"returns": None}):

        @stage
        def collecting():
            made(1, **options)  # noqa: B023
            made(2, **options)  # noqa: B023

        assert len(collecting) == 2
    for actions in (
        [*template(1), *template(2)],
        [*template(1), *template(n=1)],
        [made(1), made(2)],
        pickle.loads(pickle.dumps([*together(1), *together(1)])),
    ):
        assert len(Stage("s", actions)) == 2


@stage
def together(n):
    action(name="together")(lambda: n)


def test_one_function_may_be_there_several_times():
    """As it is, with other options, values, defaults, or bound to other objects."""

    class Reader:
        def read(self): ...

        def __call__(self): ...

    @stage
    def looped():
        for name in "ab":

            @action(collect="names")
            def each(name=name):
                return name

    assert looped.run()["names"] == ["a", "b"]

    def made(number):
        return action(name="made", collect="numbers")(lambda: number)

    made_twice = Stage("s", [made(1), made(2)])
    assert made_twice.run()["numbers"] == [1, 2]
    with pytest.raises(KeyError, match="2 actions of .* are named 'made'"):
        made_twice["made"]
    for actions in (
        [action(name="a")(Reader()), action(name="a")(Reader())],
        [action(name="a")(partial(firsts)), action(name="a")(partial(firsts))],
        [action(name="a")(len), action(name="a")(len)],
        [extract, extract],
        [extract, extract.with_options(tags=["again"])],
        [load.bind(extract=1), load.bind(extract=2)],
        [Reader().read, Reader().read],
        [extract, action(extract.__wrapped__)],
    ):
        assert len(Stage("s", actions)) == 2


def test_a_stage_that_is_called_says_that_it_is_no_template():
    """A stage without parameters is a stage already, and what a template returned is one, too."""

    @stage
    def report() -> None:
        @action
        def write() -> None: ...

    for made, args in ((report, ()), (report, ("x",)), (Stage("report"), ())):
        with pytest.raises(DefinitionError, match="the stage 'report' is not a template"):
            made(*args)
    with pytest.raises(DefinitionError, match=r"'process\[x\]' is not a template.*made by calling process"):
        process("x")()


def test_an_action_lists_its_methods():
    """`dir()`, and so Tab in a notebook, has the action's methods and the attributes of its function."""
    assert {"run", "arun", "bind", "with_options", "validate", "name", "__name__", "__doc__"} <= set(dir(load))
    assert not any(name.startswith("_self_") for name in dir(load))


# -- options of groups and runs


def test_a_merge_of_a_key_that_no_branch_wrote_is_a_warning(run, warnings):
    """With the keys that they wrote."""
    run(parallel(extract, load.bind(extract=1), merge={"extrct": operator.add, "extract": operator.add}, name="g"))
    (text,) = warnings()
    assert "parallel group 'g' has the key 'extrct'" in text
    assert "Did you mean 'extract'?" in text


def test_a_merge_of_a_local_result_says_so(run, warnings):
    """It never leaves its stage."""
    run(parallel(process("a"), process("b"), merge={"handle": operator.add}))
    (text,) = warnings()
    assert "'handle'" in text
    assert "which is local to stage 'process[b]'" in text


def test_a_merge_of_collected_items_is_a_warning(run, warnings):
    """They are concatenated: it is not called."""
    finished = run(parallel(extract.with_options(collect="all"), merge={"all": lambda one, other: one}))
    assert finished["all"] == [1]
    assert ["key 'all', to which its branches collect" in text for text in warnings()] == [True]


def test_a_merge_of_a_key_that_a_branch_may_write_is_none(run, warnings):
    """It has returned nothing this time, or was skipped."""

    @action
    def rare() -> int | None:
        return None

    rare_by_collect = action(collect="all")(lambda: None)
    merge = {"errors": operator.add, "extract": operator.add, "all": operator.add}
    finds = rare.with_options(name="finds", returns="errors")
    run(parallel(finds, extract, rare_by_collect.with_options(name="c"), merge=merge), skip=["extract"])
    assert warnings() == []


def test_an_executor_that_no_group_uses_is_a_warning(run, warnings):
    """It does nothing for actions one after the other."""
    with ThreadPoolExecutor(1) as pool:
        run(FLOW, executor=pool)
        assert ["executor" in text for text in warnings()] == [True]
        run(parallel(extract), executor=pool)
        run(FIRST >> parallel(extract, name="g"), executor=pool, skip=["g"])
        run(action(name="plan")(lambda: parallel(extract)), executor=pool)
    assert names(run(FIRST)) == ["first"]
    assert len(warnings()) == 1


def test_a_stage_as_a_default_counts_in_the_fingerprint():
    """Although it can be called, it is a value."""

    def first(of=FIRST): ...

    def second(of=SECOND): ...

    second.__code__ = first.__code__
    assert fingerprint(first) != fingerprint(second)


# -- what middleware may supply, and hints at what supplies a key


def given():
    yield {"extract": 5}


def passes_on_what_others_yield(call):
    yield from given()


def takes_everything(*calls):
    yield {"extract": 5}


def looks_at_its_frame(call):
    vars()["call"].store["extract"] = 5
    yield


def forgets_its_call(call):
    del call
    yield


def sleeps_by_what_it_sees(call):
    try:
        yield
    except ValueError:
        yield Sleep(0 if call.attempt else 1)
        yield


class Functionlike:
    """As a function that was compiled to C: it has what one in Python has, but is no instance of its class."""

    def __init__(self, function):
        self.__name__ = function.__name__
        self.__code__, self.__defaults__, self.__kwdefaults__ = function.__code__, None, None
        self.__annotations__ = {}
        self.function = function

    @property
    def __call__(self):
        return self.function


@pytest.mark.parametrize(
    "layer", [passes_on_what_others_yield, takes_everything, looks_at_its_frame], ids=lambda layer: layer.__name__
)
def test_middleware_whose_use_of_the_call_is_not_seen_may_supply_anything(run, layer):
    """By `yield from`, through `*args`, or through its frame: the flow is not refused, and the value is there."""
    assert run(pipeline(load.with_options(returns="loaded"), use=[layer])).status == "completed"


@pytest.mark.parametrize(
    "layer", [forgets_its_call, sleeps_by_what_it_sees, Functionlike(watches)], ids=["forgets", "sleeps", "compiled"]
)
def test_a_gap_under_middleware_that_is_not_understood_shows_when_its_action_runs(run, layer):
    """It is given the benefit of the doubt."""
    with pytest.raises(MissingInputError, match="'extract'"):
        run(pipeline(load, use=[layer]))


def test_a_variable_without_a_value_does_not_keep_middleware_from_being_understood(run):
    """A name of the function around it that is not bound yet."""

    def layer(call):
        yield
        if call.attempt > 1:
            later()

    with pytest.raises(WiringError, match="'extract'"):
        run(pipeline(load, use=[layer]))

    def later(): ...


def test_an_action_is_no_supplier_of_its_own_parameter(run):
    """It would come later than itself."""

    @action
    def total(total: int) -> int:
        return total

    with pytest.raises(WiringError, match="'total'") as caught:
        run(extract >> total)
    assert "comes later" not in str(caught.value)


def test_a_stream_between_a_gap_and_its_supplier_is_passed_over(run):
    """What it yields is not known."""

    @action
    def plan(ctx: Context) -> None:
        ctx.insert(Stage("early", [load]), stream(firsts), extract)

    with pytest.raises(WiringError, match=r"'extract' of stage 'extract' supplies it, but comes later"):
        run(plan)


def test_a_merge_without_effect_is_a_warning_in_a_group_that_needs_keys(run, warnings):
    """They come from before the group."""
    run(extract >> parallel(load, one, merge={"extrct": operator.add}, name="g"))
    (text,) = warnings()
    assert "parallel group 'g' has the key 'extrct'" in text
