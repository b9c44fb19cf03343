"""Stand-ins: definitions without functions, of runs that were pickled with definitions that cannot be referenced."""

import copy
import pickle
import threading

import pytest
from defined import double, greet

from flowdeco import Context, Key, Stage, action, parallel, pipeline, stage, stream
from flowdeco.errors import DefinitionError, SerializationError, UnreferencedError
from flowdeco.middleware import retry
from flowdeco.model.stand_ins import Missing, missing_action, outline, portable


def everywhere(*failing):
    """Return a pipeline of every kind of unit, all of them defined here; those named fail, as often as they are named."""
    times = list(failing)

    def layer(call):
        yield

    @stage(tags=["dynamic"], use=[layer])
    def process(kind):
        """Process one."""

        @action(collect="done", description="D")
        def handle():
            return kind

        @action(use=[retry(on=OSError, attempts=2, wait=0)])
        def check():
            if times and kind == times[0]:
                times.pop(0)
                raise OSError("try again")

    @action(tags=["t"], returns="found")
    def discover():
        return [process(kind) for kind in "ab"]

    def units():
        yield process("streamed")

    @action
    def streams(ctx: Context):
        ctx.emit("streaming", n=1)
        return stream(units)

    return pipeline(
        discover,
        streams,
        pipeline(
            parallel(process("c"), action(name="lambda")(lambda: 1), name="group", merge={"k": lambda a, b: a}),
            name="n",
        ),
        Stage("data", [action(name="z")(lambda: 2).bind()], data={"f": lambda: 1, "n": [1]}, title="T", use=[layer]),
        parallel(stream(units), name="of a stream"),
        name="flow",
        description="About it",
        use=[layer],
    )


def told(record):
    return [
        (each.name, each.status, each.started, each.elapsed, each.attempts, each.inserted_by, each.recovered, str(each.error),
         list(map(str, each.failures)), each.unit.tags, each.unit.description)
        for each in (record, *record.actions)
    ]  # fmt: skip


@pytest.mark.parametrize("times", [[], ["a"], ["b", "b"], ["c", "c"]], ids="-".join)
def test_a_run_of_what_cannot_be_referenced_is_pickled(run, tmp_path, times):
    """It has its values and records, and everything that is shown; twice as well."""
    done = run(everywhere(*times), {"x": [1]}, check=False)
    done.store.pop("f", None)
    back = pickle.loads(pickle.dumps(done))
    again = pickle.loads(pickle.dumps(back, 2))
    assert again.pipeline == back.pipeline
    for found in (back, again):
        assert (found.id, found.status, str(found.error)) == (done.id, done.status, str(done.error))
        assert dict(found.store) == dict(done.store)
        assert found.result == done.result
        assert list(map(told, found.stages)) == list(map(told, done.stages))
        assert [record.stage.title for record in found.stages] == [record.stage.title for record in done.stages]
        assert str(found.ran()) == str(done.ran())
        assert found.pipeline.description == "About it"
        assert found.to_html(tmp_path / "run.html").stat().st_size > 1_000
    assert [unit.name for unit in back.pipeline] == [unit.name for unit in done.pipeline]


def test_only_what_cannot_be_referenced_has_a_stand_in(run):
    """The rest comes back as it was."""
    back = pickle.loads(pickle.dumps(run(greet("you") >> double >> action(name="here")(lambda: 1), {"n": 1})))
    assert [record.stage for record in back.stages[:1]] == [greet("you")]
    assert back.stages[1].actions[0].action is double
    assert back.stages[2].actions[0].action != double
    assert (back["here"], back.stages[2].actions[0].name) == (1, "here")


@pytest.mark.parametrize(
    ("failing", "missing"),
    [("a", "action 'check' is"), ("b", "action 'check' is"), ("c", "the stream of everywhere.<locals>.units is")],
)
def test_units_that_were_inserted_are_not_in_the_pipeline_that_resumes(run, failing, missing):
    """The error says which of them cannot run."""
    flow = everywhere(failing, failing)
    run_before = pickle.loads(pickle.dumps(run(flow, check=False)))
    with pytest.raises(UnreferencedError, match="could not be pickled: move it to module level") as refused:
        flow.resume(run_before)
    assert f"{missing} a stand-in without a function: {__name__}:everywhere.<locals>." in str(refused.value)


def test_a_pickled_run_is_resumed_with_the_pipeline_itself(run):
    """Its steps are restored, or run."""
    failing = [OSError("no")]

    @action
    def first():
        return [greet("you")]

    @action
    def second(first=None):
        if failing:
            raise failing.pop()
        return 2

    flow = pipeline(first, second, name="p")
    resumed = flow.resume(pickle.loads(pickle.dumps(run(flow, check=False))))
    assert resumed["second"] == 2
    assert [record.name for record in resumed.stages if record.restored] == ["first", "greet[you]"]


def test_a_stand_in_says_so_when_it_is_called_or_run(run):
    """With the place of its function, if that is known."""
    back = pickle.loads(pickle.dumps(run(action(name="here")(lambda: 1))))
    found = back.stages[0].actions[0].action
    for use in (found, found.bind(n=1), lambda: run(found), lambda: run(back.pipeline)):
        with pytest.raises(
            UnreferencedError, match=r"action 'here' is a stand-in .*says_so.*, could not be pickled: move it"
        ):
            use()
    with pytest.raises(UnreferencedError, match="only its name is known here: run or resume the pipeline itself"):
        missing_action("a")()


def test_a_run_in_memory_is_resumed_after_several_questions(run):
    """Its answers are counted as before."""

    @action
    def ask(ctx: Context):
        return [ctx.wait_for("a"), ctx.wait_for("a")]

    first = run(ask)
    second = ask.resume(pickle.loads(pickle.dumps(first)), {"a": 1})
    assert second.status == "suspended"
    assert ask.resume(pickle.loads(pickle.dumps(second)), {"a": 2}).result == [1, 2]


def test_the_subject_of_a_question_is_described_if_it_cannot_be_pickled(run):
    """As in a journal."""

    @action
    def ask(ctx: Context):
        return ctx.wait_for(Key("a", int), about={"by": threading.Lock()})

    back = pickle.loads(pickle.dumps(run(ask)))
    assert "lock" in back.waits[0].about
    assert ask.resume(back, {"a": 2}).result == 2


def test_a_value_that_cannot_be_pickled_is_named(run):
    """In the store, and the result of the run."""
    held = action(name="held")(lambda: {"rows": [1, threading.Lock()]})
    with pytest.raises(
        SerializationError, match=r"cannot pickle run 'r': store\[\"held\"\]\[\"rows\"\]\[1\]: cannot pickle '_thr"
    ):
        pickle.dumps(run(held, run_id="r"))
    with pytest.raises(
        SerializationError, match=r"cannot pickle run 'r': result\[\"rows\"\]\[1\]: cannot pickle '_thread.lock'"
    ):
        pickle.dumps(run(held.with_options(returns=None), run_id="r"))
    done = run(double, {"n": 1})
    done.store = Unstored({"x": 1})
    with pytest.raises(SerializationError, match=r"store: not this one"):
        pickle.dumps(done)


class Unstored(dict):
    """A mapping whose items can be pickled, and itself not."""

    def __reduce_ex__(self, protocol):
        raise TypeError("not this one")


def test_middleware_that_only_a_resume_needs_may_be_lost(run):
    """The run is pickled, and says that it cannot be resumed."""

    def local(call):
        yield

    waits = action(name="waits")(lambda ctx: ctx.wait_for("a"))
    back = pickle.loads(pickle.dumps(run(waits, use=[local])))
    assert back.status == "suspended"
    with pytest.raises(DefinitionError, match="its middleware, a value or its journal could not be pickled with it"):
        waits.resume(back, {"a": 1})


def test_copies_of_a_run_keep_its_definitions(run):
    """`copy.deepcopy` copies its values only."""
    flow = everywhere("b", "b")
    done = run(flow, {"x": [1]}, check=False)
    shallow, deep = copy.copy(done), copy.deepcopy(done)
    assert shallow.store is done.store
    assert (deep["x"], deep["x"] is done["x"]) == ([1], False)
    for copied in (shallow, deep):
        assert (copied.id, copied.error, copied.pipeline) == (done.id, done.error, flow)
        assert flow.resume(copied).status == "completed"


# The parts.


def test_stand_ins_keep_the_options_that_can_be_pickled():
    """And nothing else."""
    lock = threading.Lock()

    def of(thing):
        return portable(thing, of)

    made = of(double.bind(n=lock).with_options(name="d", tags=["t"], use=[lambda call: (yield)], timeout=3))
    assert (made.name, made.tags, made.description) == ("d", frozenset({"t"}), double.description)
    assert made == pickle.loads(pickle.dumps(made))
    group = of(
        parallel(
            Stage("s", [made, lambda_action()], data={"n": 1}), double, name="g", limit=2, merge={"k": lambda a, b: a}
        )
    )
    assert (group.name, group.limit, dict(group.merge)) == ("g", 2, {})
    assert group["double"] is double
    assert (group["s"].data, [each.name for each in group["s"]]) == ({"n": 1}, ["d", "l"])
    assert of(None) is None
    assert of(stream(lambda: [double])).name == stream(lambda: [double]).name


def lambda_action():
    return action(name="l")(lambda: 1)


def test_missing_functions_are_equal_by_name():
    """And have a hash and a repr."""
    assert Missing("a") == Missing("a") != Missing("b")
    assert Missing("a") != "a"
    assert len({Missing("a"), Missing("a")}) == 1
    assert repr(Missing("action 'a'")) == "<the missing function of action 'a'>"


def test_an_outline_has_no_actions():
    """For a unit of any kind."""
    assert outline(Stage("s", [double], title="T", tags=["t"])) == Stage("s", title="T", tags=["t"])
    assert outline(parallel(double, name="g", tags=["t"])) == Stage("g", tags=["t"])
    assert outline(stream(list)).name == stream(list).name
