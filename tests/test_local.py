"""Local results: what the actions of a template store under their own names ends with their stage (DESIGN 3.2)."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowdeco import Context, Key, Stage, action, parallel, pipeline, stage, stream
from flowdeco.durable import MemoryJournal, SqliteJournal
from flowdeco.errors import DefinitionError, MissingInputError, StoreKeyError, StoreTypeError, WiringError
from flowdeco.middleware import recover, retry

FILES = {"a": [1, 2], "b": None, "c": [5]}
BROKEN = {"now": True}


@pytest.fixture(autouse=True)
def broken():
    """It fails until a test says otherwise."""
    BROKEN["now"] = True


@stage
def sized(name: str) -> None:
    """A file that cannot be read is recovered, without an outcome."""

    @action(use=[recover(on=OSError)])
    def rows() -> list[int]:
        if FILES[name] is None:
            raise OSError("cannot be read")
        return FILES[name]

    @action(collect="sizes")
    def size(rows: list[int]) -> int:
        return len(rows)


@stage
def interrupted(name: str) -> None:
    @action
    def rows() -> list[str]:
        return [name]

    @action(returns="used")
    def use(rows: list[str]) -> list[str]:
        rows.append("seen")
        if BROKEN["now"]:
            raise OSError
        return rows


@stage
def per(name: str) -> None:
    @action
    def rows() -> str:
        return name

    @action(collect="seen")
    def use(rows: str = "nothing") -> str:
        return rows


@action
def each_file() -> list[Stage]:
    return [sized(name) for name in "abc"]


def test_a_missing_result_is_not_that_of_the_stage_before():
    run = each_file.run(check=False)
    assert run.store.get("sizes") == [2]
    assert isinstance(run.error, MissingInputError)
    assert "rows" in str(run.error)


def test_local_results_end_with_their_stage(run):
    done = run(sized("a"))
    assert dict(done.store) == {"sizes": [2]}
    assert (len(done.store), "rows" in done.store, repr(done.store)) == (1, False, "Store({'sizes': [2]})")
    assert "sizes" in dict(pickle.loads(pickle.dumps(done.store)))


def writes(call):
    yield
    call.store["written"] = 1


def test_reading_one_elsewhere_says_where_it_was_local():
    done = per("a").run()
    for read in (lambda: done["rows"], lambda: done.store["rows"], lambda: done.store.pop("rows")):
        with pytest.raises(StoreKeyError, match=r"local to stage 'per\[a\]': write returns='rows'"):
            read()
    reader = Stage("s", [action(name="reader")(lambda rows: None)])
    with pytest.raises(WiringError, match=r"local to stage 'per\[a\]': write returns='rows'"):
        (per("a") >> reader).run()
    with pytest.raises(MissingInputError, match=r"local to stage 'sized\[a\]'") as raised:
        (sized("a") >> reader).run(use=[writes])
    assert not any("returned nothing" in note for note in raised.value.__notes__)
    (problem,) = (per("a") >> reader).validate()
    assert (problem.certain, problem.key) == (True, "rows")
    insert = action(name="insert")(lambda: [per("a"), reader])
    with pytest.raises(WiringError, match=r"local to stage 'per\[a\]'"):
        insert.run()


def test_a_stage_that_a_template_inserts_hears_where_the_result_was_local():
    needy = Stage("inner", [action(name="needs")(lambda rows: None)])

    def inserting(how):
        @stage
        def outer(name: str) -> None:
            action(name="rows")(lambda: name)

            @action
            def insert(ctx: Context):
                return ctx.insert(needy) if how == "context" else needy if how == "stage" else stream(iter([needy]))

        return outer("a")

    later = inserting("stage").with_options(name="other")
    for flow in (inserting("stage"), inserting("context"), inserting("stream"), per("b") >> later):
        with pytest.raises(WiringError, match="local to stage '.*': write returns='rows' there to share it"):
            flow.run()


def test_the_view_of_an_action_is_that_of_the_store():
    @stage
    def looking(name: str) -> None:
        @action
        def rows() -> str:
            return name

        @action(returns=None)
        def look(ctx: Context, rows: str) -> None:
            seen.append((dict(ctx.store), "rows" in ctx.store))
            with pytest.raises(StoreKeyError, match="local to this stage: take it as a parameter"):
                ctx.store["rows"]
            ctx.store["rows"] = "shared"

        @action(collect="seen")
        def after(rows: str) -> str:
            return rows

    seen = []
    run = looking("a").run({"given": 1})
    assert seen == [({"given": 1}, False)]
    assert dict(run.store) == {"given": 1, "rows": "shared", "seen": ["a"]}


def test_a_skipped_action_leaves_nothing_of_the_stage_before():
    run = (per("a") >> per("b")).run({"rows": "given"}, skip=["per[b]/rows"])
    assert (run["seen"], run["rows"]) == (["a", "nothing"], "given")


def test_templates_run_side_by_side_and_one_in_another():
    @stage
    def outer(name: str) -> None:
        @action
        def rows() -> str:
            return name

        @action
        def more(rows: str):
            return [per(rows * 2), per(rows * 3)]

    row = outer("a") >> outer("b")
    assert parallel(outer("a"), outer("b")).run()["seen"] == row.run()["seen"] == ["aa", "aaa", "bb", "bbb"]
    assert parallel(per("a"), per("b")).run({"rows": "given"})["rows"] == "given"


def test_inserted_actions_belong_to_the_stage_and_inserted_stages_do_not():
    @action(returns=None)
    def reads(rows: str, extra: str) -> None:
        seen.append((rows, extra))

    @action
    def extra(rows: str) -> str:
        return rows + "!"

    @action
    def outside(rows: str = "none", extra: str = "none") -> None:
        seen.append((rows, extra))

    @stage
    def inserting(name: str) -> None:
        @action
        def rows() -> str:
            return name

        @action
        def more():
            return [extra, reads]

        @action(returns=None)
        def later(extra: str) -> None:
            seen.append(extra)

        @action
        def next_stage():
            return Stage("outside", [outside])

    seen = []
    run = inserting("a").run({"extra": "of the store"})
    assert seen == [("a", "a!"), "a!", ("none", "of the store")]
    assert dict(run.store) == {"extra": "of the store"}


def test_any_stage_may_keep_its_results_and_a_template_may_share_them():
    rows = action(name="rows")(lambda: 1)
    double = action(name="double", returns="twice")(lambda rows: 2 * rows)
    assert dict(Stage("s", [rows, double], local=True).run().store) == {"twice": 2}
    assert dict(Stage("s", [rows, double]).with_options(local=True).run().store) == {"twice": 2}
    assert dict(per("a").with_options(local=False).run().store) == {"rows": "a", "seen": ["a"]}

    @stage(local=False)
    def sharing(name: str) -> None:
        action(name="rows")(lambda: name)

    @stage(local=True)
    def keeping() -> None:
        action(rows)

    assert (sharing("a").run()["rows"], dict(keeping.run().store)) == ("a", {})
    assert sharing("a") != sharing("a").with_options(local=True)
    with pytest.raises(DefinitionError, match="local is True or False, not 'yes'"):
        Stage("s", local="yes")


def test_named_results_are_shared_whatever_their_name():
    @stage
    def naming(name: str) -> None:
        action(name="one", returns="one")(lambda: 1)
        action(name="two", returns=("two", "three"))(lambda: (2, 3))
        action(name="four", returns=Key("four", int))(lambda: 4)
        action(name="five", returns=None)(lambda: 5)
        action(name="six", collect="six")(lambda: 6)
        action(name="seven")(lambda one, two, four, six: [one, two, four, six])

    assert dict(naming("a").run().store) == {"one": 1, "two": 2, "three": 3, "four": 4, "six": [6]}


def test_values_of_middleware_come_first_and_typed_keys_are_checked():
    def supplies(call):
        yield {"rows": "supplied"}

    assert per("a").with_options(use=[supplies]).run()["seen"] == ["supplied"]

    @stage
    def typed(value: object) -> None:
        action(name="rows")(lambda: value)

        @action(returns="read")
        def read(count: Annotated[int, Key("rows", int)]) -> int:
            return count

    assert typed(3).run({"rows": "given"})["read"] == 3
    with pytest.raises(StoreTypeError, match="rows"):
        typed("text").run()


@pytest.mark.parametrize("where", ["action", "stage", "pipeline"])
def test_another_attempt_begins_without_the_results_of_the_failed_one(where):
    tries = []

    @stage
    def shaky(name: str) -> None:
        @action
        def rows(rows: list | None = None) -> list:
            return [*(rows or []), len(tries)]

        @action(returns="used", use=[retry(on=OSError, wait=0)] if where == "action" else [])
        def use(rows: list) -> list:
            tries.append(1)
            if len(tries) == 1:
                raise OSError
            return rows

    use = [retry(on=OSError, wait=0)]
    flow = pipeline(
        shaky("a").with_options(use=use if where == "stage" else []), use=use if where == "pipeline" else []
    )
    assert dict(flow.run().store) == {"used": [0] if where == "action" else [1]}


def test_what_a_failed_stage_had_is_gone_when_its_failure_is_recovered():
    @stage
    def failing(name: str) -> None:
        action(name="rows")(lambda: name)
        action(name="fails")(lambda: 1 / 0)

    flow = pipeline(failing("a"), name="p", use=[recover(on=ZeroDivisionError)]) >> Stage(
        "s", [action(name="read", returns="read")(lambda rows="nothing": rows)], local=True
    )
    for journal in (None, MemoryJournal()):
        assert dict(flow.run(journal=journal).store) == {"read": "nothing"}


@pytest.mark.parametrize("journal", [None, MemoryJournal, "pickle", "json"], ids=str)
def test_an_unfinished_stage_continues_with_its_results(journal, tmp_path):
    made = journal() if callable(journal) else journal and SqliteJournal(tmp_path / "runs.db", codec=journal)
    flow = interrupted("a") >> per("b")
    run = flow.run(journal=made, check=False)
    BROKEN["now"] = False
    again = flow.resume(run) if made is None else flow.resume(run.id, journal=made)
    assert again["used"][0] == "a"
    assert dict(again.store).keys() == {"used", "seen"}


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_changes_in_place_of_a_local_result_are_resumed(codec, tmp_path):
    flow, journal = changed("a"), SqliteJournal(tmp_path / "runs.db", codec=codec)
    run = flow.run(journal=journal, check=False)
    BROKEN["now"] = False
    assert flow.resume(run.id, journal=journal)["read"] == ["a", "changed"]


@stage
def changed(name: str) -> None:
    @action
    def rows() -> list[str]:
        return [name]

    @action(returns=None)
    def change(rows: list[str]) -> None:
        rows.append("changed")

    @action(returns="read")
    def read(rows: list[str]) -> list[str]:
        if BROKEN["now"]:
            raise OSError
        return rows


def test_local_and_shared_values_that_a_failed_attempt_changed_in_place():
    """The next attempt sees what the failed one made of the shared value; the local one is made again."""

    @stage(local=True, use=[retry(on=OSError, wait=0)])
    def attempted() -> None:
        @action
        def mine() -> list[int]:
            return []

        @action(returns=None)
        def change(mine: list[int], shared: list[int]) -> None:
            mine.append(len(mine))
            shared.append(len(shared))
            if len(shared) < 3:
                raise OSError

        @action(returns="seen")
        def see(mine: list[int], shared: list[int]) -> tuple[list[int], list[int]]:
            return mine, shared

    inputs: list[int] = []
    assert attempted.run({"shared": inputs}, journal=MemoryJournal())["seen"] == ([0], [0, 1, 2])


def test_local_results_travel_to_other_processes():
    with ProcessPoolExecutor(1) as pool:
        assert parallel(per("a"), per("b")).run(executor=pool)["seen"] == ["a", "b"]


def test_a_loop_and_a_stream_of_templates_keep_one_result():
    turns = iter(range(5))

    @stage
    def turning(name: str) -> None:
        action(name="rows")(lambda: object())

        @action
        def again(rows: object):
            return turning(name) if next(turns, None) is not None else None

    flow = turning("a") >> action(name="insert")(lambda: stream(per(n) for n in "ab"))
    assert dict(flow.run().store) == {"seen": ["a", "b"]}


NAMES = st.sampled_from("abc")
ACTIONS = st.tuples(NAMES, st.lists(NAMES, max_size=2, unique=True), st.sampled_from(["own", "shared", "none"]))
STAGES = st.tuples(st.booleans(), st.lists(ACTIONS, min_size=1, max_size=4, unique_by=lambda each: each[0]))


@given(st.lists(STAGES, min_size=1, max_size=4), st.dictionaries(NAMES, st.just("input")))
def test_stages_are_to_their_results_as_functions_to_their_variables(stages, inputs):
    """Against a model with a dict for each stage."""
    log, expected, store = [], [], dict(inputs)
    units = []
    for number, (is_local, actions) in enumerate(stages):
        made, variables = [], {}
        hidden = {name for name, _, how in actions if how != "shared"} if is_local else set()
        for name, reads, how in actions:
            value = None if how == "none" else f"{number}{name}"
            options = {"returns": name} if how == "shared" else {}
            seen = [(variables if key in hidden else store).get(key, "default") for key in reads]
            expected.append((number, name, seen))
            made.append(reading(log, number, name, reads, value).with_options(**options))
            if value is not None:
                (variables if name in hidden else store)[name] = value
        units.append(Stage(f"s{number}", made, local=is_local))
    run = pipeline(*units).run(inputs)
    assert (log, dict(run.store)) == (expected, store)


def reading(log, number, name, reads, value):
    """An action that notes what it reads, with a default for each key."""
    parameters = ", ".join(f"{key}='default'" for key in reads)
    scope = {"log": log, "value": value}
    body = f"def {name}({parameters}):\n    log.append(({number}, {name!r}, [{', '.join(reads)}]))\n    return value"
    exec(body, scope)
    return action(scope[name])
