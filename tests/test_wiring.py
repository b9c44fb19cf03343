"""From parameters to keys: where parameters come from, and what is checked before anything runs."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Protocol

import pytest
from defined import Box, N, T, Unknown, UserId
from support import around, names, one, problems, provide, shown, step, text_of, wants

from flowdeco import Action, Context, Key, Pipeline, Run, Stage, Store, action, parallel, pipeline, stage, stream
from flowdeco.errors import DefinitionError, MissingInputError, Problem, StoreTypeError, WiringError
from flowdeco.middleware import atomic, recover, retry
from flowdeco.model.steps import step_of, steps_of


class Named(Protocol):
    name: str


# -- where parameters come from


def test_parameters_come_from_the_store_by_name(run):
    """Of every kind of parameter."""

    @action
    def every(a, /, b, *, c):
        return [a, b, c]

    assert run(every, {"a": 1, "b": 2, "c": 3})["every"] == [1, 2, 3]


def test_parameters_come_by_the_key_of_their_annotation(run):
    """A string, or a typed key; the name of the parameter does not matter then."""

    @action
    def both(title: Annotated[str, "report.title"], number: Annotated[int, N], other: Annotated[int, "not", "k"] = 5):
        return [title, number, other]

    inputs = {"report.title": "T", "the.number": 3, "title": "wrong", "number": "wrong", "k": "wrong"}
    assert run(both, inputs)["both"] == ["T", 3, 5]
    assert run(both, {**inputs, "not": 6})["both"] == ["T", 3, 6]


def test_annotations_without_a_key_are_like_none(run):
    """Only strings and keys are keys."""

    @action
    def look(a: Annotated[int, 42], b: "Annotated[int, 'the.b']"):
        return [a, b]

    assert run(look, {"a": 1, "the.b": 2})["look"] == [1, 2]


@pytest.mark.parametrize(
    "annotation", [Annotated[int, Key], Annotated[int, 5, Key] | None, "Annotated[int, Key]"], ids=str
)
def test_the_class_of_keys_is_not_a_key(annotation):
    """It would be like none."""

    @action
    def look(a):
        return a

    look.__wrapped__.__annotations__["a"] = annotation
    with pytest.raises(
        DefinitionError, match=r"parameter 'a' of action 'look': its key is the class Key itself: write Key"
    ):
        look.run({"a": 1})


def test_a_typed_key_is_checked_when_the_parameter_is_read(run):
    """`StoreTypeError` names key, expected, found."""

    @action
    def needs(number: Annotated[int, N]):
        return number

    with pytest.raises(StoreTypeError, match=r"'the\.number'.*int.*str"):
        run(needs, {"the.number": "three"})


def test_the_order_of_sources_is_bind_values_store_default(run):
    """Each one wins over those behind it."""

    @action
    def look(k="default"):
        return k

    def seen(unit, inputs=None):
        return run(unit, inputs).result

    assert seen(look) == "default"
    assert seen(look, {"k": "store"}) == "store"
    assert seen(pipeline(look, use=[provide(k="value")]), {"k": "store"}) == "value"
    assert seen(pipeline(look.bind(k="bound"), use=[provide(k="value")]), {"k": "store"}) == "bound"


def test_values_are_found_by_key_and_by_name(run):
    """Where both are given, by the key."""

    @action
    def look(title: Annotated[str, "report.title"] = "default"):
        return title

    assert run(Stage("s", [look], use=[provide(title="by name")])).result == "by name"

    def by_key(call):
        yield {"report.title": "by key", "title": "by name"}

    assert run(Stage("s", [look], use=[by_key])).result == "by key"


def test_a_default_of_none_is_a_default(run):
    """And None in the store is a value."""

    @action
    def look(a=None, b=1):
        return [a, b]

    assert run(look)["look"] == [None, 1]
    assert run(look, {"b": None})["look"] == [None, None]


def test_var_parameters_receive_nothing(run):
    """Whatever is in the store."""

    @action
    def look(a, *args, **kwargs):
        return [a, args, kwargs]

    assert run(look, {"a": 1, "args": 2, "kwargs": 3})["look"] == [1, (), {}]


def test_a_default_between_parameters_that_are_given(run):
    """Positional-only ones keep their places."""

    @action
    def look(a, b="default", /, c="other"):
        return [a, b, c]

    assert run(look, {"a": 1, "c": 3})["look"] == [1, "default", 3]


def test_nothing_gives_a_missing_input(run):
    """It names action, stage, parameter and close matches among the keys."""

    @action
    def writes(ctx: Context):
        ctx.store["titel"] = 1

    @action
    def needs(title):
        pass

    with pytest.raises(MissingInputError, match=r"'needs' of stage 's' needs 'title'.*'titel'") as caught:
        run(writes >> Stage("s", [needs]))
    assert isinstance(caught.value, LookupError)
    assert names(Run.of(caught.value)) == ["writes", "s"]


def test_a_missing_input_names_the_key_too(run):
    """Where it is another name than that of the parameter."""

    @action
    def needs(title: Annotated[str, "report.title"]):
        pass

    with pytest.raises(MissingInputError, match=r"'title'.*'report\.title'.*'report\.titles'"):
        run(Stage("open", [step([], "x", None)], use=[around([], "m")]) >> needs, {"report.titles": 1})


def test_values_of_middleware_are_among_the_close_matches(run):
    """They could have been meant."""

    @action
    def needs(connection):
        pass

    with pytest.raises(MissingInputError, match="'conection'"):
        run(Stage("s", [needs], use=[provide(conection=1)]))


def test_an_action_is_read_once():
    """Its step is kept."""
    look = step([], "a")
    assert step_of(look) is step_of(look)
    made = Stage("s", [look])
    assert steps_of(made) is steps_of(made)


# -- validate


CLOSED = wants(name="closed", returns=None)
NUMBER = wants(name="number", returns=int)
"""An action that supplies nothing, and inserts nothing."""


def test_a_parameter_that_nothing_can_supply_is_certain():
    """The message names action, stage, parameter, and close matches."""
    (problem,) = Stage("s", [wants("titel")]).validate({"title": 1})
    assert problem[:5] == ("s", "wants", "titel", "titel", True)
    assert isinstance(problem, Problem)
    for name in ("'wants'", "'s'", "'titel'", "'title'"):
        assert name in problem.message


def test_nothing_is_reported_where_everything_fits():
    """Inputs, results, collected lists, stage data, defaults, bound values, the context."""
    flow = pipeline(
        Stage("data", data={"d": 1}),
        wants("i", returns=int, name="r"),
        wants(name="u", returns=tuple[int, int]).with_options(returns=("u1", Key("u2", int))),
        wants(name="c", returns=int).with_options(collect="cs"),
        wants("d", "i", "r", "u1", "u2", "cs", "ctx", "b", "x=1", "*args", "**kwargs").bind(b=1),
    )
    assert problems(flow, ["i"]) == []
    assert problems(flow, {"i": 1}) == []
    assert problems(flow, Store({"i": 1})) == []
    assert problems(flow, [Key("i", int)]) == []


def test_inputs_are_names_or_a_mapping():
    """A bare string is neither."""
    with pytest.raises(TypeError, match=r"\['load'\]"):
        Stage("s").validate("load")


def test_only_what_comes_earlier_supplies_anything():
    """In the order of evaluation."""
    late = wants(name="k", returns=int)
    assert problems(wants("k", returns=None) >> late) == [("wants", "wants", "k", "k", True)]
    assert problems(late >> wants("k")) == []
    assert problems(Stage("s", [wants("k", returns=None)]) >> Stage("t", data={"k": 1})) == [
        ("s", "wants", "k", "k", True)
    ]


def unseen(call):
    """A layer that may write anything."""
    yield
    call.store["unseen"] = 1


@pytest.mark.parametrize(
    "opening",
    [
        wants(name="unannotated"),
        wants(name="any", returns=Any).with_options(name="any"),
        wants("ctx", returns=None, name="writes"),
        wants(name="inserts", returns=Stage),
        wants(name="inserts", returns=list[Action]),
        wants(name="inserts", returns=Iterator[Pipeline]),
        wants(name="inserts", returns=Stage | None),
        wants(name="inserts", returns="Stage"),
        wants(name="inserts", returns="Stage | None"),
        wants(name="inserts", returns=object),
        wants(name="inserts", returns=list[Any]),
        wants(name="inserts", returns=T),
        wants(name="inserts", returns=Annotated[Stage, "x"]),
        wants(name="inserts", returns=type(stream([]))),
        Stage("wrapped", use=[unseen]),
        Stage("wrapped", [CLOSED.with_options(use=[unseen])]),
        Stage("wrapped", [CLOSED], use_actions=[unseen]),
        Stage("wrapped", [NUMBER], use_actions=[recover(on=OSError, outcome=[Stage("inserted")])]),
        pipeline(CLOSED, use=[unseen]),
        pipeline(CLOSED, use_stages=[unseen]),
        pipeline(CLOSED, use_actions=[unseen]),
        parallel(CLOSED, wants("ctx", returns=None)),
    ],
    ids=shown,
)
def test_what_may_be_supplied_unseen_is_not_certain(opening):
    """By a `ctx` write, an insertion, middleware; the run is not refused."""
    flow = opening >> wants("k")
    assert problems(flow) == [("wants", "wants", "k", "k", False)]
    with pytest.raises(MissingInputError):
        flow.run()


@pytest.mark.parametrize("outcome", [None, 0, [1, 2], {"a": 1}], ids=shown)
def test_data_of_a_layer_inserts_nothing(outcome):
    """In place of data."""
    flow = NUMBER.with_options(use=[recover(on=OSError, outcome=outcome)]) >> wants("k")
    assert problems(flow) == [("wants", "wants", "k", "k", True)]


def test_values_of_middleware_are_not_certain_inside_of_it():
    """At every level."""
    layers = [unseen]
    inner = wants("k")
    for unit in (
        inner.with_options(use=layers),
        Stage("wants", [inner], use=layers),
        Stage("wants", [inner], use_actions=layers),
        pipeline(inner, use=layers),
        pipeline(inner, use_stages=layers),
        pipeline(inner, use_actions=layers),
        pipeline(pipeline(parallel(inner), name="inner"), use_actions=layers),
    ):
        assert problems(unit) == [("wants", "wants", "k", "k", False)]


def gives(call):
    """A layer that yields a value, and does nothing else."""
    yield {"k": 1}


@pytest.mark.parametrize(
    "opening",
    [
        CLOSED.with_options(use=[gives]),
        Stage("wrapped", [CLOSED], use=[gives]),
        Stage("wrapped", [CLOSED], use_actions=[gives]),
        Stage("wrapped", [CLOSED], use=[gives], local=True),
        pipeline(CLOSED, use=[gives]),
        pipeline(CLOSED, use_stages=[gives]),
        parallel(Stage("wrapped", [CLOSED], use=[gives])),
    ],
    ids=shown,
)
def test_values_of_middleware_are_gone_when_it_has_ended(opening):
    """They are available in its scope only."""
    assert problems(opening >> wants("k")) == [("wants", "wants", "k", "k", True)]


def test_middleware_that_also_supplies_an_outcome_may_supply_a_result():
    """Values for its target, and the result of an action that returns nothing."""

    def both(call):
        yield {"k": 1}
        call.outcome = 2

    assert problems(CLOSED.with_options(use=[both]) >> wants("closed")) == [
        ("wants", "wants", "closed", "closed", False)
    ]


def test_branches_are_checked_each_for_itself():
    """What one supplies is there behind the group, not for the others."""
    supplies = wants(name="k", returns=int)
    flow = parallel(supplies, wants("k", returns=None)) >> wants("k", name="after")
    assert problems(flow) == [("wants", "wants", "k", "k", True)]


def test_a_nested_pipeline_is_checked_in_its_place():
    """It sees what came before, and supplies what comes after."""
    inner = pipeline(wants("a", name="b", returns=int), name="inner")
    assert problems(wants(name="a", returns=int) >> inner >> wants("b")) == []


def test_every_problem_is_reported():
    """In the order of evaluation."""
    flow = Stage("s", [wants("a", "b", returns=None), wants("c", returns=None, name="w")]) >> wants("d")
    assert [p[2] for p in problems(flow)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("produced", "wanted", "agree"),
    [
        (int, int, True),
        (int, float, True),
        (float, int, False),
        (int, complex, True),
        (bool, int, True),
        (int, bool, True),
        (int, str, False),
        (int, object, True),
        (int, Any, True),
        (int, None, False),
        (int, list[int], True),
        (list[int], int, True),
        (int, "int", True),
        (int, "str", False),
        (int, "Nobody", True),
        (int, Named, True),
        (Unknown, Box, False),
        (Box[int], Unknown, True),
        (int, Annotated[str, "made"], False),
        (int, int | str, True),
        (int, Callable, True),
        (Any, int, True),
        (UserId, str, True),
    ],
)
def test_plain_classes_that_cannot_agree_are_reported(produced, wanted, agree):
    """Not certain, for annotations are not checked at run time; everything but plain classes is taken to agree."""

    @action
    def made():
        return 1

    @action
    def needs(made):
        return made

    made.__wrapped__.__annotations__["return"] = produced
    needs.__wrapped__.__annotations__["made"] = wanted
    found = (made >> needs).validate()
    if wanted is None:
        agree = not found  # NoneType is a class like others, or is it
    assert [p.certain for p in found] == ([] if agree else [False])
    if not agree:
        for name in ("'made'", "'needs'", "int" if produced is int else produced.__name__):
            assert name in found[0].message
    assert (made >> needs).run().status == "completed"


def test_a_result_without_an_annotation_may_replace_one_of_another_class():
    """Nothing is known of its class."""
    first, second = wants(name="made", returns=int), action(name="second", returns="made")(lambda: "x")

    @action
    def needs(made: str) -> str:
        return made

    assert (first >> second >> needs).validate() == (second >> needs).validate() == []


def test_classes_that_refuse_to_be_compared_are_taken_to_agree():
    """Their own business."""

    class Meta(type):
        def __subclasscheck__(cls, other):
            raise TypeError("do not ask")

    class Refuses(metaclass=Meta):
        pass

    @action
    def made() -> int:
        return 1

    @action
    def needs(made: Refuses):
        pass

    assert (made >> needs).validate() == []


def test_what_a_generator_is_annotated_to_yield_is_not_compared():
    """Its value is a list, or nothing."""

    @action
    def made() -> Iterator[int]:
        yield 1

    @action
    def needs(made: str):
        pass

    assert (made >> needs).validate() == []


def test_results_and_parameters_without_annotations_are_not_compared():
    """They may be anything."""

    @action
    def made():
        return [1]

    @action
    def needs(made: list):
        pass

    @action
    def other(made):
        pass

    assert (made >> needs >> other).validate() == []
    assert (action(name="made")(lambda: 1) >> needs).validate() == []
    assert (wants(name="made", returns=int) >> other).validate() == []


# -- before the run


def test_certain_problems_are_refused_before_anything_runs(run):
    """All of them in one `WiringError`; there is no run yet."""
    log = []
    flow = one(log, "a") >> Stage("s", [wants("x", "y", returns=None)])
    closed = Stage("a", [wants(name="a", returns=None)]) >> flow[1]
    with pytest.raises(WiringError) as caught:
        run(closed)
    assert [p.parameter for p in caught.value.problems] == ["x", "y"]
    assert all(p.certain for p in caught.value.problems)
    assert "2 problems" in str(caught.value)
    assert "'x'" in str(caught.value)
    assert "'y'" in str(caught.value)
    assert log == []
    assert isinstance(caught.value, DefinitionError)
    with pytest.raises(LookupError):
        Run.of(caught.value)


def test_wiring_errors_are_raised_when_the_run_is_not_checked_too(run):
    """There is no run that could come back."""
    with pytest.raises(WiringError, match="1 problem:"):
        run(wants("x"), check=False)


def test_inputs_and_skips_count(run):
    """What is given is there; what is not run needs nothing, and supplies nothing."""
    needs = wants("x", returns=None)
    assert run(needs, {"x": 1}).status == "completed"
    assert run(Stage("s", [needs]) >> Stage("t", [needs]), skip=["s", "t/wants"]).status == "completed"
    supplies = wants(name="x", returns=int)
    with pytest.raises(WiringError):
        run(Stage("s", [supplies]) >> needs, skip=["s"])
    with pytest.raises(WiringError):
        run(Stage("s", [supplies]) >> needs, skip=["s/x"])


def test_middleware_of_the_run_makes_nothing_certain(run):
    """It may supply anything."""
    assert run(wants("x"), use=[provide(x=1)]).status == "completed"


def test_uncertain_problems_do_not_refuse_a_run(run):
    """Perhaps all is well."""
    flow = step([], "a", lambda: Stage("D", data={"x": 1})) >> wants("x")
    assert problems(flow) == [("wants", "wants", "x", "x", False)]
    assert run(flow).status == "completed"


# -- inserted units


def inserts(*units, **options):
    """An action that inserts the units."""
    return step([], "inserts", lambda: list(units), **options)


@pytest.mark.parametrize(
    "unit",
    [
        Stage("D", [wants("x")]),
        wants("x"),
        pipeline(wants("x"), name="p"),
        Stage("D") >> wants("x"),
        parallel(wants("x")),
        Stage("D", [wants("x")]).with_options(name="E"),
    ],
    ids=shown,
)
def test_inserted_units_are_checked_when_they_are_inserted(run, unit):
    """It is the inserting action's failure; what came with them is not inserted either."""
    flow = Stage("first", [step([], "a", 1)]) >> Stage("s", [inserts(Stage("fine"), unit)]) >> Stage("end")
    with pytest.raises(WiringError, match="'wants'.*'x'") as caught:
        run(flow)
    finished = Run.of(caught.value)
    assert names(finished) == ["first", "s"]
    assert finished.stages[1].actions[0].error is caught.value
    assert [p.parameter for p in caught.value.problems] == ["x"]
    assert "'inserts'" in text_of(caught.value)


def test_inserted_units_are_checked_against_the_store(run):
    """With what the action itself has written, returned and collected."""

    @action(collect="xs")
    def writes(ctx: Context):
        ctx.store["x"] = 1
        ctx.insert(wants("x", "xs", "given"))
        return 5

    assert run(writes, {"given": 1}).status == "completed"


def test_inserted_units_are_checked_against_what_runs_before_them(run):
    """Units inserted ahead of them, the rest of the stage, and what it has inserted so far."""
    needs = Stage("needs", [wants("x")])
    data = Stage("D", data={"x": 1})

    @action
    def x() -> int:
        return 1

    assert run(inserts(data, needs)).status == "completed"
    assert run(inserts(x, needs)).status == "completed"
    assert run(Stage("s", [inserts(needs), x])).status == "completed"
    assert run(Stage("s", [inserts(data), inserts(needs).with_options(name="more")])).status == "completed"


def test_what_may_be_supplied_unseen_does_not_refuse_insertions(run):
    """By an action that asks for the context, for one."""

    @action
    def writes(ctx: Context) -> None:
        ctx.store["x"] = 1

    assert run(Stage("s", [inserts(Stage("needs", [wants("x")])), writes])).status == "completed"


def test_actions_run_before_stages_inserted_ahead_of_them(run):
    """The check knows the order in which they will run; a list keeps its own."""

    @action
    def x() -> int:
        return 1

    @action
    def plan(ctx: Context):
        ctx.insert(Stage("needs", [wants("x")]))
        return x

    assert run(plan).status == "completed"
    assert run(inserts(x, Stage("needs", [wants("x")]))).status == "completed"
    with pytest.raises(WiringError):
        run(inserts(Stage("needs", [wants("x")]), x))


def test_insertions_under_middleware_are_not_refused(run):
    """It may supply anything; what is missing is found when it is needed."""
    needs = wants("x")
    assert run(pipeline(inserts(needs), use=[provide(x=1)])).status == "completed"
    assert run(Stage("s", [inserts(needs)], use=[provide(x=1)])).status == "completed"
    assert run(Stage("s", [inserts(needs)], use_actions=[provide(x=1)])).status == "completed"
    with pytest.raises(MissingInputError):
        run(pipeline(inserts(needs), use=[unseen]))


@pytest.mark.parametrize(
    "options",
    [{"use": [provide(x=1)]}, {"use_actions": [provide(x=1)]}, {"use": [recover(on=MissingInputError)]}],
    ids=shown,
)
def test_inserted_stages_run_outside_of_the_middleware_of_their_stage(run, options):
    """So the insertion is refused."""
    with pytest.raises(WiringError, match="'x'"):
        run(Stage("s", [inserts(Stage("D", [wants("x")]))], **options))


def test_inserted_stages_find_what_middleware_of_their_stage_writes(run):
    """It writes before they begin."""

    def writes(call):
        yield
        call.store["x"] = 1

    for options in ({"use": [writes]}, {"use_actions": [writes]}):
        assert run(Stage("s", [inserts(Stage("D", [wants("x")])), CLOSED], **options)).status == "completed"


def test_a_skipped_inserted_unit_needs_nothing(run):
    """It will not run."""
    assert run(inserts(Stage("D", [wants("x")])), skip=["D"]).status == "completed"


def test_streamed_units_are_checked_when_they_are_pulled(run):
    """What the ones before it have supplied is there."""

    def source():
        yield Stage("D", data={"x": 1})
        yield Stage("E", [wants("x")])
        yield Stage("F", [wants("y")])

    with pytest.raises(WiringError, match="'y'") as caught:
        run(step([], "a", lambda: stream(source)))
    assert names(Run.of(caught.value)) == ["a", "D", "E"]


def test_a_stream_may_supply_anything_to_what_comes_after_it(run):
    """It is not looked into."""
    flow = inserts(stream([Stage("D", data={"x": 1})]), Stage("needs", [wants("x")]))
    assert run(flow).status == "completed"


def test_a_template_stage_is_checked_like_any_other(run):
    """Its actions are known."""

    @stage
    def process(kind):
        @action
        def act(missing_key):
            pass

    with pytest.raises(WiringError, match=r"'process\[x\]'.*'missing_key'"):
        run(process("x"))


def test_middleware_that_supplies_nothing_leaves_the_check_certain():
    """`retry` and `atomic` give no values; of others nobody knows, and what `recover` recovers may be just that."""

    def own(call):
        yield {"missing": 1}

    def certain(**options):
        return [problem.certain for problem in Stage("s", [action(name="a")(lambda missing: 1)], **options).validate()]

    assert [certain(use=[each]) for each in (retry(on=OSError), atomic, own, recover(on=Exception))] == [
        [True], [True], [False], [False],
    ]  # fmt: skip


def test_a_single_problem_is_told_in_one_line(run):
    """Several have a line each."""
    with pytest.raises(WiringError, match=r"^the wiring has 1 problem: action 'wants' of stage 's' needs 'x', [^\n]*$"):
        run(Stage("s", [wants("x")]))
    with pytest.raises(WiringError, match=r"^the wiring has 2 problems:\n  - action 'wants' of stage 's' needs 'x'"):
        run(Stage("s", [wants("x", "y")]))


def test_the_name_of_a_result_that_goes_elsewhere_is_told(run):
    """Before the run, and in it."""
    ways = {
        "returns=None discards its result": {"returns": None},
        "collect= appends its result to the list 'all'": {"collect": "all"},
        "its result is stored under 'a' and 'b'": {"returns": ("a", Key("b"))},
        "its result is stored under 'a'": {"returns": "a"},
    }
    needs = wants("rows", returns=None)
    for why, options in ways.items():
        rows = wants(name="rows", returns=int).with_options(**options)
        with pytest.raises(WiringError, match=f"Action 'rows' of stage 's' runs, and {why}$"):
            run(Stage("s", [rows]) >> needs)
        unannotated = action(name="rows", **options)(lambda: (1, 2))
        with pytest.raises(MissingInputError) as caught:
            run(unannotated >> needs)
        assert f"action 'rows' has run, and {why}" in text_of(caught.value)
    for returns in (None, Stage):
        rows = wants(name="rows", returns=returns).with_options(returns="a")
        assert "rows' of" not in (rows >> needs).validate()[0].message
    with pytest.raises(WiringError, match=r"Known keys: none\.$"):
        run(action(name="rows", returns=None)(lambda: 1) >> needs, skip=["rows/rows"])
    fails = action(name="rows", returns=None, use=[recover(on=ZeroDivisionError)])(lambda: 1 / 0)
    assert "discards" not in text_of(run(fails >> needs, check=False).error)


def test_keys_that_are_known_before_an_action_are_suggested(run):
    """Not those that it supplies itself, or that come later."""
    total = wants("totals", name="total", returns=int)
    later = wants(name="totally", returns=int)
    for unit in (inserts(Stage("t", [total, later])), total >> later, Stage("t", [total, later], local=True)):
        with pytest.raises(WiringError, match=r"Known keys: none\.($|\nin action)"):
            run(unit)
    for unit in (later >> total, Stage("t", [later, total], local=True)):
        with pytest.raises(WiringError, match=r"Did you mean 'totally'\?$"):
            run(unit)


def test_branches_that_write_to_one_key_by_data_or_failures_are_reported():
    """Equal data agrees."""

    def conflicts(*units, **options):
        return [(p.stage, p.action, p.key, p.certain, p.message) for p in parallel(*units, **options).validate()]

    one, two = Stage("one", data={"k": [1]}), Stage("two", data={"k": [2]})
    [(stage, act, key, certain, message)] = conflicts(one, two)
    assert (stage, act, key, certain) == ("two", "", "k", False)
    assert "the data of stage 'two' writes the key 'k' in branch 1 of the parallel group 'parallel'" in message
    [(*_, message)] = conflicts(parallel(one, name="g", failures="f"), parallel(name="h", failures=Key("f")))
    assert "the parallel group 'h' lists its failures under the key 'f' in branch 1" in message
    assert len(conflicts(one, wants(name="k", returns=int))) == len(conflicts(wants(name="k", returns=int), one)) == 1
    assert conflicts(one, Stage("other", data={"k": [1]})) == conflicts(one, two, merge={"k": max}) == []
    assert conflicts(two >> one, one) == []
    assert len(conflicts(one >> two, one)) == 1


def test_what_is_hardly_meant_as_a_key_is_told(run):
    """A key in other letters, a context without an annotation."""

    @action
    def act(context):
        context.emit("x")

    with pytest.raises(WiringError, match="annotate it: `context: Context`$"):
        run(act)
    with pytest.raises(WiringError, match=r"Did you mean 'X'\?$"):
        run(wants("x"), {"X": 1})


# -- what is said of a key that nothing supplies


def refused(run, flow, *args, **options):
    """The message of the only problem."""
    with pytest.raises(WiringError) as caught:
        run(flow, *args, **options)
    (problem,) = caught.value.problems
    return problem.message


def in_order(*functions, **options):
    """A stage of a template with these actions."""

    @stage(name="t", **options)
    def template(kind):
        for each in functions:
            action(each)

    return template("x")


def need(val):
    return val


def val() -> int:
    return 1


LATER = "Action 'val' of stage 't[x]' supplies it, but comes later: let it run first"


@pytest.mark.parametrize("options", [{}, {"local": True}, {"local": False}], ids=["template", "local", "shared"])
def test_a_result_of_the_stage_itself_comes_later_or_is_skipped(run, options):
    """To share it would not help: the reader is in its stage."""
    assert refused(run, in_order(need, val, **options)).endswith(LATER)
    assert refused(run, in_order(val, need, **options), skip=["t/val"]).endswith("supplies it, but is skipped")


def test_another_stage_cannot_supply_a_name_that_is_local(run):
    """That key is hidden in the stage: it is not said to come later."""
    shared = action(name="other", returns="val")(val)
    text = refused(run, in_order(val, need) >> shared, skip=["t/val"])
    assert text.endswith("Action 'val' of stage 't[x]' supplies it, but is skipped")

    def renamed(val):
        return val

    itself = in_order(action(renamed, name="val"))
    assert refused(run, itself, {"val": 1}).endswith("in the stage, the name is that of its result")
    assert "Did you mean" not in refused(run, itself, {"val": 1})
    assert refused(run, itself).endswith("Known keys: none.")


def test_units_that_are_skipped_with_the_unit_around_them_do_not_come_later(run):
    """Nor does their data."""
    for unit in (
        pipeline(action(val), name="N"),
        parallel(action(val), name="N"),
        pipeline(Stage("d", data={"val": 1}), name="N"),
    ):
        assert refused(run, unit >> action(need), skip=["N"]).endswith("but is skipped")


def test_later_data_is_said_to_come_later(run):
    """By what supplies it: a stage, not an action."""
    text = refused(run, action(need) >> Stage("d", data={"val": 1}))
    assert text.endswith("Stage 'd' supplies it by its data, but comes later: let it run first")


def test_an_inserted_action_is_in_the_stage_that_it_was_inserted_into(run):
    """So is one that comes later."""
    plan = action(name="plan")(lambda: action(need))
    assert refused(run, Stage("report", [plan])).startswith("action 'need' of stage 'report' needs 'val'")
    text = refused(run, Stage("report", [plan, val]))
    assert text.endswith("Action 'val' of stage 'report' supplies it, but comes later: let it run first")
    assert run(Stage("report", [plan]), skip=["report/need"]).status == "completed"


def test_what_comes_after_an_insertion_is_said_to_come_later(run):
    """A static unit, data, an action of the open local stage; or it is in another branch."""
    inserts_stage = action(name="plan")(lambda: Stage("n", [need]))
    later = "supplies it, but comes later: let it run first"
    assert refused(run, inserts_stage >> action(val)).endswith(f"Action 'val' of stage 'val' {later}")
    assert refused(run, inserts_stage >> parallel(action(val))).endswith(f"Action 'val' of stage 'val' {later}")
    assert refused(run, inserts_stage >> Stage("d", data={"val": 1})).endswith(later.replace("it,", "it by its data,"))
    assert refused(run, in_order(lambda_plan, val)).endswith(LATER)
    text = refused(run, parallel(inserts_stage, action(val), name="g"))
    assert "in another branch of the parallel group 'g', and branches do not see each other" in text


def lambda_plan():
    return action(need)
