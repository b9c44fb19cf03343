"""Stages of a template share what was read of their functions, and are what a template without a past would make."""

import functools
import gc
import importlib
import sys
import threading
import tracemalloc
import typing
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from flowdeco import Context, Key, Stage, action, stage
from flowdeco.durable.fingerprint import fingerprint
from flowdeco.errors import DefinitionError, WiringError
from flowdeco.model.definitions import action_options, bound_of, values_of
from flowdeco.model.steps import Step, step_of, steps_of
from flowdeco.model.wiring import unmet

if TYPE_CHECKING:
    from fractions import Fraction

PORT = Annotated[int, "port"]
SHARED: list[int] = []
OPTIONS = ["a"]


def layer(call: Any) -> Any:
    yield


@action
def existing(n: int = 3) -> int:
    return n


def helper(n: int = 4) -> int:
    return n


# Actions that a body may evaluate. Those of one kind have the same code in each call.


def plain(kind: Any) -> None:
    @action
    def made() -> int:
        return len(str(kind))


def collecting(kind: Any) -> None:
    @action(collect="all", tags=["t", "u"], description="Collects.")
    def collects() -> str:
        return f"collected {kind}"


def named(kind: Any) -> None:
    @action(name=f"load {kind}", returns=f"rows.{kind}", tags=[f"{kind}"])
    def load() -> str:
        return f"rows {kind}"


def taking(kind: Any) -> None:
    @action
    def taken(made: int, *, port: PORT = 1) -> "list[int]":
        return [made, port]


def in_text(kind: Any) -> None:
    @action
    def told(a: "Annotated[int, 'port']" = 7, b: "Annotated[str, Key('k', str)] | None" = None) -> "str | None":
        return f"{a}{b}"


def in_plain_text(kind: Any) -> None:
    @action
    def told_plainly(
        a: "Annotated[int, 'port'] | None" = 7, b: "typing.Any" = None, c: "dict[str, int] | None" = None
    ) -> "None | str":
        return f"{a}{b}{c}"


def of_special_forms(kind: Any) -> None:
    @action(returns="special")
    def special(port: "Final[int]" = 1, c: Callable[[int], str] = str, d: tuple[int, ...] = ()) -> Literal["x", 1]:
        return "x"

    @action(returns="literal")
    def literal(a: Literal["x", 1] = 1, b: "list[1]" = 1, c: "Annotated[int, 5]" = 1) -> "Literal['x', 1]":  # type: ignore
        return "x"

    @action(returns="plain literal")
    def literally(a: Literal["x", 1] = 1) -> Literal["x", True]:
        return "x"


def known_to_checkers(kind: Any) -> None:
    @action(returns=None)
    def checked(a: "Fraction | None" = None) -> "Fraction | None":
        return a


def with_defaults(kind: Any) -> None:
    @action(collect="defaults")
    def given_a_default(first: Any = kind, /, *, second: Any = (kind,)) -> str:
        return f"{first} {second}"


def with_a_shared_default(kind: Any) -> None:
    SHARED.append(1)

    @action(collect="lengths")
    def counted(found: list[int] = SHARED) -> int:
        return len(found)


def with_a_key(kind: Any) -> None:
    @action(collect="keys")
    def keyed(a: Annotated[Any, f"key.{kind}"] = "none", b: Annotated[int, Key("port", int)] = 2) -> str:
        return f"{a} {b}"


def with_a_local_key(kind: Any) -> None:
    key = f"key.{kind}"

    @action(collect="keys")
    def local(a: "Annotated[Any, key]" = "none") -> str:
        return f"{a}"


def with_a_local_class(kind: Any) -> None:
    class Own:
        pass

    @action(returns=None)
    def classed(a: Own = None, b: Literal["x", 1] = 1) -> Own:  # noqa: RUF013
        return Own()


def wrapped(kind: Any) -> None:
    def decorated(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return [kind, function(*args, **kwargs)]

        return wrapper

    @action
    @decorated
    def inner(port: int = 5) -> list[Any]:
        return [port]


def others(kind: Any) -> None:
    class Methods:
        @staticmethod
        def static(port: int = 6) -> int:
            return port

        def method(self, port: int = 6) -> str:
            return f"{kind} {port}"

    action(existing)
    action(name="another name")(existing)
    action(helper)
    action(name="partial")(functools.partial(helper, 8))
    action(name="lambda")(lambda port=2: [kind, port])
    action(Methods.static)
    action(Methods().method)


def asynchronous(kind: Any) -> None:
    @action
    async def awaited() -> Any:
        return kind

    @action(collect="generated")
    def generated() -> Any:
        yield kind
        yield kind


def contextual(kind: Any) -> None:
    @action
    def asks(ctx: Context) -> None:
        ctx.store["asked"] = f"{kind}"

    @action(use=[layer], timeout=60)
    def layered(ctx) -> int:  # noqa: ANN001
        return 1


def inserting(kind: Any) -> None:
    @action
    def inserts() -> Stage | None:
        return Stage(f"inserted {kind}", [existing])


def nested(kind: Any) -> None:
    @stage
    def inside(kind: Any) -> None:
        plain(kind)

    @action
    def inserts_nested() -> "list[Stage]":
        return [inside(kind)]


def wrong_key(kind: Any) -> None:
    @action
    def wrong(a: Annotated[int, ""] = 1) -> int:
        return a


def unknown_key(kind: Any) -> None:
    @action
    def unknown(a: "Annotated[int, NOWHERE]" = 1) -> int:  # noqa: F821
        return a


def without_a_supplier(kind: Any) -> None:
    @action
    def lacking(nowhere: int) -> int:
        return nowhere


def wrong_option(kind: Any) -> None:
    @action(returns="")
    def refused() -> int:
        return 1


KINDS = [
    plain, collecting, named, taking, in_text, in_plain_text, of_special_forms, known_to_checkers, with_defaults, with_a_shared_default, with_a_key, with_a_local_key,
    with_a_local_class, wrapped, others, asynchronous, contextual, inserting, nested, wrong_key, unknown_key,
    without_a_supplier, wrong_option,
]  # fmt: skip


def _ids(kinds: Any) -> str:
    return " ".join(each.__name__ for each in (kinds if isinstance(kinds, list) else [kinds]))


def template(**options: Any) -> Any:
    """Return a new template, which has been called for no stage yet."""

    @stage(name="made", **options)
    def made(kinds: Any, kind: Any) -> None:
        for each in kinds:
            each(kind)

    return made


def described(call: Any) -> Any:
    """Return all that is to be known of a stage, or the error."""
    try:
        made = call()
    except Exception as error:
        return type(error), str(error)
    found = [repr(made), made.name, made.title, made.tags, made.data, made.local, made.use, made.description]
    found += [(each.name, each.tags, each.description, action_options(each), bound_of(each)) for each in made]
    found += [(fingerprint(each.__wrapped__), repr(each), values_of(each)) for each in made]
    found.append(values_of(made))
    try:
        found += [made.validate(["port"]), made.validate(), [step_described(step) for step, _ in steps_of(made)]]
    except Exception as error:
        found.append((type(error), str(error)))
    run = None
    try:
        run = made.run({"port": 80, "key.a": 1}, check=False)
    except Exception as error:
        return [*found, type(error), str(error)]
    records = [
        (record.name, record.status, [(each.name, each.status) for each in record.actions]) for record in run.stages
    ]
    return [*found, records, dict(run.store), repr(run.error)]


def step_described(step: Any) -> Any:
    facts = {name: getattr(step, name) for name in Step.__slots__ if name not in ("action", "function")}
    facts["returned"] = str(facts["returned"])
    facts["inputs"] = [(*each[:-1], str(each.annotation)) for each in facts["inputs"]]
    return facts, step.action.name, step.function is step.action.__wrapped__


@settings(max_examples=examples(25), deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.sampled_from(KINDS), max_size=4), st.sampled_from(["a", "b", 1, True])), max_size=6),
    st.sampled_from([
        {}, {"local": False}, {"tags": ["of {kind}"], "title": "{kind}"}, {"data": {"port": 1, "list": []}},
        {"use_actions": [layer]}, {"use": [layer], "local": False},
    ]),
)  # fmt: skip
def test_a_stage_is_what_a_template_without_a_past_would_make(calls, options):
    """Whatever the calls before it were: options, steps, problems, fingerprints, runs and errors."""
    old = template(**options)
    for kinds, kind in calls:
        before = list(SHARED)
        expected = described(lambda: template(**options)(kinds, kind))
        SHARED[:] = before
        assert described(lambda: old(kinds, kind)) == expected


@pytest.mark.parametrize("kinds", [[each] for each in KINDS] + [[plain, taking, collecting]], ids=_ids)
def test_a_kind_of_action_is_the_same_in_each_call(kinds):
    """In the second call, and with other arguments, as in the first one."""
    old = template()
    for kind in ("a", "a", "b", 2, "a"):
        before = list(SHARED)
        expected = described(lambda: template()(kinds, kind))
        SHARED[:] = before
        assert described(lambda: old(kinds, kind)) == expected


def test_steps_are_shared_by_the_calls_of_a_template():
    """The parameters of the second stage are those that were read for the first one."""
    old = template()
    first, second = (steps_of(old([taking, collecting], kind)) for kind in "ab")
    for (one, _), (other, _) in zip(first, second, strict=True):
        assert one.keys is other.keys
        assert one.function is not other.function


def test_annotations_that_are_new_objects_in_each_call_are_the_same_if_their_parts_are():
    """Those that `typing` has forgotten meanwhile, too; and another key is another one."""

    @stage
    def made(key: str) -> None:
        @action(collect="found")
        def find(a: Annotated[int, Key(key, int)], b: "int" = 1) -> list[Annotated[int, "port"]]:
            return [a, b]

    def keys_and_result(key: str) -> Any:
        for n in range(200):
            assert Annotated[int, f"{n}"]
        unit = made(key)
        ((step, _),) = steps_of(unit)
        return step.keys, unit.run({"first": 1, "second": 2})["found"]

    (one, first), (other, second), (last, _) = map(keys_and_result, ["first", "first", "second"])
    assert one is other
    assert (first, second, last) == ([[1, 1]], [[1, 1]], ("second", "b"))
    for annotation in (Annotated[str, "first"], list[int], int):
        changed = made("first")
        changed["find"].__wrapped__.__annotations__["a"] = annotation
        assert steps_of(changed)[0][0].inputs[0].key == ("a" if annotation is not Annotated[str, "first"] else "first")


def test_stages_with_as_many_actions_of_other_kinds_are_not_alike():
    """One whose steps can be shared, and one whose cannot."""
    old = template()
    for kinds in ([plain], [wrapped], [plain], [with_a_local_key], [collecting]):
        expected = described(lambda kinds=kinds: template()(kinds, "a"))
        assert described(lambda kinds=kinds: old(kinds, "a")) == expected


@pytest.mark.parametrize("kind", [plain, collecting, with_defaults, in_text, with_a_key], ids=_ids)
def test_equal_arguments_make_equal_stages(kind):
    """By value, as before."""
    old = template()
    assert old([kind], "a") == old([kind], "a")
    assert old([kind], "a") != old([kind], "b")
    assert old([kind], "a").actions == old([kind], "a").actions


# What may change between two calls.


def test_a_default_that_is_changed_between_calls_counts_as_it_is():
    """The object is the same, its content is not."""
    default: list[int] = []

    @stage
    def made(kind: int) -> None:
        @action(collect="sizes")
        def size(found: list[int] = default) -> int:
            return len(found)

    assert made(1).run()["sizes"] == [0]
    default.append(1)
    assert made(2).run()["sizes"] == [1]


GLOBAL = "first"
Type = int


def test_a_global_that_is_rebound_counts_as_it_is_now(monkeypatch):
    """A key in an annotation that is a string is looked up in each call, and so is a class."""

    @stage
    def made(kind: int) -> None:
        @action(collect="found")
        def find(a: "Annotated[int, GLOBAL]") -> "Type":
            return a

    inputs = {"first": 1, "second": 2}
    assert made(1).run(inputs)["found"] == [1]
    monkeypatch.setitem(globals(), "GLOBAL", "second")
    assert made(1).run(inputs)["found"] == [2]
    assert [step.returned for step, _ in steps_of(made(1))] == [int]
    monkeypatch.setitem(globals(), "Type", Stage)
    step, _ = steps_of(made(1))[0]
    assert (step.returned, step.names_units, step.supplies) == (Stage, True, ())
    monkeypatch.delitem(globals(), "GLOBAL")
    with pytest.raises(DefinitionError, match="GLOBAL cannot be evaluated"):
        made(1).run(inputs)


def test_an_attribute_that_is_rebound_counts_as_it_is_now(monkeypatch):
    """Of a module or a class that an annotation names."""

    class Keys:
        key = "first"

    monkeypatch.setitem(globals(), "Names", Keys)

    @stage
    def made(kind: int) -> None:
        @action(collect="found")
        def find(a: "Annotated[int, Names.key]") -> int:  # noqa: F821
            return a

    inputs = {"first": 1, "second": 2}
    assert made(1).run(inputs)["found"] == made(1).run(inputs)["found"] == [1]
    Keys.key = "second"
    assert made(1).run(inputs)["found"] == [2]
    del Keys.key
    with pytest.raises(DefinitionError, match="cannot be evaluated"):
        made(1).run(inputs)


def test_annotations_that_are_changed_before_they_are_read_count():
    """They are read when the stage is checked or run."""
    names = iter(["first", "second", "first"])

    @stage
    def made(kind: int) -> None:
        @action(collect="found")
        def find(a: int) -> int:
            return a

        find.__annotations__["a"] = Annotated[int, next(names)]

    found = [made(n).run({"first": 1, "second": 2})["found"] for n in range(3)]
    assert found == [[1], [2], [1]]


def test_annotations_defaults_and_code_may_be_changed_after_a_call():
    """Those of one function are nobody else's."""

    @stage
    def made(kind: int) -> None:
        @action(collect="found")
        def find(a: int = 1) -> int:
            return a + kind

    factor = 10

    def other(b: int) -> int:
        return b * factor

    assert made(1).run()["found"] == [2]
    annotated = made(1)
    annotated["find"].__wrapped__.__annotations__["b"] = int
    assert annotated.run()["found"] == [2]
    changed = made(1)
    changed["find"].__wrapped__.__defaults__ = ()
    with pytest.raises(WiringError, match="'a'"):
        changed.run()
    assert made(2).run()["found"] == [3]
    another = made(2)
    another["find"].__wrapped__.__kwdefaults__ = {"c": 1}
    assert another.run()["found"] == [3]
    pretending = made(2)
    pretending["find"].__wrapped__.__dict__["note"] = 1
    assert pretending.run()["found"] == [3]
    replaced = made(2)
    replaced["find"].__wrapped__.__code__ = other.__code__  # its variable is that of `find`
    assert replaced.run({"b": 5})["found"] == [10]


def test_a_function_that_is_renamed_is_an_action_of_that_name():
    """Before it becomes one."""

    @stage
    def made(kind: str) -> None:
        def find() -> str:
            return kind

        find.__name__ = f"find_{kind}"
        action(returns="found")(find)

    assert [made(kind)[f"find_{kind}"].run()["found"] for kind in "aab"] == ["a", "a", "b"]


def test_options_that_are_changed_in_place_count_as_they_are_now():
    """A list of tags that all calls share is copied when it is read."""
    tags = ["x"]

    @stage
    def made(kind: int) -> None:
        @action(tags=tags)
        def find() -> int:
            return kind

    assert made(1)["find"].tags == {"x"}
    tags.append("y")
    assert made(1)["find"].tags == {"x", "y"}
    tags[:] = ["x", ""]
    with pytest.raises(DefinitionError, match="non-empty strings"):
        made(1)


def test_iterators_as_options_are_read_in_each_call():
    """A generator has its items once."""

    @stage
    def made(kind: int) -> None:
        @action(tags=(tag for tag in ["x", str(kind)]))
        def find() -> int:
            return kind

    assert [made(n)["find"].tags for n in range(2)] == [{"x", "0"}, {"x", "1"}]


def test_a_timeout_of_true_is_refused_after_one_of_1():
    """They are equal, and not the same."""

    @stage
    def made(kind: Any) -> None:
        @action(timeout=kind)
        def find() -> int:
            return 1

    assert action_options(made(1)["find"]).timeout == 1
    with pytest.raises(DefinitionError, match="timeout"):
        made(True)


def test_conditional_actions_are_those_of_the_call():
    """A name that is local in one stage of a template is not in another one that lacks the action."""

    @stage
    def made(both: bool) -> None:
        if both:

            @action
            def port() -> int:
                return 1

        @action(collect="found")
        def find(port: int) -> int:
            return port

    for _ in range(2):
        assert made(True).run({"port": 80})["found"] == [1]
        assert made(False).run({"port": 80})["found"] == [80]
        assert not unmet([made(True)], made(True).run().store, frozenset())
        with pytest.raises(WiringError, match="'port'"):
            made(False).run()


def test_a_reloaded_module_makes_stages_of_its_new_code(tmp_path, monkeypatch):
    """Its template is another object, and knows nothing of the old one."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = "from flowdeco import action, stage\n@stage\ndef made(n: int):\n    @action(collect='found')\n    def find(): return {}\n"
    for result in ("n", "n + 1"):
        (tmp_path / "reloaded_flow.py").write_text(source.format(result))
        importlib.invalidate_caches()
        module = sys.modules.get("reloaded_flow")
        module = importlib.import_module("reloaded_flow") if module is None else importlib.reload(module)
        assert [module.made(n).run()["found"] for n in (1, 1)] == [[eval(result, {"n": 1})]] * 2
    del sys.modules["reloaded_flow"]


def test_one_template_is_called_by_many_threads_at_once():
    """Each call gives what it would give alone."""
    old = template()
    combinations = [([plain, taking], "a"), ([named, collecting], "b"), ([with_defaults], "c"), ([in_text, plain], "d")]
    expected = [described(lambda each=each: template()(*each)) for each in combinations]
    found: list[Any] = []

    def calls(number: int) -> None:
        for turn in range(25):
            index = (number + turn) % len(combinations)
            found.append(described(lambda: old(*combinations[index])) == expected[index])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=calls, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    finally:
        sys.setswitchinterval(interval)
    assert found == [True] * 100


# Memory.


class Large:
    """An argument that can be watched."""


@pytest.mark.parametrize("how", ["closure", "default", "layer", "annotation"])
def test_a_template_keeps_no_argument_alive(how):
    """Neither it, nor the stage of another call; a default that can be changed is kept until there is another one."""

    @stage
    def made(large: Any) -> None:
        def own(call: Any) -> Any:
            yield large and None

        class Own:
            content = large

        @action(use=[own] if how == "layer" else [], collect="found")
        def find(n: Own if how == "annotation" else int = large if how == "default" else 1) -> Any:  # noqa: F821, RUF013
            return how if how != "closure" else str(type(large))

    first, last = Large(), Large()
    watched, watched_last = weakref.ref(first), weakref.ref(last)
    stages = [made(first), made(last)]
    for each in stages:
        each.run()
    del first, each, stages[0]
    gc.collect()
    assert watched() is None
    assert "found" in stages.pop().run().store
    del last
    gc.collect()
    assert how == "default" or watched_last() is None
    assert made(1).actions


def test_memory_is_flat_over_many_calls():
    """Also of a body that compiles new code in each call."""

    @stage
    def made(kind: int) -> None:
        space: dict[str, Any] = {}
        exec(f"def compiled(n=1): return n + {kind}", space)
        action(collect="found")(space["compiled"])

        @action(returns=f"key.{kind}")
        def find() -> int:
            return kind

    def used(calls: range) -> int:
        for n in calls:
            steps_of(made(n))
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = used(range(100))
        assert used(range(100, 300)) - before < 150_000  # what is known of each is 2,000
    finally:
        tracemalloc.stop()


def test_stages_that_hold_a_megabyte_each_need_the_memory_of_one():
    """Local results are gone when their stage ends."""

    @stage
    def made(kind: int) -> None:
        @action
        def rows() -> bytes:
            return bytes(2**20)

        @action(collect="sizes")
        def size(rows: bytes) -> int:
            return len(rows)

    @action
    def insert() -> list[Stage]:
        return [made(n) for n in range(100)]

    tracemalloc.start()
    try:
        assert insert.run()["sizes"] == [2**20] * 100
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_a_step_made_from_another_one_has_all_its_facts() -> None:
    """A fact that is added to steps is shared with those of other calls, too."""
    step = step_of(action(lambda x: x, name="a", returns="b"))
    made = step.of(step.action, step.function)
    assert {name: getattr(made, name) for name in Step.__slots__} == {
        name: getattr(step, name) for name in Step.__slots__
    }


def test_the_promise_of_a_frozen_key_is_that_of_each_call():
    """A key is compared with all that belongs to it."""

    @stage
    def reads(frozen):
        @action
        def take(x: Annotated[list, Key("x", list, frozen=frozen)]) -> int:
            return len(x)

    assert [steps_of(reads(frozen))[0][0].frozen for frozen in (False, True)] == [frozenset(), {"x"}]
