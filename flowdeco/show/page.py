"""The page of a run: one self-contained HTML file that loads nothing and runs only its own script.

Text is escaped by `html.text`, data for the script is JSON in which nothing can end the script element, and a content
security policy forbids everything else.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from itertools import islice, pairwise
from typing import Any, Final, NamedTuple

from flowdeco.durable.info import as_text, questions_of, resume_command
from flowdeco.engine.runs import Run
from flowdeco.errors import utc
from flowdeco.show.failures import Failure, failure_of
from flowdeco.show.formatting import MARKS, duration, state
from flowdeco.show.html import asset, filled, name, text
from flowdeco.show.known_values import known_values
from flowdeco.show.messages import has_html, texts_of
from flowdeco.show.page_data import PageData
from flowdeco.show.parts import Part, count_stages, walk
from flowdeco.show.plan import Change, Diff, Ran
from flowdeco.show.redaction import Redact, redactor
from flowdeco.show.store_summary import summarize
from flowdeco.show.tree import Node, grown

__all__ = ["Served", "page", "policy"]

MOST_CHANGES: Final = 100
MOST_KEYS: Final = 500
MOST_PLANNED: Final = 100
SHORT_KEY: Final = 28


class Served(NamedTuple):
    """HTML that a server adds to a page: in its head, in the line above its title, and below its status."""

    head: str
    above: str
    actions: str


def page(
    run: Run, ran: Ran, diff: Diff | None, *, values: bool = False, resume: str = "", served: Served | None = None
) -> str:
    """Return the page; it shows the types and sizes of the values in the store, with `values` the values themselves.

    `diff` compares the run with its plan, None where that is not known. `resume` is the command that resumes the run, where
    it is known better than the run knows it. `served` makes it a page that a server updates.
    """
    failures = {id(error): failure_of(error) for error in _errors(run)}
    parts = ran.parts if diff is None else diff.parts
    redact = _unredacted if values else _redact_of(run, parts, failures.values())
    redacted = {exception: failure.redacted(redact) for exception, failure in failures.items()}
    data = PageData(run, parts, redact, redacted)
    return filled(
        asset("page.html"),
        TITLE=text(run.pipeline.title),
        STATUS=str(ran.status),
        MARK=MARKS[ran.status],
        ABOUT=f'<p class="about">{text(run.pipeline.description)}</p>' if run.pipeline.description else "",
        FACTS="".join(_facts(run, ran)),
        ALARM=_alarm(run, ran, redact),
        LANES=f"{data.lanes} side by side" if data.lanes > 1 else "",
        RESUME=_resume(resume or _resume_command(run)),
        LEGEND="".join(data.legend()),
        DIFF="" if diff is None else _differences(diff, redact),
        STORE=_store(run, values),
        TEXT=text(redact(ran.text()), lines=True),
        FOOT=_foot(served is not None),
        POLICY=policy(served=served is not None, frames=served is not None or has_html(run)),
        HEAD=served.head if served else "",
        ABOVE=served.above if served else "flowdeco run",
        ACTIONS=served.actions if served else "",
        DATA=json_in_html(data.as_json()),
        STYLE=asset("page.css"),
        SCRIPT=asset("page.js"),
    )


@cache
def policy(*, served: bool = False, frames: bool = False) -> str:
    """Return the content security policy of a page; one that is served may use files and forms of its server.

    The frame of a value that is HTML inherits it, and has styles of its own. A run that is served may get one later.
    """
    own, forms = (" 'self'", "form-action 'self'; connect-src 'self'") if served else ("", "form-action 'none'")
    style = "'unsafe-inline'" if frames else f"'sha256-{_hash(asset('page.css'))}'"
    script = f"'sha256-{_hash(asset('page.js'))}'"
    return (
        f"default-src 'none'; style-src {style}{own}; script-src {script}{own}; img-src data:; base-uri 'none'; {forms}"
    )


def _hash(source: str) -> str:
    return b64encode(sha256(source.encode()).digest()).decode()


_UNSAFE: Final = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def json_in_html(data: Any) -> str:
    """Return data as JSON for a script element: without `</script>` and `<!--`, in ASCII."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=True).translate(_UNSAFE)


def _redact_of(run: Run, parts: Iterable[Part], failures: Iterable[Failure]) -> Redact:
    known = known_values(run, _errors(run))
    names = {word for part in walk(parts) for word in (part.name, *part.tags)}
    texts = (text for failure in failures for text in failure.texts())
    public = {run.pipeline.name, *run.store, *names, *known.public}
    return redactor(known.values, public, (str(run.reason), *texts, *texts_of(run)))


def _unredacted(text: str) -> str:
    return text


def _errors(run: Run) -> Iterator[BaseException]:
    if run.error is not None:
        yield run.error
    stages_and_actions = (each for record in run.stages for each in (record, *record.actions))
    for did in (*run.pipelines, *stages_and_actions):
        yield from did.failures
        if did.error is not None:
            yield did.error


# The head of the page.


def _facts(run: Run, ran: Ran) -> Iterator[str]:
    stages, inserted = count_stages(ran.parts)
    note = f" <small>{inserted:,} inserted</small>" if inserted else ""
    yield _fact("Stages", f"{stages:,}{note}")
    yield _fact("Took", duration(run.elapsed))
    if run.started:
        yield _fact("Started", utc(run.started))
    if run.resumed:
        times = f" <small>{len(run.resumed):,} times</small>" if len(run.resumed) > 1 else ""
        yield _fact("Resumed", f"{utc(run.resumed[-1])}{times}")
    yield _fact("Run", f'<span class="mono">{text(run.id)}</span>')
    if run.forgotten:
        yield _fact("Forgotten", f"{run.forgotten:,} <small>earlier stages were dropped (history=)</small>")


def _fact(name: str, value: str) -> str:
    return f"<div><dt>{name}</dt><dd>{value}</dd></div>"


def _foot(served: bool) -> str:
    import flowdeco  # the package, which is fully imported by now

    note = "This page follows the run." if served else "This page is self-contained: it loads nothing."
    return f"Made by flowdeco {text(flowdeco.__version__)}. {note}"


def _alarm(run: Run, ran: Ran, redact: Redact) -> str:
    if run.error is not None:
        error = text(redact(type(run.error).__name__))
        verb = "was cancelled" if run.status == "cancelled" else run.status
        return (
            f'<section class="alarm" id="alarm" aria-labelledby="h-alarm"><h2 id="h-alarm">The run {verb}</h2>'
            f"<noscript><p>{error}</p></noscript></section>"
        )
    reason = "Its process ended while it was running." if str(ran.status) == "crashed" else str(run.reason or "")
    lines = [reason, *(f"asks for {as_text(each)}" for each in questions_of(run.waits))] if reason else []
    return f'<p class="reason">{"<br>".join(text(redact(line)) for line in lines)}</p>' if lines else ""


def _resume_command(run: Run) -> str:
    journal: Any = run.resumption.journal if run.resumption is not None else None
    path = getattr(journal, "path", None)
    if path is None:
        return ""
    keys = [question.key for question in questions_of(run.waits)]
    return resume_command(run.id, str(run.status), keys, str(path), known=bool(getattr(journal, "entry", None)))


def _resume(command: str) -> str:
    if not command:
        return ""
    return (
        f'<section class="resume" aria-label="Resume">To resume: <code id="command">{text(command)}</code> '
        f'<button type="button" class="link" id="copy">Copy</button></section>'
    )


# The plan, its differences from the run, and the store.


def _planned(nodes: Sequence[Node]) -> str:
    """Return the plan as a list, with what became of each unit, and how many stages it inserted, and these in turn."""
    items: list[str] = []
    planned = [at for at, node in enumerate(nodes) if not node.part.is_dynamic]
    for at, after in islice(pairwise([*planned, len(nodes)]), MOST_PLANNED):
        node = nodes[at]
        part = node.part
        inside = _planned(grown(part.parts)) if part.kind in ("pipeline", "parallel", "branch") else ""
        if part.kind == "branch":
            alone = inside.removeprefix("<ol>").removesuffix("</ol>")
            items.append(f"<li>{inside}</li>" if len(part.parts) > 1 else alone)
            continue
        word = state(part)
        shown = text(part.name)
        if part.kind == "stage" and part.record is not None:
            shown = f'<a href="#stage-{part.record}">{shown}</a>'
        kind = f' <span class="kind">{part.kind}</span>' if part.kind not in ("stage", part.name) else ""
        outcome = "not reached" if word == "pending" and not part.ahead else word
        note = "" if word == "completed" else f' <span class="kind">{outcome}</span>'
        turns = [each for each in nodes[at + 1 : after] if (each.part.kind, each.part.name) == (part.kind, part.name)]
        below = (*node.below(), *(one for each in turns for one in (each, *each.below())))
        inserted = count_stages([one.part for one in below])[1]
        fresh = f' <span class="by">+ {inserted:,} inserted</span>' if inserted else ""
        mark = f'<span class="mark {word}" aria-hidden="true">{MARKS[word].strip()}</span>'
        items.append(f'<li>{mark}<span class="name">{shown}</span>{kind}{note}{fresh}{inside}</li>')
    if len(planned) > MOST_PLANNED:
        items.append(f"<li>… {len(planned) - MOST_PLANNED:,} more</li>")
    return f"<ol>{''.join(items)}</ol>"


def _differences(diff: Diff, redact: Redact) -> str:
    kinds: dict[str, list[Change]] = {}
    for change in diff.changes:
        kinds.setdefault(change.what, []).append(change)
    title, planned = '<h2 id="h-diff">Plan and run</h2>', _planned(grown(diff.parts))
    head = f'<section id="diff" aria-labelledby="h-diff">{title}<div class="planned">{planned}</div>'
    if not kinds:
        return f'{head}<p class="changes">Everything ran as planned.</p></section>'
    counts = "".join(f"<span><b>{len(changes):,}</b> {kind}</span>" for kind, changes in kinds.items())
    lists = "".join(_changes_of(kind, changes, redact) for kind, changes in kinds.items())
    return f'{head}<div class="counts">{counts}</div><div class="changes">{lists}</div></section>'


def _changes_of(kind: str, changes: list[Change], redact: Redact) -> str:
    items: list[str] = []
    for change in changes[:MOST_CHANGES]:
        by = f' <span class="by">by {text(change.by)}</span>' if change.by else ""
        why = f' <span class="note">{text(redact(change.why))}</span>' if change.why else ""
        items.append(f'<li><span class="mono">{text(change.where)}</span>{by}{why}</li>')
    if len(changes) > MOST_CHANGES:
        items.append(f"<li>… {len(changes) - MOST_CHANGES:,} more: filter the stages above</li>")
    opened = " open" if len(changes) <= 5 else ""
    return (
        f"<details{opened}><summary>{kind[:1].upper()}{kind[1:]} <small>{len(changes):,}</small></summary>"
        f"<ul>{''.join(items)}</ul></details>"
    )


def _store(run: Run, values: bool) -> str:
    hint = "" if values else " <small>types and sizes; values on request</small>"
    head = f'<section id="store" aria-labelledby="h-store"><h2 id="h-store">Store{hint}</h2><div class="wide">'
    if not len(run.store):
        return f"{head}<p>It is empty.</p></div></section>"
    rows: list[str] = []
    for one in summarize(run.store, values=values):
        if len(rows) == MOST_KEYS:
            rows.append(f"<tr><td>… {len(run.store) - MOST_KEYS:,} more</td></tr>")
            break
        value = f"<td><pre>{text(one.value, lines=True)}</pre></td>" if one.value is not None else ""
        rows.append(f'<tr>{_cell(one.key)}{_cell(one.type)}<td class="whole">{one.size}</td>{value}</tr>')
    column = '<th scope="col">Value</th>' if values else ""
    return (
        f'{head}<table><thead><tr><th scope="col">Key</th><th scope="col">Type</th><th scope="col">Size</th>{column}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _cell(value: str) -> str:
    """Return a cell with a name: a short one stays in one line, a long one breaks."""
    return f'<td class="whole">{text(value)}</td>' if len(value) <= SHORT_KEY else f"<td>{name(value)}</td>"
