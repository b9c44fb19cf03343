"""Definitions as values: actions, stages, pipelines, groups, and the algebra of `>>`."""

import copy
import doctest
import functools
import inspect
import os
import pickle
import pydoc
import sys
import threading
import typing

import pytest
from defined import ALIAS, BOTH, BOUND, BUILTIN, FLOW, OBJECT, PARTIAL, Shop, add, counting, double, greet, layer, plain
from support import around, names, one, provide, shown, step

import flowdeco
from flowdeco import Action, Context, Key, Parallel, Pipeline, Stage, action, parallel, pipeline, stage, stream
from flowdeco.errors import DefinitionError, StoreTypeError, WriteConflictError
from flowdeco.model.definitions import Stream, action_options, bound_of, data_of, memo_of, one_action_stage, options_of
from flowdeco.model.references import Bound, Changed, origin_of

# -- an action is a transparent proxy


def test_an_action_is_called_as_the_plain_function():
    """With any arguments, outside of any run."""
    assert (double(4), double(n=4), add(1), add(1, y=2)) == (8, 8, 1, 3)


def test_signature_name_and_docstring_are_those_of_the_function():
    """As inspect and help see them."""
    assert str(inspect.signature(double)) == "(n: int) -> int"
    assert (double.__name__, double.__qualname__, double.__module__) == ("double", "double", "defined")
    assert double.__doc__.startswith("Twice the number.")
    assert inspect.getdoc(double).startswith("Twice the number.")
    assert double.__annotations__ == {"n": int, "return": int}
    assert typing.get_type_hints(double) == {"n": int, "return": int}
    assert inspect.unwrap(double) is double.__wrapped__
    assert inspect.isfunction(double)
    assert "Twice the number" in pydoc.render_doc(double)


def test_inspect_sees_which_kind_of_function_it_is():
    """Coroutine, generator and async generator functions."""

    async def coroutine():
        pass

    def generator():
        yield

    async def async_generator():
        yield

    assert inspect.iscoroutinefunction(action(coroutine))
    assert inspect.isgeneratorfunction(action(generator))
    assert inspect.isasyncgenfunction(action(async_generator))
    assert not inspect.iscoroutinefunction(double)


def test_doctest_finds_what_is_written_in_actions():
    """In a module, as in a class."""
    module = sys.modules[double.__module__]
    found = {test.name.rpartition(".")[2]: test for test in doctest.DocTestFinder().find(module, "m", module=module)}
    assert len(found["double"].examples) == 1


def test_an_action_has_a_name_a_description_and_tags():
    """By default those of the function: its name, the first paragraph of its docstring."""
    assert (double.name, double.description, double.tags) == ("double", "Twice the number.", frozenset())
    assert (add.name, add.description, add.tags) == ("total", "Add them.", frozenset({"slow"}))
    assert step([], "a").description == ""


def test_an_action_is_immutable():
    """Nothing can be set or deleted on it, and nothing reaches the function behind it."""

    def function():
        pass

    made = action(function)
    before = dict(vars(function)), function.__name__, function.__doc__
    for name in ("name", "tags", "color", "__name__", "__doc__", "__wrapped__", "_self_options"):
        with pytest.raises(AttributeError):
            setattr(made, name, "x")
        with pytest.raises(AttributeError):
            delattr(made, name)
    with pytest.raises(AttributeError):
        functools.update_wrapper(made, plain)
    assert (dict(vars(function)), function.__name__, function.__doc__) == before


def test_an_action_of_an_action_is_the_action():
    """`action(an_action)` returns it unchanged; with options, a changed copy."""
    assert action(double) is double
    renamed = action(name="other")(double)
    assert (renamed.name, double.name) == ("other", "double")
    assert renamed(2) == 4


def test_two_actions_are_equal_when_function_and_options_are():
    """wrapt alone would compare the functions only."""
    same = action(double.__wrapped__)
    assert double == same
    assert hash(double) == hash(same)
    assert (double != same) is False
    assert len({double, same}) == 1
    for other in (
        double.with_options(name="other"),
        double.with_options(tags=["t"]),
        double.with_options(returns="k"),
        double.with_options(collect="k"),
        double.with_options(timeout=1),
        double.with_options(use=[layer]),
        double.with_options(description="other"),
        double.bind(n=1),
        double.__wrapped__,
        "double",
        None,
    ):
        assert double != other
        assert (double == other) is False


def test_a_function_is_not_equal_to_its_action():
    """From either side."""
    assert double.__wrapped__ != double
    assert plain != ALIAS


def test_an_action_of_something_without_a_hash_can_be_hashed():
    """By its name."""

    class Unhashable:
        __hash__ = None

        def __call__(self):
            return 1

    assert hash(action(name="a")(Unhashable())) == hash(action(name="a")(Unhashable()))


def test_an_action_has_a_repr():
    """With its name, and the values that are bound."""
    assert repr(double) == "<Action double>"
    assert repr(BOUND) == "<Action total, y=5>"


def test_copying_an_action_gives_itself():
    """It is a value."""
    assert copy.copy(double) is double
    assert copy.deepcopy([double]) == [double]


# -- what can be an action


def test_methods_bind_as_methods_do(run):
    """On instances and classes; each bound one is an action."""
    shop = Shop(3)
    assert isinstance(shop.total, Action)
    assert (shop.total(2), Shop.total(shop, 2), shop.brand(), Shop.brand(), shop.motto(), Shop.motto()) == (
        6, 6, "Shop", "Shop", "cheap", "cheap",
    )  # fmt: skip
    finished = run(shop.total >> Shop.brand >> Shop.motto >> shop.cheap >> shop.later, {"n": 5})
    assert dict(finished.store) == {"n": 5, "total": 15, "brand": "Shop", "motto": "cheap", "cheap": 15, "later": 3}
    assert (shop.total.name, shop.cheap.name) == ("total", "cheap")


def test_methods_of_equal_objects_are_equal_actions():
    """As bound methods are."""
    shop = Shop(3)
    assert shop.total == shop.total
    assert hash(shop.total) == hash(shop.total)
    assert shop.total != Shop(4).total
    assert shop.total != shop.cheap


def test_an_action_of_something_that_does_not_bind_stays_itself_in_a_class():
    """As a callable object does, or a partial."""

    class Holder:
        held = OBJECT
        partial = PARTIAL

    assert Holder().held is Holder.held is OBJECT
    assert Holder().partial is PARTIAL


def test_documentation_of_methods_can_be_asked_for():
    """Also through the class, and of the raw objects in it, which could recurse for ever."""
    raw = vars(Shop)
    assert inspect.getdoc(Shop.total) == inspect.getdoc(Shop(1).total) == "Price of n pieces."
    assert inspect.getdoc(Shop.brand) == "The name of the class."
    assert inspect.getdoc(Shop.motto) == "What it says."
    for name in ("total", "brand", "motto"):
        assert inspect.getdoc(raw[name])
        assert raw[name].description
    assert "Price of n pieces" in pydoc.render_doc(Shop)


def test_partials_builtins_and_callable_objects_can_be_actions(run):
    """Where they have a name, or are given one; they can be bound, too."""
    divided = action(name="divided")(functools.partial(pow, 2))
    bound = OBJECT.bind(n=5).with_options(name="b")
    flow = PARTIAL >> divided.bind(exp=3) >> BUILTIN.bind(obj="four") >> OBJECT >> bound
    finished = run(flow, {"n": 1, "mod": None})
    expected = {"n": 1, "mod": None, "partial": 3, "divided": 8, "len": 4, "object": 2, "b": 6}
    assert dict(finished.store) == expected


@pytest.mark.parametrize("wrong", [3, "name", None, [plain], Shop, counting, FLOW, greet, parallel()], ids=shown)
def test_what_is_no_function_cannot_be_an_action(wrong):
    """The message says what it was."""
    with pytest.raises(DefinitionError):
        Stage("s", [wrong])
    if wrong is not None:
        with pytest.raises(DefinitionError, match="action"):
            action(wrong)


# -- bind, with_options


def test_a_call_with_bound_positional_only_parameters_fills_the_others_as_python_does():
    """With arguments in their order, then defaults; and it says which are missing."""

    @action
    def given(a=1, b=2, /, c=3):
        return a, b, c

    @action
    def needed(a, b, c=3, /, *rest):
        return a, b, c, rest

    assert [given.bind(b=5)(), given.bind(b=5)(7), given.bind(a=5)(c=7), given.bind(a=5)(6, 7)] == [
        (1, 5, 3), (7, 5, 3), (5, 2, 7), (5, 6, 7)
    ]  # fmt: skip
    assert [needed.bind(b=5)(1), needed.bind(b=5)(1, 2, 4)] == [(1, 5, 3, ()), (1, 5, 2, (4,))]
    for wrong in (lambda: needed.bind(b=5)(), lambda: needed.bind(c=5)()):
        with pytest.raises(TypeError, match=r"^needed\(\) missing positional-only arguments: 'a'"):
            wrong()


def test_bind_fixes_parameters_and_leaves_the_original_alone(run):
    """Calling applies them, as `partial` does; a later bind overrides."""
    assert (BOUND(1), BOUND(1, y=7), add(1)) == (6, 8, 1)
    assert BOUND.bind(y=6)(1) == 7
    assert double.bind(n=3)() == 6
    assert run(BOUND, {"x": 1})["sum"] == 6
    assert add != BOUND
    assert add.bind(y=5) == BOUND
    assert hash(BOUND) == hash(add.bind(y=5))


def test_with_options_changes_a_copy():
    """Everything else stays, the original as it was."""
    changed = add.with_options(name="other", tags=["t"])
    assert (changed.name, changed.tags, changed.description, changed(1, 2)) == ("other", {"t"}, "Add them.", 3)
    assert (add.name, add.tags) == ("total", {"slow"})
    assert changed.with_options(name="total", tags=["slow"]) == add


def test_with_options_keeps_what_is_bound():
    """And bind keeps the options."""
    assert BOTH.name == "both"
    assert BOTH.tags == {"t"}
    assert BOTH() == 3


def test_options_can_be_taken_back():
    """To what they are by default."""
    changed = double.with_options(timeout=1, returns="k", collect="l", use=[layer], tags=["t"])
    back = changed.with_options(timeout=None, returns="double", collect=None, use=[], tags=[])
    assert back == double.with_options(returns="double")


def test_an_unknown_option_is_an_error():
    """With close matches; for every kind of definition."""
    for unit in (double, counting, FLOW, parallel()):
        with pytest.raises(DefinitionError, match="tag'.*'tags'"):
            unit.with_options(tag=["t"])
    for kind in (Pipeline, Parallel):
        with pytest.raises(DefinitionError, match=rf"{kind.__name__} has no option 'tag'.*'tags'"):
            kind([A], tag=["t"])


# -- stages


def test_a_stage_is_a_sequence_of_actions():
    """Length, iteration, by name."""
    first, second = step([], "first"), step([], "second")
    made = Stage("s", [first, second])
    assert len(made) == 2
    assert list(made) == [first, second]
    assert made["second"] is second
    assert first in made
    assert made
    assert Stage("empty")


def test_an_unknown_or_ambiguous_name_is_a_key_error():
    """It lists the names there are."""
    twice = step([], "twice")
    made = Stage("s", [step([], "load"), step([], "save"), twice, twice])
    with pytest.raises(KeyError, match="load"):
        made["laod"]
    with pytest.raises(KeyError, match=r"2 actions .* named 'twice': .* with_options\(name=\.\.\.\)"):
        made["twice"]
    with pytest.raises(TypeError):
        made[0]


def test_plain_functions_become_actions():
    """In a stage that is built by hand."""
    made = Stage("s", [plain])
    assert isinstance(made["plain"], Action)
    assert made["plain"] == action(plain)


def test_a_stage_has_a_name_a_title_a_description_tags():
    """The title is made from the name."""
    made = Stage("load_the_data", tags={"t"}, description="Why.")
    assert (made.name, made.title, made.description, made.tags) == ("load_the_data", "Load the data", "Why.", {"t"})
    assert Stage("s", title="A Title").title == "A Title"
    assert Stage("_").title == "_"
    assert Stage("ETL").title == "ETL"


def test_stages_are_equal_when_they_would_do_the_same():
    """By actions and options."""
    a, b = step([], "a"), step([], "b")
    made = Stage("s", [a], tags=["t"], data={"k": [1]})
    assert made == Stage("s", [a], tags=["t"], data={"k": [1]})
    assert hash(made) == hash(Stage("s", [a], tags=["t"], data={"k": [1]}))
    for other in (
        Stage("t", [a], tags=["t"], data={"k": [1]}),
        Stage("s", [b], tags=["t"], data={"k": [1]}),
        Stage("s", [a, a], tags=["t"], data={"k": [1]}),
        Stage("s", [a], tags=[], data={"k": [1]}),
        Stage("s", [a], tags=["t"], data={"k": [2]}),
        Stage("s", [a], tags=["t"], data={"k": [1]}, title="x"),
        Stage("s", [a], tags=["t"], data={"k": [1]}, description="x"),
        Stage("s", [a], tags=["t"], data={"k": [1]}, use=[layer]),
        Stage("s", [a], tags=["t"], data={"k": [1]}, use_actions=[layer]),
        pipeline(made),
        "s",
    ):
        assert made != other


@pytest.mark.parametrize("frozen", [Stage("s"), pipeline(Stage("s")), parallel(Stage("s"))], ids=shown)
def test_definitions_are_frozen(frozen):
    """Nothing can be set or deleted; the message names the way."""
    for name in ("name", "tags", "color", "_actions", "units"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(frozen, name, "x")
        with pytest.raises(AttributeError, match="immutable"):
            delattr(frozen, name)
    assert not hasattr(frozen, "__dict__")


def test_definitions_have_reprs_one_can_read():
    """With what is in them."""
    a, b = step([], "a"), step([], "b")
    assert repr(Stage("s", [a, b], tags=["y", "x"])) == "<Stage s: a, b tags=['x', 'y']>"
    assert repr(Stage("s")) == "<Stage s: no actions>"
    assert repr(a >> b) == "<Pipeline a >> b>"
    assert repr(pipeline(a, name="p")) == "<Pipeline p: a>"
    assert repr(pipeline()) == "<Pipeline empty>"
    assert repr(parallel(a, b)) == "<Parallel parallel: a | b>"
    assert repr(parallel(name="p")) == "<Parallel p: empty>"


@pytest.mark.parametrize(
    "make",
    [
        lambda: counting,
        lambda: greet("you"),
        lambda: Stage("s", [step([], "a")]),
        lambda: stage(name="local")(lambda: step([], "a")),
        lambda: FLOW,
        lambda: pipeline(Stage("s", [step([], "a")]), name="p"),
        lambda: parallel(Stage("s", [step([], "a")])),
    ],
)
def test_definitions_can_be_copied(make):
    """Copying is not pickling: local ones too, and as a part of other values."""
    definition = make()
    assert copy.copy(definition) == definition
    assert copy.deepcopy({"flow": [definition]}) == {"flow": [definition]}
    assert Stage("holds", data={"next": definition}).data == {"next": definition}


def test_stage_data_is_copied_at_construction():
    """Neither the mapping nor what is in it is shared; what `data` gives is a copy as well."""
    given = {"xs": [1]}
    made = Stage("s", data=given)
    given["xs"].append(2)
    given["late"] = 3
    made.data["xs"].append(4)
    assert made.data == {"xs": [1]}


@pytest.mark.parametrize("make", [lambda data: Stage("s", data=data), lambda data: Stage("s").with_options(data=data)])
def test_data_that_cannot_be_copied_is_an_error_that_names_its_key(make):
    """And points to middleware values."""
    with pytest.raises(DefinitionError, match=r"'db\.lock'.*middleware"):
        make({"fine": 1, "db.lock": threading.Lock()})


def test_data_that_can_be_copied_in_parts_only_fails_with_its_own_error():
    """No key is to blame."""

    class OnlyAlone:
        def __deepcopy__(self, memo):
            if memo:
                raise ValueError("not alone")
            return self

    with pytest.raises(ValueError, match="not alone"):
        Stage("s", data={"xs": [1], "alone": OnlyAlone()})


def test_data_of_typed_keys_is_checked():
    """Under their names."""
    assert Stage("s", data={Key("n", int): 3}).data == {"n": 3}
    with pytest.raises(StoreTypeError, match="'n'"):
        Stage("s", data={Key("n", int): "three"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stage("s", step([], "a")), r"actions.*\[\.\.\.\]"),
        (lambda: Stage("s", "ab"), "actions"),
        (lambda: Stage("s", 3), "actions"),
        (lambda: Stage("s", data=[1]), "data"),
        (lambda: parallel(limit=0), "limit"),
        (lambda: parallel(limit=True), "limit"),
        (lambda: parallel(limit=1.5), "limit"),
        (lambda: parallel(merge=[1]), "merge"),
        (lambda: parallel(merge={"k": 3}), "merge"),
        (lambda: stream(3), "stream"),
        (lambda: stream("ab"), "stream"),
        (lambda: stream({}), "stream"),
        (lambda: stream([], 3), "stream"),
        (lambda: stream(plain, n=3), "stream"),
    ],
)
def test_wrong_actions_data_limits_reducers_and_sources_are_refused(make, message):
    """Each error names the option."""
    with pytest.raises(DefinitionError, match=message):
        make()


@pytest.mark.parametrize("data", [{"": 1}, {3: 1}, {None: 1}])
def test_keys_of_data_are_non_empty_strings(data):
    """Others are refused at construction."""
    with pytest.raises(TypeError, match="non-empty string"):
        Stage("s", data=data)


def test_collections_given_as_options_are_not_shared():
    """Changing them later changes no definition."""
    tags, layers, reducers = ["t"], [layer], {"k": max}
    made = Stage("s", tags=tags, use=layers), pipeline(tags=tags, use=layers), parallel(tags=tags, merge=reducers)
    tags.append("late")
    layers.append(layer)
    reducers["late"] = min
    assert [set(unit.tags) for unit in made] == [{"t"}] * 3
    assert made[0].use == made[1].use == (layer,)
    assert dict(made[2].merge) == {"k": max}
    with pytest.raises(TypeError):
        made[2].merge["late"] = min


# -- the algebra of >>


A, B, C = Stage("a"), Stage("b"), Stage("c")


def test_chaining_gives_a_pipeline_of_the_units():
    """Of actions, stages, pipelines, groups, in every combination."""
    units = [double, A, pipeline(B, name="p"), parallel(C)]
    for left in units:
        for right in units:
            chained = left >> right
            assert isinstance(chained, Pipeline)
            assert list(chained) == [left, right]


def test_chaining_is_associative():
    """L1."""
    assert (A >> B) >> C == A >> (B >> C) == pipeline(A, B, C)
    nested = pipeline(A, name="p")
    assert (nested >> B) >> C == nested >> (B >> C)


@pytest.mark.parametrize(
    "flow",
    [pipeline(), A >> B, pipeline(A), pipeline(A, name="p"), pipeline(name="empty"), pipeline(use=[layer])],
    ids=shown,
)
def test_the_empty_pipeline_is_the_unit(flow):
    """L2, also for pipelines with options, and empty ones."""
    assert pipeline() >> flow == flow >> pipeline() == flow


def test_the_empty_pipeline_leaves_a_unit_alone():
    """`pipeline() >> a` is the pipeline of `a`."""
    for unit in (double, A, parallel(A)):
        assert pipeline() >> unit == unit >> pipeline() == pipeline(unit)


def test_a_pipeline_without_options_dissolves_into_the_one_it_joins():
    """One with options stays a nested pipeline."""
    inner = A >> B
    named = pipeline(A, B, name="named")
    assert list(inner >> C) == [A, B, C]
    assert list(pipeline(inner, C)) == [A, B, C]
    assert list(named >> C) == [named, C]
    assert list(C >> pipeline(A, tags=["t"])) == [C, pipeline(A, tags=["t"])]


def test_chaining_in_place_makes_a_new_pipeline():
    """`>>=` is `>>`: no definition is changed."""
    for unit in (double, A, A >> B, parallel(A)):
        flow = unit
        flow >>= C
        assert flow == unit >> C
        assert unit != flow


@pytest.mark.parametrize("wrong", [3, "a", None, [A], plain, len, Shop, stream([A])], ids=shown)
def test_what_is_no_unit_cannot_be_chained(wrong):
    """From either side; the message says what to write."""
    for unit in (double, A, A >> B, parallel(A)):
        with pytest.raises(TypeError):
            unit >> wrong
        with pytest.raises(TypeError):
            wrong >> unit
    for make in (pipeline, parallel):
        with pytest.raises(DefinitionError):
            make(A, wrong)


def test_units_are_not_combined_by_or():
    """The message says what to write."""
    for unit in (double, A, A >> B, parallel(A)):
        with pytest.raises(TypeError, match=r"write a >> b, or parallel\(a, b\)"):
            unit | A


def test_a_plain_function_in_a_chain_is_told_to_become_an_action():
    """The cure is in the message."""
    with pytest.raises(DefinitionError, match="plain.*@action"):
        A >> plain
    with pytest.raises(DefinitionError, match="plain.*@action"):
        plain >> A


def test_a_template_must_be_called():
    """In a chain from either side, a pipeline, a group."""
    for make in (
        lambda: A >> greet,
        lambda: greet >> A,
        lambda: double >> greet,
        lambda: greet >> double,
        lambda: plain >> greet,
        lambda: greet >> greet,
        lambda: pipeline(greet),
        lambda: parallel(greet),
    ):
        with pytest.raises(DefinitionError, match=r"greet\(\.\.\.\)"):
            make()


# -- pipelines


def test_a_pipeline_is_an_immutable_sequence():
    """Length, iteration, membership, by position and name."""
    flow = A >> B >> C
    assert len(flow) == 3
    assert list(flow) == [A, B, C]
    assert (flow[0], flow[-1], flow["b"]) == (A, C, B)
    assert B in flow
    assert pipeline()
    with pytest.raises(IndexError):
        flow[3]


def test_an_unknown_unit_is_a_key_error_that_lists_the_names():
    """An ambiguous name is an error as well."""
    flow = A >> B >> B >> parallel(C, name="group")
    with pytest.raises(KeyError, match="'a'.*'b'.*'group'"):
        flow["zzz"]
    with pytest.raises(KeyError, match="'group'"):
        flow["grupo"]
    with pytest.raises(KeyError, match="2 units"):
        flow["b"]
    with pytest.raises(KeyError):
        flow["b":]
    with pytest.raises(TypeError):
        flow[None]


def test_slices_are_pipelines_with_the_end_excluded():
    """By position and by name; options stay."""
    flow = pipeline(A, B, C, name="p", tags=["t"])
    assert flow["b":] == pipeline(B, C, name="p", tags=["t"])
    assert flow[:"b"] == pipeline(A, name="p", tags=["t"])
    assert flow["a":"c"] == flow[0:2] == pipeline(A, B, name="p", tags=["t"])
    assert flow[:] == flow
    assert (A >> B >> C)[::2] == A >> C
    with pytest.raises(KeyError):
        flow["zzz":]


def test_a_bare_action_can_be_found_by_name():
    """It is itself, in the sequence."""
    flow = double >> A
    assert flow["double"] is double
    assert flow["double":] == flow


def test_only_keeps_what_the_selectors_name():
    """Stages, actions, tags, templates; from nested pipelines and groups, too."""
    a, b = step([], "x"), step([], "y", tags=["etl"])
    s, t = Stage("s", [a, b]), Stage("t", [a], tags=["etl"])
    flow = pipeline(s, t, greet("you"), double)
    assert flow.only("s") == pipeline(s)
    assert flow.only("s/x") == pipeline(Stage("s", [a]))
    assert flow.only("tag:etl") == pipeline(Stage("s", [b]), t)
    assert flow.only("greet") == pipeline(greet("you"))
    assert flow.only("greet[you]", "double") == pipeline(greet("you"), double)
    assert flow.only("double/double") == pipeline(double)
    nested = pipeline(pipeline(s, t, name="inner"), parallel(s, t))
    assert nested.only("t") == pipeline(pipeline(t, name="inner"), parallel(t))
    assert nested.only("inner") == pipeline(pipeline(s, t, name="inner"))


def test_without_removes_what_the_selectors_name():
    """The rest stays as it is."""
    a, b = step([], "x"), step([], "y", tags=["slow"])
    s, t = Stage("s", [a, b], data={"k": 1}), Stage("t", [b])
    flow = pipeline(s, t, double, name="p")
    assert flow.without("t", "tag:slow") == pipeline(Stage("s", [a], data={"k": 1}), double, name="p")
    assert flow.without("s/x") == pipeline(Stage("s", [b], data={"k": 1}), t, double, name="p")
    assert flow.without("double") == pipeline(s, t, name="p")
    assert flow.without() == flow
    nested = pipeline(pipeline(s, t, name="inner"), parallel(s, t))
    assert nested.without("s") == pipeline(pipeline(t, name="inner"), parallel(t))


def test_what_is_left_of_a_stage_of_a_template_is_still_of_that_template(run):
    """Its name selects it."""

    @stage
    def two(number):
        @action
        def first():
            pass

        @action
        def second():
            pass

    finished = run(pipeline(two(1)).without("two/first"), skip=["two"])
    assert [record.status.value for record in finished.stages] == ["skipped"]


def test_what_is_left_of_a_stage_is_a_value_as_well():
    """Equal where as much is left, and picklable by reference to the whole."""
    for whole in (counting, Stage("s", [double, add]), greet("you")):
        left = pipeline(whole).without(f"{whole.name}/{next(iter(whole)).name}")
        same = pipeline(whole).without(f"{whole.name}/{next(iter(whole)).name}")
        assert left == same
        assert hash(left) == hash(same)
        assert left != pipeline(whole)
        assert pickle.loads(pickle.dumps(left)) == left
    assert greet("you") == greet("you")
    renamed = pipeline(counting).only("counting/second")[0].with_options(name="renamed")
    assert pickle.loads(pickle.dumps(renamed)) == renamed
    assert [made.name for made in renamed] == ["second"]


def test_a_pipeline_has_options_of_its_own():
    """Name, title, tags, description, middleware."""
    flow = pipeline(
        A, name="p", title="The P", tags=["t"], description="Why.", use=[layer], use_stages=[layer], use_actions=[layer]
    )
    assert (flow.name, flow.title, flow.description, flow.tags) == ("p", "The P", "Why.", {"t"})
    assert flow.use == flow.use_stages == flow.use_actions == (layer,)
    assert flow.with_options(name="q") == pipeline(
        A, name="q", title="The P", tags=["t"], description="Why.", use=[layer], use_stages=[layer], use_actions=[layer]
    )
    assert pipeline().title
    assert pipeline(A) != pipeline(A, name="p")
    assert hash(pipeline(A, name="p")) == hash(pipeline(A, name="p"))


# -- parallel groups


def test_a_group_is_a_sequence_of_branches():
    """A plain pipeline in it is one branch."""
    group = parallel(A, B >> C, name="g", limit=2, merge={"k": max}, tags=["t"])
    assert isinstance(group, Parallel)
    assert list(group) == [A, B >> C]
    assert (len(group), group[0], group["a"]) == (2, A, A)
    assert (group.name, group.limit, dict(group.merge), group.tags) == ("g", 2, {"k": max}, {"t"})
    with pytest.raises(KeyError, match="'a'"):
        group["zzz"]


def test_groups_are_equal_by_branches_and_options():
    """And hashable."""
    assert parallel(A, B) == parallel(A, B)
    assert hash(parallel(A, B, merge={"k": max})) == hash(parallel(A, B, merge={"k": max}))
    for other in (
        parallel(B, A),
        parallel(A, B, limit=1),
        parallel(A, B, name="g"),
        parallel(A, B, merge={"k": max}),
        A >> B,
    ):
        assert parallel(A, B) != other
    assert parallel(A).with_options(limit=3).limit == 3


def test_keys_to_merge_may_be_typed():
    """They are known by name."""
    assert list(parallel(merge={Key("n", int): max}).merge) == ["n"]
    with pytest.raises(StoreTypeError):
        parallel(merge={"": max})


# -- streams


def test_a_stream_is_a_value_of_its_source():
    """With a name for messages."""

    def source():
        return []

    made = stream(source)
    assert isinstance(made, Stream)
    assert "source" in made.name
    assert "source" in repr(made)
    assert "list" in repr(stream([])) or "[]" in repr(stream([]))


# -- how other modules read a definition


def test_the_options_of_a_unit_are_those_its_class_takes():
    """Of an action, a stage, a pipeline and a group; they make an equal one."""
    made = Stage("s", [add], title="S", tags=["x"], data={"n": 1})
    assert Stage(actions=made.actions, **options_of(made)) == made
    flow, group = pipeline(made, name="flow", tags=["y"]), parallel(made, limit=2)
    assert Pipeline(flow.units, **options_of(flow)) == flow
    assert Parallel(group.units, **options_of(group)) == group
    assert options_of(add) == action_options(add)._asdict()


def test_a_stage_has_its_actions_and_tells_whether_it_has_data():
    """Without copying the data, which `data` does."""
    made = Stage("s", [add, double], data={"rows": [1]})
    assert (made.actions, made.has_data, Stage("s").has_data) == ((add, double), True, False)
    assert data_of(made) is data_of(made)
    assert data_of(made) == made.data
    assert made.data["rows"] is not data_of(made)["rows"]


def test_the_origin_of_a_definition_is_what_it_was_derived_from():
    """By `bind`, `with_options`, or another stage; None for one that was made directly."""
    made = Stage("s", [double])
    assert origin_of(double) is None
    assert origin_of(made) is None
    assert origin_of(double.bind(n=1)) == Bound(double, {"n": 1})
    assert bound_of(double.bind(n=1)) == {"n": 1}
    assert origin_of(made.with_options(name="t")) == Changed(made, {"name": "t"})


def test_a_memo_is_no_part_of_the_value():
    """It keeps what was worked out once."""
    one_stage, other = Stage("s", [double]), Stage("s", [double])
    one_stage.run({"n": 1})
    assert (hasattr(memo_of(one_stage), "steps"), hasattr(memo_of(other), "steps")) == (True, False)
    assert one_stage == other
    assert one_action_stage(double) is one_action_stage(double)


def test_attributes_of_a_function_are_not_hidden_by_those_of_its_action():
    """Such as options, data, a memo: the action keeps its own under other names."""

    @action
    def counted():
        return counted.memo

    function = counted.__wrapped__
    function.memo, function.options, function.origin, function.actions = 1, 2, 3, 4
    assert (counted.memo, counted.options, counted.origin, counted.actions, counted()) == (1, 2, 3, 4, 1)
    assert counted.run()["counted"] == 1


# -- no run changes a definition (L3)


def test_no_run_changes_a_definition(run):
    """Whatever happens in it: the same pipeline runs again in the same way."""

    @action
    def wild(ctx: Context, xs):
        xs.append(1)
        ctx.store["k"] = 2
        ctx.insert(one([], "D"), double.bind(n=1))
        ctx.disable("end")
        return [greet("you")]

    flow = pipeline(
        Stage("s", [wild], data={"xs": [], "k": 1}, use=[provide(v=1)]), parallel(counting, A), Stage("end"), name="p"
    )
    before = repr(flow), hash(flow), copy.deepcopy(flow), [unit.name for unit in flow], flow["s"].data
    first, second = run(flow), run(flow)
    assert (repr(flow), hash(flow), flow, [unit.name for unit in flow], flow["s"].data) == before
    assert dict(first.store) == dict(second.store)
    assert names(first) == names(second) == ["s", "D", "double", "greet[you]", "counting", "a", "end"]


def test_the_front_door_is_a_list():
    """`flowdeco` exports exactly what the design says."""
    expected = [
        "action",
        "stage",
        "pipeline",
        "parallel",
        "stream",
        "Action",
        "Stage",
        "StageTemplate",
        "Pipeline",
        "Parallel",
        "Context",
        "Store",
        "Key",
        "Run",
        "Status",
        "Bail",
        "Suspend",
        "Sleep",
        "__version__",
    ]
    assert sorted(flowdeco.__all__) == sorted(expected)
    assert all(hasattr(flowdeco, name) for name in expected)


def test_middleware_is_part_of_the_value():
    """Two stages with different middleware are different."""
    log = []
    assert Stage("s", use=[around(log, "m")]) != Stage("s", use=[around(log, "m")])


def test_an_action_prints_as_what_it_is() -> None:
    """Not as its function."""
    assert str(action(len)) == repr(action(len)) == "<Action len>"


@pytest.mark.parametrize("nest", [pipeline, parallel])
def test_nesting_has_a_limit_that_is_named(nest):
    unit = Stage("s")
    for number in range(200):
        unit = nest(unit, name=f"n{number}")
    assert unit == pickle.loads(pickle.dumps(unit))
    assert (hash(unit), len(unit.validate()), str(unit.plan())) is not None
    assert unit.run().status == "completed"
    with pytest.raises(DefinitionError, match="201 nested pipelines and groups, and at most 200"):
        nest(unit, name="outermost")
    assert len(unit >> unit) == 2


def test_actions_with_arrays_are_compared_by_their_elements():
    np = pytest.importorskip("numpy")
    assert add.bind(x=np.arange(3)) == add.bind(x=np.arange(3))
    assert add.bind(x=np.arange(3)) != add.bind(x=np.array([0, 1, 3]))


def test_a_text_of_another_class_names_a_stage_as_a_string_does():
    class Text(str):
        def __repr__(self):
            raise NotImplementedError

        __str__ = __repr__

    assert greet(Text("you")).name == "greet[you]"


def test_a_bound_value_that_cannot_be_shown_does_not_hide_a_conflict(run):
    """The message tells the branches by the names of the parameters."""

    class Broken(os.PathLike):
        def __fspath__(self):
            raise ValueError("not today")

        def __add__(self, other):
            return 0

    with pytest.raises(WriteConflictError, match=r"branches 0 \('total\[x\]'\) and 1 \('total\[x=1\]'\)"):
        run(parallel(add.bind(x=Broken()), add.bind(x=1), name="g"), {"y": 2})


@pytest.mark.parametrize("unit", [parallel(Stage("x")), Stage("x"), pipeline(Stage("x"), name="p")])
def test_a_stage_contains_actions_only(unit):
    """The message says how units are put together."""
    with pytest.raises(DefinitionError, match=r"A stage contains actions: chain units with `>>` or pipeline\(...\)"):
        Stage("s", [unit])
