"""What notebooks show: stages, pipelines, groups, runs, plans and diffs as HTML; in a real notebook, in a real browser."""

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from browser import Sheet, started
from shown import EVIL, GROUP, SECRET, Checker, broken, discover, evil, failing, full, many, process, report
from support import swallow

import flowdeco
from flowdeco import Context, Stage, Store, action, parallel, pipeline, stage, stream
from flowdeco.model.units import DEEPEST
from flowdeco.show.html import name, text


def shows():
    """Everything that shows itself."""
    flow = failing()
    run = flow.run({"password": SECRET}, check=False)
    return {
        "action": discover,
        "bound action": broken.bind(password="x"),
        "stage": report,
        "pipeline": full(),
        "group": GROUP,
        "plan": full().plan(),
        "run": run,
        "template": process,
        "store": run.store,
        "ran": run.ran(),
        "diff": flow.plan().diff(run),
    }


def test_a_backslash_is_not_a_tab():
    """A tab becomes four spaces; the `\\t` of a path on Windows stays."""
    assert text("C:\\temp\ta\nb", lines=True) == "C:\\temp    a\nb"


@pytest.mark.parametrize("name", shows())
def test_everything_shows_itself(name):
    """As a piece of HTML without scripts and without anything that would be loaded."""
    shown = Checker(shows()[name]._repr_html_())
    assert "script" not in shown.tags
    assert shown.urls == []
    assert shown.tags <= {"div", "style", "span", "details", "summary", "pre", "b", "wbr"}


def test_a_stage_shows_its_actions_and_what_is_with_it():
    """Description, tags, the keys of its data, what its actions read and write."""
    text = Checker(report._repr_html_()).text
    for part in (
        "report",
        "Put it into words.",
        "#reporting",
        "report.title: str",
        "processed, title? → summary",
        "#words",
    ):
        assert part in text


def test_an_action_shows_that_it_is_one():
    """With the function behind it, what it reads and writes, what is bound; not as the function."""

    @action(tags=["net"], use=[swallow], returns="page")
    def fetch(ctx: Context, url, proxy, retries=3):
        """Get a page."""

    bound = fetch.bind(proxy=SECRET)
    text = Checker(bound._repr_html_()).text
    for part in (
        "fetch action #net",
        "Get a page.",
        "fetch",
        "flow: url, retries? → page",
        "bound: proxy",
        "middleware: swallow",
    ):
        assert part in text
    assert SECRET not in text
    assert f"function: {__name__}:test_an_action" in text


def test_the_context_is_no_key():
    """What an action reads in a plan are keys of the store."""

    @action
    def fetch(ctx: Context, url):
        return url

    assert "reads ctx" not in fetch.plan().text()
    assert "url → fetch" in fetch.plan().text()
    assert "ctx" not in fetch.plan().html()


def test_a_failed_run_shows_its_error_and_notes():
    """And what was not reached."""
    run = failing().run(check=False)
    text = Checker(run._repr_html_()).text
    assert "✗ failed" in text
    assert "RuntimeError: login failed with local" in text
    assert f"in action 'broken' of stage 'broken', pipeline 'failing', run '{run.id}'" in text
    assert "not reached" in text


def test_a_run_shows_the_keys_of_its_store_and_no_values():
    """With types and sizes."""
    run = (discover >> report).run({"password": SECRET})
    text = Checker(run._repr_html_()).text
    assert "store: 4 keys" in text
    assert "password str, 20 characters" in text
    assert SECRET not in run._repr_html_()


def test_names_are_text():
    """Whatever they are made of, and wherever they stand."""
    flow = evil()
    run = flow.run(check=False)
    for shown in (flow, flow[1], run, run.ran(), flow.plan(), flow.plan().diff(run)):
        checked = Checker(shown._repr_html_())
        assert "script" not in checked.tags
        assert EVIL in checked.text


def pages():
    return iter([Stage("<i>one</i>")])


def test_the_function_of_a_streamed_group_is_text():
    """Its name may have brackets: `main.<locals>.pages`."""

    def local():
        return pages()

    group = parallel(stream(local), name="g")
    for shown in (group, group.plan(), group.plan().diff(group.run())):
        assert "&lt;locals&gt;" in shown._repr_html_() or shown is not group
        assert "<locals>" not in shown._repr_html_()


@pytest.mark.parametrize("count", [10, 10_000])
def test_it_stays_small_and_readable(count):
    """At ten stages and at ten thousand, planned, inserted and skipped."""
    flow = pipeline(*[Stage(f"s{n}") for n in range(count)])
    for shown in (flow, flow.run(), many(count).run(), many(count).run(skip=["process"])):
        source = shown._repr_html_()
        assert len(source) < 100_000
        assert source.count("fd-row") < 300


def test_a_thousand_inserted_stages_are_folded():
    """Three of them, and 997 more."""
    text = Checker(many(1000).run()._repr_html_()).text
    assert "… 997 more, process[…]" in text
    assert "and 897 more" in text


def test_a_loaded_notebook_library_is_not_needed():
    """Showing imports nothing but the standard library, and `import flowdeco` does not import what shows."""
    script = """
import sys
import time
from flowdeco import Stage
before = set(sys.modules)
print([name for name in before if name.startswith("flowdeco.show")])
Stage("s")._repr_html_(), Stage("s").run().ran().html()
known = {*sys.stdlib_module_names, "flowdeco", "wrapt", "typing_extensions"}
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} - known))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines() == ["[]", "[]"]


# -- a real notebook

CELLS = [
    "from flowdeco import *\nfrom flowdeco.middleware import retry",
    """@stage(tags=["dynamic"])
def process(kind: str) -> None:
    @action(collect="processed")
    def handle() -> str:
        return kind

@action
def discover() -> list[Stage]:
    return [process(str(n)) for n in range(1000)]

@stage
def report():
    @action
    def summary(processed: list) -> int:
        return len(processed)

@action
def broken(summary: int):
    raise ValueError(f"only <b>{summary}</b>")

flow = discover >> parallel(report, process("x"), name="side") >> broken""",
    "report",
    "discover",
    "flow",
    "parallel(report, process('y'))",
    "run = flow.run(check=False)\nrun",
    "run.ran()",
    "flow.plan().diff(run)",
    "print(flow.plan())",
]
SHOWN = CELLS[2:-1]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The notebook, executed by nbclient, and what nbconvert makes of it."""
    nbclient = pytest.importorskip("nbclient")
    nbconvert = pytest.importorskip("nbconvert")
    # The kernel is a process of its own: it has to find this tree.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(flowdeco.__file__).parents[1]), before]))
    try:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
        nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    exporter = nbconvert.HTMLExporter(template_name="lab")
    exporter.require_js_url = exporter.mathjax_url = exporter.mermaid_js_url = ""
    page = tmp_path_factory.mktemp("notebook") / "notebook.html"
    page.write_text(exporter.from_notebook_node(book)[0], encoding="utf-8")
    return book, page


def test_a_notebook_shows_units_runs_and_diffs(notebook):
    """Each cell has HTML and, for those who cannot show it, text."""
    book, _ = notebook
    for cell in book.cells[2:-1]:
        (output,) = cell.outputs
        assert "flowdeco" in output.data["text/html"], cell.source
        assert output.data["text/plain"]
    assert book.cells[-1].outputs[0].text.startswith("pipeline: 4 stages")
    assert "997 more" in book.cells[7].outputs[0].data["text/plain"]


@pytest.fixture(scope="module")
def chrome(notebook):
    """The browser; after the notebook, which needs the event loop for itself."""
    with started() as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_converted_notebook_is_drawn(notebook, chrome, scheme):
    """The cards are there, folded ones open, names are text, and all of it can be read."""
    with Sheet(chrome, notebook[1], scheme=scheme) as sheet:
        cards = sheet.page.locator(".flowdeco .fd-card")
        assert cards.count() == len(SHOWN)
        assert sheet.page.locator(".fd-error b").count() == 0
        assert "only <b>1000</b>" in sheet.page.locator(".fd-error").first.inner_text()
        fold = sheet.page.locator(".fd-more").first
        fold.locator("summary").click()
        assert fold.locator(".fd-row").nth(50).is_visible()
        pale = [one for one in sheet.pale() if "fd-" in one]
        assert pale == []


@pytest.mark.parametrize(
    ("attribute", "value"), [("data-jp-theme-light", "false"), ("data-theme", "dark"), ("theme", "dark")]
)
def test_the_theme_of_the_notebook_wins(chrome, tmp_path, attribute, value):
    """A dark notebook on a light system is dark, and can be read."""
    run = failing().run(check=False)
    page = tmp_path / "dark.html"
    page.write_text(
        f'<meta charset="utf-8"><body {attribute}="{value}" style="background:#111">{run._repr_html_()}',
        encoding="utf-8",
    )
    with Sheet(chrome, page, scheme="light") as sheet:
        assert (
            sheet.page.evaluate("getComputedStyle(document.querySelector('.fd-card')).backgroundColor")
            == "rgb(21, 27, 35)"
        )
        assert sheet.pale() == []
        assert sheet.said == []
        assert sheet.asked == []


def test_branches_stand_beside_each_other(chrome, tmp_path):
    """In columns: each begins where the one before it ends."""
    page = tmp_path / "group.html"
    page.write_text(f'<meta charset="utf-8">{full().run()._repr_html_()}', encoding="utf-8")
    with Sheet(chrome, page) as sheet:
        boxes = [
            column.bounding_box()
            for column in sheet.page.locator(".fd-group").first.locator("> .fd-cols > .fd-col").all()
        ]
        assert len(boxes) == 3
        assert len({box["y"] for box in boxes}) == 1
        assert all(a["x"] + a["width"] <= b["x"] + 1 for a, b in zip(boxes, boxes[1:], strict=False))


def test_it_fits_on_a_narrow_screen(chrome, tmp_path):
    """Nothing pushes the page wider than the window, nested groups and long names included."""
    page = tmp_path / "narrow.html"
    flow = full() >> Stage("a_very_long_name_" * 12) >> action(name="x" * 200)(lambda: None) >> broken
    page.write_text(
        f'<meta charset="utf-8">{flow.run(check=False)._repr_html_()}{process("z")._repr_html_()}', encoding="utf-8"
    )
    with Sheet(chrome, page, width=380) as sheet:
        assert sheet.page.evaluate("document.documentElement.scrollWidth") <= 380


def test_a_name_breaks_where_one_would_break_it():
    """Behind signs and, in what has none, after sixteen letters; short names are whole."""
    assert name("process[x]") == "process[x]"
    assert name("quite_a_long[name.of/it]") == "quite_<wbr>a_<wbr>long[<wbr>name.<wbr>of/<wbr>it]"
    assert name("x" * 20) == f"{'x' * 16}<wbr>xxxx"
    assert name("a <b> \n long name") == "a &lt;<wbr>b&gt; <wbr>\\n <wbr>long <wbr>name"
    assert 'title="process[databases]"' in process("databases")._repr_html_() + (discover >> report).run()._repr_html_()


def wide():
    """Groups of many branches, nested ones, long names, and an error."""

    def stages(name, count):
        return [
            Stage(f"{name}-{n}]", [action(name="quite_a_long_action_name", returns=None)(lambda: None)])
            for n in range(count)
        ]

    inner = parallel(*stages("deeper", 3))
    return pipeline(
        parallel(*stages("check[duplicates", 8), name="eight"),
        parallel(inner, stages("d", 1)[0] >> inner, name="outer"),
        action(name="publish", tags=["external"])(broken.__wrapped__).bind(password="which is rather long " * 5),
        name="wide",
    )


CUT = """() => {
  const card = document.querySelector(".fd-card").getBoundingClientRect(), found = [];
  for (const el of document.querySelectorAll(".fd-col, .fd-name, .fd-time, .fd-note, .fd-cap")) {
    if (!el.getClientRects().length) continue;
    for (let at = el; at && !at.matches(".flowdeco"); at = at.parentElement) {
      if (el.getBoundingClientRect().right > at.getBoundingClientRect().right + 1) found.push(`${el.className} ${el.textContent.slice(0, 30)}`);
    }
  }
  return found;
}"""
BROKEN = """() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    if (!walker.currentNode.parentElement.matches(".fd-name")) continue;
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) found.push(walker.currentNode.data);
  }
  return found;
}"""


@pytest.mark.parametrize("media", ["screen", "print"])
@pytest.mark.parametrize("width", [1280, 700, 500])
def test_groups_are_not_cut_and_words_not_broken(chrome, tmp_path, width, media):
    """Branches for which there is no room stand below the others; names break behind signs."""
    page = tmp_path / "wide.html"
    flow = wide()
    cards = "".join(shown._repr_html_() for shown in (flow.run(check=False), flow.plan()))
    page.write_text(f'<meta charset="utf-8">{cards}', encoding="utf-8")
    with Sheet(chrome, page, width=width) as sheet:
        sheet.page.emulate_media(media=media)
        assert sheet.page.locator(".fd-cols").first.locator("> .fd-col").count() == 8
        assert sheet.page.evaluate(CUT) == []
        assert sheet.page.evaluate(BROKEN) == []
        assert sheet.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_template_is_a_card():
    """Its parameters, without running its body again, and its options."""

    @stage(tags=["copying"])
    def copy_table(table: str, limit: int = 5) -> None:
        """Copy one table."""
        action(lambda: table, name="rows")

    text = Checker(copy_table._repr_html_()).text
    for expected in ("copy_table", "stage template", "copy_table(table, limit=5)", "Copy one table.", "#copying"):
        assert expected in text


def test_a_store_is_a_card_without_values():
    """Keys, types and sizes."""
    card = Store({"token": SECRET, "rows": [1, 2], "<b>": 1})._repr_html_()
    assert SECRET not in card
    text = Checker(card).text
    for expected in ("store", "3 keys", "token", "rows", "list, 2", "<b>"):
        assert expected in text


def test_a_run_has_a_timeline():
    """A bar for each stage that took time, with its times in words; the longest of very many."""
    flow = Stage("first", [action(lambda: time.sleep(0.002), name="a")]) >> Stage(
        "second <b>", [action(lambda: 1, name="b")]
    )
    card = flow.run()._repr_html_()
    text = Checker(card).text
    assert "timeline: 2 stages" in text
    assert card.count("fd-bar fd-completed") == 2
    assert 'aria-label="second &lt;b&gt;: completed, ' in card
    assert "timeline" not in Stage("alone").run()._repr_html_()
    most = many(300).run()._repr_html_()
    assert "timeline: the longest 100 of" in most
    assert most.count("fd-bar fd-") == 100


def test_a_group_nested_as_deep_as_any_may_be_is_shown():
    """In a plan, and in a run of it, also where the caller is some frames deep."""
    flow = Stage("innermost", [action(name="act")(lambda: None)])
    for _ in range(DEEPEST):
        flow = parallel(flow)
    run = flow.run()
    for shown in (flow.plan()._repr_html_(), run._repr_html_()):
        assert "innermost" in shown
