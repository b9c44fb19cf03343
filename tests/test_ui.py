"""`flowdeco ui`: who is answered, the pages, the forms; and in a real browser."""

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlencode

import pytest
from browser import PALE, started
from shown import EVIL, Checker, evil

import flowdeco
from flowdeco import Context, Stage, action, durable, pipeline, stage
from flowdeco.cli import main
from flowdeco.cli.ui import work
from flowdeco.cli.ui.guard import Guard
from flowdeco.cli.ui.server import PORT, application
from flowdeco.cli.ui.site import Site
from flowdeco.durable import SqliteJournal
from flowdeco.durable.head import Head

pytest.importorskip("starlette", reason="no starlette here: pip install 'flowdeco[ui]'")
pytest.importorskip("uvicorn", reason="no uvicorn here: pip install 'flowdeco[ui]'")

FLOWS = """
import enum, time
from pathlib import Path
from flowdeco import Context, Stage, action, pipeline, stage

class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"

@stage
def copy(table: str):
    @action(collect="copied")
    def rows():
        return table

@action
def discover(n: int = 3):
    return [copy(str(number)) for number in range(n)]

@action(returns="answer")
def asks(ctx: Context):
    return ctx.wait_for("approval", about="Publish it?", type=bool, timeout=86400)

@action(returns="colour")
def paints(ctx: Context):
    return ctx.wait_for("colour", about={"of": "the page"}, type=Colour)

@action(returns="note")
def notes(ctx: Context):
    return ctx.wait_for("note")

@action
def counts(ctx: Context):
    return ctx.wait_for("count", type=int)

@action
def fails():
    if not Path("mended").exists():
        raise RuntimeError("no bread")

@action
def changes():
    CODE
    raise ValueError("broken")

both = pipeline(discover, asks, paints, name="both")
failing = pipeline(discover, fails, name="failing")
twofold = pipeline(counts, notes, name="twofold")
"""


@pytest.fixture
def flows(tmp_path, monkeypatch):
    """A folder with a module `flows`, of which this process knows nothing afterwards."""
    Path(tmp_path, "flows.py").write_text(FLOWS.replace("CODE", "pass"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(flowdeco.__file__).parent.parent)]))
    sys.modules.pop("flows", None)
    import flows

    yield flows
    sys.modules.pop("flows", None)


class Client:
    """Asks the ASGI application as a browser would that is signed in; what is None is not sent."""

    def __init__(self, path="r.db", host="127.0.0.1", **options):
        self.guard = Guard(host, 1234)
        self.site = Site(str(path), **options)
        self.app = application(self.site, self.guard)
        self.cookie = None
        self.cookie = self.get("/", token=self.guard.token).headers["set-cookie"].partition(";")[0]

    def ask(self, method, path, query="", body=b"", **headers):
        """The response."""
        sent = {"host": "127.0.0.1:1234", "cookie": self.cookie, **headers}
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in sent.items() if value is not None]
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
            "headers": raw, "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 1234), "root_path": "",
        }  # fmt: skip
        got = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            got.append(message)

        asyncio.run(self.app(scope, receive, send))
        first = {name.decode(): value.decode() for name, value in got[0]["headers"]}
        text = b"".join(each.get("body", b"") for each in got[1:]).decode()
        return SimpleNamespace(status=got[0]["status"], headers=first, text=text)

    def get(self, path="/", headers=None, **fields):
        """The response to a GET."""
        return self.ask("GET", path, urlencode(fields), **(headers or {}))

    def post(self, path, headers=None, **fields):
        """The response to a form of a page of this server."""
        body = urlencode(fields).encode()
        return self.ask("POST", path, body=body, **{"origin": "http://127.0.0.1:1234", **(headers or {})})

    def page(self, run_id):
        """The page of a run."""
        reply = self.get("/run", id=run_id)
        assert reply.status == 200
        return reply.text


def until(condition, seconds=20):
    """Wait for something that another process or a browser does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def ended(client):
    """Wait for the end of the process that resumed the latest run."""
    info = durable.runs("r.db")[0]._replace(owner=None)
    until(lambda: not client.site.resumer.note(info)[0])


def data_of(page):
    """The data of a page for its script."""
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)[1])


def status_of(run_id, path="r.db"):
    """The status of a run in the journal."""
    return next(info.status for info in durable.runs(path) if info.id == run_id)


@action
def nothing():
    pass


def many(path, count):
    """Make a journal with so many runs, all copies of one."""
    pipeline(nothing, name="first").run(journal=path, run_id="run-0")
    with sqlite3.connect(path) as connection:
        columns = ", ".join(Head._fields)
        one = Head._make(connection.execute(f"SELECT {columns} FROM runs").fetchone())
        connection.execute("DELETE FROM log")
        for number in range(1, count):
            name = "backup" if number % 2 else "release"
            status = "failed" if number % 100 == 0 else "completed"
            head = one._replace(
                id=number + 1, run_id=f"run-{number}", pipeline=name, status=status, written=0, dropped=0, given=0,
                started=one.started + number,
            )  # fmt: skip
            values = (*head, head.checksum, head.started + 1, "[]")
            connection.execute(
                f"INSERT INTO runs ({columns}, checksum, updated, questions) VALUES ({', '.join('?' * len(values))})",
                values,
            )
    connection.close()
    return path


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """A journal with one finished run."""
    monkeypatch.chdir(tmp_path)
    pipeline(nothing, name="tiny").run(journal="r.db", run_id="one")
    return SqliteJournal("r.db")


# -- who is answered


def test_the_token_becomes_a_cookie(journal):
    """Which scripts and other sites cannot use; the URL that follows has no token."""
    client = Client()
    reply = client.get("/run", {"cookie": None}, id="one & two", token=client.guard.token)
    assert (reply.status, reply.headers["location"]) == (303, "/run?id=one+%26+two")
    name, _, rest = reply.headers["set-cookie"].partition("=")
    assert name == "flowdeco-1234"
    assert rest.partition("; ")[2] == "HttpOnly; SameSite=Strict; Path=/"
    assert client.guard.token not in rest
    assert "tiny" in client.get("/").text


def test_only_pages_of_this_server_follow_the_token(journal):
    """A path that is another host to a browser leads to the list."""
    client = Client()
    assert client.get("//elsewhere.example/", token=client.guard.token).headers["location"] == "/"


@pytest.mark.parametrize("path", ["/", "/run", "/answer", "/assets/ui.js", "/nowhere"])
@pytest.mark.parametrize("cookie", [None, "flowdeco-1234=wrong", "flowdeco-1234=", "other=x"])
def test_without_the_token_nothing_is_shown(journal, path, cookie):
    """Whatever is asked for."""
    reply = Client().get(path, {"cookie": cookie}, id="one")
    assert reply.status == 401
    assert "tiny" not in reply.text
    assert "Open the address that flowdeco ui has printed" in reply.text


def test_a_wrong_token_is_refused(journal):
    """Even with a cookie; and one that was made for a browser is good once."""
    client = Client()
    assert client.get("/", token="wrong").status == client.get("/", token="é").status == 401
    once = client.guard.new_token()
    assert [client.get("/", token=once).status for _ in range(2)] == [303, 401]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:1234", "", "127.0.0.1.evil.example", "[", "localhost.evil"]
)
def test_a_foreign_name_is_refused(journal, host):
    """One that leads here by DNS rebinding, even with the cookie or the token."""
    client = Client()
    for fields in ({}, {"token": client.guard.token}):
        reply = client.get("/", {"host": host}, **fields)
        assert (reply.status, "set-cookie" in reply.headers, "tiny" in reply.text) == (421, False, False)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:1234", "LOCALHOST", "[::1]:99", "192.168.1.7:80", "box.example"]
)
def test_addresses_and_own_names_are_answered(journal, host):
    """Any port: it may be the near end of a tunnel."""
    assert Client(host="box.example").get("/", {"host": host}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": None},
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:99"},
        {"origin": "http://127.0.0.1:1234.evil.example"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_a_form_of_another_site_changes_nothing(flows, headers):
    """Not even one of another port of this host."""
    flows.asks.run(journal="r.db", run_id="r")
    client = Client()
    for path, fields in [("/cancel", {}), ("/resume", {}), ("/answer", {"value:approval": "yes"})]:
        assert client.post(path, headers, run="r", **fields).status == 403
    [info] = durable.runs("r.db")
    assert (info.status, info.answered, info.owner) == ("suspended", False, None)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/cancel", "/resume", "/answer"])
def test_only_a_post_changes_anything(flows, method, path):
    """A link, an image or a prefetch does not."""
    flows.asks.run(journal="r.db", run_id="r")
    fields = urlencode({"run": "r", "value:approval": "yes"})
    reply = Client().ask(method, path, fields, fields.encode(), origin="http://127.0.0.1:1234")
    assert reply.status == 405
    [info] = durable.runs("r.db")
    assert (info.status, info.answered) == ("suspended", False)


def test_every_response_has_the_policy(flows):
    """Scripts and styles of this server only, no frames, nothing cached, no type but the stated one."""
    flows.asks.run(journal="r.db", run_id="r")
    client = Client()
    replies = [
        client.get("/"), client.get("/run", id="r"), client.get("/run", id="none"), client.get("/nowhere"),
        client.get("/", {"cookie": None}), client.get("/", {"host": "evil"}), client.post("/cancel", {"origin": "x"}),
        client.post("/answer", run="r"), client.post("/cancel", run="none"),
    ]  # fmt: skip
    assert [reply.status for reply in replies] == [200, 200, 404, 404, 401, 421, 403, 422, 409]
    for reply in replies:
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")  # of frames with values, in runs
        assert "frame-ancestors 'none'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["referrer-policy"] == "same-origin"
    [stated] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', replies[1].text)
    assert replies[1].headers["content-security-policy"] == f"{stated}; frame-ancestors 'none'"
    assert ["unsafe" in reply.headers["content-security-policy"] for reply in replies[:3]] == [False, True, False]
    assert client.get("/assets/ui.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert client.get("/assets/../ui.py").status == client.get("/assets/__init__.py").status == 404


def test_a_form_that_is_too_large_is_refused(journal):
    """In bytes, or in fields."""
    client = Client()
    assert client.post("/answer", run="x" * (1 << 20)).status == 413
    assert client.post("/answer", **{str(number): "" for number in range(1001)}).status == 413


# -- the list


def test_the_list_shows_each_run(flows):
    """Its status, name, id, start and time, and why it does not continue; the latest first."""
    flows.both.run(journal="r.db", run_id="asking")
    flows.failing.run(journal="r.db", run_id="broken", check=False)
    text = re.sub(r"\s+", " ", Checker(Client().get().text).text)
    failed = text.index("✗ failed failing broken")
    assert "RuntimeError: no bread" in text[failed:]
    assert "asks for approval" in text[text.index("‖ suspended both asking") :]
    assert failed < text.index("both asking")
    assert time.strftime("%Y-%m-%d") in text


def test_a_crashed_run_is_recognized(flows):
    """Its process is gone; how long it took is on its page, which names the step."""
    program = "import os, flows; flows.pipeline(flows.discover, flows.action(lambda: os._exit(1), name='dies'))"
    program += ".run(journal='r.db', run_id='r')"
    subprocess.run([sys.executable, "-c", program], check=False)
    client = Client()
    assert "its process ended" in client.get(status="crashed").text
    page = client.page("r")
    assert '<span class="pill crashed">' in page
    assert "Cancel the run" in page
    assert "It cannot be resumed from here" in page


def test_two_thousand_runs(tmp_path, monkeypatch):
    """Pages, a search and filters."""
    monkeypatch.chdir(tmp_path)
    client = Client(many("r.db", 2000))
    newest, oldest = client.get().text, client.get(page="40").text
    failed, found = client.get(status="failed").text, client.get(q="BACK run-1999").text
    beyond, odd = client.get(page="1000000").text, client.get(page="x", status="nonsense").text
    assert (newest.count("<tr "), "1 to 50 of 2,000" in newest, ">run-1999<" in newest) == (50, True, True)
    assert ("1,951 to 2,000 of 2,000" in oldest, ">run-0<" in oldest, "Page 40 of 40" in oldest) == (True, True, True)
    assert (failed.count("<tr "), "completed <small>1,981" in failed) == (19, True)
    assert (found.count("<tr "), ">run-1999<" in found) == (1, True)
    assert "Page 40 of 40" in beyond
    assert "No run matches." in odd
    assert '<a class="link" href="/?status=failed' not in failed  # one page


def test_links_of_the_list_keep_the_search(tmp_path, monkeypatch):
    """Those to other pages, and those of the filters; whatever was searched for."""
    monkeypatch.chdir(tmp_path)
    client = Client(many("r.db", 300))
    urls = Checker(client.get(q="run-", status="completed", page="2").text).urls
    assert {
        "/?q=run-&status=completed",
        "/?q=run-&status=completed&page=3",
        "/?q=run-",
        "/?q=run-&status=failed",
    } <= set(urls)
    assert EVIL in Checker(client.get(q=EVIL).text.replace('value="', ">")).text


def test_nothing_is_sent_twice(flows):
    """A page that has not changed is not sent again; when the run changes, it is."""
    flows.asks.run(journal="r.db", run_id="r")
    client = Client()
    for path, fields in [("/", {}), ("/run", {"id": "r"})]:
        tag = client.get(path, **fields).headers["etag"]
        again = client.get(path, {"if_none_match": tag}, **fields)
        assert (again.status, again.text, again.headers["etag"]) == (304, "", tag)
        assert f"data-version={tag}" in client.get(path, **fields).text
    durable.answer("r.db", "r", {"approval": True})
    assert client.get("/run", {"if_none_match": tag}, id="r").status == 200


# -- the page of a run


def test_names_from_a_journal_are_text(tmp_path, monkeypatch):
    """In the list, in the page, and in the question with its key; no script but ours."""
    monkeypatch.chdir(tmp_path)

    @action
    def asks(ctx: Context):
        ctx.wait_for(EVIL, about=EVIL, type=str)

    evil().run({EVIL: EVIL}, check=False, run_id=EVIL, journal="r.db")
    Stage(EVIL, [asks]).run(run_id=f"asks {EVIL}", journal="r.db")
    client = Client()
    for reply in (
        client.get(), client.get("/run", id=EVIL), client.get("/run", id=f"asks {EVIL}"), client.get("/run", id=f"no {EVIL}"),
        client.post("/answer", run=f"asks {EVIL}", **{f"value:{EVIL} ": EVIL}),
    ):  # fmt: skip
        checked = Checker(reply.text)
        assert "<script>w" not in reply.text
        assert "hacked" in checked.text
        assert "b" not in checked.tags or reply.text.count("<b>") == reply.text.count("</b>")
    reply = client.post("/answer", run=f"asks {EVIL}", **{f"value:{EVIL}": "yes"})
    assert (reply.status, reply.headers["location"]) == (303, f"/run?id={quote(f'asks {EVIL}', safe='')}&said=answered")
    assert client.get("/run", id=EVIL, said=EVIL).text.count("<script") == 3


def test_the_page_of_a_run_is_that_of_the_command_line(flows, capsys):
    """Apart from the way back, what can be done, and what it loads."""
    flows.failing.run(journal="r.db", run_id="r", check=False)
    served = Client().page("r")
    assert main(["show", "r", "--journal", "r.db", "--html"]) == 0
    written = Path("r.html").read_text()
    body = re.compile(r'<section id="timeline".*(?=<footer>)', re.DOTALL)
    assert body.search(served)[0] == body.search(written)[0]
    assert "Resume the run" in served
    assert "/assets/" not in written
    assert "form-action 'none'" in written


def hostile(path):
    """A journal with a value whose class runs code when it is loaded."""
    pipeline(traps).run(journal=path, run_id="r")
    Trap.sprung = 0


class Trap:
    """Notes that it was loaded."""

    sprung = 0

    def __setstate__(self, state):
        type(self).sprung += 1

    def __getstate__(self):
        return {"a": 1}


@action(returns="trap")
def traps():
    return Trap()


def test_a_pickle_journal_is_shown_without_its_code(tmp_path, monkeypatch):
    """Unless that is asked for, by an option; no URL does."""
    monkeypatch.chdir(tmp_path)
    hostile("r.db")
    client = Client()
    for fields in ({}, {"unpickle": "1"}):
        assert "Trap" in Checker(client.get("/run", id="r", **fields).text).text
    client.post("/answer", run="r", unpickle="1")
    assert Trap.sprung == 0
    assert "Trap" in Checker(Client(unpickle=True).page("r")).text
    assert Trap.sprung
    monkeypatch.delattr(sys.modules[__name__], "Trap")  # which cannot be loaded any more
    page = Client(unpickle=True).page("r")
    assert ('"n":"traps"' in page, "Trap" in Checker(page).text) == (True, True)


class Own(durable.PickleCodec):
    """A codec of the user's."""

    name = "own"


def test_a_run_that_cannot_be_read_is_described(tmp_path, monkeypatch):
    """One in a codec of the user's own, and a damaged one; the list has both."""
    monkeypatch.chdir(tmp_path)
    pipeline(nothing).run(journal=SqliteJournal("r.db", codec=Own()), run_id="own")
    pipeline(nothing).run(journal="r.db", run_id="hurt")
    with sqlite3.connect("r.db") as connection:
        connection.execute("UPDATE runs SET status = 'failed' WHERE run_id = 'hurt'")
    connection.close()
    client = Client()
    assert "only your program knows" in client.page("own")
    assert "damaged" in Checker(client.page("hurt")).text
    assert client.get().text.count("<tr ") == 2
    assert client.get(status="damaged").text.count("<tr ") == 1
    assert client.get("/run", id="none").status == 404


# -- answers


def answers(run_id="r"):
    """The answers that a run has been given."""
    inputs = SqliteJournal("r.db").read(run_id).inputs
    return [durable.PickleCodec().decode(payload) for _, payload in inputs[1:]]


@pytest.mark.parametrize(
    ("flow", "key", "text", "expected"),
    [
        ("asks", "approval", "yes", True),
        ("asks", "approval", "0", False),
        ("counts", "count", " 7 ", 7),
        ("paints", "colour", "BLUE", "Colour.BLUE"),
        ("notes", "note", "two\r\nlines", "two\nlines"),
    ],
)
def test_an_answer_is_converted(flows, flow, key, text, expected):
    """As `resume -i` converts it, by classes of the workflow as well, which is imported in another process."""
    getattr(flows, flow).run(journal="r.db", run_id="r")
    reply = Client().post("/answer", run="r", **{f"value:{key}": text})
    assert (reply.status, reply.headers.get("location")) == (303, "/run?id=r&said=answered")
    [given] = answers()
    assert given == {key: flows.Colour.BLUE if expected == "Colour.BLUE" else expected}
    assert durable.runs("r.db")[0].answered


@pytest.mark.parametrize(
    ("flow", "fields", "message"),
    [
        ("counts", {"value:count": "many"}, "the run asks for it as int, and 'many' is not one"),
        ("paints", {"value:colour": "GREEN"}, "'GREEN' is not one"),
        ("notes", {"value:note": "{", "json:note": "1"}, "it is not valid JSON"),
        ("counts", {"value:count": '"x"', "json:count": "1"}, "is not one"),
        ("counts", {"value:count": ""}, "No answer was given."),
        ("counts", {}, "No answer was given."),
        ("counts", {"value:other": "1"}, "the run does not ask for 'other' any more"),
    ],
)
def test_a_misfit_is_shown_and_changes_nothing(flows, flow, fields, message):
    """Beside the field, in which the text stays."""
    getattr(flows, flow).run(journal="r.db", run_id="r")
    reply = Client().post("/answer", run="r", **fields)
    assert reply.status == 422
    assert message in Checker(reply.text).text.replace("\\'", "'")
    assert 'class="wrong"' in reply.text
    assert answers() == []
    assert not durable.runs("r.db")[0].answered
    for name, value in fields.items():
        if name.startswith("value:") and "other" not in name and value:
            assert f">\n{value}</textarea>" in reply.text or f'value="{value}"' in reply.text.replace("&quot;", '"')
            assert 'aria-invalid="true"' in reply.text
    assert ("checked" in reply.text.partition("textarea>")[2].partition("</form>")[0]) == ("json:note" in fields)


def test_json_is_an_answer(flows):
    """Where no type says what a text means."""
    flows.notes.run(journal="r.db", run_id="r")
    assert Client().post("/answer", run="r", **{"value:note": '{"a": [1]}', "json:note": "1"}).status == 303
    assert answers() == [{"note": {"a": [1]}}]


def test_a_question_is_shown_with_all_it_has(flows):
    """Its key, its type, what it is about, and the deadline."""
    flows.both.run(journal="r.db", run_id="r")
    client = Client()
    page = client.page("r")
    text = Checker(page).text
    assert "approval" in text
    assert "Publish it?" in text
    assert re.search(r'>bool</span>.*until <time datetime="[^"]+">[^<]+</time>, in \d', page, re.DOTALL)
    assert 'type="radio"' in page
    client.post("/answer", run="r", **{"value:approval": "no"})
    assert "It was answered, and has not been resumed yet." in client.page("r")
    assert "Resume the run" in client.page("r")
    flows.paints.run(journal="r.db", run_id="s")
    assert '{ "of": "the page" }' in re.sub(r"\s+", " ", Checker(client.page("s")).text)


def test_a_json_journal_takes_answers(flows):
    """In its own codec."""
    flows.counts.run(journal=SqliteJournal("r.db", codec="json"), run_id="r")
    assert Client().post("/answer", run="r", **{"value:count": "7"}).status == 303
    assert flows.counts.resume("r", journal=SqliteJournal("r.db", codec="json")).result == 7


def test_a_run_of_an_unknown_workflow_takes_answers_of_known_types(tmp_path, monkeypatch):
    """Others are refused: a text would be taken for the answer. It cannot be resumed from here."""
    monkeypatch.chdir(tmp_path)

    class Local:
        pass

    for name, kind in (("known", int), ("unknown", Local)):

        @action
        def asks(ctx: Context, kind=kind):
            ctx.wait_for("key", type=kind)

        asks.run(journal="r.db", run_id=name)
    client = Client()
    assert client.post("/answer", run="known", **{"value:key": "7"}).status == 303
    reply = client.post("/answer", run="unknown", **{"value:key": "7"})
    assert (reply.status, "which the workflow defines: the journal does not know where that is" in reply.text) == (
        422,
        True,
    )
    assert (answers("known"), answers("unknown")) == ([{"key": 7}], [])
    assert "It cannot be resumed from here" in client.page("known")
    assert "Answer and resume" not in client.page("unknown")
    assert client.post("/resume", run="known").status == 409


def test_a_finished_run_takes_no_answer(flows):
    """The page says so, and a run that is gone is not found."""
    run = flows.counts.run(journal="r.db", run_id="r")
    flows.counts.resume("r", {"count": 1}, journal="r.db")
    reply = Client().post("/answer", run="r", **{"value:count": "7"})
    assert (reply.status, run.status) == (422, "suspended")
    for path in ("/answer", "/resume"):
        assert Client().post(path, run="gone").status == 404


def test_an_import_that_ends_its_process_is_reported(flows, monkeypatch):
    """And one that takes too long."""
    flows.counts.run(journal="r.db", run_id="r")
    Path("flows.py").write_text("import os; os._exit(3)")
    client = Client()
    reply = client.post("/answer", run="r", **{"value:count": "7"})
    assert (reply.status, "ended without a reply" in reply.text) == (422, True)
    Path("flows.py").write_text("raise ValueError('broken')")
    assert client.post("/answer", run="r", **{"value:count": "7"}).status == 303  # an int is an int
    Path("flows.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(work, "PATIENCE", 0.1)
    reply = client.post("/answer", run="r", **{"value:count": "7"})
    assert (reply.status, "TimeoutExpired" in reply.text) == (422, True)


# -- cancel and resume


def test_a_run_is_cancelled(flows):
    """Once; then there is nothing to cancel, and it can be resumed."""
    flows.asks.run(journal="r.db", run_id="r")
    client = Client()
    assert "Cancel the run" in client.page("r")
    assert client.post("/cancel", run="r").headers["location"] == "/run?id=r&said=cancelled"
    assert status_of("r") == "cancelled"
    page = client.get("/run", id="r", said="cancelled").text
    assert ("The run was cancelled" in page, "Cancel the run" in page, "Resume the run" in page) == (True, False, True)
    assert (
        "There is no run" in client.post("/cancel", run="gone").text or client.post("/cancel", run="gone").status == 409
    )


def test_a_stage_that_waited_is_cancelled_with_its_run(flows, capsys):
    """On the page, in `show` and in its data; the row of the journal stays as it is."""
    flows.asks.run(journal="r.db", run_id="r")
    client = Client()
    client.post("/cancel", run="r")
    [row] = data_of(client.page("r"))["rows"]
    assert row["s"] == "cancelled"
    main(["show", "r", "--journal", "r.db"])
    assert re.search(r"^asks +cancelled ", capsys.readouterr().out, re.MULTILINE)
    main(["show", "r", "--journal", "r.db", "--json"])
    [shown] = json.loads(capsys.readouterr().out)["stages"]
    assert (shown["status"], [each["status"] for each in shown["actions"]]) == ("cancelled", ["cancelled"])


def test_of_a_run_at_work_no_step_is_told_to_run_that_has_ended(tmp_path, monkeypatch, capsys):
    """An action that stands alone has ended; of a stage with other actions, the rows do not tell."""
    monkeypatch.chdir(tmp_path)
    seen = []

    @action
    def looks():
        seen.append([(row["n"], row["s"], row.get("note")) for row in data_of(Client().page("r"))["rows"]])
        main(["show", "r", "--journal", "r.db"])
        seen.append([re.split("  +", line)[:2] for line in capsys.readouterr().out.splitlines()[-2:]])

    pipeline(nothing, looks, Stage("several", [nothing]), looks).run(journal="r.db", run_id="r")
    assert seen[:2] == [[("nothing", "completed", None)], [["STAGE", "STATUS"], ["nothing", "completed"]]]
    assert seen[2:] == [
        [("nothing", "completed", None), ("looks", "completed", None), ("several", "running", "running here or later")],
        [["several", "running here or later"], ["", "nothing"]],
    ]


def test_a_run_is_resumed_in_a_process_of_its_own(flows):
    """With its answer; while it begins, the page says so."""
    flows.both.run(journal="r.db", run_id="r")
    client = Client()
    reply = client.post("/answer", run="r", then="resume", **{"value:approval": "yes"})
    assert reply.headers["location"] == "/run?id=r&said=resuming"
    until(lambda: durable.runs("r.db")[0].questions[:1] and durable.runs("r.db")[0].questions[0].key == "colour")
    client.post("/answer", run="r", then="resume", **{"value:colour": "r"})
    until(lambda: status_of("r") == "completed")
    assert durable.read("r.db", "r")["colour"] is flows.Colour.RED
    ended(client)


def test_a_refused_resume_is_reported(flows):
    """With the error of its process: here the code has changed."""
    flows.changes.run(journal="r.db", run_id="r", check=False)
    flows.failing.run(journal="r.db", run_id="s", check=False)
    Path("flows.py").write_text("nothing = 1")
    client = Client()
    assert client.post("/resume", run="r").status == 303
    client.post("/resume", run="r")  # it is being resumed: nothing more is started
    until(lambda: "It could not be resumed" in client.page("r"))
    assert "has no member" in client.page("r") or "changes" in client.page("r")


def test_a_run_that_fails_again_is_no_refusal(flows):
    """The page has its failure already."""
    flows.failing.run(journal="r.db", run_id="s", check=False)
    client = Client()
    before = durable.runs("r.db")[0].updated
    client.post("/resume", run="s")
    until(lambda: durable.runs("r.db")[0].updated > before and status_of("s") == "failed")
    ended(client)
    assert "It could not be resumed" not in client.page("s")


# -- the command


@pytest.fixture
def serving():
    """Start the command, and return its process and its URL; end it with a signal."""
    processes = []

    def start(path, *options):
        process = subprocess.Popen(
            [sys.executable, "-m", "flowdeco", "ui", str(path), "--no-open", *options], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
        line = process.stdout.readline()
        assert "http://" in line, process.stderr.read()
        return process, line.split(": ", 1)[1].strip()

    yield start
    for process in processes:
        process.terminate()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly(journal, serving, number):
    """On Ctrl-C as `wake --watch` does, with a browser connected to it."""
    process, url = serving("r.db", "--port", "0")
    port = int(re.search(r":(\d+)/", url)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {url[url.index('/?') :]} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 303")
        process.send_signal(number)
        _, said = process.communicate(timeout=10)
    assert process.returncode == 0
    assert said == "flowdeco: Ctrl-C ends it; runs that it has resumed continue\n"


def test_a_browser_is_given_a_token_of_its_own(journal, capsys, monkeypatch):
    """Good once: others can read the command line of a browser."""
    seen = []

    def opened(url):
        seen.append(url)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("webbrowser.open", opened)
    handlers = signal.getsignal(signal.SIGTERM)
    assert main(["ui", "r.db", "--port", "0", "--open"]) == 0
    [url] = seen
    printed = capsys.readouterr().out.split(": ", 1)[1].strip()
    assert url != printed
    assert url.partition("token=")[0] == printed.partition("token=")[0]
    assert signal.getsignal(signal.SIGTERM) is handlers


def test_a_port_that_is_taken(journal, serving, capsys):
    """The next one is used; one that was named is an error."""
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", PORT))
            taken.listen()
        except OSError:
            pass  # by someone else: as good
        _, url = serving("r.db")
        assert int(re.search(r":(\d+)/", url)[1]) > PORT
        assert main(["ui", "r.db", "--port", str(PORT)]) == 2
    assert f"--port {PORT}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.db"], "there is no journal gone.db"),
        (["text.db"], "text.db"),
        (["r.db", "--port", "70000"], "expected a number from 0 to 65535"),
        (["r.db", "--host", "no.such.host.invalid"], "--host no.such.host.invalid: there is no such address"),
    ],
)
def test_wrong_usage(journal, capsys, arguments, message):
    """Is reported before anything is served."""
    Path("text.db").write_text("This is a text and not a journal. " * 100)
    assert main(["ui", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_other_machines_are_warned_of(journal, serving):
    """And so is unpickling."""
    process, url = serving("r.db", "--port", "0", "--host", "0.0.0.0", "--unpickle")
    assert url.startswith("http://127.0.0.1:")
    process.terminate()
    _, said = process.communicate()
    assert "--host 0.0.0.0: other machines can reach it" in said
    assert "--unpickle: whoever can write the journal can run code" in said


def test_without_the_extra(journal, capsys, monkeypatch):
    """The error names it."""
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert main(["ui", "r.db"]) == 2
    assert capsys.readouterr().err == (
        "flowdeco: error: flowdeco ui needs starlette and uvicorn: pip install 'flowdeco[ui]'\n"
    )


def test_help_loads_no_server(journal):
    """Nor do other commands."""
    script = "import sys; from flowdeco.cli import main; main(['ui', '--help']); main(['runs', '--journal', 'r.db'])"
    script += "; print({'starlette', 'uvicorn', 'asyncio', 'flowdeco.cli.ui'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "flowdeco ui runs.db" in out
    assert out.endswith("\nset()\n")


# -- in a browser


@pytest.fixture(scope="module")
def browser():
    """One for all tests."""
    with started() as found:
        yield found


class Tabs:
    """Tabs of one browser window, and what they reported."""

    def __init__(self, browser, url, **options):
        self.url, self.base = url, url.partition("?")[0]
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        self.context.set_default_timeout(30_000)
        self.said = []

    def open(self, path=""):
        """A new tab."""
        page = self.context.new_page()
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        if not self.context.cookies():
            page.goto(self.url)
        page.goto(self.base + path)
        return page

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.context.close()


def findings(page):
    """The problems that axe-core finds in a page."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="no axe here: pip install 'flowdeco[test]'"
    )
    found = axe.Axe().run(page).response["violations"]
    return [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]


def test_the_pages_are_accessible(flows, serving, browser):
    """Axe-core finds nothing, and no text is pale: light and dark, wide and narrow, with a refused form."""
    flows.both.run(journal="r.db", run_id="asking")
    flows.failing.run(journal="r.db", run_id="broken", check=False)
    _, url = serving("r.db", "--port", "0")
    for scheme, width in (("light", 1200), ("dark", 400)):
        with Tabs(browser, url, color_scheme=scheme, viewport={"width": width, "height": 800}) as tabs:
            for path in (
                ("", "run?id=asking") if scheme == "dark" else ("", "run?id=broken", "run?id=asking", "run?id=gone")
            ):
                page = tabs.open(path)
                if path.endswith("asking"):
                    page.get_by_text("Record the answer").click()
                    page.wait_for_selector(".wrong")
                assert findings(page) == []
                assert page.evaluate(PALE, 4.5) == []
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert [said for said in tabs.said if "404" not in said and "422" not in said] == []


class Turnstile:
    """Lets the stages of a run begin one by one."""

    gate = threading.Semaphore(0)


@stage
def turn(name):
    @action
    def passes():
        """Waits for its turn."""
        Turnstile.gate.acquire()


@action
def begins() -> list[Stage]:
    return [turn(f"{number:02}") for number in range(40)]


def test_a_page_follows_its_run(tmp_path, monkeypatch, serving, browser):
    """New stages appear; the focus, the place, the filter and what was opened stay as they are."""
    monkeypatch.chdir(tmp_path)
    thread = threading.Thread(target=pipeline(begins, name="growing").run, kwargs={"journal": "r.db", "run_id": "r"})
    thread.start()
    try:
        for _ in range(12):
            Turnstile.gate.release()
        until(lambda: Path("r.db").exists() and [info.steps >= 20 for info in durable.runs("r.db")] == [True])
        _, url = serving("r.db", "--port", "0")
        with Tabs(browser, url, viewport={"width": 1200, "height": 500}) as tabs:
            page = tabs.open("run?id=r")
            row = page.locator("#rows .line", has_text="turn[03]")
            row.click()
            page.evaluate("document.querySelector('#rows .detail').marked = true; window.scrollBy(0, 120)")
            page.wait_for_timeout(100)
            place = "document.querySelector('#rows .detail').getBoundingClientRect().top"
            before, names = page.evaluate(place), page.locator("#rows .line .name")
            count = names.count()
            for _ in range(5):
                Turnstile.gate.release()
            until(lambda: page.evaluate(f"document.querySelectorAll('#rows .line .name').length >= {count + 5}"))
            assert page.evaluate("document.activeElement.textContent").count("turn[03]") == 1
            assert page.evaluate("document.querySelector('#rows .detail').marked") is True
            assert abs(page.evaluate(place) - before) < 2
            assert page.locator(".pill").inner_text().split() == ["▸", "running"]
            page.locator("#find").fill("turn[1")
            page.locator("#find").focus()
            shown = names.count()
            for _ in range(60):  # from 30 on, they are collapsed: not those that the reader has opened
                Turnstile.gate.release()
            until(lambda: page.evaluate("document.querySelector('.pill').textContent.includes('completed')"))
            assert page.evaluate("document.activeElement.id") == "find"
            assert (page.locator("#find").input_value(), names.count() > shown) == ("turn[1", True)
            assert page.locator("#live").inner_text() == "The run is completed"
            page.locator("#find").fill("")
            page.wait_for_selector("#rows .line >> text=turn[39]")
            assert page.locator("#rows .detail").count() == 1
            assert findings(page) == []
            assert tabs.said == []
    finally:
        for _ in range(100):
            Turnstile.gate.release()
        thread.join()


def test_a_failed_run_is_resumed_in_view(flows, serving, browser):
    """Its failure disappears, and so does the button."""
    flows.failing.run(journal="r.db", run_id="-f", check=False)
    _, url = serving("r.db", "--port", "0")
    Path("mended").touch()
    with Tabs(browser, url) as tabs:
        page = tabs.open("run?id=-f")
        assert page.locator("#alarm .said").inner_text() == "RuntimeError: no bread"
        page.get_by_text("Resume the run").click()
        page.wait_for_selector(".pill.completed")
        assert page.locator("#alarm").count() == page.locator("button.main").count() == 0
        assert page.locator("#rows .line .failed").count() == 0
        page.wait_for_url(f"{tabs.base}run?id=-f")
        assert tabs.said == []


def test_two_tabs(flows, serving, browser):
    """An answer in one is seen in the other, which keeps what was typed; both see the end, and the list too."""
    flows.twofold.run(journal="r.db", run_id="r")
    _, url = serving("r.db", "--port", "0")
    with Tabs(browser, url) as tabs:
        overview, one, two = tabs.open(), tabs.open("run?id=r"), tabs.open("run?id=r")
        two.get_by_label("count").fill("8")
        one.get_by_label("count").fill("many")
        one.get_by_text("Record the answer").click()
        one.wait_for_selector(".wrong")
        one.wait_for_url(f"{tabs.base}run?id=r")
        one.get_by_label("count").fill("7")
        one.get_by_text("Record the answer").click()
        one.wait_for_selector("text=The answer is recorded")
        two.wait_for_selector("text=It was answered")
        assert two.get_by_label("count").input_value() == "8"
        assert two.evaluate("document.activeElement.id") == "value-0"
        overview.wait_for_selector("td >> text=answered")
        one.get_by_text("Resume the run").click()
        two.wait_for_selector("label >> text=note")
        two.get_by_label("note").fill("done")
        two.get_by_text("Answer and resume").click()
        for tab in (one, two):
            tab.wait_for_selector(".pill.completed")
        overview.wait_for_selector(".state.completed")
        assert [said for said in tabs.said if "422" not in said] == []


def test_the_list_is_searched_while_one_types(tmp_path, monkeypatch, serving, browser):
    """Among 2,000 runs; the address has the search, and a run that begins appears."""
    monkeypatch.chdir(tmp_path)
    process, url = serving(many("r.db", 2000), "--port", "0")
    with Tabs(browser, url) as tabs:
        page = tabs.open()
        assert page.locator("tbody tr").count() == 50
        page.keyboard.press("/")
        page.keyboard.type("run-90")
        until(lambda: page.evaluate("document.querySelectorAll('tbody tr').length === 11"))
        page.wait_for_url(f"{tabs.base}?q=run-90")
        assert page.evaluate("document.activeElement.id") == "search"
        pipeline(nothing, name="latest").run(journal="r.db", run_id="run-90-again")
        until(lambda: page.evaluate("document.querySelectorAll('tbody tr').length === 12"))
        page.locator(".chip", has_text="failed").click()
        page.wait_for_url(f"{tabs.base}?q=run-90&status=failed")
        page.go_back()
        process.terminate()
        page.wait_for_selector("text=does not answer any more")
