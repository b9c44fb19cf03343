"""Runs to look at: what the tests of plans, pages and notebooks show."""

import html.parser

from flowdeco import Stage, action, parallel, pipeline, stage
from flowdeco.middleware import recover, retry

SECRET = "hunter2-of-the-store"


@stage(tags=["dynamic"])
def process(kind):
    """Process one kind of resource."""

    @action(collect="processed")
    def handle():
        return f"processed {kind}"


def many(count):
    """Inserts so many stages."""

    @action(name="many")
    def insert() -> list[Stage]:
        return [process(str(number)) for number in range(count)]

    return insert


@action
def discover() -> list[Stage]:
    return [process(kind) for kind in ("databases", "caches", "servers")]


@stage(tags=["reporting"], title="The report", description="Put it into words.", data={"report.title": "Resources"})
def report():
    @action(tags=["words"])
    def summary(processed: list, title: str = "") -> str:
        return f"{len(processed)} processed"

    @action
    def mail(summary: str) -> None:
        pass


def ok(name):
    """A stage with two actions."""
    return Stage(name, [action(name=f"{name}1")(lambda: None), action(name=f"{name}2")(lambda: None)])


def flaky():
    """Succeeds at the third attempt."""
    calls = []

    @action(name="flaky", use=[retry(on=ValueError, wait=0)])
    def body() -> int:
        calls.append(1)
        if len(calls) % 3:
            raise ValueError("not yet")
        return 1

    return body


@action(use=[recover(on=ValueError)])
def saved() -> int:
    raise ValueError("gone")


@action
def broken(password: str = "") -> None:
    local = f"local {password}"
    raise RuntimeError(f"login failed with {local}")


@stage
def tidy():
    @action
    def sweep():
        pass


GROUP = parallel(
    ok("a") >> ok("b"),
    discover,
    pipeline(ok("c"), saved, name="inner", use=[recover(on=KeyError)]),
    name="fetch",
    limit=2,
    tags=["net"],
)


def full():
    """Everything at once, and it works."""
    return pipeline(discover, GROUP, report, flaky(), saved, tidy, name="full", title="All of it")


def failing():
    """It fails in the fourth stage."""
    return pipeline(discover, flaky(), tidy, broken, report, name="failing")


EVIL = "</script><script>window.hacked = 1</script><!-- <b>&amp; \" '"


def evil():
    """Names that are markup, everywhere where somebody chooses a name."""

    @action(name=EVIL, tags=[EVIL], description=EVIL)
    def body():
        raise KeyError(EVIL)

    unit = Stage(EVIL, [body], title=EVIL, tags=[EVIL], description=EVIL, data={EVIL: 1})
    return pipeline(
        parallel(Stage("<script>"), name=EVIL), unit, Stage(f"after {EVIL}"), name=EVIL, title=EVIL, description=EVIL
    )


VOID = {"meta", "link", "br", "input", "img", "hr", "wbr"}


class Checker(html.parser.HTMLParser):
    """Collects the tags and texts of a document, and fails where tags do not match."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.texts, self.urls, self.broken = [], set(), [], [], False
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.broken = tag == "wbr"  # within a name
        self.tags.add(tag)
        self.urls.extend(value for name, value in attrs if name in ("src", "href"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        self.broken = False
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.broken:
            self.texts[-1] += data
        elif "style" not in self.open:
            self.texts.append(data)
        self.broken = False

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())
