"""Values that were written, only read, or changed in place: branches that agree, and changes that survive a resume."""

import functools
import gc
import math
import threading
import tracemalloc
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import shipped

from flowdeco import Bail, Context, Stage, action, parallel, pipeline, stage
from flowdeco.durable import JsonCodec, MemoryJournal, PickleCodec, history, read
from flowdeco.errors import DefinitionError, WriteConflictError
from flowdeco.middleware import atomic, recover, retry

# -- ways to run


class Failing(MemoryJournal):
    """A journal that can be written so many times, and then no more."""

    def __init__(self, codec=None):
        super().__init__(codec or PickleCodec())
        self.left = math.inf
        self.written = 0

    def write(self, run_id, rows):
        if self.written == self.left:
            raise OSError("the disk is full")
        self.written += 1
        super().write(run_id, rows)


@pytest.fixture(params=[PickleCodec, JsonCodec], ids=["pickle", "json"])
def codec(request):
    return request.param()


def stores(make, inputs, codec=None, of=dict, **options):
    """The store of an uninterrupted run, and those of runs that ended after each of their writes, and were resumed.

    `of` makes of a store what can be compared.
    """
    journal = Failing(codec)
    make().run(inputs(), journal=journal, **options)
    resumed = []
    for left in range(journal.written):
        ended, flow = Failing(codec), make()
        ended.left = left
        run = flow.run(inputs(), journal=ended, check=False, **options)
        assert run.status == "failed"
        ended.left = math.inf
        resumed.append(of(flow.resume(run.id, journal=ended, **options).store))
    return of(make().run(inputs(), **options).store), resumed


def check(make, inputs, codec=None, of=dict, **options):
    """Whenever it ends, a resumed run has the store of an uninterrupted one (L10)."""
    plain, resumed = stores(make, inputs, codec, of, **options)
    assert len(resumed) > 1
    assert resumed == [plain] * len(resumed)
    return plain


def log():
    return {"log": []}


def alias():
    """One list under two keys."""
    one = [0]
    return {"log": one, "same": one}


def notes(name, key="log", **options):
    """An action that appends its name to a list in the store, in place."""

    @action(name=name, returns=None, **options)
    def body(ctx: Context):
        ctx.store[key].append(name)

    return body


def takes(name, **options):
    """The same for a list that it takes as a parameter."""

    @action(name=name, returns=None, **options)
    def body(log):
        log.append(name)

    return body


def around(name):
    """Middleware that appends to a list, in place, before and after its target."""

    def middleware(call):
        call.store["log"].append(f"+{name}")
        yield
        call.store["log"].append(f"-{name}")

    return middleware


async def async_around(call):
    call.store["log"].append("+async")
    yield
    call.store["log"].append("-async")


def keeps(call):
    """Middleware that reads once, and keeps what it read."""
    kept = call.store["log"]
    kept.append("+kept")
    yield
    kept.append("-kept")


def writing(*makers, **options):
    """Branches that write what these make to one key."""

    def branch(make, name):
        return action(name=name, returns="v")(lambda: make())

    return parallel(*(branch(make, f"b{n}") for n, make in enumerate(makers)), **options)


# -- branches that agree


@pytest.mark.parametrize(
    "make",
    [lambda: float("nan"), lambda: [float("nan"), {"a": float("nan")}], lambda: {float("nan")}],
    ids=["alone", "in a list", "in a set"],
)
def test_nan_agrees_with_nan(run, make):
    """Whichever NaN it is; also on a resume, which merges again (langchain-ai/langgraph#2336)."""
    assert run(writing(make, make)).status == "completed"
    journal = Failing()
    journal.left = 3  # up to the branches
    failed = writing(make, make).run(journal=journal, check=False)
    assert failed.status == "failed"
    journal.left = math.inf
    assert writing(make, make).resume(failed.id, journal=journal).status == "completed"


@pytest.mark.parametrize(
    ("one", "other"), [(True, 1), (1, 1.0), ([1], [True]), ([[1]], [1])], ids=["bool", "float", "nested", "shape"]
)
def test_equal_values_of_other_types_are_a_conflict(run, one, other):
    """The message names key and branches."""
    with pytest.raises(WriteConflictError, match=r"0 \('b0'\) and 1 \('b1'\).*'v'"):
        run(writing(lambda: one, lambda: other))


def test_arrays_agree_by_content_and_shape(run):
    """Whatever `==` of them gives (PrefectHQ/prefect#2441)."""
    np = pytest.importorskip("numpy")
    assert run(writing(lambda: np.array([1, 2]), lambda: np.array([1, 2])))["v"].tolist() == [1, 2]
    for other in ([1, 3], [[1, 2]], [1.0, 2.0]):
        with pytest.raises(WriteConflictError, match="'v'"):
            run(writing(lambda: np.array([1, 2]), lambda other=other: np.array(other)))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_agree_by_content(run, library):
    """Missing values included (PrefectHQ/prefect#2441)."""
    frame = pytest.importorskip(library).DataFrame
    run(writing(lambda: frame({"a": [1, None]}), lambda: frame({"a": [1, None]})))
    with pytest.raises(WriteConflictError, match="'v'"):
        run(writing(lambda: frame({"a": [1]}), lambda: frame({"a": [1.0]})))


def test_branches_in_processes_agree_as_in_threads():
    """Objects without an `__eq__` come back as copies (Netflix/metaflow#394)."""
    both = parallel(shipped.left_score, shipped.right_score)
    assert both.run()["score"][1].value == 1
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert both.run(executor=pool)["score"][1].value == 1


def test_three_branches_agree_with_the_first(run):
    """All of them, not only two."""
    assert run(writing(lambda: [1], lambda: [1], lambda: [1]))["v"] == [1]
    with pytest.raises(WriteConflictError):
        run(writing(lambda: [1], lambda: [1], lambda: [2]))


class Opaque:
    """Equal to itself only: its copies have another content."""

    made = 0

    def __reduce__(self):
        Opaque.made += 1
        return Opaque.again, (Opaque.made,)

    @staticmethod
    def again(number):
        made = Opaque()
        made.number = number
        return made


def test_merged_values_are_restored_and_not_merged_again():
    """Nor is a reducer called again."""
    one, folded = Opaque(), []

    def fold(left, right):
        folded.append((left, right))
        return left + right

    group = writing(lambda: one, lambda: one)
    totals = writing(lambda: 1, lambda: 2, merge={"v": fold})
    flow = pipeline(group, action(name="rename", returns="kept")(lambda v: v), totals)
    broken = []

    @action
    def fails():
        if not broken:
            broken.append(True)
            raise OSError

    flow, journal = flow >> fails, MemoryJournal()
    run = flow.run(journal=journal, check=False)
    resumed = flow.resume(run.id, journal=journal)
    assert (resumed["v"], folded, type(resumed["kept"])) == (3, [(1, 2)], Opaque)


def test_branches_that_had_ended_agree_on_the_resume():
    """The run ended before the group was merged: the branches are restored, each with a value of its own."""

    one = shipped.Score([math.nan])

    def make():
        return writing(lambda: one, lambda: one, limit=1)

    assert check(make, dict, of=lambda store: str(store["v"].value)) == "[nan]"


# -- reading is not writing


class Lazy:
    @functools.cached_property
    def table(self):
        return [0, 1, 4]


def reading(use):
    """Two branches that read one value, and a stage after them."""

    @stage
    def branch(n: int):
        @action(name="read", collect="out")
        def read(value):
            return use(value, n)

    return parallel(branch(0), branch(1), limit=1) >> action(name="last")(lambda: None)


@pytest.mark.parametrize(
    ("make", "use", "out"),
    [
        (Lazy, lambda lazy, n: lazy.table[n], [0, 1]),
        (lambda: defaultdict(int), lambda counts, n: counts[str(n)], [0, 0]),
        (lambda: iter([5, 6]), lambda items, n: next(items), [5, 6]),
    ],
    ids=["cached property", "defaultdict", "iterator"],
)
def test_branches_that_read_do_not_conflict_on_a_resume(make, use, out):
    """Even if the pickle of the value changes as it is read (Netflix/metaflow#394, langchain-ai/langgraph#2336)."""
    journal, flow = Failing(), reading(use)
    journal.left = 5
    run = flow.run({"value": make()}, journal=journal, check=False)
    journal.left = math.inf
    assert flow.resume(run.id, journal=journal)["out"] == out


def payloads(flow, inputs):
    """What the rows of the actions of a run have in them."""
    journal = MemoryJournal()
    run = flow.run(inputs, journal=journal)
    rows = [row for row in history(journal, run.id) if row.action is not None]
    return {row.action: journal.codec.decode(row.payload) for row in rows}


def test_what_is_only_read_is_not_in_the_journal():
    """Nor a value that was written with the content that it had; a change is there, and apart from writes."""

    @action(returns=None)
    def reads(lazy: Lazy, rows: list):
        return lazy.table, rows[0]

    @action(returns=None)
    def writes_back(rows):
        rows[0]["name"] = "".join(["a", "b"])
        rows.sort(key=str)

    @action(returns=None)
    def changes(rows):
        rows[0]["name"] = "c"

    found = payloads(reads >> writes_back >> changes, {"lazy": Lazy(), "rows": [{"name": "ab"}]})
    assert not any("rows" in str(found[name]) for name in ("reads", "writes_back"))
    assert found["changes"] == {"changes": {"rows": [{"name": "c"}]}}


def test_branches_that_read_a_large_value_hold_no_copies_of_it():
    """Digests only (PrefectHQ/prefect#10952)."""
    size, branches = 3_000_000, 8
    both = threading.Barrier(branches, timeout=20)

    def part(n):
        @action(name=f"part{n}", returns=None)
        def body(table):
            both.wait()
            return len(table)

        return body

    flow = parallel(*map(part, range(branches)))
    inputs = {"table": [bytearray(size // 10) for _ in range(10)]}
    journal = MemoryJournal()
    gc.collect()
    tracemalloc.start()
    try:
        flow.run(inputs, journal=journal)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * size  # the inputs as the journal has them


# -- changed in place


def test_changes_by_actions_survive_a_resume(codec):
    """By parameter and by context."""
    check(lambda: takes("a") >> notes("b") >> takes("c"), log, codec)


def test_changes_of_local_results_survive_a_resume(codec):
    """The stage ends between two of its actions."""

    @stage
    def total(n: int):
        @action
        def rows():
            return [n]

        @action(returns=None)
        def more(rows):
            rows.append(n)

        @action(collect="totals")
        def add(rows):
            return sum(rows)

    assert check(lambda: total(1) >> total(2), dict, codec) == {"totals": [2, 4]}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Stage("s", [takes("a"), notes("b")], use=[around("s")]) >> takes("c"),
        lambda: Stage("s", [takes("a"), notes("b")], use=[around("o"), around("i")]) >> takes("c"),
        lambda: Stage("s", [takes("a"), notes("b")], use=[async_around]) >> takes("c"),
        lambda: Stage("s", [takes("a"), notes("b")], use=[keeps]) >> takes("c"),
        lambda: Stage("s", [takes("a"), notes("b")], use_actions=[around("each")]) >> takes("c"),
        lambda: pipeline(takes("a"), takes("b"), use=[around("p")]) >> takes("c"),
        lambda: pipeline(takes("a"), takes("b"), use_stages=[around("s")]) >> takes("c"),
        lambda: pipeline(pipeline(takes("a"), use=[around("i")]), takes("b"), use=[around("o")]) >> takes("c"),
        lambda: takes("a", use=[around("a")]) >> notes("b", use=[around("b"), keeps]) >> takes("c"),
    ],
    ids=["stage", "two layers", "async", "kept", "use_actions", "pipeline", "use_stages", "nested", "action"],
)
def test_changes_by_middleware_survive_a_resume(make, codec):
    """Before and after the `yield`, however far its target came."""
    check(make, log, codec)


def test_changes_by_middleware_of_the_run_survive_a_resume(codec):
    """The same at the outermost level."""
    assert check(lambda: takes("a") >> takes("b"), log, codec, use=[around("run")])["log"] == ["+run", "a", "b", "-run"]


def raises_before(call):
    call.store["log"].append("before")
    raise KeyError
    yield


def raises_after(call):
    yield
    call.store["log"].append("after")
    raise KeyError


def skips(call):
    call.store["log"].append("skipped")
    return
    yield


@pytest.mark.parametrize("layer", [raises_before, raises_after, skips])
def test_changes_by_middleware_that_ends_early_survive_a_resume(layer, codec):
    """Around a stage and around an action."""
    use = [recover(on=KeyError), around("m"), layer]
    check(lambda: Stage("s", [takes("a")], use=use) >> takes("c"), log, codec)
    check(lambda: takes("a", use=use) >> takes("c"), log, codec)


def test_changes_of_an_action_whose_failure_is_recovered_survive_a_resume(codec):
    """They are not undone in the run itself."""

    @action(returns=None)
    def bad(log):
        log.append("bad")
        raise KeyError

    lenient = recover(on=KeyError)
    check(lambda: Stage("s", [takes("a"), bad], use=[lenient]) >> takes("c"), log, codec)
    check(lambda: bad.with_options(use=[lenient]) >> takes("c"), log, codec)
    group = parallel(takes("a"), Stage("q", [takes("b"), bad]), limit=1)
    check(lambda: pipeline(group, use=[lenient]) >> takes("c"), log, codec)


def test_changes_of_a_failed_attempt_survive_a_resume(codec):
    """Its rows are dropped, and its changes are not undone: the journal has them with the next attempt."""

    @action(returns=None)
    def once(log):
        if "once" not in log:
            log.append("once")
            raise OSError

    broken = [True]

    @action(returns=None)
    def last():
        if broken:
            raise ValueError

    flow = Stage("s", [once], use=[retry(on=OSError, attempts=2, wait=0)]) >> last
    journal = MemoryJournal(codec)
    run = flow.run(log(), journal=journal, check=False)
    broken.clear()
    assert run["log"] == flow.resume(run.id, journal=journal)["log"] == ["once"]


def test_changes_in_an_atomic_stage_survive_a_resume(codec):
    """Its rows are written together."""
    check(lambda: Stage("s", [takes("a"), takes("b")], use=[atomic]) >> takes("c"), log, codec)


def test_changes_of_an_action_that_bails_survive_a_resume(codec):
    """It is a success."""

    @action(returns=None)
    def bails(log):
        log.append("bails")
        raise Bail

    check(lambda: takes("a") >> bails, log, codec)


def test_a_list_changed_in_place_and_collected_into(codec):
    """Both are there (langchain-ai/langgraph#1320)."""

    def counts(name):
        @action(name=name, collect="log")
        def body(log):
            log[0] += 1
            return name

        return body

    assert check(lambda: counts("a") >> counts("b"), lambda: {"log": [0]}, codec)["log"] == [2, "a", "b"]


@pytest.mark.parametrize("library", ["numpy", "pandas"])
def test_arrays_and_frames_changed_in_place(library):
    """By one action after the other, and in branches."""
    loaded = pytest.importorskip(library)

    def adds(name):
        @action(name=name, returns=None)
        def body(table):
            table[:] = table + 1

        return body

    def make():
        return adds("a") >> parallel(adds("b"), adds("c"), limit=1) >> adds("d")

    def inputs():
        return {"table": loaded.zeros((2, 1)) if library == "numpy" else loaded.DataFrame({"x": [0.0, 0.0]})}

    def numbers(store):
        return [float(number) for row in getattr(store["table"], "values", store["table"]) for number in row]

    assert check(make, inputs, of=numbers) == [4.0, 4.0]


# -- changed in place in branches


@pytest.mark.parametrize(
    "make",
    [
        lambda: parallel(takes("a"), takes("b"), limit=1) >> takes("c"),
        lambda: parallel(Stage("p", [takes("a"), takes("b")]), Stage("q", [notes("c"), takes("d")]), limit=1),
        lambda: parallel(parallel(takes("a"), takes("b"), limit=1) >> takes("c"), takes("d"), limit=1) >> takes("e"),
        lambda: parallel(Stage("p", [takes("a")], use=[around("p")]), Stage("q", [takes("b")], use=[keeps]), limit=1),
    ],
    ids=["actions", "stages", "nested", "middleware"],
)
def test_branches_that_change_one_value_in_turn(make, codec):
    """They do not conflict, whenever the run ends: within the group, too (PrefectHQ/prefect#16185)."""
    check(make, log, codec)


class Notes:
    """Not a list: it is replaced when it is restored."""

    def __init__(self, items=()):
        self.items = items

    def append(self, item):
        self.items = (*self.items, item)

    def __eq__(self, other):
        return self.items == other.items

    __hash__ = None


def test_branches_that_change_one_object_in_turn():
    """A branch that had not begun sees what the others had changed."""
    branches = Stage("p", [takes("a"), takes("b")]), Stage("q", [takes("c"), takes("d")])
    check(lambda: parallel(*branches, limit=1) >> takes("e"), lambda: {"log": Notes()})
    inner = parallel(takes("a"), takes("b"), limit=1) >> takes("c")
    check(lambda: parallel(inner, takes("d"), limit=1) >> takes("e"), lambda: {"log": Notes()})


def test_a_branch_that_changes_its_own_value_does_not_change_that_of_others(codec):
    """It was written there, and read from there."""

    @action(returns="log")
    def fresh():
        return ["fresh"]

    def make():
        return parallel(Stage("p", [fresh, takes("a"), takes("b")]), notes("c", "other"), limit=1) >> takes("d")

    plain = check(make, lambda: {"log": ["old"], "other": []}, codec)
    assert plain == {"log": ["fresh", "a", "b", "d"], "other": ["c"]}


def test_branches_that_collect_and_change_in_place(codec):
    """The change is one of the list that they share, the items are their own."""

    def counts(name):
        @action(name=name, collect="log")
        def body(log):
            log[0] += 1
            return name

        return body

    check(lambda: parallel(counts("a"), counts("b"), limit=1) >> takes("c"), lambda: {"log": [0]}, codec)


# -- two keys of one object


def last(make, inputs, codec):
    """The stores of a run that ended after its last action, and was resumed, and of one that was not interrupted."""
    broken = [True]

    @action(name="ends", returns=None)
    def ends():
        if broken:
            raise OSError

    flow, journal = make() >> ends, MemoryJournal(codec)
    run = flow.run(inputs(), journal=journal, check=False)
    assert isinstance(run.error, OSError)
    broken.clear()
    return dict(run.store), dict(flow.resume(run.id, journal=journal).store)


@action(returns=("log", "same", "third"))
def thrice():
    made = [0]
    return made, made, made


@action(returns="same")
def hands_on(log):
    return log


@action(returns="log")
def sorts(log):
    log.sort(reverse=True)
    return log


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: takes("a") >> notes("b", "same"), alias),
        (lambda: thrice >> notes("a", "same"), dict),
        (lambda: hands_on >> takes("a") >> notes("b", "same"), log),
        (lambda: pipeline(sorts), lambda: {"log": (one := [1, 2]), "same": one}),
        (lambda: Stage("s", [takes("a")], use=[around("s")]), alias),
        (lambda: takes("a", use=[around("a")]), alias),
        (lambda: parallel(takes("a"), notes("b", "same"), limit=1), alias),
    ],
    ids=["inputs", "three keys", "handed on", "returned", "stage", "action", "group"],
)
def test_every_key_of_a_list_has_the_change(make, inputs, codec):
    """After a resume these are equal lists (pydantic/pydantic-ai#1684)."""
    plain, resumed = last(make, inputs, codec)
    assert resumed == plain
    assert resumed["log"] == resumed["same"]


def test_a_key_that_was_written_anew_is_no_alias_any_more(codec):
    """The old list is changed, and held by the other key."""

    @action(returns="log")
    def replaces(log):
        log.append("old")
        return ["new"]

    plain, resumed = last(lambda: pipeline(replaces), alias, codec)
    assert resumed == plain == {"log": ["new"], "same": [0, "old"]}


# -- many runs, many threads


def test_changes_by_branches_in_threads_are_all_there(run):
    """Each of them is journaled, in whatever order they end."""
    both = threading.Barrier(2, timeout=10)

    def branch(name):
        @action(name=name, returns=None)
        def body(log):
            both.wait()
            log.append(name)
            both.wait()

        return body

    @action(returns=None)
    def fails():
        if broken:
            raise OSError

    broken, journal = [True], MemoryJournal()
    flow = parallel(branch("a"), branch("b")) >> fails
    ended = run(flow, log(), journal=journal, check=False)
    broken.clear()
    assert sorted(flow.resume(ended.id, journal=journal)["log"]) == ["a", "b"]


@pytest.mark.parametrize("outcome", [[], {"rows": []}], ids=["list", "nested"])
def test_the_outcome_of_recover_is_copied_each_time(run, outcome):
    """A run that fills it does not fill that of the next one (L3, PrefectHQ/prefect#19494)."""

    @action(use=[recover(on=OSError, outcome=outcome)])
    def rows():
        raise OSError

    @action(returns="count")
    def fill(rows):
        inner = rows if isinstance(rows, list) else rows["rows"]
        inner.append(1)
        return len(inner)

    flow = rows >> fill
    assert [run(flow)["count"] for _ in range(3)] == [1, 1, 1]
    assert outcome in ([], {"rows": []})


def test_recover_still_supplies_units_and_plain_values(run):
    """Units are values, of which a copy is the same."""
    done = []
    other = action(name="other")(lambda: done.append(1))

    @action(use=[recover(on=OSError, outcome=[Stage("instead", [other])])])
    def bad():
        raise OSError

    assert [record.name for record in run(pipeline(bad)).stages] == ["bad", "instead"]


def test_recover_refuses_an_outcome_that_cannot_be_copied():
    """When it is made, and not when it is needed."""
    with pytest.raises(DefinitionError, match=r"recover: `outcome` is copied each time, and a lock cannot be"):
        recover(on=OSError, outcome=threading.Lock())


def test_a_branch_that_had_written_the_key_keeps_its_own_value(codec):
    """What another branch changed in place is the value of the enclosing store; this branch has a new one."""

    def flow():
        replaces = action(name="replaces", returns="log")(lambda: ["new"])
        return parallel(takes("a"), pipeline(replaces, takes("b"), takes("c")), limit=1) >> takes("end")

    assert check(flow, log, codec) == {"log": ["new", "b", "c", "end"]}


def test_a_pipeline_that_is_run_again_is_not_read_as_failed(codec):
    """Its row is that of the attempt before: what is in it is newer, and the process died before it ended."""

    @action
    def fragile():
        if down:
            raise ConnectionError

    def layer(call):
        yield

    down, journal = [True], Failing(codec)
    flow = pipeline(fragile, notes("a"), notes("b"), name="p", use=[layer])
    run = flow.run(log(), journal=journal, check=False)
    assert [each.status for each in read(journal, run.id).pipelines] == ["failed"]
    down.clear()
    journal.left = journal.written + 1
    again = flow.resume(run.id, journal=journal, check=False)
    assert isinstance(again.error, OSError)
    assert read(journal, run.id).pipelines == []
    journal.left = math.inf
    assert flow.resume(run.id, journal=journal)["log"] == ["a", "b"]


# -- a part that several values share


BROKEN = [True]


@action(returns=("a", "b"))
def shares():
    part = [1]
    return {"part": part}, {"part": part, "more": "text"}


@action(returns=None)
def ends():
    if BROKEN:
        raise OSError


@action(name="changes", returns=None)
def changes_part(a):
    a["part"].append(2)


@action(name="changes", returns="a")
def returns_changed(a):
    a["part"].append(2)
    return a


@action(name="changes", returns=None)
def by_context(ctx: Context):
    ctx.store["a"]["part"].append(2)


@action(name="changes", returns=None)
def by_the_other_key(b):
    b["part"].append(2)


@action(name="changes", returns=None)
def reads_both(a, b):
    a["part"].append(2)


def by_middleware(call):
    yield
    call.store["a"]["part"].append(2)


@action(returns=("a", "b"))
def one_in_the_other():
    part = [1]
    return {"part": part}, [part, (part,)]


SHARING = {
    "an action": lambda: shares >> changes_part,
    "returned": lambda: shares >> returns_changed,
    "by the context": lambda: shares >> by_context,
    "by the other key": lambda: shares >> by_the_other_key,
    "read as well": lambda: shares >> reads_both,
    "twice": lambda: shares >> changes_part >> changes_part.with_options(name="again"),
    "middleware": lambda: shares >> Stage("s", use=[by_middleware]),
    "in a branch": lambda: shares >> parallel(changes_part, Stage("other")),
    "deep": lambda: one_in_the_other >> changes_part,
}


@pytest.mark.parametrize("flow", SHARING.values(), ids=SHARING)
def test_a_change_of_a_part_that_two_values_share_is_in_both_after_a_resume(flow, codec):
    """Whichever of them was read."""
    BROKEN[:] = [True]
    flow, journal = flow() >> ends, MemoryJournal(codec)
    run = flow.run(journal=journal, check=False)
    BROKEN.clear()
    assert 2 in run["a"]["part"]
    assert dict(flow.resume(run.id, journal=journal).store) == dict(run.store)


@action
def rows():
    return pytest.importorskip("numpy").zeros((3, 2))


@stage
def fill(number):
    @action
    def part(rows):
        return rows[number]

    @action(returns=None)
    def fill_it(part):
        part[:] = number + 1


@action
def window(rows):
    return rows[:, 1][::2]


@action(returns=None)
def through_the_window(window):
    window[0] = 7


@action(returns=None)
def through_the_whole(rows):
    rows[0, 1] = 7


VIEWS = {
    "in a row": lambda: rows >> fill(0) >> fill(1),
    "in a stage": lambda: rows >> window >> through_the_window,
    "the whole": lambda: rows >> window >> through_the_whole,
    "side by side": lambda: rows >> parallel(fill(0), fill(1), fill(2)),
}


@pytest.mark.parametrize("flow", VIEWS.values(), ids=VIEWS)
def test_a_change_through_a_view_of_an_array_is_in_the_array_after_a_resume(flow):
    """And in the other views of it."""
    pytest.importorskip("numpy")
    BROKEN[:] = [True]
    flow, journal = flow() >> ends, MemoryJournal()
    run = flow.run(journal=journal, check=False)
    BROKEN.clear()
    resumed = flow.resume(run.id, journal=journal)
    assert run["rows"].any()
    assert {key: resumed[key].tolist() for key in run.store} == {key: run[key].tolist() for key in run.store}


def test_a_value_that_shares_nothing_is_not_written_again():
    """Nor is one that shares only an object that cannot be changed."""

    @action(returns=("a", "b", "c"))
    def make():
        key = (1, "text")
        return {"part": [1], "key": key}, {"part": [1], "key": key}, [key]

    journal = MemoryJournal()
    run = (make >> changes_part).run(journal=journal)
    payload = next(PickleCodec().decode(row.payload) for row in history(journal, run.id) if row.action == "changes")
    assert list(payload["changes"]) == ["a"]
