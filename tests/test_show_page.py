"""The page of a run: complete in itself, escaped, without secrets; and in a real browser."""

import json
import re
import threading
import time
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import quote, quote_plus

import pytest
from browser import Sheet, started
from shown import (
    EVIL,
    GROUP,
    SECRET,
    Checker,
    broken,
    discover,
    evil,
    failing,
    flaky,
    full,
    many,
    process,
    report,
    tidy,
)

import flowdeco
from flowdeco import Context, Key, Stage, action, durable, parallel, pipeline, show, stage, stream
from flowdeco.middleware import retry
from flowdeco.model.store import Store
from flowdeco.show.failures import failure_of
from flowdeco.show.formatting import printable
from flowdeco.show.page import json_in_html, page
from flowdeco.show.redaction import redactor
from flowdeco.show.store_summary import summarize
from flowdeco.show.timeline import Scale

PACKAGE = Path(flowdeco.__file__).parent


def page_of(run, tmp_path, **options):
    """The text of a run's page."""
    return run.to_html(tmp_path / "run.html", **options).read_text(encoding="utf-8")


def data_of(source):
    """What the page's script is given."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)[1])


# -- the file


def test_the_counts_of_inserted_stages_agree(tmp_path):
    """Those of groups, of what inserted stages inserted in turn, and the turns of a loop: in the head and in the plan."""
    turns = []

    @action
    def leaf() -> None: ...

    @stage
    def inner(n: str) -> None:
        @action
        def go() -> Stage:
            return Stage("deep", [leaf])

    @action
    def sides() -> object:
        return parallel(inner("a"), inner("b"), name="both")

    @stage
    def again() -> None:
        @action
        def step() -> Stage | None:
            turns.append(1)
            return again if len(turns) < 3 else None

    page = page_of((sides >> again >> leaf).run(), tmp_path)
    assert "<small>6 inserted</small>" in page
    assert re.findall(r"\+ (\d+) inserted</span>", page) == ["4", "2"]


def test_the_page_is_written_where_it_is_wanted(tmp_path):
    """Its path comes back; a string will do."""
    run = report.run({"processed": []})
    target = tmp_path / "run.html"
    assert run.to_html(str(target)) == target
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_page_is_complete_in_itself(tmp_path):
    """It names no address, and forbids the browser to load anything or to run another script."""
    source = page_of(failing().run(check=False), tmp_path)
    checked = Checker(source)
    assert checked.urls == ["data:,", "#stages", *(f"#stage-{number}" for number in (0, 4, 5, 6))]
    assert not re.search(r"(?:https?:)?//[a-z]|url\(|@import", re.sub(r"(?m)^\s*//.*$", "", source))
    assert "default-src 'none'" in source
    assert "unsafe" not in source


def test_the_page_says_what_happened(tmp_path):
    """Also to those who run no scripts."""
    run = failing().run(check=False)
    text = Checker(page_of(run, tmp_path)).text
    for part in (
        "✗ failed",
        run.id,
        "7 3 inserted",
        "Not reached",
        "RuntimeError: login failed with local",
        "not reached",
    ):
        assert part in text


def test_a_group_that_was_not_reached_has_no_branches_if_it_is_a_stream(tmp_path):
    """Nothing is known of its units."""
    fails = action(name="fails")(lambda: 1 / 0)
    run = (fails >> parallel(stream(list), name="group")).run(check=False)
    assert "group" in Checker(page_of(run, tmp_path)).text


@pytest.mark.parametrize("values", [False, True])
def test_whatever_somebody_named_is_text(tmp_path, values):
    """In HTML, and in the data for the script, which nothing in it can end."""
    flow = evil()
    run = flow.run({EVIL: EVIL}, check=False, run_id=EVIL)
    source = page_of(run, tmp_path, values=values)
    checked = Checker(source)
    assert source.count("<script") == source.count("</script>") == 2
    assert "b" in checked.tags  # ours
    assert EVIL in checked.text
    assert "<!-- <b>" not in source
    names = {row["n"] for row in data_of(source)["rows"]}
    assert EVIL in names


def test_data_in_a_script_element_is_inert():
    """No tag, no comment, no separator that JavaScript takes for the end of a line."""
    dumped = json_in_html({"a": "</script><!--\u2028\ud800"})
    assert not re.search(r"[<>&\u2028]", dumped)
    assert dumped.isascii()
    assert json.loads(dumped) == {"a": "</script><!--\u2028\ud800"}


def test_what_cannot_be_encoded_is_no_error(tmp_path):
    """Half a surrogate pair in a name, a key and a value."""
    run = Stage("\ud800").run({"\ud801": "\ud802"})
    assert "\\ud800" in page_of(run, tmp_path, values=True)


# -- secrets


class Account:
    """An object with a secret in it."""

    def __init__(self, password):
        self.password = password

    def __repr__(self):
        return f"Account({self.password!r})"


@pytest.mark.parametrize(
    "inputs",
    [
        {"password": SECRET},
        {"password": SECRET, "config": {"nested": [{"deep": (SECRET,)}]}},
        {"password": SECRET, "account": Account(SECRET), "raw": SECRET.encode()},
        {"password": SECRET.encode()},
    ],
    ids=["plain", "nested", "object", "bytes"],
)
def test_values_are_not_in_the_page(tmp_path, inputs):
    """Not in the store's table, nor in an error that repeats one, in its notes, its causes, its traceback."""

    @action(name="leaks", tags=["net"])
    def leaks(password):
        token = password
        error = ValueError(f"refused {password!r} and {password}", {"also": password})
        error.add_note(f"tried {token!s}")
        try:
            raise KeyError(password)
        except KeyError:
            raise error from RuntimeError(f"because of {password}")

    run = pipeline(tidy, leaks).run(inputs, check=False)
    source = page_of(run, tmp_path)
    assert SECRET not in source
    assert "‹password›" in source or "\\u2039password\\u203a" in source
    assert SECRET in page_of(run, tmp_path, values=True)


def raises(text):
    """An action that fails with this, computed from its parameter."""

    @action(name="fails")
    def fails(token):
        raise RuntimeError(text(token))

    return fails


def told(token):
    return f"refused {token}"


@stage
def login(account):
    @action
    def enter():
        raise RuntimeError(f"refused {account.password}")


def gives(call):
    """Middleware that yields a secret."""
    yield {"token": SECRET}


def by_default(token=SECRET):
    raise RuntimeError(f"refused {token}")


@action(name="forgets", returns="token")
def forgets(token):
    return "nothing"


def in_a_branch():
    """The secret is in the store of a branch that fails, and in none of the failing action's parameters."""

    @action(returns="token")
    def fetches():
        return SECRET

    @action
    def fails():
        raise RuntimeError(f"refused {SECRET}")

    return parallel(fetches >> fails, tidy)


PASSED = {
    "bound": lambda: raises(told).bind(token=SECRET),
    "from middleware": lambda: Stage("s", [raises(told)], use=[gives]),
    "default": lambda: action(by_default),
    "stage data": lambda: Stage("s", [forgets], data={"token": SECRET}) >> action(name="f")(_refuses),
    "argument of a template": lambda: login(Quiet(SECRET)),
    "bound before": lambda: forgets.bind(token=SECRET) >> action(name="f")(_refuses),
    "branch": in_a_branch,
}


def _refuses():
    raise RuntimeError(f"refused {SECRET}")


@pytest.mark.parametrize("how", PASSED)
def test_what_never_was_in_the_store_at_the_end_does_not_leak(tmp_path, how):
    """What was bound, yielded, a default, stage data, an argument, or written in a branch that failed."""
    source = page_of(PASSED[how]().run(check=False), tmp_path)
    assert SECRET not in source
    assert "refused ‹" in source


class Quiet(Account):
    """It hides what it has."""

    __repr__ = object.__repr__


class Slots:
    """An object without a dict, with a private name."""

    __slots__ = ("__password",)

    def __init__(self, password):
        self.__password = password


class Hidden(str):
    """A text that hides itself."""

    def __str__(self):
        return "***"

    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        Slots(SECRET),
        PurePath("/vault") / SECRET,
        {SECRET: 1},
        Hidden(SECRET),
        [*map(str, range(30_000))],
        f"a\n{SECRET}",
    ],
    ids=["slots", "path", "dict key", "hides itself", "beside a long list", "line"],
)
def test_what_is_in_a_value_does_not_leak(tmp_path, value):
    """Whatever it is made of, and however much there is before it."""
    shown = str(value) if isinstance(value, PurePath) else SECRET
    inputs = {"token": value, "other": SECRET if isinstance(value, list) else None}
    run = raises(lambda _: f"refused {shown}").run(inputs, check=False)
    source = page_of(run, tmp_path)
    assert shown not in source
    assert "refused ‹" in source


@pytest.mark.parametrize(
    "write",
    [
        lambda text: f"https://h/?q%3D{quote(text, safe='')}",
        lambda text: f"https://h/?q={quote_plus(text)}",
        lambda text: f"https://h/{quote(text)}",
        lambda text: json.dumps({"a": text}),
        str.upper,
        lambda text: f"key_{text}_1",
        lambda text: f"a\tb {text}",
    ],
    ids=["quoted", "in a query", "in a path", "json", "upper", "in a word", "beside a tab"],
)
def test_what_is_written_otherwise_does_not_leak(tmp_path, write):
    """Percent-encoded, as JSON, in capitals, inside of a word."""
    secret = 'p@ss/w\trd "ü" 1'
    run = raises(lambda _: write(secret)).run({"token": secret}, check=False)
    source = page_of(run, tmp_path)
    for form in {write(secret), printable(write(secret))}:
        assert form not in source
    assert "‹token›" in source


def test_a_value_that_is_odd_is_no_error(tmp_path):
    """Whatever its class does when it is looked at; what is beside it does not leak."""

    class Odd:
        @property
        def __class__(self):
            raise ValueError

    class Lost(PurePosixPath):
        def __str__(self):
            raise ValueError

    run = raises(told).run({"odd": Odd(), "lost": Lost("/x"), "token": SECRET}, check=False)
    assert SECRET not in page_of(run, tmp_path)


def test_words_of_the_program_stay_readable(tmp_path):
    """Field names of dicts, defaults, and arguments that a name shows are no secrets."""

    @action
    def fails(config, mode="append"):
        raise KeyError(f"append {config['password']} to password of caches")

    @stage
    def about(kind):
        @action
        def enter():
            raise RuntimeError(f"no {kind}")

    source = page_of(fails.run({"config": {"password": SECRET}}, check=False), tmp_path)
    assert "append ‹config› to password of caches" in source
    assert "no caches" in page_of(about("caches").run(check=False), tmp_path)


def test_a_file_that_is_none_does_not_leak(tmp_path):
    """Code that was compiled from a text has that for the name of its file; real paths stay."""

    @action
    def fails(token):
        exec(compile("raise ValueError", f"<{token}>", "exec"))

    source = page_of(fails.run({"token": SECRET}, check=False), tmp_path)
    assert SECRET not in source
    assert "test_show_page.py" in source


def test_reasons_and_recovered_errors_do_not_leak_either(tmp_path):
    """A `Bail` that repeats a value, and a failure that was recovered."""
    from flowdeco import Bail
    from flowdeco.middleware import recover

    @action(use=[recover(on=ValueError)])
    def saved(password):
        raise ValueError(password)

    @action
    def stop(password):
        raise Bail(f"bad {password}")

    source = page_of((saved >> stop).run({"password": SECRET}), tmp_path)
    assert SECRET not in source
    assert "bad ‹password›" in source


def test_a_value_that_was_refused_does_not_leak(tmp_path):
    """Our own messages show the value that came; in a page they do not."""

    @action
    def writes(ctx: Context):
        ctx.store[Key("count", int)] = SECRET

    @action
    def mixes():
        return [tidy, SECRET]

    for flow in (writes, mixes):
        run = flow.run(check=False)
        assert SECRET in str(run.error)
        assert SECRET not in page_of(run, tmp_path)


def test_the_values_of_variables_are_never_there(tmp_path):
    """Not even on request: a traceback has lines of code, and no variables."""

    @action
    def fails() -> None:
        local = "".join(["local", "-", "secret"])
        raise ValueError(len(local))

    source = page_of(fails.run(check=False), tmp_path, values=True)
    assert "local-secret" not in source
    assert "raise ValueError(len(local))" in source


def test_names_and_common_words_stay_readable():
    """What is public is no secret, short values are none, and longer words are left alone."""
    store = Store({"kind": "caches", "n": 7, "mode": "on", "word": "data", "token": "abcd1234", "amount": 123456})
    texts = ["process[caches] 7 on database data abcd1234 xabcd1234 123456"]
    redact = redactor(store.items(), {"caches"}, texts)
    assert redact(texts[0]) == "process[caches] 7 on database ‹word› ‹token› xabcd1234 ‹amount›"


def test_the_store_is_told_by_type_and_size():
    """Of containers, texts, bytes and arrays; of an object that cannot be measured, the type."""

    class Table:
        shape = (3, 1000)

    class Odd:
        def __len__(self):
            raise ValueError

        def __repr__(self):
            raise ValueError

    store = Store({"a": [1, 2], "b": "text", "c": b"x", "d": {}, "e": 5, "f": Table(), "g": Odd(), "h": None})
    assert [(one.key, one.size, one.value) for one in summarize(store)] == [
        ("a", "2 items", None), ("b", "4 characters", None), ("c", "1 byte", None), ("d", "0 items", None),
        ("e", "", None), ("f", "3 × 1,000", None), ("g", "", None), ("h", "", None),
    ]  # fmt: skip
    assert [one.value for one in summarize(store, values=True)][:5] == ["[1, 2]", "'text'", "b'x'", "{}", "5"]
    assert [one.value for one in summarize(store, values=True)][6].startswith("<Odd instance at")
    assert len(next(summarize(Store({"long": "x" * 10**6}), values=True)).value) <= 2001


def test_causes_and_groups_of_exceptions_are_told():
    """Each with its notes and traceback; a circle of causes has an end."""
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    group = ExceptionGroup("both", [one, KeyError("k")])
    group.add_note("a note")
    told = failure_of(group)
    assert (told.type, told.message, told.notes) == ("ExceptionGroup", "both (2 sub-exceptions)", ("a note",))
    assert [(part.type, part.message) for part in told.parts] == [("ValueError", "one"), ("KeyError", "'k'")]
    assert told.parts[0].cause.message == "two"


def test_what_is_left_out_of_an_error_is_said():
    """Causes beyond the eighth, and all but the first members of a large group."""
    error = first = ValueError("first")
    for number in range(12):
        error, error.__cause__ = ValueError(str(number)), error
    told, chain = failure_of(error), []
    while told is not None:
        chain.append(told)
        told = told.cause
    assert [one.message for one in chain] == [str(number) for number in range(11, 2, -1)]
    assert [len(one.notes) for one in chain] == [0] * 8 + [1]
    assert chain[-1].notes[0].startswith("what led to it is not shown")
    assert failure_of(first).notes == ()
    large = failure_of(ExceptionGroup("many", [ValueError(str(number)) for number in range(60)]))
    assert (len(large.parts), large.notes) == (50, ("10 more of its members are not shown",))


# -- the data


def test_stages_have_their_place_in_time(tmp_path):
    """One after the other in one lane, branches that overlap in lanes of their own."""

    @action(name="slow")
    def slow() -> None:
        time.sleep(0.02)

    flow = pipeline(
        Stage("first", [slow]), parallel(*[Stage(f"b{n}", [slow]) for n in range(3)]), Stage("last", [slow])
    )
    data = data_of(page_of(flow.run(), tmp_path))
    rows = {row["n"]: row for row in data["rows"] if row["k"] == "stage"}
    assert data["lanes"] == 3
    assert sorted(rows[f"b{n}"].get("lane", 0) for n in range(3)) == [0, 1, 2]
    assert rows["first"]["x"] == 0
    assert rows["first"]["x"] + rows["first"]["w"] <= rows["b0"]["x"] + 1e-4
    assert rows["b2"]["x"] + rows["b2"]["w"] <= rows["last"]["x"] + 1e-4


def test_branches_one_at_a_time_share_a_lane(tmp_path):
    """A lane is who ran at the same time, not which branch."""
    flow = parallel(*[Stage(f"b{n}", [tidy["sweep"]]) for n in range(20)], limit=1)
    assert data_of(page_of(flow.run(), tmp_path))["lanes"] == 1


def test_a_long_break_is_cut_short():
    """As between a suspension and the resume: hours do not squeeze what ran."""
    scale = Scale([(0.0, 10.0), (36000.0, 36010.0)])
    assert scale.place(0.0, 10.0) == (0.0, pytest.approx(0.48))
    assert scale.place(36000.0, 10.0) == (pytest.approx(0.52), pytest.approx(0.48))
    assert [label for _, label, broken in scale.ticks() if broken] == ["9 h 59 min later"]
    assert 0.48 < scale.at(1000.0) < 0.52


def test_a_scale_without_anything_is_no_error():
    """A run without stages, and one whose stages took no time."""
    assert Scale([]).ticks() == []
    assert Scale([(5.0, 5.0)]).place(5.0, 0.0) == (0.0, 0.0)


@pytest.mark.parametrize("seconds", [1e-5, 0.03, 1.0, 55.0, 600.0, 86400.0 * 30])
def test_ticks_are_few_and_round(seconds):
    """From microseconds to months."""
    ticks = Scale([(100.0, 100.0 + seconds)]).ticks()
    assert 3 <= len(ticks) <= 14
    assert len({label for _, label, _ in ticks}) == len(ticks)


# -- in the browser


@pytest.fixture(scope="module")
def chrome():
    """The browser, for the tests below."""
    with started() as browser:
        yield browser


@pytest.fixture
def opened(chrome, tmp_path):
    """Open the page of a run."""
    sheets = []

    def open_(run, *, values=False, **how):
        sheet = Sheet(chrome, run.to_html(tmp_path / "run.html", values=values), **how)
        sheets.append(sheet)
        return sheet

    yield open_
    for sheet in sheets:
        assert sheet.said == []  # no error, no warning
        assert sheet.asked == []
        sheet.page.close()


def open_row(sheet, name):
    """Click on the row of that name, and return what opens."""
    line = sheet.page.locator("#rows li", has=sheet.page.locator(f'.line .name:text-is("{name}")')).first
    line.locator("> .line").click()
    return line.locator("> .detail")


def test_the_page_opens(opened):
    """Title, status, stages in their order, those in groups below them."""
    sheet = opened(full().run())
    assert sheet.page.title() == "All of it: completed"
    assert sheet.page.locator("h1").inner_text() == "All of it"
    names = sheet.names()
    assert names[:5] == ["discover", "process[databases]", "process[caches]", "process[servers]", "fetch"]
    assert names[-1] == "tidy"
    assert sheet.page.locator("#chart").bounding_box()["height"] > 30


def test_a_stage_expands(opened):
    """To its actions, with who inserted it; and closes again."""
    sheet = opened(full().run())
    detail = open_row(sheet, "process[caches]")
    assert detail.is_visible()
    assert "handle" in detail.inner_text() or "discover/discover" in detail.inner_text()
    line = sheet.page.locator('.line[aria-expanded="true"]', has_text="process[caches]")
    assert line.count() == 1
    line.click()
    assert detail.count() == 0


def test_an_error_is_shown_with_traceback_and_notes(opened):
    """At the top, and where it happened; a button leads there."""
    sheet = opened(failing().run(check=False))
    alarm = sheet.page.locator("#alarm")
    assert "RuntimeError: login failed with local" in alarm.inner_text()
    assert "in action 'broken' of stage 'broken', pipeline 'failing'" in alarm.inner_text()
    assert 'raise RuntimeError(f"login failed with {local}")' in alarm.locator(".trace").first.inner_text()
    button = alarm.get_by_role("button", name="Show the stage broken")
    assert button.locator(".name").inner_text() == "broken"
    button.click()
    assert sheet.focused() == "broken"
    assert "shown.py" in sheet.page.locator(".detail .trace").first.inner_text()


def test_the_order_stands_beside_the_filters(opened):
    """However many there are: they take a second line."""
    tags = {f"a tag that is long {number}" for number in range(10)}
    sheet = opened(pipeline(Stage("a", tags=tags), Stage("b", tags=tags), flaky()).run(skip=["b"]))
    sheet.page.set_viewport_size({"width": 1280, "height": 800})
    middle = "(it) => { const box = it.getBoundingClientRect(); return box.top + box.height / 2; }"
    places = [sheet.page.locator(each).evaluate(middle) for each in ("#find", "#order")]
    assert abs(places[0] - places[1]) < 4


def test_every_failed_branch_can_be_reached(opened):
    """From the error of their group, whose members have no frames of ours."""
    barrier = threading.Barrier(2)

    @stage
    def shut(shop):
        @action
        def enter():
            barrier.wait(10)
            raise OSError(f"{shop} closed")

    sheet = opened(parallel(shut("x"), shut("y"), tidy).run(check=False))
    alarm = sheet.page.locator("#alarm")
    assert str(PACKAGE) not in alarm.inner_text()
    assert alarm.locator(".trace").count() == 2
    for name in ("shut[y]", "shut[x]"):
        alarm.get_by_role("button", name=f"Show the stage {name}").click()
        assert sheet.focused() == name
    assert "parallel parallel" not in sheet.page.locator("#rows").inner_text().replace("\n", " ")


def test_a_retried_action_is_seen_in_the_closed_row_and_the_legend_is_true(opened):
    """Also of a stage that failed: its bar is that of a failure."""

    @action(name="upload", use=[retry(on=OSError, attempts=3, wait=0)])
    def upload():
        raise OSError("closed")

    def legend(sheet):
        return sheet.page.locator(".legend > span").all_inner_texts()

    sheet = opened((tidy >> Stage("publish", [tidy["sweep"], upload])).run(check=False))
    row = sheet.page.locator("#rows li.failed > .line").inner_text()
    assert "upload: 3 attempts" in row
    assert "OSError: closed" in row
    assert legend(sheet) == ["in the plan", "failed"]
    assert legend(opened(flaky().run())) == ["retried or recovered"]
    assert legend(opened(broken.run(check=False))) == ["failed"]


WIDTHS = """() => [...document.querySelectorAll("#store tbody tr")].map((row) => [...row.cells].map((cell) =>
  [cell.textContent, Math.round(cell.getBoundingClientRect().width), Math.round(cell.getBoundingClientRect().height)]))"""


@pytest.mark.parametrize("width", [1280, 500])
def test_keys_and_types_stay_whole_beside_values(opened, width):
    """The value takes what is left; on a narrow screen it stands below."""
    inputs = {"db_password": "x " * 900, "report.title": ["y" * 900], "k_" * 40: "z" * 900}
    sheet = opened(tidy.run(inputs), values=True, width=width)
    rows = sheet.page.evaluate(WIDTHS)
    for key, kind, size, value in rows[:2]:
        assert key[2] <= value[2]
        assert max(kind[1], key[1]) < 200
        line = 40 if width == 500 else value[2] + 1
        assert max(key[2], kind[2], size[2]) <= line
        assert value[1] > (700 if width == 1280 else 400)
    assert sheet.page.evaluate(BROKEN, ["db_password", "report.title", "list", "str", "1,800 characters"]) == []
    assert sheet.page.evaluate("document.documentElement.scrollWidth") <= width


BROKEN = """(words) => [...document.querySelectorAll("#store td")].filter((cell) => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return words.includes(cell.textContent) && new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1;
}).map((cell) => cell.textContent)"""


def test_the_inserter_can_be_reached(opened):
    """From what it inserted."""
    sheet = opened(full().run())
    open_row(sheet, "process[servers]").get_by_role("button", name="discover/discover").click()
    assert sheet.focused() == "discover"


def chip(sheet, text):
    """What one clicks on to filter by a tag or a status."""
    return sheet.page.locator(".chip", has_text=text)


def settled(sheet, text):
    """Wait until the count begins so, or says how much there is."""
    starts = "text => document.getElementById('count').textContent.startsWith(text)"
    says = "text => document.getElementById('count').textContent.includes(` ${text}`)"
    sheet.page.wait_for_function(says if text.startswith("in ") else starts, arg=text)
    sheet.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # drawn


def test_stages_are_filtered_by_name_and_tag(opened):
    """By typing, and by clicking on a tag or a status; what they are in stays."""
    sheet = opened(full().run())
    sheet.page.fill("#find", "PROCESS cach")
    settled(sheet, "2 of")
    assert sheet.names() == ["discover", "process[caches]", "fetch", "discover", "process[caches]"]
    sheet.page.fill("#find", "tag:reporting")
    settled(sheet, "1 of")
    assert sheet.names() == ["report"]
    sheet.page.fill("#find", "")
    settled(sheet, "in the order")
    chip(sheet, "#dynamic").click()
    settled(sheet, "6 of")
    chip(sheet, "#dynamic").click()
    settled(sheet, "in the order")
    chip(sheet, "recovered").click()
    settled(sheet, "2 of")
    assert "saved" in sheet.names()
    assert "report" not in sheet.names()
    sheet.page.fill("#find", "no such stage")
    settled(sheet, "0 of")
    assert "No stage matches." in sheet.page.locator("#rows").inner_text()


def test_the_keyboard_is_enough(opened):
    """`/` goes to the filter, arrows go through the rows, Enter opens, Left closes, Escape clears."""
    sheet = opened(full().run())
    keys = sheet.page.keyboard
    keys.press("/")
    assert sheet.focused() == "find"
    keys.type("report")
    settled(sheet, "1 of")
    keys.press("Escape")
    settled(sheet, "in the order")
    keys.press("ArrowDown")
    assert sheet.focused() == "discover"
    keys.press("ArrowDown")
    assert sheet.focused() == "process[databases]"
    keys.press("Enter")
    assert sheet.page.locator(".detail").count() == 1
    keys.press("ArrowLeft")
    assert sheet.page.locator(".detail").count() == 0
    keys.press("End")
    assert sheet.focused() == "tidy"
    keys.press("Home")
    assert sheet.focused() == "discover"


def test_tab_reaches_the_rows_once(opened):
    """One stop for the whole list, not one for each row."""
    sheet = opened(full().run())
    assert sheet.page.locator('#rows button[tabindex="0"]').count() == 1
    seen = []
    for _ in range(40):
        sheet.page.keyboard.press("Tab")
        seen.append(sheet.focused())
    assert seen.count("discover") >= 1


def test_a_group_closes(opened):
    """Its branches go, and come back."""
    sheet = opened(full().run())
    before = sheet.names()
    line = sheet.page.locator(".container > .line", has_text="fetch")
    line.click()
    assert sheet.names() == [*before[: before.index("fetch") + 1], "report", "flaky", "saved", "tidy"]
    sheet.page.locator(".container > .line", has_text="fetch").click()
    assert sheet.names() == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_of_it_can_be_read(opened, scheme):
    """The contrast of every text is that of WCAG AA, in the light and in the dark."""
    flow = pipeline(discover, GROUP, tidy, broken, report, name="flow", description="What it is for.")
    sheet = opened(flow.run({"password": "p"}, check=False, skip=["tidy"]), scheme=scheme)
    open_row(sheet, "broken")
    open_row(sheet, "process[caches]")
    chip(sheet, "#net").hover()
    for details in sheet.page.locator("#diff details:not([open]) summary").all():
        details.click()
    assert sheet.pale() == []


def test_it_fits_on_a_narrow_screen(opened):
    """Nothing pushes the page wider than the window."""
    flow = full() >> Stage("a_very_long_name_" * 12, tags=["a-very-long-tag-" * 8]) >> broken
    sheet = opened(flow.run({"k" * 200: 1}, check=False), width=360)
    open_row(sheet, "broken")
    assert sheet.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_markup_in_names_is_text_in_the_browser_as_well(opened):
    """Rows, details, errors, the diff, the store."""
    sheet = opened(evil().run({EVIL: EVIL}, check=False), values=True)
    assert EVIL in sheet.names()
    for line in sheet.page.locator("#rows li.failed > .line").all():
        line.click()
    assert sheet.page.evaluate("window.hacked") is None
    assert sheet.page.locator("script").count() == 2


seen = []


@stage
def look(path: str) -> None:
    @action
    def at_the_run() -> None:
        seen.append(durable.read(path, "one"))


def test_what_is_still_to_come_in_a_run_that_runs_is_pending(opened, tmp_path):
    """It is "not reached" once the run has ended; in the list of stages, their details and the filters."""
    path = str(tmp_path / "runs.db")
    begin = action(name="begin")(lambda: [look(path), process("b")])
    begin.run(journal=path, run_id="one")
    failed = (action(name="fails")(lambda: 1 / 0) >> process("b")).run(check=False)
    for run, word in ((seen.pop(), "pending"), (failed, "not reached")):
        sheet = opened(run)
        open_row(sheet, "process[b]")
        assert word in sheet.page.locator("#rows .detail").inner_text()
        assert word in sheet.page.locator("#states").inner_text()
        assert {"pending": "2 still to come", "not reached": "1 did not run"}[word] in sheet.page.content()


def test_five_thousand_stages_stay_responsive(opened):
    """The list is drawn as far as one can see it; filters look at all of it."""
    run = (discover >> many(4_990) >> report).run()
    sheet = opened(run)
    assert sheet.page.locator("#rows > li").count() < 60
    assert "4,987 more, process[…]" in sheet.page.locator("#rows").inner_text()
    sheet.page.fill("#find", "process")
    settled(sheet, "4,993 of 4,996")
    assert sheet.page.locator("#rows > li").count() <= 600
    took = sheet.page.evaluate("""() => { const find = document.getElementById("find"); find.value = "process[4321]";
        const began = performance.now(); find.dispatchEvent(new Event("input"));
        return new Promise((done) => { const look = () => document.querySelectorAll("#rows > li").length === 2
            ? done(performance.now() - began) : requestAnimationFrame(look); look(); }); }""")
    assert took < 5_000  # milliseconds; a few dozen on a machine that is not busy
    assert sheet.names() == ["many", "process[4321]"]
    sheet.page.fill("#find", "")
    settled(sheet, "4,996")
    sheet.page.get_by_role("button", name="4,987 more").click()
    assert sheet.focused() == "process[3]"
    sheet.page.keyboard.press("End")
    assert sheet.focused() == "report"
    assert sheet.page.locator("#rows > li").count() == 4_996


def test_the_list_grows_while_one_scrolls(opened):
    """Without a button."""
    sheet = opened(pipeline(*[Stage(f"s{n}") for n in range(500)]).run())
    assert sheet.page.locator("#rows > li").count() <= 400
    for _ in range(6):
        sheet.page.mouse.wheel(0, 20_000)
        sheet.page.wait_for_timeout(50)
    sheet.page.wait_for_function("() => document.querySelectorAll('#rows > li').length === 500")


def test_the_timeline_leads_to_the_stage(opened):
    """A click on a bar opens it."""

    @action
    def slow() -> None:
        time.sleep(0.05)

    sheet = opened((slow >> process("x")).run())
    box = sheet.page.locator("#chart").bounding_box()
    sheet.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 6)
    assert "slow, " in sheet.page.locator("#tip").inner_text()
    sheet.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 6)
    assert sheet.focused() == "slow"


def go_to(sheet, step):
    """Move the slider of the replay there."""
    sheet.page.locator("#step").fill(str(step))
    sheet.page.evaluate("() => new Promise(done => requestAnimationFrame(done))")


def test_a_run_is_replayed_as_it_grew(opened):
    """Stages of the plan are there from the start, inserted ones as they come; the last step is the whole run."""
    sheet = opened((discover >> parallel(discover, tidy, name="g", limit=1) >> report).run())
    whole = sheet.names()
    assert sheet.page.locator("#step").input_value() == str(len(whole) - 1)
    go_to(sheet, 0)
    assert sheet.names() == ["discover", "g", "discover", "tidy", "report"]
    assert sheet.page.locator("li.ahead").count() == 5
    go_to(sheet, 2)
    assert sheet.names() == ["discover", "process[databases]", "g", "discover", "tidy", "report"]
    assert sheet.page.locator("li.now .name").inner_text() == "process[databases]"
    assert sheet.page.locator("#step").get_attribute("aria-valuetext") == "2 of 10 stages, process[databases]"
    assert "2 of 10 stages" in sheet.page.locator("#replay").inner_text()
    go_to(sheet, 10)
    assert sheet.names() == whole
    assert sheet.page.locator("li.ahead").count() == 0


def test_the_replay_plays(opened):
    """From its beginning to its end, by a button that also stops it; the slider takes the keyboard."""
    sheet = opened((discover >> report).run())
    button = sheet.page.locator("#play")
    button.click()
    sheet.page.wait_for_selector("li.now")
    assert button.inner_text() == "Pause"
    button.click()
    assert button.inner_text() == "Replay"
    assert sheet.page.locator("li.ahead").count() >= 1
    button.click()
    sheet.page.wait_for_selector("#play:text('Replay')")
    assert sheet.page.locator("li.ahead").count() == 0
    sheet.page.locator("#step").press("Home")
    assert sheet.page.locator("li.ahead").count() == 2
    sheet.page.locator("#step").press("ArrowRight")
    assert sheet.page.locator("li.now .name").text_content() == "discover"  # it may be off screen


def test_nothing_moves_by_itself_for_those_who_prefer_that(opened):
    """The button goes one stage further each time."""
    sheet = opened((discover >> report).run())
    sheet.page.emulate_media(reduced_motion="reduce")
    for expected in ([], ["discover"], ["process[databases]"]):
        sheet.page.locator("#play").click()
        assert sheet.page.locator("li.now .name").all_text_contents() == expected
    assert sheet.page.locator("#play").inner_text() == "Next stage"


def test_a_replay_counts_collapsed_stages(opened):
    """As they come."""
    sheet = opened(many(100).run())
    go_to(sheet, 50)
    assert sheet.page.locator(".fold").inner_text() == "… 46 more so far"
    go_to(sheet, 2)
    assert sheet.page.locator(".fold").count() == 0


def test_what_a_stage_inserted_can_be_hidden(opened):
    """By a click, and by the keyboard; the row says how much there is."""
    sheet = opened((discover >> report).run())
    sheet.page.get_by_role("button", name="Hide the stages that discover inserted").click()
    assert sheet.names() == ["discover", "report"]
    assert "3 inserted" in sheet.page.locator("#rows li").first.inner_text()
    assert sheet.focused() == "discover"
    sheet.page.keyboard.press("ArrowRight")
    assert len(sheet.names()) == 5
    sheet.page.keyboard.press("ArrowLeft")
    assert sheet.names() == ["discover", "report"]


def test_stages_are_sorted_by_their_time(opened):
    """The slowest first, without the tree; each says who inserted it."""

    @action
    def slow() -> None:
        time.sleep(0.03)

    @action
    def insert() -> list[Stage]:
        return [Stage("quick"), Stage("slow", [slow])]

    sheet = opened(insert.run())
    sheet.page.locator("#order").select_option("slow")
    assert sheet.names()[0] == "slow"
    assert "inserted by insert/insert" in sheet.page.locator("#rows li").first.inner_text()
    assert "the slowest first" in sheet.page.locator("#count").inner_text()


def test_an_address_leads_to_a_stage(opened, chrome, tmp_path):
    """It is that of the page with the number of the stage; opening a stage makes it."""
    sheet = opened((discover >> report).run())
    open_row(sheet, "process[caches]")
    assert sheet.page.url.endswith("#stage-2")
    assert sheet.page.locator(".here").inner_text() == "#stage-2"
    page = chrome.new_page()
    page.goto(sheet.page.url)
    assert page.locator("li:has(> .detail) .name").first.inner_text() == "process[caches]"
    page.locator("#diff .planned a", has_text="report").click()
    page.wait_for_selector("li:has(> .detail) >> text=report")
    page.close()


def test_the_timeline_is_enlarged(opened):
    """By buttons; it scrolls then, and a click still finds its stage."""
    sheet = opened(full().run())
    width = sheet.page.locator("#chart").bounding_box()["width"]
    assert sheet.page.locator("#zoom-out").is_disabled()
    sheet.page.locator("#zoom-in").click()
    sheet.page.locator("#zoom-in").click()
    assert sheet.page.locator("#chart").bounding_box()["width"] == pytest.approx(4 * width, rel=0.01)
    assert sheet.page.evaluate("document.documentElement.scrollWidth") <= 1200
    sheet.page.locator("#whole").click()
    assert sheet.page.locator("#chart").bounding_box()["width"] == pytest.approx(width, rel=0.01)


def test_rows_have_names_with_spaces(opened):
    """As they are read to those who listen; with who inserted them."""
    sheet = opened((discover >> report).run())
    line = sheet.page.locator("#rows .line").nth(1)
    assert line.evaluate("line => line.textContent.replace(/[\\d.]+ [µm]s/, 'T')") == (
        "✓completed process[databases] #dynamic inserted by discover/discover  T"
    )
    assert sheet.page.locator(".chip").first.text_content() == "completed 5"


def test_a_wide_screen_has_two_columns(opened):
    """The plan stands beside the run; on others, below it."""
    sheet = opened((discover >> report).run(), width=2200)
    stages, diff = (sheet.page.locator(name).bounding_box() for name in ("#stages", "#diff"))
    assert diff["x"] > stages["x"] + stages["width"]
    assert stages["width"] > 1000
    sheet.page.set_viewport_size({"width": 1300, "height": 900})
    stages, diff = (sheet.page.locator(name).bounding_box() for name in ("#stages", "#diff"))
    assert diff["y"] > stages["y"] + stages["height"]


def test_bars_and_legend_are_printed(opened):
    """With their colours, also by a dark browser; and they stay where a system has colours of its own."""
    sheet = opened(full().run(), scheme="dark")
    colour = "selector => getComputedStyle(document.querySelector(selector)).backgroundColor"
    for media in ({"media": "print"}, {"media": "screen", "forced_colors": "active"}):
        sheet.page.emulate_media(**media)
        for selector in (".legend .l-new", "#rows .new .track i"):
            assert sheet.page.evaluate(colour, selector) in ("rgb(122, 67, 230)", "rgb(160, 123, 255)")
    sheet.page.emulate_media(media="print", forced_colors="none")
    assert sheet.page.evaluate(colour, "section") == "rgb(255, 255, 255)"
    assert not sheet.page.locator("#replay").is_visible()


def test_the_command_that_resumes_a_run_is_copied(opened, tmp_path):
    """Of a durable run that can be resumed."""
    run = (tidy >> broken).run(check=False)
    sheet = opened(run)
    assert sheet.page.locator("#command").count() == 0
    path = tmp_path / "durable.html"
    path.write_text(page(run, show.ran(run), None, resume="flowdeco resume r --journal runs.db"), "utf-8")
    sheet.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sheet.page.goto(path.as_uri())
    sheet.page.locator("#copy").click()
    sheet.page.wait_for_selector("#copy:text('Copied')")
    assert sheet.page.locator("#command").inner_text() == "flowdeco resume r --journal runs.db"


def test_a_durable_run_knows_how_it_is_resumed(tmp_path):
    """By a command, if it can be resumed; what it waits for is to be given."""

    @action
    def ask(ctx: Context) -> None:
        ctx.wait_for("approval")

    path = tmp_path / "my runs.db"
    source = page_of(ask.run(journal=path, run_id="one"), tmp_path)
    assert f"flowdeco resume FILE.py:FLOW one --journal &#x27;{path}&#x27; -i approval=VALUE</code>" in source
    assert 'id="command"' not in page_of(tidy.run(journal=path), tmp_path)
    assert 'id="command"' not in page_of(broken.run(check=False), tmp_path)


def test_failures_of_attempts_are_there(opened):
    """In the row that opens, one for each."""
    sheet = opened(flaky().run())
    assert open_row(sheet, "flaky").locator(".trouble").count() == 2


def test_values_are_shown_on_request(opened):
    """In the table of the store."""
    sheet = opened(tidy.run({"answer": [42]}), values=True)
    assert "[42]" in sheet.page.locator("#store").inner_text()
