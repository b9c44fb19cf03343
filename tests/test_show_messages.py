"""Messages and shown values on the page of a run: escaped, redacted, bounded; and in a real browser."""

import base64
import json
import re
import time
from pathlib import Path

import pytest
from browser import Sheet, started
from hypothesis import given
from hypothesis import strategies as st

from flowdeco import Context, Stage, action, durable
from flowdeco.middleware import retry
from flowdeco.show import messages as module
from flowdeco.show import redaction
from flowdeco.show.markdown import elements
from flowdeco.show.messages import redacted_html
from flowdeco.show.redaction import redactor

PAGE_SCRIPT = (Path(module.__file__).parent / "page.js").read_text(encoding="utf-8")
SECRET = "hunter2-of-the-store"
TABLE = f'<style>table {{ color: red }}</style><table class="table" title="{SECRET}"><tr><td>{SECRET} &lt;table&gt;</td></tr></table>'
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><text x="1">{SECRET}</text></svg>'


class Html:
    """A value with a form in HTML."""

    def __init__(self, source):
        self.source = source

    def _repr_html_(self):
        return self.source


class Svg(Html):
    """A value with a form in SVG only."""

    _repr_html_ = None

    def _repr_svg_(self):
        return self.source


def asks(function, name="a", **options):
    """An action that calls this with its context."""

    def body(ctx: Context):
        function(ctx)

    return action(body, name=name, **options)


def page_of(run, tmp_path, **options):
    """The text of a run's page."""
    return run.to_html(tmp_path / "run.html", **options).read_text(encoding="utf-8")


def rows_of(source):
    """The rows that the page's script is given."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)[1])[
        "rows"
    ]


def log_of(source, row=0):
    """The messages of a row, without their times."""
    return [{key: value for key, value in each.items() if key not in "td"} for each in rows_of(source)[row]["log"]]


# -- the data of a page


def shows_all(ctx):
    ctx.emit("rows", count=3, **{SECRET: SECRET})
    ctx.logger.warning("refused %s", SECRET)
    ctx.show(f"**bold** {SECRET}")
    ctx.show(Html(TABLE))
    ctx.show(Svg(SVG))
    ctx.show({"password": SECRET})
    ctx.show(b"GIF89a")


def test_a_page_has_the_messages_of_an_action(tmp_path):
    """In order; known values are replaced by their keys, between the tags of HTML and SVG as well."""
    run = asks(shows_all).run({"password": SECRET, "kind": "table"})
    source = page_of(run, tmp_path)
    assert SECRET not in source
    emitted, logged, markdown, html, svg, plain, image = log_of(source)
    assert emitted == {"k": "emit", "a": 0, "n": "rows", "of": [["count", "3"], ["‹password›", "‹password›"]]}
    assert logged == {"k": "log", "a": 0, "l": "WARNING", "text": "refused ‹password›"}
    assert markdown == {"k": "show", "a": 0, "md": [["p", ["strong", "bold"], " ‹password›"]]}
    assert html["html"].endswith(
        '<style>table { color: red }</style><table class="table" title="‹password›">'
        "<tr><td>‹password› &lt;‹kind›&gt;</td></tr></table>"
    )
    svg_source = base64.b64decode(svg["src"].removeprefix("data:image/svg+xml;base64,")).decode()
    assert svg_source == SVG.replace(SECRET, "‹password›")
    assert plain["text"] == "{'password': '‹password›'}"
    assert image["src"] == "data:image/gif;base64," + base64.b64encode(b"GIF89a").decode()
    assert SECRET in page_of(run, tmp_path, values=True)


def test_only_a_page_with_html_allows_styles(tmp_path):
    """For its frames, which get the policy of the page; scripts stay forbidden."""
    plain, framed = (page_of(asks(lambda ctx, v=v: ctx.show(v)).run(), tmp_path) for v in ("text", Html("<b>1</b>")))
    policies = [re.search(r'Content-Security-Policy" content="([^"]*)', source)[1] for source in (plain, framed)]
    assert ["unsafe-inline" in policy for policy in policies] == [False, True]
    for policy in policies:
        assert "default-src 'none'" in policy
        assert re.search(r"script-src 'sha256-[^']+';", policy)


def test_errors_of_attempts_are_among_the_messages(tmp_path):
    """Those of an action and those of its stage; an error of both is there once."""

    def fails(ctx):
        ctx.emit("try")
        raise (
            ValueError("first")
            if not calls.append(1) and len(calls) == 1
            else KeyError("second")
            if len(calls) == 2
            else Done
        )

    class Done(Exception):
        """No more failures."""

    calls = []
    inner, outer = retry(on=ValueError, wait=0), retry(on=KeyError, wait=0)
    run = Stage("a", [asks(fails, use=[inner])], use=[outer]).run(check=False)
    source = page_of(run, tmp_path)
    row = rows_of(source)[0]
    assert [each["a"] for each in log_of(source)] == [0, 1, 2]
    assert len(row["tries"]) == 2
    assert row["fail"] not in row["tries"]


def test_a_resumed_run_shows_its_legs(tmp_path):
    """When it was resumed, restored actions, and the error that an earlier leg ended in; read from its journal as well."""
    calls = []

    def fails_once(ctx):
        ctx.emit("call")
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("no")

    flow = Stage("s", [asks(lambda ctx: None, "good"), asks(fails_once, "bad")])
    journal = durable.SqliteJournal(tmp_path / "runs.db")
    flow.run(journal=journal, run_id="r", check=False)
    for run in (flow.resume("r", journal=journal), durable.read(journal, "r")):
        source = page_of(run, tmp_path)
        assert "<dt>Resumed</dt>" in source
        (row,) = rows_of(source)
        assert "re" not in row
        good, bad = row["acts"]
        assert good["re"] == 1
        assert [(each["k"], each.get("text")) for each in bad["log"]] == [
            ("emit", None), ("ended", "ValueError: no"), ("emit", None)
        ]  # fmt: skip
    assert "<dt>Resumed</dt>" not in page_of(Stage("s").run(), tmp_path)


def test_a_page_holds_so_many_values(tmp_path, monkeypatch):
    """Those after them are named."""
    monkeypatch.setattr(module, "MOST_SHOWN", 10)

    def shows(ctx):
        for size in (6, 6, 4):
            ctx.show("x" * size)

    log = log_of(page_of(asks(shows).run(), tmp_path))
    assert [each.get("md") for each in log] == [[["p", "xxxxxx"]], None, [["p", "xxxx"]]]
    assert log[1]["note"] == "6 bytes are not in the page: it has 0 MB of values before"


def test_what_was_cut_is_noted(tmp_path):
    """Messages, and the rest of a value."""

    def says(ctx):
        for _ in range(1_002):
            ctx.emit("row")
        ctx.show(b"\x89PNG\r\n\x1a\n" + bytes(1_000_000))

    log = log_of(page_of(asks(says).run(), tmp_path))
    assert [each["text"] for each in log if each["k"] == "cut"] == ["… 3 messages not kept"]
    assert log[-1]["note"] == "an image of 1.0 MB is not kept: 1.0 MB at most"


def test_long_pages_are_redacted_in_time(tmp_path):
    """With thousands of known values, and megabytes of text."""
    names = [f"customer-{number:05}" for number in range(5_000)]

    def shows(ctx):
        ctx.show("\n".join(f"- {name}" for name in names))
        ctx.show("nothing of that " * 50_000)

    began = time.process_time()
    source = page_of(asks(shows).run({"names": names}), tmp_path)
    assert time.process_time() - began < 20
    assert "customer-" not in source


# -- Markdown


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# One\n\n### Three #", [["h3", "One"], ["h5", "Three"]]),
        ("a\nb  \nc", [["p", "a\nb", ["br"], "c"]]),
        ("*a* **b** `c*d*` ~~e~~ _f_ __g__", [["p", ["em", "a"], " ", ["strong", "b"], " ", ["code", "c*d*"], " ", ["del", "e"], " ", ["em", "f"], " ", ["strong", "g"]]]),
        ("**a *b* c**", [["p", ["strong", "a ", ["em", "b"], " c"]]]),
        ("snake_case_name 2 * 3 * 4 \\*a\\*", [["p", "snake_case_name 2 * 3 * 4 ", "*", "a", "*"]]),
        ("[a *b*](https://x.y/z 't')", [["p", "[a ", ["em", "b"], "](https://x.y/z 't')"]]),
        ('[a *b*](https://x.y/z "t") <https://q.r>', [["p", ["a", "https://x.y/z", "a ", ["em", "b"]], " ", ["a", "https://q.r", "https://q.r"]]]),
        ("[a](javascript:alert) ![b](https://x.y/b.png)", [["p", "a", " ", "b"]]),
        ("<b>a</b>\n<script>x</script>", [["p", "<b>a</b>\n<script>x</script>"]]),
        ("```py\n*a*\n\n# b\n```\nc", [["pre", "*a*\n\n# b"], ["p", "c"]]),
        ("~~~\nnever closed", [["pre", "never closed"]]),
        ("> a\n> > b", [["blockquote", ["p", "a"], ["blockquote", ["p", "b"]]]]),
        ("---\n* * *", [["hr"], ["hr"]]),
        ("- a\n- b\n  c\n  - d\n\n- e", [["ul", ["li", "a"], ["li", "b\nc", ["ul", ["li", "d"]]], ["li", "e"]]]),
        ("- a\n\n  b\n\nc", [["ul", ["li", "a", ["p", "b"]]], ["p", "c"]]),
        ("1. a\n2) b\n- c", [["ol", ["li", "a"], ["li", "b"]], ["ul", ["li", "c"]]]),
        ("- # a", [["ul", ["li", ["h3", "a"]]]]),
        ("  - a\n- b", [["ul", ["li", "a"]], ["ul", ["li", "b"]]]),
        ("- a\n", [["ul", ["li", "a"]]]),
        ("t\n| a | b\\|c |\n|:--|--:|\n| *1* |\n| 2 | 3 | 4 |\nend", [
            ["p", "t"],
            ["table", ["thead", ["tr", ["th", "a"], ["th.right", "b|c"]]], ["tbody", ["tr", ["td", ["em", "1"]]], ["tr", ["td", "2"], ["td.right", "3"]]]],
            ["p", "end"],
        ]),
        ("a|b\n:-:|-", [["table", ["thead", ["tr", ["th.center", "a"], ["th", "b"]]], ["tbody"]]]),
        ("*a" * 20_000, [["p", "*a" * 20_000]]),
        (">" * 12 + "a", [["blockquote"] * 1 and elements(">" * 12 + "a")[0]]),
    ],
)  # fmt: skip
def test_markdown_becomes_elements(source, expected):
    """Headings below those of the page; HTML is text; addresses are those of the web and of mail."""
    assert elements(source) == expected


TAGS = {*re.findall(r'"(\w+)"', re.search(r"TAGS = new Set\((.*?)\)", PAGE_SCRIPT)[1])}


@given(st.text(alphabet="ab*_`~#>-+1.)|[](<>:/\\ \n", max_size=200))
def test_any_text_is_markdown(source):
    """Every element has a tag that the page knows, and no letter is lost."""

    def check(element):
        tag, *inside = element
        assert tag.removesuffix(".right").removesuffix(".center") in TAGS
        for each in inside:
            letters.append(each) if isinstance(each, str) else check(each)

    letters = []
    for element in elements(source):
        check(element)
    fences = re.compile(r"(?m)^\s*(?:```|~~~).*$")
    if not (fences.search(source) or "[" in source or "|" in source):  # these have parts that are not shown
        assert re.sub("[^ab]", "", "".join(letters)) == re.sub("[^ab]", "", source)


# -- redaction


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<b>secret</b>", "<b>‹key›</b>"),
        ("<secret a='secret' class=secret href=secret>", '<secret a="‹key›" class=secret href="‹key›">'),
        ("a<!-- secret -->b<!-- secret", "ab"),
        ("<style>.secret{}</style>secret", "<style>.secret{}</style>‹key›"),
        ("a &lt; secret", "a &lt; ‹key›"),
        ("se&#99;ret", "‹key›"),
        ("<a title='x>secret'>", "<a title='x>‹key›&#x27;&gt;"),
        ('<img src="data:image/png;base64,x/secret+">', '<img src="data:image/png;base64,x/secret+">'),
        ("1 < 2 secret", "1 &lt; 2 ‹key›"),
    ],
)
def test_html_is_redacted_between_its_tags(source, expected):
    """And in attributes, except for those of the layout; what cannot be parsed is text."""
    assert redacted_html(source, lambda text: text.replace("secret", "‹key›")) == expected


def one_by_one(words, text):
    """The model: each word with its own pattern, the longest first."""

    def pattern(word):
        if len(word) >= 12 and not word.isalpha():
            return re.escape(word)
        before = r"(?:(?<!\w)|(?<=%[0-9a-f][0-9a-f])|(?<=\\[nrt]))" if word[0].isalnum() else ""
        return before + re.escape(word) + (r"(?!\w)" if word[-1].isalnum() else "")

    longest_first = sorted({word.lower() for word in words if word.lower() in text.lower()}, key=len, reverse=True)
    return re.sub("|".join(map(pattern, longest_first)), "‹k›", text, flags=re.IGNORECASE) if longest_first else text


WORDS = st.text(alphabet="abA1-.", min_size=4, max_size=14)


@given(st.lists(WORDS, max_size=30), st.lists(WORDS, max_size=10), st.sampled_from([0, 10**9]))
def test_known_values_are_found_whatever_they_have_in_common(values, others, long_report):
    """As if each were looked for on its own, in long and in short reports."""
    text = " ".join([*(f"{value}{other}" for value, other in zip(values, others, strict=False)), *values[::2], *others])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(redaction, "LONG_REPORT", long_report)
        redact = redactor([("k", values)], (), (text,))
    assert redact(text) == one_by_one(values, text)


# -- in a browser


@pytest.fixture(scope="module")
def chrome():
    with started() as browser:
        yield browser


def say_everything(ctx):
    ctx.logger.info("read %d rows", 3)
    ctx.logger.error("one is missing")
    ctx.emit("rows", count=3)
    ctx.show(
        "# Title\n**bold** <img src=x onerror='parent.hacked=1'> [link](https://example.com)\n\n| a |\n|---|\n| 1 |\n\n- x\n\n> q"
    )
    ctx.show(Html("<script>parent.hacked = 1; document.title = 'hacked'</script><p id='in'>inside</p>"
                  "<img src='https://example.com/x.png' onerror='parent.hacked = 1'><form action='https://example.com'></form>"))  # fmt: skip
    ctx.show(Svg(SVG))
    ctx.show({"plain": 1})
    if ctx.attempt == 1:
        raise ValueError("first")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_messages_are_in_the_details_of_their_action(chrome, tmp_path, scheme):
    """Values without scripts, and nothing loaded; all of it can be read."""
    run = Stage("s", [asks(say_everything, use=[retry(on=ValueError, wait=0)]), asks(lambda ctx: None, "b")]).run()
    path = run.to_html(tmp_path / "run.html")
    with Sheet(chrome, path, scheme=scheme, width=420) as sheet:
        sheet.page.locator("#rows .line").click()
        detail = sheet.page.locator(".detail")
        assert "14 messages" in sheet.page.locator("#rows .line").inner_text()
        logs = detail.locator(".log")
        assert [log.locator("li[class^=m-]").count() for log in logs.all()] == [7, 7]
        assert "ValueError: first" in detail.inner_text()
        words = logs.first.inner_text()
        assert all(
            each in words for each in ("INFO", "read 3 rows", "rows", "count", "<img src=x onerror", "{'plain': 1}")
        )
        assert logs.first.locator(".prose h3").inner_text() == "Title"
        assert logs.first.locator(".prose strong").inner_text() == "bold"
        assert logs.first.locator(".prose a").get_attribute("href") == "https://example.com"
        frame = logs.first.locator("iframe")
        assert (frame.get_attribute("sandbox"), frame.get_attribute("title")) == ("", "Value shown by a")
        assert frame.content_frame.locator("#in").inner_text() == "inside"
        image = logs.first.locator("img")
        assert image.evaluate("(img) => img.decode().then(() => img.naturalWidth > 0)")
        assert sheet.page.evaluate("window.hacked") is None
        assert sheet.page.evaluate("document.documentElement.scrollWidth") <= 420
        assert sheet.pale() == []
        assert sheet.asked == []
        blocked = [text for text in sheet.said if "Blocked" in text or "violates" in text or "Content Security" in text]
        assert blocked == sheet.said  # the browser says what it refused, and nothing else


def test_values_are_printed_dark_on_light(chrome, tmp_path):
    """Whatever the theme of the system; and the columns of a table are aligned as its author said."""

    def shows(ctx):
        ctx.show(Html("<p>content</p>"))
        ctx.show("a | b\n--- | --:\none | 2")

    with Sheet(chrome, asks(shows).run().to_html(tmp_path / "run.html"), scheme="dark") as sheet:
        sheet.page.locator("#rows .line").click()
        looks = "(it) => [getComputedStyle(it).colorScheme, getComputedStyle(document.body).color]"
        root = sheet.page.locator("iframe").content_frame.locator("html")
        assert root.evaluate(looks) == ["light dark", "rgb(231, 235, 240)"]
        sheet.page.emulate_media(media="print", color_scheme="dark")
        assert root.evaluate(looks) == ["light", "rgb(20, 24, 29)"]
        assert sheet.page.locator("iframe").evaluate("(it) => getComputedStyle(it).colorScheme") == "light"
        sides = sheet.page.locator(".prose td").evaluate_all("(all) => all.map((it) => getComputedStyle(it).textAlign)")
        assert sides == ["start", "right"]


def test_a_frame_has_the_height_of_its_table(chrome, tmp_path):
    """As well as that can be told from outside."""
    table = "<table>" + "<tr><td>1</td></tr>" * 8 + "</table>"
    run = asks(lambda ctx: ctx.show(Html(table))).run()
    with Sheet(chrome, run.to_html(tmp_path / "run.html")) as sheet:
        sheet.page.locator("#rows .line").click()
        frame = sheet.page.locator("iframe")
        inside = frame.content_frame.locator("html").evaluate("(html) => html.scrollHeight")
        table = frame.content_frame.locator("table").evaluate("(table) => table.offsetHeight")
        assert table <= inside <= table + 30
