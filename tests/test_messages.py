"""Messages of actions: emitted, logged, shown; in records and journals, bounded, whatever became of the action."""

import asyncio
import base64
import logging
import multiprocessing
import pickle
import time
from array import array
from collections import deque
from concurrent.futures import ProcessPoolExecutor

import pytest
import shipped
from hypothesis import given
from hypothesis import strategies as st
from support import shown

from flowdeco import Context, Stage, action, durable, parallel
from flowdeco.engine import messages as module
from flowdeco.engine.messages import (
    HALF,
    MOST_SHOWN,
    MOST_TEXT,
    MessageRecord,
    Messages,
    as_payload,
    interleaved,
    joined,
)
from flowdeco.engine.shown import LARGEST, rendered, size
from flowdeco.errors import ContextEndedError, RunNotFoundError
from flowdeco.middleware import recover, retry

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


def asks(function, name="a", **options):
    """An action that calls this with its context."""

    def body(ctx: Context):
        function(ctx)

    return action(body, name=name, **options)


def action_record(run):
    """The record of the only action."""
    ((record,),) = [stage.actions for stage in run.stages]
    return record


def told(record):
    """What a record's messages say, in short, with how many failures came before each."""
    return [(each.failures, each.kind, *_short(each)) for each in record.messages]


def _short(message):
    payload = message.payload
    return {
        "emit": lambda: (payload["kind"], payload["payload"]),
        "log": lambda: (payload["level"], payload["text"]),
        "show": lambda: (payload["type"], payload["content"], payload["note"]),
        "ended": lambda: (payload["status"], payload["error"]),
        "cut": lambda: (payload["count"],),
    }[message.kind]()


def said(run):
    """The messages of all actions of a run, by action."""
    return {each.name: told(each) for record in run.stages for each in record.actions if each.messages}


@pytest.fixture(params=["pickle", "json", "memory"])
def journal(request, tmp_path):
    if request.param == "memory":
        return durable.MemoryJournal()
    return durable.SqliteJournal(tmp_path / "runs.db", codec=request.param)


# -- one action


def test_an_action_says_things_in_order(run):
    """With their times; plain values of `emit` as they are, others by their repr."""

    def tells(ctx):
        ctx.emit(
            "row", number=3, share=0.5, ok=True, none=None, text="three", list=[1, 2], big=10**30, nan=float("nan")
        )
        ctx.logger.info("read %d rows", 3)
        ctx.show("*done*")

    before = time.time()
    record = action_record(run(asks(tells, "a")))
    values = {"number": 3, "share": 0.5, "ok": True, "none": None, "text": "three"}
    assert told(record) == [
        (0, "emit", "row", {**values, "list": "[1, 2]", "big": str(10**30), "nan": "nan"}),
        (0, "log", "INFO", "read 3 rows"),
        (0, "show", "text/markdown", "*done*", ""),
    ]
    times = [each.time for each in record.messages]
    assert before - 1 <= times[0] <= times[1] <= times[2] <= time.time() + 1


def test_an_action_that_says_nothing_has_no_messages(run):
    """Nor has a stage."""
    record = run(asks(lambda ctx: None, "a")).stages[0]
    assert (record.messages, record.actions[0].messages) == ((), ())


def test_what_is_logged_below_info_is_not_kept(run, caplog):
    """The logging system decides for itself; it names the line that logged."""

    def tells(ctx):
        ctx.logger.debug("detail")
        ctx.logger.log(logging.WARNING, "%s %s", "only one")
        try:
            raise OSError("gone")
        except OSError as error:
            ctx.logger.exception("failed")
            ctx.logger.error("failed", exc_info=error)
            ctx.logger.error("failed", exc_info=(type(error), error, None))
        ctx.logger.error("nothing", exc_info=True)

    with caplog.at_level(logging.CRITICAL, "flowdeco.run"):
        record = action_record(run(asks(tells, "a")))
    assert caplog.records == []
    assert told(record) == [
        (0, "log", "WARNING", "%s %s ('only one',)"),
        *[(0, "log", "ERROR", "failed\nOSError: gone")] * 3,
        (0, "log", "ERROR", "nothing"),
    ]
    with caplog.at_level(logging.INFO, "flowdeco.run"):
        run(asks(lambda ctx: ctx.logger.info("here"), "a"))
        run(asks(lambda ctx: ctx.logger.log(logging.INFO, "here"), "a"))
    assert [(each.filename, each.funcName) for each in caplog.records] == [("test_messages.py", "<lambda>")] * 2


def test_what_is_logged_after_the_end_of_an_action_is_not_kept(run, caplog):
    """It reaches the logging system all the same."""
    kept = []
    finished = run(asks(lambda ctx: kept.append(ctx), "a"))
    with caplog.at_level(logging.INFO, "flowdeco.run"):
        kept[0].logger.info("late")
    assert [each.getMessage() for each in caplog.records] == ["late"]
    assert action_record(finished).messages == ()


@pytest.mark.parametrize("how", ["show", "emit"])
def test_a_context_that_has_ended_refuses_messages(run, how):
    kept = []
    run(asks(lambda ctx: kept.append(ctx), "a"))
    with pytest.raises(ContextEndedError, match=f"ctx.{how}"):
        getattr(kept[0], how)("late")


def test_the_messages_of_a_failing_action_are_kept(run):
    """Its writes are not."""

    def fails(ctx):
        ctx.emit("before")
        ctx.store["lost"] = 1
        raise ValueError("no")

    failed = run(asks(fails, "a"), check=False)
    assert (said(failed), dict(failed.store)) == ({"a": [(0, "emit", "before", {})]}, {})


def test_the_messages_of_all_attempts_are_kept(run):
    """Each with the number of failures before it, for an action and for its stage."""

    def fails_twice(ctx):
        ctx.emit("try", attempt=ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError(ctx.attempt)

    finished = run(asks(fails_twice, "a", use=[retry(on=ValueError, wait=0)]))
    expected = [(n, "emit", "try", {"attempt": n + 1}) for n in range(3)]
    assert said(finished) == {"a": expected}
    calls = []

    def fails_once(ctx):
        calls.append(1)
        ctx.emit("call", number=len(calls))
        if len(calls) == 1:
            raise ValueError("one")

    stage = Stage(
        "s", [asks(lambda ctx: ctx.emit("first"), "first"), asks(fails_once, "b")], use=[retry(on=ValueError, wait=0)]
    )
    finished = run(stage)
    assert said(finished) == {
        "first": [(0, "emit", "first", {})] * 2,
        "b": [(0, "emit", "call", {"number": 1}), (1, "emit", "call", {"number": 2})],
    }
    assert [str(each) for each in finished.stages[0].actions[1].failures] == ["one"]


def test_a_recovered_action_keeps_its_messages(run):
    def fails(ctx):
        ctx.emit("before")
        raise ValueError("no")

    assert said(run(asks(fails, "a", use=[recover(on=ValueError)]))) == {"a": [(0, "emit", "before", {})]}


# -- other processes and branches


def test_messages_come_home_from_another_process(run):
    """Those of an action that fails, too; what it shows is rendered there."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        good = run(parallel(shipped.talks, shipped.shows), executor=pool)
        failed = run(parallel(shipped.talks_and_fails), executor=pool, check=False)
    assert said(good) == {
        "talks": [(0, "emit", "hello", {"name": "ann"}), (0, "log", "INFO", "said hello")],
        "shows": [(0, "show", "text/plain", "{1}", "")],
    }
    assert said(failed) == {"talks_and_fails": [(0, "emit", "hello", {})]}


def test_a_detached_context_has_a_bound_of_its_own(run, monkeypatch):
    """And the run keeps to its bound when the values come home."""
    monkeypatch.setattr("flowdeco.engine.context.MOST_SHOWN", 3)
    monkeypatch.setattr("flowdeco.engine.branch.MOST_SHOWN", 3)

    def travels(ctx):
        ctx.show("ab")
        detached = pickle.loads(pickle.dumps(ctx))
        detached.show("cd")
        detached.show("ef")
        ctx.catch_up(pickle.loads(pickle.dumps(detached.effects())))

    contents = [each.payload["content"] for each in action_record(run(asks(travels, "a"))).messages]
    assert contents == ["ab", "", ""]


# -- bounds


def test_a_run_keeps_so_much_of_what_is_shown(run):
    """Of each value 1 MB; then 20 MB of all, with a note."""

    def shows(ctx):
        for _ in range(22):
            ctx.show("é" * LARGEST)

    messages = action_record(run(asks(shows, "a"))).messages
    assert [len(each.payload["content"].encode()) for each in messages] == [LARGEST] * 22
    assert {each.payload["note"] for each in messages} == {"cut: the first 1.0 MB of 2.0 MB"}

    def shows_more(ctx):
        for _ in range(22):
            ctx.show("e" * LARGEST)

    messages = action_record(run(asks(shows_more, "a"))).messages
    assert sum(len(each.payload["content"]) for each in messages) == MOST_SHOWN
    assert messages[-1].payload["note"] == "not kept: the run has shown 20 MB before"


def test_a_step_keeps_its_first_and_its_last_messages(run):
    """And says how many are missing."""

    def tells(ctx):
        for number in range(2 * HALF + 10):
            ctx.emit("row", number=number)

    messages = action_record(run(asks(tells, "a"))).messages
    numbers = [each.payload["payload"]["number"] for each in messages if each.kind == "emit"]
    assert numbers == [*range(HALF), *range(HALF + 10, 2 * HALF + 10)]
    assert messages[HALF][:1] + messages[HALF][2:] == ("cut", {"count": 10}, 0)


def test_long_texts_are_cut(run):
    """With how much is missing; a list is not looked at as a whole."""

    def tells(ctx):
        ctx.emit("k" * (MOST_TEXT + 1), text="t" * (MOST_TEXT + 2), list=list(range(10**6)))
        ctx.logger.info("l" * (MOST_TEXT + 3))

    emitted, logged = action_record(run(asks(tells, "a"))).messages
    assert emitted.payload["kind"].endswith("k… (1 more characters)")
    assert emitted.payload["payload"]["text"].endswith("t… (2 more characters)")
    assert emitted.payload["payload"]["list"].endswith("98, 99, ...]")
    assert logged.payload["text"].endswith("l… (3 more characters)")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("x" * MOST_TEXT, "x" * MOST_TEXT),
        (2**64 - 1, 2**64 - 1),
        (2**64, str(2**64)),
        (deque(range(100)), f"deque({list(range(100))})"),
        (deque(range(101)), f"deque({list(range(100))})".replace("]", ", ...]")),
        (array("i", range(100)), f"array('i', {list(range(100))})"),
        (array("i", range(101)), f"array('i', {list(range(100))})".replace("]", ", ...]")),
        ([[[[[[1]]]]]], "[[[[[[1]]]]]]"),
        ([[[[[[[1]]]]]]], "[[[[[[[...]]]]]]]"),
    ],
    ids=shown,
)
def test_values_are_kept_as_far_as_they_are_plain_and_small(value, kept):
    """Integers as far as any journal can keep them; of large and deep ones the repr, cut."""
    assert as_payload({"value": value}) == {"value": kept}


@given(st.lists(st.integers(0, 5), max_size=60))
def test_bounded_messages_are_a_list_without_its_middle(counts):
    """However they are added: one by one, or after those of earlier attempts that were cut already."""
    half, everything, number = 3, [], 0
    kept = Messages()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "HALF", half)
        for count in counts:
            for _ in range(count):
                kept.add(MessageRecord("emit", number, {}))
                everything.append(number)
                number += 1
            kept = Messages(kept.recorded())
        recorded = kept.recorded()
    numbers = [each.time for each in recorded if each.kind == "emit"]
    missing = sum(each.payload["count"] for each in recorded if each.kind == "cut")
    assert len(numbers) + missing == len(everything)
    assert numbers == (everything if not missing else everything[:half] + everything[-half:])


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=8))
def test_messages_and_errors_of_attempts_keep_their_order(attempts):
    """Joined attempt by attempt, they are as they came."""
    came, before = [], []
    for number, (count, fails) in enumerate(attempts):
        messages = [MessageRecord("emit", number, {"at": at}) for at in range(count)]
        errors = [ValueError(number)] if fails else []
        came += [(number, at) for at in range(count)] + errors
        before = interleaved(*joined(before, messages, errors))
    assert [(each.time, each.payload["at"]) if isinstance(each, MessageRecord) else each for each in before] == came


# -- journals and resumes


def flaky(calls):
    """Fails in its first two calls: at its first attempt, and then with an error that nobody retries."""

    def tells(ctx):
        calls.append(1)
        ctx.emit("call", number=len(calls))
        ctx.show(f"call {len(calls)}")
        if len(calls) == 1:
            raise ValueError("first")
        if len(calls) == 2:
            raise OSError("second")

    return Stage("good", [asks(lambda ctx: ctx.logger.info("fine"), "good")]) >> Stage(
        "flaky", [asks(tells, "flaky", use=[retry(on=ValueError, wait=0)])]
    )


def call(number, failures):
    return [
        (failures, "emit", "call", {"number": number}),
        (failures, "show", "text/markdown", f"call {number}", ""),
    ]


EARLIER = [
    *call(1, 0),
    (0, "ended", "failed", "ValueError: first"),
    *call(2, 0),
    (0, "ended", "failed", "OSError: second"),
]


def test_messages_are_journaled_and_come_back(run, journal):
    """Those of a failing action, too; after a resume, with the error that the earlier leg ended in."""
    flow = flaky([])
    failed = run(flow, journal=journal, run_id="r", check=False)
    expected = {"good": [(0, "log", "INFO", "fine")], "flaky": [*call(1, 0), *call(2, 1)]}
    assert said(failed) == said(durable.read(journal, "r")) == expected
    assert [str(each) for each in durable.read(journal, "r").stages[1].actions[0].failures] == ["first"]
    finished = flow.resume("r", journal=journal)
    expected["flaky"] = [*EARLIER, *call(3, 0)]
    assert said(finished) == said(durable.read(journal, "r")) == said(flow.resume("r", journal=journal)) == expected
    assert failed.stages[0].actions[0].messages == finished.stages[0].actions[0].messages  # with their times


def test_messages_stay_with_a_run_that_is_resumed_from_memory(run):
    flow = flaky([])
    failed = run(flow, check=False)
    finished = flow.resume(failed)
    assert said(finished) == {"good": [(0, "log", "INFO", "fine")], "flaky": [*EARLIER, *call(3, 0)]}
    assert (len(failed.resumed), len(finished.resumed)) == (0, 1)
    assert [each.restored for each in finished.stages] == [True, False]


def test_attempts_at_a_stage_leave_their_messages_in_the_journal(run, journal):
    """Though the rows of the failed attempt are dropped."""
    calls = []

    def tells(ctx):
        calls.append(1)
        ctx.emit("call", number=len(calls))
        if len(calls) == 1:
            raise ValueError("one")

    stage = Stage("s", [asks(tells, "a")], use=[retry(on=ValueError, wait=0)])
    finished = run(stage, journal=journal, run_id="r")
    expected = {"a": [(0, "emit", "call", {"number": 1}), (1, "emit", "call", {"number": 2})]}
    assert said(finished) == said(durable.read(journal, "r")) == expected


def test_a_suspended_action_keeps_its_messages(run, journal):
    """One that said nothing has nothing to keep."""

    def waits(ctx):
        ctx.emit("asked")
        ctx.wait_for("answer")

    def waits_quietly(ctx):
        ctx.wait_for("other")

    flow = Stage("s", [asks(waits, "a"), asks(waits_quietly, "b")])
    run(flow, journal=journal, run_id="r")
    flow.resume("r", {"answer": 1}, journal=journal)
    finished = flow.resume("r", {"other": 1}, journal=journal)
    (asked,) = [(0, "emit", "asked", {})]
    (first, ended, second) = said(finished)["a"]
    assert (first, ended[:3], second) == (asked, (0, "ended", "suspended"), asked)
    assert list(said(finished)) == ["a"]
    assert len(finished.resumed) == 2


def test_a_process_that_is_killed_between_attempts_leaves_its_messages(tmp_path):
    """They are written when the next attempt begins."""
    path = tmp_path / "runs.db"

    def tells(ctx):
        ctx.emit("call", attempt=ctx.attempt)
        if ctx.attempt == 1:
            raise ValueError("one")
        seen.append(said(durable.read(path, "r")))

    seen = []
    Stage("s", [asks(tells, "a", use=[retry(on=ValueError, wait=0)])]).run(journal=path, run_id="r")
    assert seen == [{"a": [(0, "emit", "call", {"attempt": 1})]}]


def test_a_large_value_is_journaled_once(tmp_path):
    """Runs that show the same figure share its bytes."""
    path = tmp_path / "runs.db"
    image = PNG + bytes(range(256)) * 2000
    for number in range(4):
        asks(lambda ctx: ctx.show(image), "a").run(journal=path, run_id=str(number))
    assert path.stat().st_size < 2 * len(image)
    (message,) = durable.read(path, "3").stages[0].actions[0].messages
    assert base64.b64decode(message.payload["content"]) == image


def test_a_run_read_from_a_journal_marks_restored_steps(run, journal):
    """A stage of which only some actions were restored is not; its actions are."""
    fails = [True]

    def second(ctx):
        if fails:
            fails.clear()
            raise ValueError("no")

    flow = Stage("one", [asks(lambda ctx: 1, "x")]) >> Stage("two", [asks(lambda ctx: 1, "y"), asks(second, "z")])
    run(flow, journal=journal, run_id="r", check=False)
    marks = lambda run: [(s.restored, [a.restored for a in s.actions]) for s in run.stages]  # noqa: E731
    assert marks(durable.read(journal, "r")) == [(False, [False]), (False, [False, False])]
    finished = flow.resume("r", journal=journal)
    assert marks(finished) == marks(durable.read(journal, "r")) == [(True, [True]), (False, [True, False])]
    assert finished.resumed == pytest.approx(durable.read(journal, "r").resumed, abs=5)
    assert len(durable.read(journal, "r").resumed) == 1


def test_a_run_that_begins_anew_with_changed_code_counts_its_legs(journal):
    """Steps that it adopts are restored."""

    def fails(ctx):
        raise ValueError("no")

    a, c = asks(lambda ctx: ctx.emit("a"), "a"), asks(lambda ctx: None, "c")
    (Stage("one", [a]) >> Stage("two", [asks(fails, "b")])).run(journal=journal, run_id="r", check=False)
    flow = Stage("zero", [c]) >> Stage("one", [a])
    finished = flow.resume("r", journal=journal, on_change="ignore")
    assert said(finished) == said(durable.read(journal, "r")) == {"a": [(0, "emit", "a", {})]}
    assert len(durable.read(journal, "r").resumed) == 1


def test_legs_are_deleted_with_their_run(tmp_path):
    journal = durable.SqliteJournal(tmp_path / "runs.db")
    flow = flaky([])
    flow.run(journal=journal, run_id="r", check=False)
    flow.resume("r", journal=journal)
    journal.delete("r")
    with pytest.raises(RunNotFoundError):
        journal.read("r")
    flow = flaky([1, 1])
    flow.run(journal=journal, run_id="r")
    assert durable.read(journal, "r").resumed == []


# -- what can be shown


class Shows:
    """An object with these methods of notebooks."""

    def __init__(self, **forms):
        for name, form in forms.items():
            setattr(self, name, form if callable(form) else lambda form=form: form)

    def __repr__(self):
        return "<Shows>"


def broken():
    raise RuntimeError("cannot be shown")


def save(buffer, *, format, bbox_inches):
    assert (format, bbox_inches) == ("png", "tight")
    buffer.write(PNG)


ENCODED = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("value", "kind", "content"),
    [
        ("# Title", "text/markdown", "# Title"),
        (Shows(_repr_html_="<b>1</b>", _repr_png_=PNG), "text/html", "<b>1</b>"),
        (Shows(_repr_svg_="<svg/>"), "image/svg+xml", base64.b64encode(b"<svg/>").decode()),
        (Shows(_repr_png_=PNG), "image/png", ENCODED),
        (Shows(_repr_png_=(PNG, {"width": 3})), "image/png", ENCODED),
        (Shows(_repr_markdown_="*a*"), "text/markdown", "*a*"),
        (Shows(savefig=save, _repr_html_="<b>1</b>"), "image/png", ENCODED),
        (Shows(savefig=broken, _repr_html_=broken, _repr_png_=PNG), "image/png", ENCODED),
        (Shows(_repr_html_=None, _repr_png_=b"not an image", _repr_svg_=()), "text/plain", "<Shows>"),
        (Shows, "text/plain", repr(Shows)),
        (PNG, "image/png", ENCODED),
        (bytearray(PNG), "image/png", ENCODED),
        (memoryview(b"\xff\xd8\xff1"), "image/jpeg", base64.b64encode(b"\xff\xd8\xff1").decode()),
        (b"RIFF1234WEBPVP8 ", "image/webp", base64.b64encode(b"RIFF1234WEBPVP8 ").decode()),
        (b"RIFF1234WAVE", "text/plain", "b'RIFF1234WAVE'"),
        (b"RIFA1234WEBP", "text/plain", "b'RIFA1234WEBP'"),
        ("a\udc80", "text/markdown", "a\\udc80"),
        (b"GIF89a", "image/gif", base64.b64encode(b"GIF89a").decode()),
        (b"data", "text/plain", "b'data'"),
        ({"a": [1]}, "text/plain", "{'a': [1]}"),
    ],
)
def test_a_value_is_rendered_by_what_it_offers(value, kind, content):
    """A method that fails, or gives nothing, is passed over; anything else is shown by its repr."""
    assert rendered(value) == {"type": kind, "content": content, "note": ""}


def test_a_large_image_is_not_kept():
    """A part of it would be no image."""
    note = "an image of 1.0 MB is not kept: 1.0 MB at most"
    assert rendered(PNG + bytes(LARGEST)) == {"type": "image/png", "content": "", "note": note}
    whole = PNG + bytes(LARGEST - len(PNG))
    assert rendered(whole) == {"type": "image/png", "content": base64.b64encode(whole).decode(), "note": ""}


def test_of_a_large_text_the_beginning_is_kept():
    """As far as there are whole characters."""
    for text, content in (("a" * LARGEST, "a" * LARGEST), ("é" * (LARGEST // 2), "é" * (LARGEST // 2))):
        assert rendered(text) == {"type": "text/markdown", "content": content, "note": ""}
    note = "cut: the first 1.0 MB of 1.5 MB"
    text = "a" + "é" * 750_000
    assert rendered(text) == {"type": "text/markdown", "content": text[: LARGEST // 2], "note": note}


def test_sizes_are_told_for_people():
    """With one decimal."""
    counts = (1, 999, 1_000, 2_500, 99_999, 100_000, 2_500_000)
    assert list(map(size, counts)) == ["1 byte", "999 bytes", "1.0 kB", "2.5 kB", "100.0 kB", "0.1 MB", "2.5 MB"]


def test_frames_are_shown_as_html():
    """Of pandas and polars."""
    for library in ("pandas", "polars"):
        frame = pytest.importorskip(library).DataFrame({"a": [1, 2]})
        shown = rendered(frame)
        assert shown["type"] == "text/html"
        assert "<table" in shown["content"]


def test_the_shown_value_is_not_kept():
    """It may change, or go, after the call."""
    value = {"a": 1}

    @action
    def shows(ctx: Context):
        ctx.show(value)
        value["a"] = 2

    assert [each[3] for each in told(action_record(shows.run()))] == ["{'a': 1}"]
    assert asyncio.run(shows.arun()).stages[0].actions[0].messages[0].payload["content"] == "{'a': 2}"


class Chart:
    """It has a bundle of forms, as charts of altair have, and no other method."""

    def __init__(self, bundle):
        self.bundle = bundle

    def _repr_mimebundle_(self, include=None, exclude=None):
        return self.bundle


@pytest.mark.parametrize(
    ("bundle", "kind", "content"),
    [
        ({"text/plain": "Chart", "text/html": "<b>x</b>"}, "text/html", "<b>x</b>"),
        (({"image/svg+xml": "<svg/>"}, {"width": 3}), "image/svg+xml", base64.b64encode(b"<svg/>").decode()),
        ({"image/png": PNG}, "image/png", base64.b64encode(PNG).decode()),
        ({"image/png": base64.b64encode(PNG).decode()}, "image/png", base64.b64encode(PNG).decode()),
        ({"image/png": "?", "text/plain": "<Chart at 0x7f00>"}, "text/plain", "<Chart>"),
        ({"application/vnd.vegalite.v5+json": {}, "text/plain": "Chart"}, "text/plain", "Chart"),
    ],
)
def test_a_bundle_of_forms_is_shown_in_the_best_of_them(bundle, kind, content):
    """HTML, an image, or text."""
    assert rendered(Chart(bundle)) == {"type": kind, "content": content, "note": ""}


def test_a_bundle_without_a_known_form_is_shown_as_its_repr():
    """Without an address."""
    for bundle in (None, {}, {"application/json": {}}):
        content = f"<{__name__}.Chart object>"
        assert rendered(Chart(bundle)) == {"type": "text/plain", "content": content, "note": ""}
