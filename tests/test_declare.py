"""The decorators: how functions become actions, stages and templates."""

import inspect
import pickle
import threading
from pathlib import PurePosixPath
from typing import Annotated
from zlib import crc32

import pytest
from support import actions_run, names, one, shown, step

from flowdeco import Action, Context, Key, Stage, StageTemplate, action, pipeline, stage, stream
from flowdeco.errors import DefinitionError, EmptyStageError
from flowdeco.model.declare import bound_arguments

# -- what is pickled by reference is at module level


@stage(tags=["dynamic"], data={"k": 1})
def process(kind: str, *, size: int = 1) -> None:
    """Process one kind of resource.

    With care.
    """

    @action(collect="processed")
    def handle(k) -> str:
        return f"{kind} {size * k}"


@stage(name="renamed")
def original(n):
    @action
    def act():
        pass


def outer():
    @stage
    def inner(n):
        @action
        def act():
            return n

    return inner


# -- @action


def test_action_decorates_with_and_without_options():
    """Bare, and called."""

    @action
    def bare():
        return 1

    @action()
    def empty():
        return 2

    @action(name="other", tags=["t"], description="What.")
    def options():
        return 3

    assert [type(made) for made in (bare, empty, options)] == [Action] * 3
    assert (bare.name, empty.name, options.name) == ("bare", "empty", "other")
    assert (options.tags, options.description) == ({"t"}, "What.")
    assert (bare(), empty(), options()) == (1, 2, 3)


def test_options_of_an_action_are_keyword_only():
    """The function comes first, alone."""
    with pytest.raises(TypeError):
        action(lambda: 1, "name")


# -- @stage


def test_stage_decorates_with_and_without_options():
    """Bare, and called."""

    @stage
    def bare():
        """What it does."""

        @action
        def act():
            pass

    @stage()
    def empty():
        @action
        def act():
            pass

    @stage(name="other", title="Other", tags=["t"], data={"k": 1}, description="What.")
    def options():
        @action
        def act():
            pass

    assert [type(made) for made in (bare, empty, options)] == [Stage] * 3
    assert (bare.name, bare.title, bare.description, bare.tags, bare.data) == (
        "bare",
        "Bare",
        "What it does.",
        set(),
        {},
    )
    assert (options.name, options.title, options.description, options.tags, options.data) == (
        "other", "Other", "What.", {"t"}, {"k": 1},
    )  # fmt: skip


def test_every_action_that_is_evaluated_joins_the_stage():
    """In definition order, wherever it was written; one that is only made from another does not."""
    existing = step([], "existing")

    def helper():
        action(name="from a helper")(lambda: 1)

    @stage
    def collected():
        @action
        def first():
            pass

        existing.bind()
        existing.with_options(name="not me")
        action(existing)
        helper()
        action(name="renamed")(existing)

        @action(tags=["t"])
        def last():
            pass

    assert [made.name for made in collected] == ["first", "existing", "from a helper", "renamed", "last"]
    assert collected["existing"] is existing


def test_a_stage_body_runs_once_at_declaration(run):
    """However often the stage runs."""
    bodies = []

    @stage
    def once():
        bodies.append(1)

        @action
        def act():
            pass

    run(once)
    run(once >> once)
    assert bodies == [1]


def test_nested_stages_collect_for_themselves():
    """Stages and templates in a body take nothing from the one around it."""
    inside = []

    @stage
    def around():
        @action
        def before():
            pass

        @stage
        def inner():
            @action
            def act():
                pass

        inside.extend([inner, process("x")])

        @action
        def after():
            pass

    assert [made.name for made in around] == ["before", "after"]
    assert [made.name for made in inside[0]] == ["act"]
    assert [made.name for made in inside[1]] == ["handle"]


def test_a_body_that_raises_leaves_no_open_collection():
    """What is declared later joins nothing."""
    with pytest.raises(ZeroDivisionError):

        @stage
        def broken():
            action(lambda: 1)
            1 / 0

    free = action(lambda: 2)

    @stage
    def fine():
        step([], "mine")

    assert [made.name for made in fine] == ["mine"]
    assert free() == 2


def test_bodies_of_two_threads_do_not_mix():
    """Each collects its own."""
    ready = threading.Barrier(2)
    found = {}

    def declare(name):
        @stage(name=name)
        def made():
            ready.wait()
            step([], f"{name}1")
            ready.wait()
            step([], f"{name}2")

        found[name] = [member.name for member in made]

    threads = [threading.Thread(target=declare, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"a": ["a1", "a2"], "b": ["b1", "b2"]}


def test_a_stage_without_actions_is_refused():
    """The message names it, and says what to write."""
    with pytest.raises(EmptyStageError, match=r"'empty'.*Stage\('empty'\)"):

        @stage
        def empty():
            pass


def test_a_template_without_actions_is_refused_when_it_is_called():
    """Its body has not run before."""

    @stage
    def empty(kind):
        pass

    with pytest.raises(EmptyStageError, match="empty"):
        empty("x")


async def coroutine():
    action(lambda: 1)


def generator():
    yield action(lambda: 1)


async def async_generator():
    yield action(lambda: 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (type("Mistaken", (), {}), "class Mistaken.*def Mistaken"),
        (coroutine, "coroutine.*`def`"),
        (generator, "generator.*`def`"),
        (async_generator, "async_generator.*`def`"),
        (3, "int"),
        ("name", "str"),
        (step([], "a"), "Action"),
        (Stage("s"), "Stage"),
        (pipeline(), "Pipeline"),
        (process, "StageTemplate"),
    ],
    ids=shown,
)
def test_what_cannot_be_a_stage_is_told_what_to_write(wrong, message):
    """Bare, and with options."""
    with pytest.raises(DefinitionError, match=message):
        stage(wrong)
    with pytest.raises(DefinitionError, match=message):
        stage(tags=["t"])(wrong)


def test_a_stage_of_a_nameless_object_needs_a_name():
    """The message says how."""

    class Body:
        def __call__(self):
            step([], "a")

    with pytest.raises(DefinitionError, match=r"stage\(name="):
        stage(Body())


def test_a_stage_may_be_made_of_a_lambda(run):
    """Given a name."""
    made = stage(name="short")(lambda: step([], "a", 1))
    assert run(made)["a"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tags": "slow"}, "tags"),
        ({"name": ""}, "name"),
        ({"data": {"lock": threading.Lock()}}, "'lock'.*middleware"),
        ({"data": [1]}, "data"),
        ({"use": [3]}, "middleware"),
        ({"use_actions": [3]}, "middleware"),
    ],
)
@pytest.mark.parametrize("parameters", [0, 1])
def test_wrong_options_of_a_stage_are_refused_at_declaration(options, message, parameters):
    """Of a template too: before it is called."""

    def body():
        step([], "a")

    def template(kind):
        step([], "a")

    with pytest.raises(DefinitionError, match=message):
        stage(**options)(template if parameters else body)


def test_a_stage_has_middleware(run):
    """Its own, and that of its actions."""
    log = []

    def note(call):
        log.append(call.level)
        yield

    @stage(use=[note], use_actions=[note])
    def made():
        step([], "a")
        step([], "b")

    run(made)
    assert log == ["stage", "action", "action"]


# -- templates


def test_a_stage_function_with_parameters_is_a_template():
    """Each call gives a stage, named after function and arguments."""
    assert isinstance(process, StageTemplate)
    assert (process.name, process.description, process.tags) == (
        "process",
        "Process one kind of resource.",
        {"dynamic"},
    )
    made = process("databases")
    assert isinstance(made, Stage)
    assert (made.name, made.tags, made.data) == ("process[databases]", {"dynamic"}, {"k": 1})
    assert made.description == "Process one kind of resource."


def test_a_template_keeps_signature_and_docstring():
    """As inspect sees them."""
    assert str(inspect.signature(process)) == "(kind: str, *, size: int = 1) -> None"
    assert process.__doc__.startswith("Process one kind")
    assert process.__name__ == "process"
    assert repr(process) == "<StageTemplate process(kind: str, *, size: int = 1) -> None>"


def test_the_body_of_a_template_runs_in_each_call(run):
    """Its stages share nothing."""
    finished = run(process("a") >> process("b", size=2) >> process("a"))
    assert finished["processed"] == ["a 1", "b 2", "a 1"]
    assert names(finished) == ["process[a]", "process[b, size=2]", "process[a]"]
    assert actions_run(finished)[0] == "process[a]/handle"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (((1,), {}), "act[1]"),
        ((("a", 2), {}), "act[a, 2]"),
        ((("a",), {"k": "b"}), "act[a, k=b]"),
        (((None,), {"k": [1, 2]}), "act[None, k=[1, 2]]"),
        (((), {"k": 1}), "act[k=1]"),
        ((("",), {}), "act[]"),
        (((), {}), "act[]"),
    ],
)
def test_the_arguments_are_in_the_name(arguments, name):
    """Strings as they are, others as their repr, keywords by name."""

    @stage(name="act")
    def template(*args, **kwargs):
        step([], "a")

    args, kwargs = arguments
    assert template(*args, **kwargs).name == name


def test_long_and_odd_values_are_shortened_in_the_name():
    """A name is one line one can read."""

    @stage
    def act(value):
        step([], "a")

    long = act("x" * 1000).name
    assert len(long) < 60
    assert long.startswith("act[xxx")
    assert len(act(list(range(1000))).name) < 60
    assert "\n" not in act("two\nlines").name


def test_calls_with_equal_arguments_give_equal_stages():
    """With others not; nor do stages of other templates."""
    other = outer()
    assert process("x", size=2) == process("x", size=2)
    assert hash(process("x", size=2)) == hash(process("x", size=2))
    assert process("x") != process("y")
    assert process("x") != process("x", size=2)
    assert process("x") != process("x").with_options(tags=["t"])
    assert process("x").with_options(tags=["t"]) == process("x").with_options(tags=["t"])
    assert outer()(1) != other(1)
    assert len({process("x"), process("x"), process(["unhashable"]), process(["unhashable"])}) == 2


def test_actions_of_equal_stages_of_a_template_are_equal():
    """By their place in it."""
    assert process("x")["handle"] == process("x")["handle"]
    assert process("x")["handle"] != process("y")["handle"]


def test_wrong_arguments_are_a_type_error_at_the_call():
    """As of any function."""
    for args, kwargs in (((), {}), (("a", "b"), {}), (("a",), {"sise": 1})):
        with pytest.raises(TypeError):
            process(*args, **kwargs)


def test_a_stage_of_a_template_can_be_changed(run):
    """Name, tags, data; the template's name still selects it."""
    made = process("x").with_options(name="other", tags=["t"], data={"k": 5})
    finished = run(made)
    assert (made.name, made.tags, finished["processed"]) == ("other", {"t"}, ["x 5"])
    assert run(made >> Stage("b"), skip=["process"]).stages[0].status == "skipped"


def test_a_template_may_be_given_a_name():
    """Its stages, and the selector, have that name."""
    assert original.name == "renamed"
    assert original(1).name == "renamed[1]"


def test_a_template_is_immutable():
    """And there is one of it."""
    with pytest.raises(AttributeError, match="immutable"):
        process.name = "other"
    with pytest.raises(AttributeError):
        process.color = "red"


def test_a_template_is_copied_as_itself():
    """It is a value."""
    import copy

    assert copy.copy(process) is process
    assert copy.deepcopy([process])[0] is process


def test_templates_and_their_stages_pickle_by_reference():
    """Template and arguments; also where it was given another name."""
    assert pickle.loads(pickle.dumps(process)) is process
    assert pickle.loads(pickle.dumps(original)) is original
    for made in (process("x", size=3), original(2), process("x").with_options(name="other")):
        assert pickle.loads(pickle.dumps(made)) == made


@stage
def sized(kind, size=1, *more, scale=2, **others):
    @action(collect="sized")
    def handle():
        return kind


@pytest.mark.parametrize(
    "call",
    [
        lambda: sized(kind="a"), lambda: sized("a", 1), lambda: sized("a", size=1), lambda: sized(size=1, kind="a"),
        lambda: sized("a", scale=2), lambda: sized("a", 1, scale=2),
    ],
)  # fmt: skip
def test_equal_arguments_give_equal_stages_however_they_are_written(call):
    """Their names show the call as it was written: journals have them."""
    assert call() == sized("a")
    assert hash(call()) == hash(sized("a"))
    assert call()["handle"] == sized("a")["handle"]
    assert call().with_options(tags=["t"]) == sized("a").with_options(tags=["t"])
    assert call().with_options(name="n") == sized("a").with_options(name="n") != sized("a")
    assert pickle.loads(pickle.dumps(call())) == sized("a")
    assert call() >> call() == sized("a") >> sized("a")


def test_other_arguments_give_other_stages():
    """Arrays are compared by content."""
    np = pytest.importorskip("numpy")
    a = sized("a")
    for other in (sized("b"), sized("a", 2), sized("a", 1, 2), sized("a", scale=3), sized("a", x=1)):
        assert a != other
        assert a["handle"] != other["handle"]
    assert a != sized("a", True)
    assert sized(np.ones(3)) == sized(kind=np.ones(3)) != sized(kind=np.zeros(3))
    assert (sized("a").name, sized(kind="a").name, sized("a", 2, scale=3).name) == (
        *("sized[a]", "sized[kind=a]", "sized[a, 2, scale=3]"),
    )


def test_positional_only_and_keyword_only_parameters_of_templates_work(run):
    """As of any function."""

    @stage
    def act(a, /, *rest, b, **others):
        @action(returns="seen")
        def see():
            return [a, rest, b, others]

    assert run(act(1, 2, 3, b=4, c=5))["seen"] == [1, (2, 3), 4, {"c": 5}]


def test_a_template_whose_parameters_have_defaults_is_a_template():
    """It must be called all the same."""

    @stage
    def act(kind="x"):
        step([], "a")

    assert isinstance(act, StageTemplate)
    assert act().name == "act[]"


def test_a_stage_that_is_passed_to_a_template_can_be_inserted(run):
    """Arguments are what one likes."""
    log = []

    @stage
    def then(following):
        @action
        def act():
            return following

    run(then(one(log, "x")))
    assert log == ["x"]


# -- the example of the design


def test_the_first_look_of_the_design(run):
    """As it stands there."""

    @stage(tags=["dynamic"])
    def process(kind: str) -> None:
        @action(collect="processed")
        def handle() -> str:
            return f"processed {kind}"

    @action
    def discover() -> list[Stage]:
        return [process(kind) for kind in ("databases", "caches", "servers")]

    @stage(tags=["reporting"], data={"report.title": "Resources"})
    def report() -> None:
        @action
        def summary(processed: list[str], title: Annotated[str, "report.title"]) -> str:
            return f"{title}: {len(processed)} processed"

    finished = run(discover >> report)
    assert finished["summary"] == finished.result == "Resources: 3 processed"
    assert names(finished) == ["discover", "process[databases]", "process[caches]", "process[servers]", "report"]


def test_typed_keys_go_wherever_keys_go(run):
    """Data, parameters, results, collecting."""
    number, numbers = Key("the.number", int), Key("the.numbers", list[int])

    @stage(data={number: 3})
    def made():
        @action(collect=numbers, returns=None)
        def first(n: Annotated[int, number]):
            return n

        @action(returns=number)
        def second(ctx: Context):
            return ctx.store[numbers][0] + 1

    finished = run(made)
    assert (finished[numbers], finished[number]) == ([3], 4)


def test_the_body_of_a_stage_returns_no_units():
    """Only what an action returns is run; what the body returns would be lost."""
    inner = Stage("inner", [action(len)])

    def returns(units):
        @stage
        def body():
            action(name="a")(lambda: 1)
            return units

    for units in (inner, [inner], stream([inner])):
        with pytest.raises(DefinitionError, match="move the `return` into an @action"):
            returns(units)


def test_a_template_says_that_it_must_be_called_first():
    """Where it is used as if it were a stage."""

    @stage
    def visit(place):
        @action
        def there():
            return place

    with pytest.raises(AttributeError, match=r"'visit' gives a stage when you call it: write visit\(...\).run"):
        visit.run()
    assert not hasattr(visit, "units")


def test_long_names_keep_both_ends_and_paths_their_last_parts():
    """With a checksum of the rest."""

    @stage
    def read(path):
        @action
        def content():
            return path

    names = [read(PurePosixPath(f"/home/somebody/projects/sales/2024/regions/{name}.csv")).name for name in "ab"]
    assert names == ["read[…/sales/2024/regions/a.csv~2ea3ba91]", "read[…/sales/2024/regions/b.csv~6903c041]"]
    assert read("x" * 40).name == f"read[{'x' * 40}]"
    assert read("x" * 41).name == f"read[{'x' * 13}…{'x' * 17}~31a5feee]"


def test_long_names_are_told_apart_by_what_is_left_out():
    """What skips one of them, by name, must not skip the other; the same in every process."""

    @stage
    def read(path, *more):
        @action
        def content():
            return path

    path = "/data/warehouse/2026/customers/{}/part-0000-of-0100/north/file.parquet"
    paths = [path.format(name) for name in ("aaaa", "bbbb", "cccc\n", "\ud800")]
    values = [*paths, paths, (paths, 1), [*paths, 1]]
    assert len({read(value).name for value in values}) == len(values)
    flow = read(paths[0]) >> read(paths[1])
    run = flow.run(skip=[read(paths[0]).name])
    assert [str(record.status) for record in run.stages] == ["skipped", "completed"]
    shown = [f"/data/warehou…orth/file.parquet~{crc32(text.encode()):08x}" for text in paths[:2]]
    assert read(paths[0], "a", paths[1]).name == f"read[{shown[0]}, a, {shown[1]}]"


def test_bound_values_are_shown_for_an_action_and_for_the_stage_of_one():
    @action
    def load(file):
        return file

    bound = load.bind(file="p3")
    for unit in (bound, Stage("s", [bound])):
        assert bound_arguments(unit) == "file=p3"
    for unit in (load, Stage("s"), Stage("s", [bound, load.with_options(name="other")]), pipeline(bound)):
        assert bound_arguments(unit) == ""


def test_functions_that_are_no_actions_are_named():
    """Those that the body defines, and no classes."""

    @stage
    def forgot(n: int) -> None:
        def first(): ...

        class Nothing: ...

        def second():
            return [first, Nothing, lambda: n]

    with pytest.raises(EmptyStageError, match=r"has no actions: decorate functions \('first', 'second'\) in its body"):
        forgot(3)

    @stage
    def empty(n: int) -> None: ...

    with pytest.raises(EmptyStageError, match="has no actions: decorate functions in its body with @action, or"):
        empty(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "p-{kind.x}"}, r"the name 'p-\{kind.x\}' of the stage template .*per cannot be filled in with kind='a' \(AttributeError"),
        ({"title": "p-{kind[x]}"}, r"the title 'p-\{kind\[x\]\}' of the stage template .*per cannot .* \(TypeError"),
        ({"description": "{kind:%Y}"}, r"the description '\{kind:%Y\}' of the stage template .*per cannot .* \(ValueError"),
        ({"tags": ["{kind:d}"]}, r"the tag '\{kind:d\}' of the stage template .*per cannot .* \(ValueError"),
    ],
)  # fmt: skip
def test_an_option_that_does_not_fit_the_argument_is_an_error_of_the_definition(options, message):
    """It names the template, the option, and the arguments."""

    @stage(**options)
    def per(kind):
        action(name="q")(lambda: 1)

    with pytest.raises(DefinitionError, match=message):
        per("a")


def test_a_template_that_is_returned_is_to_be_called(run):
    """The message says so."""

    @stage
    def per(kind):
        action(name="q")(lambda: 1)

    error = run(action(name="a")(lambda: per), check=False).error
    assert str(error) == (
        "action 'a' returned no stage: the stage template 'per' gives a stage when you call it: write per(...)"
    )
