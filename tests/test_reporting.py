"""What is reported: messages, records, views, and the command line."""

import datetime as dt
import decimal
import functools
import json
import pathlib
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import text_of

from flowdeco import Bail, Context, Run, Stage, action, cli, durable, errors, parallel, pipeline, stage
from flowdeco.durable import JsonCodec, MemoryJournal, SqliteJournal
from flowdeco.middleware import Sleep, atomic, recover, retry


@action(collect="sizes")
def size(file: str) -> int:
    if file.startswith("bad"):
        raise OSError("cannot be read")
    return len(file)


@action
def bad() -> None:
    raise OSError("gone")


@action
def good() -> int:
    return 1


def line_of(view, name):
    """The line of a text that has this name."""
    return next(line for line in str(view).splitlines() if name in line)


# -- the branch of a failure


def test_a_failure_in_a_branch_names_the_branch(run):
    """Nine branches of one bound action: the note says which of them it was, and what ran tells them apart."""
    branches = [size.bind(file=f"{'bad' if n == 7 else 'part'}{n}") for n in range(9)]
    failed = run(parallel(*branches, name="files"), check=False, run_id="r")
    assert failed.error.__notes__[0] == (
        "in action 'size' of stage 'size', pipeline 'pipeline', "
        "branch 7 ('size[file=bad7]') of parallel group 'files', run 'r'"
    )
    assert "OSError: cannot be read" in line_of(failed.ran(), "size[file=bad7]")
    assert "size[file=part6]" in str(failed.ran())
    assert "size[file=bad7]" in failed.ran().html()


def test_every_group_around_a_failure_is_named(run):
    """The innermost first."""
    inner = parallel(good, size.bind(file="bad"), name="inner")
    failed = run(parallel(good.with_options(name="other"), inner, name="outer"), check=False)
    assert re.search(
        r"branch 1 \('size\[file=bad\]'\) of parallel group 'inner', branch 1 \('inner'\) of", text_of(failed.error)
    )


def test_each_failure_of_a_group_names_its_branch():
    """Also the branch of a template, and one that a branch inserted."""

    @stage
    def checked(name: str) -> None:
        @action
        def check() -> Stage:
            return Stage("later", [bad])

    run = parallel(checked("a"), checked("b"), name="g").run(check=False)
    members = getattr(run.error, "exceptions", [run.error])
    assert all(re.search(r"branch \d \('checked\[[ab]\]'\) of parallel group 'g'", text_of(each)) for each in members)


def test_a_conflict_names_bound_branches():
    """Two branches of one action are two."""

    @action(returns="k")
    def writes(n: int) -> int:
        return n

    with pytest.raises(errors.WriteConflictError, match=r"branches 0 \('writes\[n=1\]'\) and 1 \('writes\[n=2\]'\)"):
        parallel(writes.bind(n=1), writes.bind(n=2)).run()


def test_a_bound_value_without_a_repr_is_no_second_failure():
    """The name of its parameter has to do."""

    class Nasty:
        def __repr__(self):
            raise RuntimeError("no repr")

    run = parallel(size.bind(file=Nasty()), good).run(check=False)
    assert isinstance(run.error, AttributeError)
    assert "of parallel group" in text_of(run.error)
    assert "size[" in str(run.ran())


def test_bound_values_are_secrets_on_a_page(tmp_path):
    """They name a branch in a terminal; the page, which is passed on, has their names."""

    @action
    def fetch(token: str) -> None:
        raise OSError("refused")

    run = parallel(fetch.bind(token="hunter2secret"), good).run(check=False)
    assert "hunter2secret" in str(run.ran())
    assert "hunter2secret" not in run.to_html(tmp_path / "run.html").read_text()


def test_no_branch_gets_the_bound_values_of_another():
    """A journal has only names, and nine branches of one action have one: then they are left out."""
    from flowdeco.engine.reading import read_run, stages_by_name

    flow = parallel(*(size.bind(file=f"part{n}") for n in range(3)), name="files")
    journal = MemoryJournal()
    run = flow.run(journal=journal)
    read = read_run(journal.read(run.id), journal.codec, stages_by_name([flow]).get)
    assert str(run.ran()).count("size[file=part") == 3
    assert [record.name for record in read.stages] == ["size"] * 3
    assert "part2" not in str(read.ran())


# -- records


@pytest.mark.parametrize("level", ["action", "stage"])
def test_the_errors_of_failed_attempts_are_in_the_record(run, level):
    """In order, without that of the last attempt; `attempts` keeps count."""
    causes = [OSError("first"), OSError("second"), OSError("third")]
    use = [retry(on=OSError, attempts=4, wait=0)]

    @action(use=use if level == "action" else ())
    def flaky() -> int:
        if causes:
            raise causes.pop(0)
        return 1

    done = run(Stage("s", [flaky], use=() if level == "action" else use))
    record = done.stages[0].actions[0] if level == "action" else done.stages[0]
    assert (record.status, record.attempts, record.error) == ("completed", 4, None)
    assert [str(error) for error in record.failures] == ["first", "second", "third"]
    assert run(good).stages[0].failures == ()


def test_the_last_failure_is_no_earlier_one():
    """Recovered, or not: it is the error of the record."""
    errors_ = [OSError("first"), OSError("second")]

    @action(use=[recover(on=OSError), retry(on=OSError, attempts=2, wait=0)])
    def flaky() -> None:
        raise errors_.pop(0)

    record = flaky.run().stages[0].actions[0]
    assert (record.recovered, str(record.error), [str(e) for e in record.failures]) == (True, "second", ["first"])


FAILS = []  # how often it still fails
STOPS = []  # whether the flow stops here


@action(use=[retry(on=OSError, attempts=3, wait=0)])
def flaky() -> int:
    if FAILS:
        raise OSError(FAILS.pop())
    return 1


@action
def stops() -> None:
    if STOPS:
        raise ValueError("stopped")


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_the_errors_of_failed_attempts_are_restored(tmp_path, codec):
    """From both codecs, by a resume and by `read`."""
    journal = SqliteJournal(tmp_path / "runs.db", codec=codec)
    FAILS[:], STOPS[:] = ["second", "first"], [True]
    flow = flaky >> stops
    first = flow.run(journal=journal, check=False)
    STOPS.clear()
    for again in (
        first,
        durable.read(journal, first.id),
        flow.resume(first.id, journal=journal),
        durable.read(journal, first.id),
    ):
        record = again.stages[0].actions[0]
        assert (record.attempts, [(type(e), str(e)) for e in record.failures]) == (
            3, [(OSError, "first"), (OSError, "second")],
        )  # fmt: skip


def test_an_earlier_error_that_cannot_be_journaled_is_described():
    """As the last one is."""

    class Odd(Exception):
        def __reduce__(self):
            raise TypeError("not me")

    left = [Odd("one")]

    @action(use=[retry(on=Odd, wait=0)])
    def odd() -> None:
        if left:
            raise left.pop()

    journal = MemoryJournal(JsonCodec())
    run = odd.run(journal=journal)
    (error,) = durable.read(journal, run.id).stages[0].actions[0].failures
    assert (type(error), str(error)) == (errors.RunError, "Odd: one")


def test_the_page_has_the_errors_of_all_attempts(tmp_path):
    """Also those of a run that completed."""
    FAILS[:] = ["second reason", "first reason"]
    page = flaky.run().to_html(tmp_path / "run.html").read_text()
    assert "first reason" in page
    assert "second reason" in page


RECOVERED = {
    "an inner pipeline": lambda: pipeline(bad, name="inner", use=[recover(on=OSError)]) >> Stage("after"),
    "a stage": lambda: Stage("inner", [bad], use=[recover(on=OSError)]) >> Stage("after"),
    "all of it": lambda: pipeline(Stage("inner", [bad]), use=[recover(on=OSError)]),
    "a group": lambda: pipeline(parallel(bad, good, name="inner"), name="around", use=[recover(on=OSError)]) >> good,
    "stages of a pipeline": lambda: pipeline(Stage("inner", [bad]), use_stages=[recover(on=OSError)]) >> Stage("after"),
}


@pytest.mark.parametrize("flow", RECOVERED.values(), ids=RECOVERED)
@pytest.mark.parametrize("journaled", [False, True], ids=["in memory", "read"])
def test_what_was_recovered_is_shown_so(flow, journaled):
    """In a completed run nothing that failed stands there as if it had ended the run."""
    journal = MemoryJournal()
    run = flow().run(journal=journal if journaled else None)
    run = durable.read(journal, run.id) if journaled else run
    assert run.status == "completed"
    assert "recovered" in line_of(run.ran(), "inner")
    assert "✗" not in str(run.ran())
    assert not flow().plan().diff(run).failed


def around(*use):
    return pipeline(Stage("inner", [bad]), name="p", use=use)


UNFAILED = {
    **RECOVERED,
    "a nested pipeline": lambda: pipeline(around(), name="outer", use=[recover(on=OSError)]) >> Stage("after"),
    "a pipeline in a branch": lambda: parallel(around(recover(on=OSError)), good),
    "another attempt": lambda: around(recover(on=OSError), retry(on=OSError, attempts=2, wait=0)),
    "a bail": lambda: around(gives_up),
}


def gives_up(call):
    try:
        yield
    except OSError:
        raise Bail("enough") from None


def failed(run):
    """The steps whose failures nothing has recovered."""
    steps = (each for record in run.stages for each in (record, *record.actions))
    return [step.name for step in steps if step.status == "failed" and not step.recovered]


@pytest.mark.parametrize("flow", UNFAILED.values(), ids=UNFAILED)
def test_a_run_that_did_not_fail_has_no_record_of_a_failure_that_was_not_recovered(flow):
    """In memory, in the journal, and in a resumed run that had not finished."""
    journal = MemoryJournal()
    for use in ([], [recover(on=OSError)]):
        run = flow().run(journal=journal, use=use)
        for each in (run, durable.read(journal, run.id), flow().run(use=use)):
            assert any(record.recovered for record in each.stages)
            assert failed(each) == []
    ask = action(name="ask")(lambda ctx: ctx.wait_for("answer"))
    if run.status == "completed":
        flow = flow() >> ask
        waiting = flow.run(journal=journal), flow.run()
        done = flow.resume(waiting[0].id, {"answer": 1}, journal=journal), flow.resume(waiting[1], {"answer": 1})
        assert [failed(each) for each in (*waiting, *done)] == [[]] * 4
        assert all(any(record.recovered for record in each.stages) for each in done)


def test_the_run_recovers_as_pipelines_do():
    """Middleware given with `use=`."""
    run = Stage("s", [bad]).run(use=[recover(on=OSError)])
    assert (run.status, run.stages[0].recovered, failed(run)) == ("completed", True, [])


def test_a_failure_that_was_not_recovered_is_not_said_to_be():
    """Although one before it was; in memory and read from the journal."""
    journal = MemoryJournal()
    flow = around(recover(on=OSError)) >> bad
    run = flow.run(journal=journal, check=False)
    for each in (run, durable.read(journal, run.id)):
        assert [(record.name, record.recovered) for record in each.stages] == [("inner", True), ("bad", False)]
        assert failed(each) == ["bad", "bad"]


def test_a_recovered_pipeline_has_a_record():
    """With its status, its error and its attempts, in memory and in the journal."""
    inner = pipeline(bad, name="inner", use=[recover(on=OSError), retry(on=OSError, attempts=2, wait=0)])
    journal = MemoryJournal()
    done = (inner >> good).run(journal=journal)
    for run in (done, durable.read(journal, done.id)):
        (record,) = run.pipelines
        assert (record.name, record.status, record.recovered, record.attempts) == ("inner", "failed", True, 2)
        assert (str(record.error), len(record.failures)) == ("gone", 1)


def test_a_pipeline_of_a_dropped_attempt_has_no_record():
    """Nor one whose stages `history=` has forgotten."""
    tries = []

    @action
    def once() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError

    inner = pipeline(bad, name="inner", use=[recover(on=OSError)])
    outer = pipeline(inner, once, name="outer", use=[retry(on=ValueError, attempts=2, wait=0)])
    assert [(each.name, each.attempts) for each in (outer >> good).run().pipelines] == [("inner", 1), ("outer", 2)]
    several = action(name="several")(lambda: [inner] * 50)
    assert len(several.run().pipelines) == 50
    assert len(several.run(history=3).pipelines) == 3


# -- the time of a resumed run


def legs(journal):
    """A run of two legs: 0.1 s, and a wait."""

    @action
    def slow() -> None:
        time.sleep(0.1)

    @action
    def ask(ctx: Context) -> str:
        time.sleep(0.05)
        return ctx.wait_for("answer")

    flow = slow >> ask
    return flow, flow.run(journal=journal)


@pytest.mark.parametrize("kind", ["memory", "MemoryJournal", "SqliteJournal"])
def test_a_resumed_run_began_when_it_began(tmp_path, kind):
    """`started` is that of its first leg, `elapsed` the sum of all, without the pauses between them."""
    journal = {"memory": lambda: None, "MemoryJournal": MemoryJournal, "SqliteJournal": lambda: tmp_path / "runs.db"}[
        kind
    ]()
    before = time.time()
    flow, run = legs(journal)
    first, again, paused = run, run, time.time()
    for _ in range(2):  # twice without an answer: each leg counts, although its rows are replaced
        time.sleep(0.05)
        again = flow.resume(run if journal is None else run.id, journal=journal)
        assert again.status == "suspended"
        assert again.elapsed >= run.elapsed + 0.05
        run = again
    done = flow.resume(run if journal is None else run.id, {"answer": "yes"}, journal=journal)
    assert before <= done.started < paused
    assert first.elapsed + 0.15 <= done.elapsed < time.time() - first.started - 0.08
    if journal is not None:
        read = durable.read(journal, run.id)
        assert (read.started, read.elapsed) == (done.started, pytest.approx(done.elapsed))
        assert flow.resume(run.id, journal=journal).elapsed == pytest.approx(done.elapsed)


@action
def naps(ctx: Context) -> None:
    """Take 0.05 s."""
    time.sleep(0.05)


@action(returns=None)
def naps_and_asks(ctx: Context) -> None:
    """Take 0.05 s in each leg."""
    time.sleep(0.05)
    ctx.wait_for("answer")


class Dies(BaseException):
    """The end of a process."""


class Dying(MemoryJournal):
    """A journal whose process dies when an action of this name would be written."""

    dies_at = ""

    def write(self, run_id, rows):
        """Write, or leave the run as a killed process does."""
        if any(row.action == self.dies_at for row in rows):
            self._runs[run_id].busy = False
            raise Dies
        super().write(run_id, rows)

    def close(self, run_id, *args, **kwargs):
        """Note nothing after that."""
        if self._runs[run_id].busy:
            super().close(run_id, *args, **kwargs)


def stage_of(run, name="s"):
    """The record of a stage."""
    return next(record for record in run.stages if record.name == name)


SPANNING = {
    "plain": Stage("s", [naps, naps_and_asks, naps.with_options(name="last")]),
    "with data": Stage("s", [naps, naps_and_asks, naps.with_options(name="last")], data={"k": 1}),
    "with middleware": Stage("s", [naps, naps_and_asks, naps.with_options(name="last")], use=[retry(on=OSError)]),
    "with a timeout": Stage("s", [naps, naps_and_asks, naps.with_options(name="last")], timeout=10),
}


@pytest.mark.parametrize("unit", SPANNING.values(), ids=SPANNING)
@pytest.mark.parametrize("kind", ["memory", "MemoryJournal", "SqliteJournal"])
def test_a_stage_that_spans_legs_has_the_times_of_all(tmp_path, unit, kind):
    """It began when it began, and took the sum of them."""
    journal = {"memory": None, "MemoryJournal": MemoryJournal(), "SqliteJournal": tmp_path / "runs.db"}[kind]
    run = unit.run(journal=journal)
    legs = [stage_of(run)]
    for answers, naps in ({}, 1), ({"answer": 1}, 2):
        time.sleep(0.05)
        began = time.perf_counter()
        run = unit.resume(run if journal is None else run.id, answers, journal=journal)
        took = time.perf_counter() - began
        legs.append(stage_of(run))
        assert legs[-1].started == legs[0].started
        assert legs[-2].elapsed + 0.05 * naps <= legs[-1].elapsed < legs[-2].elapsed + took
        if journal is not None:
            read = stage_of(durable.read(journal, run.id))
            assert (read.started, read.elapsed) == (legs[-1].started, pytest.approx(legs[-1].elapsed))
    assert 0.1 <= legs[0].elapsed
    assert legs[2].elapsed <= run.elapsed


@pytest.mark.parametrize("unit", SPANNING.values(), ids=SPANNING)
def test_a_stage_whose_process_was_killed_has_the_times_of_its_actions(unit):
    """Nothing else is known of that leg; those of legs that ended count as a whole."""
    journal = Dying()
    run = unit.run(journal=journal, check=False, run_id="r")
    suspended = stage_of(run)
    journal.dies_at = "last"
    with pytest.raises(Dies):
        unit.resume("r", {"answer": 1}, journal=journal)
    killed = stage_of(durable.read(journal, "r"))
    assert (killed.status, killed.started) == ("running", suspended.started)
    assert killed.elapsed == pytest.approx(suspended.elapsed + killed.actions[1].elapsed)
    journal.dies_at = ""
    time.sleep(0.05)
    began = time.perf_counter()
    done = stage_of(unit.resume("r", journal=journal))
    assert (done.status, done.started) == ("completed", suspended.started)
    assert killed.elapsed + 0.05 <= done.elapsed < killed.elapsed + time.perf_counter() - began


@pytest.mark.parametrize("unit", SPANNING.values(), ids=SPANNING)
def test_a_stage_whose_first_process_was_killed_began_then(unit):
    """It has a record only of its actions, or of its beginning."""
    journal = Dying()
    journal.dies_at = "naps_and_asks"
    with pytest.raises(Dies):
        unit.run({"answer": 1}, journal=journal, run_id="r")
    killed = stage_of(durable.read(journal, "r"))
    assert killed.elapsed == pytest.approx(killed.actions[0].elapsed)
    journal.dies_at = ""
    time.sleep(0.05)
    began = time.perf_counter()
    done = stage_of(unit.resume("r", journal=journal))
    assert done.started == killed.started
    assert killed.elapsed + 0.1 <= done.elapsed < killed.elapsed + time.perf_counter() - began


def test_a_leg_that_crashed_counts_by_its_rows():
    """Nothing else is known of it."""
    journal = MemoryJournal()
    flow, run = legs(journal)
    journal.open(run.id)  # a leg that ends without a word
    journal.write(
        run.id, [durable.Row("0", 9, "action", "s", "a", "failed", time.time(), 5.0, "", journal.codec.encode({}, ""))]
    )
    journal._runs[run.id].busy = False
    assert durable.read(journal, run.id).elapsed == pytest.approx(run.elapsed + 5)


def test_a_refused_resume_changes_no_time(tmp_path):
    """And a fork is a run of its own."""
    path = tmp_path / "runs.db"
    _, run = legs(path)
    with pytest.raises(errors.CodeChangedError):
        (good >> Stage("another")).resume(run.id, journal=path)
    assert durable.read(path, run.id).elapsed == pytest.approx(run.elapsed)
    flow, _ = legs(None)
    fork = flow.resume(run.id, {"answer": 1}, journal=path, from_stage="ask")
    assert fork.started > run.started
    assert fork.elapsed < run.elapsed


# -- wiring


@action
def mean(spend: list) -> float:
    return sum(spend) / len(spend)


@action
def deviation(spend: list, mean: float) -> list:
    return [s - mean for s in spend]


def test_the_wiring_says_that_a_value_comes_later():
    """In the same stage, in a later one, in the wiring error and in `validate`."""
    later = r"Action 'mean' of stage '\w+' supplies it, but comes later"
    for flow in (deviation >> mean, Stage("s", [deviation, mean]), pipeline(deviation, parallel(mean, good))):
        with pytest.raises(errors.WiringError, match=later):
            flow.run({"spend": [1, 2]})
        assert re.search(later, flow.validate(["spend"])[0].message)


def test_the_wiring_says_that_a_value_is_in_another_branch_or_skipped():
    """Neither reaches the reader."""
    with pytest.raises(
        errors.WiringError, match=r"'mean' of stage 'mean' supplies it in another branch of the parallel group 'g'"
    ):
        parallel(deviation, mean, name="g").run({"spend": [1]})
    with pytest.raises(errors.WiringError, match=r"Action 'mean' of stage 'mean' supplies it, but is skipped"):
        (mean >> deviation).run({"spend": [1]}, skip=["mean"])


def test_inserted_units_in_the_wrong_order_are_told_so():
    """The key is not suggested as a correction of itself."""
    insert = action(name="insert")(lambda: [deviation, mean])
    with pytest.raises(errors.WiringError, match="supplies it, but comes later") as raised:
        insert.run({"spend": [1]})
    assert "Did you mean 'mean'" not in str(raised.value)


def test_a_local_result_that_was_recovered_says_so():
    """In the stage of a template."""

    @stage
    def per(name: str) -> None:
        @action(use=[recover(on=OSError)])
        def rows() -> list:
            raise OSError("cannot be read")

        @action(collect="sizes")
        def length(rows: list) -> int:
            return len(rows)

    with pytest.raises(errors.MissingInputError) as raised:
        per("b").run()
    assert "recovered" in text_of(raised.value)


def timed(call):
    yield


def logged(call):
    started = time.perf_counter()
    try:
        yield
    except ValueError as error:
        call.logger.info("%s %s: %s", call.level, call.name, error)
        raise
    finally:
        print(call.stage and call.stage.name, time.perf_counter() - started, file=sys.stderr)


async def timed_async(call):
    async with Nothing():
        yield


class Nothing:
    async def __aenter__(self): ...

    async def __aexit__(self, *error): ...


def patient(call):
    for attempt in range(2):
        try:
            yield
            return
        except ValueError:
            yield Sleep(0.01 * (attempt + 1))
    yield


def named(name, call):
    yield


class Layer:
    def __call__(self, call):
        yield

    def method(self, call):
        yield


def gives(call):
    yield {"row": [1]}


def gives_sometimes(call):
    yield ({"row": [1]} if call.attempt == 1 else None)


def gives_a_variable(call):
    given = {"row": [1]}
    yield given


def writes(call):
    call.store["row"] = [1]
    yield


def passes_on(call):
    helper(call)
    yield


def helper(call):
    call.store["row"] = [1]


def delegates(call):
    yield from gives(call)


def hides(call):
    def inside():
        call.store["row"] = [1]

    inside()
    yield


def renames(call):
    other = call
    other.store["row"] = [1]
    yield


def inserts(call):
    call.insert(action(name="row")(lambda: [1]))
    yield


NO_VALUES = [
    timed, logged, timed_async, patient, functools.partial(named, "x"), Layer(), Layer().method,
    retry(on=OSError), recover(on=OSError), atomic,
]  # fmt: skip
VALUES = [gives, gives_sometimes, gives_a_variable, writes, passes_on, delegates, hides, renames]


@action
def rows() -> list:
    return [1, 2]


@action
def total(row: list) -> int:
    return sum(row)


PLACES = {
    "pipeline": lambda layer: pipeline(rows, total, use=[layer]),
    "stages": lambda layer: pipeline(rows, total, use_stages=[layer]),
    "actions": lambda layer: pipeline(rows, total, use_actions=[layer]),
    "stage": lambda layer: Stage("s", [rows, total], use=[layer]),
    "action": lambda layer: rows >> total.with_options(use=[layer]),
    "earlier": lambda layer: rows.with_options(use=[layer]) >> total,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layer", NO_VALUES, ids=lambda layer: getattr(layer, "__name__", type(layer).__name__))
def test_middleware_that_yields_no_values_hides_no_typo(layer, place):
    """A missing parameter is refused before anything runs."""
    with pytest.raises(errors.WiringError, match="'row'"):
        PLACES[place](layer).run()


def test_nor_does_middleware_of_the_run():
    for layer in NO_VALUES:
        with pytest.raises(errors.WiringError, match="'row'"):
            (rows >> total).run(use=[layer])


@pytest.mark.parametrize("layer", VALUES, ids=lambda layer: layer.__name__)
def test_middleware_that_may_supply_values_is_given_the_benefit_of_the_doubt(layer):
    """It does supply them, and the flow runs."""
    assert pipeline(rows, total, use=[layer]).run()["total"] == 1


def test_an_outcome_that_middleware_supplies_counts():
    """Of an action that is annotated to return nothing, too."""

    def supplies(call):
        call.outcome = [1]
        return
        yield

    for layer in (supplies, recover(on=OSError, outcome=[1])):

        @action(use=[layer])
        def row() -> None:
            raise OSError

        assert (row >> total).run()["total"] == 1
    with pytest.raises(errors.WiringError, match="'row'"):
        (rows.with_options(use=[supplies]) >> total).run()


def test_a_missing_parameter_that_is_recovered_is_none():
    """`recover` says so; whoever inserts may be wrapped as well."""
    with_default = total.with_options(use=[recover(on=errors.MissingInputError, outcome=0)])
    assert with_default.run()["total"] == 0
    insert = action(name="insert")(lambda: total)
    assert pipeline(insert, use=[recover(on=errors.MissingInputError)]).run().status == "completed"


def test_an_insertion_under_middleware_without_values_is_checked():
    insert = action(name="insert")(lambda: Stage("later", [total]))
    with pytest.raises(errors.WiringError, match="'row'"):
        pipeline(insert, use=[timed]).run()
    with pytest.raises(errors.MissingInputError):
        pipeline(insert, use=[inserts]).run()


# -- the command line


@pytest.fixture
def flowdeco(capsys, tmp_path, monkeypatch):
    """Run the command in this process; return exit code, output, and errors. What it imports is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("FLOWDECO_JOURNAL", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])

    def run(*arguments):
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    yield run
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


TYPES = [
    "int", "float", "bool", "str", "Path", "dt.date", "dt.datetime", "decimal.Decimal", "uuid.UUID", "Colour",
    "Literal['a', 2, None]", "int | None", "Optional[str]", "list[int]", "dict[str, dt.date]", "list",
    "list[Colour] | None", "Annotated[int, 'v']", "Annotated[Any, Key('v', int)]", "Id", "Any", "", "tuple",
    "int | str", "list[list[bool]]", "'int'",
]  # fmt: skip
KINDS = """
import asyncio
import contextlib
import datetime as dt
import decimal
import enum
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional
from flowdeco import Key, action

class Colour(enum.Enum):
    red = "rot"
    green = 2

Id = NewType("Id", int)

def note(value):
    Path("noted").write_text(repr(value))
""" + "".join(f"\n@action\ndef f{n}(v{f': {kind}' if kind else ''}) -> None: note(v)\n" for n, kind in enumerate(TYPES))

FITS = [
    ("int", "v=2", "2"), ("int", "v= -3 ", "-3"), ("int", "v:=2", "2"), ("float", "v=1.5", "1.5"), ("float", "v:=2", "2.0"),
    ("bool", "v=true", "True"), ("bool", "v=NO", "False"), ("bool", "v=1", "True"), ("bool", "v:=false", "False"),
    ("str", "v=2", "'2'"), ("str", "v=null", "'null'"), ("Path", "v=a/b", repr(pathlib.Path("a/b"))),
    ("dt.date", "v=2024-02-29", repr(dt.date(2024, 2, 29))),
    ("dt.datetime", "v=2024-02-29T10:00", repr(dt.datetime(2024, 2, 29, 10))),
    ("dt.date", 'v:="2024-02-29"', repr(dt.date(2024, 2, 29))),
    ("decimal.Decimal", "v=0.10", repr(decimal.Decimal("0.10"))), ("decimal.Decimal", "v:=0.1", repr(decimal.Decimal("0.1"))),
    ("uuid.UUID", "v=12345678123456781234567812345678", "UUID('12345678-1234-5678-1234-567812345678')"),
    ("Colour", "v=red", "<Colour.red: 'rot'>"), ("Colour", "v=rot", "<Colour.red: 'rot'>"), ("Colour", "v=2", "<Colour.green: 2>"),
    ("Literal['a', 2, None]", "v=a", "'a'"), ("Literal['a', 2, None]", "v=2", "2"), ("Literal['a', 2, None]", "v=null", "None"),
    ("int | None", "v=", "None"), ("int | None", "v=null", "None"), ("int | None", "v=4", "4"), ("int | None", "v:=null", "None"),
    ("Optional[str]", "v=", "''"), ("Optional[str]", "v=null", "'null'"), ("Optional[str]", "v:=null", "None"),
    ("list[int]", "v=[1, 2]", "[1, 2]"), ("list[int]", 'v:=["1"]', "[1]"), ("list", 'v=["a", 1]', "['a', 1]"),
    ("dict[str, dt.date]", 'v={"a": "2024-02-29"}', repr({"a": dt.date(2024, 2, 29)})),
    ("list[Colour] | None", 'v=["red"]', "[<Colour.red: 'rot'>]"), ("Annotated[int, 'v']", "v=1", "1"),
    ("Annotated[Any, Key('v', int)]", "v=1", "1"), ("Id", "v=1", "1"), ("Any", "v=1", "'1'"), ("", "v=1", "'1'"),
    ("int | str", "v=1", "1"), ("int | str", "v=x", "'x'"), ("list[list[bool]]", "v=[[true]]", "[[True]]"), ("'int'", "v=1", "1"),
    ("tuple", "v=1", "'1'"),
]  # fmt: skip


def test_inputs_are_converted_by_the_annotations(flowdeco):
    """As text and as JSON, each of the types that have a conversion, and no other."""
    Path("flow.py").write_text(KINDS)
    for kind, given, noted in FITS:
        code, _, err = flowdeco("run", f"flow.py:f{TYPES.index(kind)}", "-i", given)
        assert (kind, given, code) == (kind, given, 0), err
        assert (kind, given, Path("noted").read_text()) == (kind, given, noted)


MISFITS = [
    ("int", "v=many"), ("int", "v=1.5"), ("int", "v="), ("int", "v:=1.5"), ("int", "v:=true"), ("int", "v:=null"), ("float", "v=x"),
    ("bool", "v=on"), ("bool", "v=off"), ("bool", "v="), ("bool", "v:=2"), ("str", "v:=2"), ("Path", "v:=1"), ("dt.date", "v=today"),
    ("dt.date", "v=2023-02-29"), ("dt.datetime", "v=x"), ("decimal.Decimal", "v=x"), ("uuid.UUID", "v=1"), ("Colour", "v=blue"),
    ("Literal['a', 2, None]", "v=b"), ("int | None", "v=x"), ("list[int]", "v=1, 2"), ("list[int]", "v={}"), ("list[int]", 'v=["x"]'),
    ("list[int]", "v:=3"), ("dict[str, dt.date]", 'v={"a": 1}'), ("list[Colour] | None", "v=[3]"), ("Id", "v=x"),
    ("Annotated[Any, Key('v', int)]", "v=x"), ("list[list[bool]]", "v=[[1]]"),
]  # fmt: skip


def test_an_input_that_does_not_fit_is_refused(flowdeco):
    """Before the run, with exit code 2 and the name of the input; no journal is made."""
    Path("flow.py").write_text(KINDS)
    for kind, given in MISFITS:
        code, out, err = flowdeco("run", f"flow.py:f{TYPES.index(kind)}", "-i", given, "--journal", "runs.db")
        assert (kind, given, code, out) == (kind, given, 2, "")
        assert "the input 'v'" in err, (kind, given)
        assert len(err.splitlines()) == 1
    assert not Path("noted").exists()
    assert not Path("runs.db").exists()


def test_inputs_of_a_file_are_converted_too(flowdeco):
    """Strings of JSON; -i wins, and is text."""
    Path("flow.py").write_text(KINDS)
    Path("in.json").write_text(json.dumps({"v": "2024-02-29"}))
    assert flowdeco("run", "flow.py:f5", "--inputs", "in.json")[0] == 0
    assert Path("noted").read_text() == repr(dt.date(2024, 2, 29))
    assert flowdeco("run", "flow.py:f5", "--inputs", "in.json", "-i", "v=2020-01-01")[0] == 0
    assert Path("noted").read_text() == repr(dt.date(2020, 1, 1))
    assert flowdeco("run", "flow.py:f5", "--inputs", "in.json", "-i", "v=no")[0] == 2


TWO = """
from flowdeco import Context, Stage, action, parallel

@action
def number(v: int) -> None: ...

@action
def text(v: str) -> None:
    print(repr(v))

@action(returns="v")
def loads(v: str) -> float:
    return float(v)

@action
def uses(v: float) -> None:
    print("used", v)

@action
def ask(ctx: Context) -> None:
    print("answer", ctx.wait_for("answer", type=int) + 1)

@action
def use(answer: int, other: int = 0) -> None:
    print("answer", answer + 1)

disagree = number >> text
branches = parallel(number, text)
becomes = loads >> uses
gated = ask
data = Stage("s", [text], data={"v": "data"}) >> number.with_options(name="after")
"""


def test_parameters_that_disagree_leave_an_input_as_it_is(flowdeco):
    """With a warning; those after an action that supplies the key do not take it."""
    Path("flow.py").write_text(TWO)
    for name in ("disagree", "branches"):
        code, out, err = flowdeco("run", f"flow.py:{name}", "-i", "v=7")
        assert (code, "'7'" in out) == (0, True)
        assert err == "flowdeco: warning: the input 'v' stays as it was given: actions take it as int and as str\n"
    assert flowdeco("run", "flow.py:becomes", "-i", "v=1.5")[:2][1].startswith("used 1.5")
    assert flowdeco("run", "flow.py:disagree", "-i", "v=7", "--skip", "text")[2] == ""
    assert flowdeco("run", "flow.py:data", "-i", "v=x")[0] == 0


def test_the_inputs_of_a_resume_are_converted_and_refused(flowdeco):
    """One that does not fit leaves the run as it was."""
    Path("flow.py").write_text(TWO)
    assert flowdeco("run", "flow.py:gated", "--journal", "runs.db", "--run-id", "r")[0] == 3
    before = durable.runs("runs.db")
    code, _, err = flowdeco("resume", "r", "--journal", "runs.db", "-i", "answer=x")
    assert (code, "the input 'answer'" in err) == (2, True)
    assert durable.runs("runs.db") == before
    code, out, _ = flowdeco("resume", "r", "--journal", "runs.db", "-i", "answer=41")
    assert (code, "answer 42" in out) == (0, True)


def test_an_answer_is_converted_by_the_type_that_its_question_wants(flowdeco):
    """Whatever parameters take the key; of a question without a type, it stays text."""
    Path("flow.py").write_text(
        "from flowdeco import Context, action\n"
        "@action\n"
        "def ask(ctx: Context) -> str:\n"
        "    return repr([ctx.wait_for('many', type=int), ctx.wait_for('list', type=list), ctx.wait_for('any')])\n"
        "flow = ask\n"
    )
    assert flowdeco("run", "flow.py:flow", "--journal", "runs.db", "--run-id", "r")[0] == 3
    code, _, err = flowdeco("resume", "r", "--journal", "runs.db", "-i", "many=some")
    assert (code, err) == (2, "flowdeco: error: the input 'many': the run asks for it as int, and 'some' is not one\n")
    assert flowdeco("resume", "r", "--journal", "runs.db", "-i", "many=7")[0] == 3
    assert flowdeco("resume", "r", "--journal", "runs.db", "-i", "list=[1, 2]")[0] == 3
    code, out, _ = flowdeco("resume", "r", "--journal", "runs.db", "-i", "any=7")
    assert (code, "[7, [1, 2], '7']" in out) == (0, True)


ASKING = """
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, NewType, Optional, TypedDict
from flowdeco import Context, Key, action

class Colour(Enum):
    RED = 1
    BLUE = "b"

class Outer:
    class Size(Enum):
        SMALL = "s"

class Movie(TypedDict):
    year: int

Port = NewType("Port", int)

@action
def ask(ctx: Context) -> str:
    return "got " + repr(ctx.wait_for("x", type={declared}))

flow = ask
"""


@pytest.mark.parametrize(
    ("declared", "given", "expected", "wrong"),
    [
        ("int", "x=3", "3", "x=many"),
        ("list[int]", 'x=[1, "2"]', "[1, 2]", 'x=[1, "b"]'),
        ("list[list[Outer.Size]]", 'x:=[["s"], ["SMALL"]]', "[[<Size.SMALL: 's'>], [<Size.SMALL: 's'>]]", "x:=[[2]]"),
        ("dict[str, float]", 'x={"a": 1, "b": "2.5"}', "{'a': 1.0, 'b': 2.5}", 'x={"a": "b"}'),
        (
            "dict[Colour, date]",
            'x={"RED": "2025-01-31"}',
            "{<Colour.RED: 1>: datetime.date(2025, 1, 31)}",
            'x={"b": 1}',
        ),
        ("Literal['a', 2]", "x=2", "2", "x=b"),
        ("Literal['a', Colour.RED]", "x=RED", "<Colour.RED: 1>", "x=BLUE"),
        ("list[Literal[True]] | None", "x=[true]", "[True]", "x=[false]"),
        ("Optional[int]", "x=null", "None", "x=b"),
        ("list[Optional[int]]", 'x=[null, "1"]', "[None, 1]", "x=[1.5]"),
        ("Colour", "x=b", "<Colour.BLUE: 'b'>", "x=red"),
        ("Decimal", "x=0.1", "Decimal('0.1')", "x=b"),
        ("date | int", "x=2025-01-31", "datetime.date(2025, 1, 31)", "x=b"),
        ("bool", "x=No", "False", "x=off"),
        ("float", "x:=3", "3.0", "x:=true"),
        ("Path", "x=a", "PosixPath('a')", "x:=1"),
        ("Annotated[Port, 'of a server']", "x=80", "80", "x=http"),
        ("Movie", 'x={"year": 1}', "{'year': 1}", "x=[]"),
        ("list[Movie]", 'x=[{"year": 1}]', "[{'year': 1}]", "x=[1]"),
        ("list", "x=[1]", "[1]", "x=1"),
        ("str", "x=3", "'3'", "x:=3"),
    ],
)
@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_answers_are_converted_as_inputs_are(flowdeco, declared, given, expected, wrong, codec):
    """By the type of the question with that of its items; what does not fit is wrong usage, and changes nothing."""
    Path("asking.py").write_text(ASKING.format(declared=declared))
    assert flowdeco("run", "asking.py:flow", "--journal", "runs.db", "--run-id", "r", "--codec", codec)[0] == 3
    before = durable.runs("runs.db")
    sys.modules.pop("asking", None)  # as in another process
    code, out, err = flowdeco("resume", "r", "--journal", "runs.db", "-i", wrong)
    assert (code, out) == (2, "")
    assert err.startswith("flowdeco: error: the input 'x': the run asks for it as ")
    assert durable.runs("runs.db") == before
    code, out, err = flowdeco("resume", "r", "--journal", "runs.db", "-i", given)
    assert (code, f'"got {expected}"' in out or f"'got {expected}'" in out) == (0, True), out + err


def test_an_answer_to_a_script_is_converted_by_its_classes(flowdeco):
    """It was the main module when it asked."""
    Path("asking.py").write_text(
        ASKING.format(declared="list[Colour]") + "if __name__ == '__main__':\n    ask.run(journal='r.db', run_id='r')\n"
    )
    subprocess.run([sys.executable, "asking.py"], check=True)
    assert flowdeco("resume", "r", "--journal", "r.db", "-i", "x=[3]")[0] == 2
    code, out, err = flowdeco("resume", "r", "--journal", "r.db", "-i", 'x=["RED"]')
    assert (code, "got [<Colour.RED: 1>]" in out) == (0, True), err


@pytest.mark.parametrize("ended", ["cancelled", "crashed", "failed"])
def test_answers_to_the_questions_of_any_unfinished_run_are_converted(flowdeco, ended):
    """Not only of one that is suspended."""
    Path("asking.py").write_text(
        "from flowdeco import Context, action, parallel\n"
        "from pathlib import Path\n"
        "@action\n"
        "def ask(ctx: Context) -> str:\n"
        "    return repr(ctx.wait_for('x', type=list[int]))\n"
        "@action\n"
        "def breaks() -> None:\n"
        "    if Path('broken').exists():\n"
        "        raise ValueError('broken')\n"
        "flow = parallel(ask, breaks)\n"
    )
    if ended == "failed":
        Path("broken").touch()
    flowdeco("run", "asking.py:flow", "--journal", "runs.db", "--run-id", "r")
    Path("broken").unlink(missing_ok=True)
    if ended == "cancelled":
        durable.cancel("runs.db", "r")
    elif ended == "crashed":
        opened = "j = flowdeco.durable.SqliteJournal('runs.db'); j.open('r'); j.proceed('r'); os._exit(0)"
        subprocess.run([sys.executable, "-c", f"import os, flowdeco.durable; {opened}"], check=True)
        assert durable.runs("runs.db")[0].status == "running"
    code, out, err = flowdeco("resume", "r", "--journal", "runs.db", "-i", "x=[1, 2]")
    assert (code, "result: '[1, 2]'" in out) == (0, True), out + err


def test_help_lists_the_inputs_of_a_workflow(flowdeco):
    """Those that nothing supplies, with types and defaults."""
    Path("flow.py").write_text(TWO)
    code, out, _ = flowdeco("run", "flow.py:use", "--help")
    assert code == 0
    assert out.splitlines()[-3:] == ["inputs of flow.py:use:", "  answer: int", "  other: int (default: 0)"]
    assert flowdeco("run", "--help")[0] == 0
    code, _, err = flowdeco("run", "flow.py:nowhere", "--help")
    assert (code, len(err.splitlines())) == (2, 1)


def test_a_run_that_waits_for_two_keys_says_how_to_resume_it(flowdeco):
    """In a command that can be typed."""
    Path("flow.py").write_text(
        "from flowdeco import Context, action, parallel\n"
        "def asks(key):\n"
        "    @action(name=f'ask {key}')\n"
        "    def ask(ctx: Context) -> None:\n"
        "        ctx.wait_for(key)\n"
        "    return ask\n"
        "flow = parallel(asks('a b'), asks(\"it's\"))\n"
    )
    code, _, err = flowdeco("run", "flow.py:flow", "--journal", "runs.db", "--run-id", "r")
    words = shlex.split(err[err.index("flowdeco resume") :].replace("VALUE", "1"))
    assert (code, words[-4:]) == (3, ["-i", "a b=1", "-i", "it's=1"])
    assert flowdeco(*words[1:])[0] == 0


SHOWN = """
import math
from flowdeco import action

class Nasty:
    def __repr__(self):
        raise RuntimeError("no repr")
    def isoformat(self):
        raise RuntimeError("no date")

class NastyError(Exception):
    def __str__(self):
        raise RuntimeError("no text")

@action
def factorial() -> int:
    return math.factorial(2000)

@action
def nasty() -> Nasty:
    return Nasty()

@action
def several() -> dict:
    return {"a": [Nasty()], "n": math.factorial(2000)}

@action
def fails() -> None:
    raise NastyError
"""


@pytest.mark.parametrize("options", [(), ("--json",), ("--html", "page.html"), ("--progress",)], ids=str)
@pytest.mark.parametrize(("name", "expected"), [("factorial", 0), ("nasty", 0), ("several", 0), ("fails", 1)])
def test_a_value_that_cannot_be_shown_is_no_failure(flowdeco, name, expected, options):
    """A completed run ends with 0, and a failed one with 1, whatever `repr` does."""
    Path("flow.py").write_text(SHOWN)
    code, out, err = flowdeco("run", f"flow.py:{name}", *options)
    assert (code, "is not shown" in err, "page is not written" in err) == (expected, False, False)
    if "--json" in options:
        assert json.loads(out)["status"] == ("failed" if expected else "completed")


def test_a_page_that_cannot_be_made_changes_no_exit_code(flowdeco, monkeypatch):
    """Nor does anything else that is shown."""
    Path("flow.py").write_text(SHOWN)
    monkeypatch.setattr(Run, "to_html", lambda run, path, values: 1 / 0)
    code, out, err = flowdeco("run", "flow.py:nasty", "--html", "page.html")
    assert (code, "completed (1 stage" in out) == (0, True)
    assert err == "flowdeco: error: the page is not written: ZeroDivisionError: division by zero\n"


def test_an_input_that_becomes_something_else_is_no_failure(flowdeco):
    """Something that compares with text as arrays and tables do: element by element."""
    Path("flow.py").write_text("""
from flowdeco import action

class Table:
    def __eq__(self, other):
        raise ValueError("the truth value of a table is ambiguous")
    __hash__ = None

@action(returns="data")
def load(data: str) -> Table:
    return Table()

@action
def size(data: Table) -> int:
    return 1

flow = load >> size
""")
    code, _, err = flowdeco("run", "flow.py:flow", "-i", "data=x.csv", "--html", "page.html")
    assert (code, err) == (0, "")
    assert Path("page.html").exists()


ESCAPES = """
from flowdeco import Stage, action, pipeline
from flowdeco.errors import Bail, Suspend

NAME = "na\\x1b[2Jme\\x07\\u202e"

@action(name=NAME)
def fails() -> None:
    raise OSError("er\\x1b]0;title\\x07ror\\x9b31m")

@action(name=NAME)
def returns() -> str:
    return "va\\x1b[31mlue"

@action(name=NAME)
def waits() -> None:
    raise Suspend("rea\\x1b[31mson")

failing = pipeline(fails, name=NAME)
fine = pipeline(returns, name=NAME)
waiting = pipeline(waits, name=NAME)
broken = Stage(NAME, [action(name=NAME)(lambda missing: None)])
"""


def test_nothing_in_a_name_an_error_or_a_value_controls_the_terminal(flowdeco):
    """Of a run, and of whatever is read of a journal: control characters are printed escaped."""
    Path("flow.py").write_text(ESCAPES)
    commands = [
        ["run", "flow.py:failing", "--journal", "runs.db", "--run-id", "one\x1b[1m"],
        ["run", "flow.py:failing", "--traceback"],
        ["run", "flow.py:failing", "--progress", "-v"],
        ["run", "flow.py:fine", "--journal", "runs.db", "--run-id", "two"],
        ["run", "flow.py:fine", "--json"],
        ["run", "flow.py:waiting", "--journal", "runs.db", "--run-id", "three"],
        ["run", "flow.py:broken"], ["validate", "flow.py:broken"], ["validate", "flow.py:broken", "--json"],
        ["plan", "flow.py:fine"], ["plan", "flow.py:fine", "--format", "mermaid"], ["plan", "flow.py:fine", "--json"],
        ["runs", "--journal", "runs.db"], ["runs", "--journal", "runs.db", "--json"],
        ["show", "one", "--journal", "runs.db"], ["show", "two", "--journal", "runs.db"], ["show", "three", "--journal", "runs.db"],
        ["show", "one", "--journal", "runs.db", "--json"],
        ["diff", "one", "--journal", "runs.db"], ["resume", "two", "--journal", "runs.db"], ["resume", "four\x1b[1m", "--journal", "runs.db"],
        ["purge", "one\x1b[1m", "--journal", "runs.db", "--dry-run"],
    ]  # fmt: skip
    for command in commands:
        _, out, err = flowdeco(*command)
        assert out + err
        controls = [c for c in out + err if not c.isprintable() and c != "\n"]
        assert (command, controls) == (command, [])


def test_a_recovered_failure_is_no_failure_on_the_command_line(flowdeco):
    """In the table of a run, and in that of a journal."""
    Path("flow.py").write_text(
        "from flowdeco import action, pipeline\nfrom flowdeco.middleware import recover\n"
        "@action\ndef bad() -> None:\n    raise OSError('gone')\n"
        "flow = pipeline(bad, use=[recover(on=OSError)])\n"
    )
    code, out, _ = flowdeco("run", "flow.py:flow", "--journal", "runs.db", "--run-id", "r")
    assert (code, "recovered" in line_of(out, "bad")) == (0, True)
    assert "recovered" in line_of(flowdeco("show", "r", "--journal", "runs.db")[1], "bad")


@pytest.mark.parametrize("around", ["action", "stage", "pipeline", "group"])
def test_a_failure_names_the_bound_values_of_its_branch_however_deep_they_are(around):
    @action
    def load(file: str) -> None:
        if file == "p3":
            raise KeyError(file)

    def branch(file):
        bound = load.bind(file=file)
        return {
            "action": bound,
            "stage": Stage("s", [action(name="before")(lambda: None), bound]),
            "pipeline": pipeline(Stage("before"), bound, name="p"),
            "group": parallel(bound, Stage("other"), name="inner"),
        }[around]

    with pytest.raises(KeyError) as raised:
        parallel(*map(branch, ["p1", "p2", "p3"])).run()
    assert any("[file=p3]" in note for note in raised.value.__notes__)
