"""The page of a run: one self-contained HTML file that loads nothing and runs only its own script.

Text is escaped by `html.text`, data for the script is JSON in which nothing can end the script element, and a content
security policy forbids everything else.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import cache
from hashlib import sha256
from typing import Any, Final

from flowdeco.durable.info import as_text, questions_of
from flowdeco.engine.runs import Run
from flowdeco.show.failures import Failure, failure_of
from flowdeco.show.formatting import MARKS, duration
from flowdeco.show.html import name, text
from flowdeco.show.known_values import known_values
from flowdeco.show.page_data import PageData
from flowdeco.show.parts import count_stages, walk
from flowdeco.show.plan import Change, Diff
from flowdeco.show.redaction import Redact, redactor
from flowdeco.show.store_summary import summarize

__all__ = ["page"]

MOST_CHANGES: Final = 100
MOST_KEYS: Final = 500
SHORT_KEY: Final = 28


def page(run: Run, diff: Diff, *, values: bool = False) -> str:
    """Return the page; it shows the types and sizes of the values in the store, with `values` the values themselves."""
    failures = {id(error): failure_of(error) for error in _errors(run)}
    redact = _unredacted if values else _redact_of(run, diff, failures.values())
    redacted = {exception: failure.redacted(redact) for exception, failure in failures.items()}
    data = PageData(run, diff.parts, redact, redacted)
    return _filled(
        _asset("page.html"),
        {
            "TITLE": text(run.pipeline.title),
            "STATUS": str(run.status),
            "MARK": MARKS[run.status],
            "ABOUT": f'<p class="about">{text(run.pipeline.description)}</p>' if run.pipeline.description else "",
            "FACTS": "".join(_facts(run, diff)),
            "ALARM": _alarm(run, redact),
            "LANES": f"{data.lanes} side by side" if data.lanes > 1 else "",
            "LEGEND": "".join(data.legend()),
            "DIFF": _differences(diff, redact),
            "STORE": _store(run, values),
            "TEXT": text(redact(diff.ran.text()), lines=True),
            "FOOT": _foot(),
            "DATA": json_in_html(data.as_json()),
            "STYLE": _asset("page.css"),
            "STYLE_HASH": _hash(_asset("page.css")),
            "SCRIPT": _asset("page.js"),
            "SCRIPT_HASH": _hash(_asset("page.js")),
        },
    )


@cache
def _asset(name: str) -> str:
    from importlib.resources import files

    return files("flowdeco.show").joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return b64encode(sha256(source.encode()).digest()).decode()


def _filled(template: str, content: dict[str, str]) -> str:
    """Fill the template in one pass: the content of a placeholder is never searched for others."""
    return re.sub(r"@@([A-Z_]+)@@", lambda found: content[found[1]], template)


_UNSAFE: Final = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def json_in_html(data: Any) -> str:
    """Return data as JSON for a script element: without `</script>` and `<!--`, in ASCII."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=True).translate(_UNSAFE)


def _redact_of(run: Run, diff: Diff, failures: Iterable[Failure]) -> Redact:
    known = known_values(run, _errors(run))
    names = {word for _, part in walk(diff.parts) for word in (part.name, *part.tags)}
    texts = (text for failure in failures for text in failure.texts())
    return redactor(known.values, {run.pipeline.name, *run.store, *names, *known.public}, (str(run.reason), *texts))


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


def _facts(run: Run, diff: Diff) -> Iterator[str]:
    stages, inserted = count_stages(diff.ran.parts)
    note = f" <small>{inserted:,} inserted</small>" if inserted else ""
    yield _fact("Stages", f"{stages:,}{note}")
    yield _fact("Took", duration(run.elapsed))
    if run.started:
        yield _fact("Started", _moment(run.started))
    yield _fact("Run", f'<span class="mono">{text(run.id)}</span>')
    if run.forgotten:
        yield _fact("Forgotten", f"{run.forgotten:,} <small>earlier stages, as history= says</small>")


def _fact(name: str, value: str) -> str:
    return f"<div><dt>{name}</dt><dd>{value}</dd></div>"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z").strip()


def _foot() -> str:
    import flowdeco  # the package, which is fully imported by now

    return f"Made by flowdeco {text(flowdeco.__version__)}. The page is complete in itself: it loads nothing."


def _alarm(run: Run, redact: Redact) -> str:
    if run.error is not None:
        error = text(redact(f"{type(run.error).__name__}"))
        return (
            f'<section class="alarm" id="alarm" aria-labelledby="h-alarm"><h2 id="h-alarm">The run {run.status}</h2>'
            f"<noscript><p>{error}</p></noscript></section>"
        )
    lines = [str(run.reason), *(f"asks for {as_text(each)}" for each in questions_of(run.waits))] if run.reason else []
    return f'<p class="reason">{"<br>".join(text(redact(line)) for line in lines)}</p>' if lines else ""


# The differences between plan and run, and the store.


def _differences(diff: Diff, redact: Redact) -> str:
    kinds: dict[str, list[Change]] = {}
    for change in diff.changes:
        kinds.setdefault(change.what, []).append(change)
    title = '<h2 id="h-diff">Plan and run<small>the differences</small></h2>'
    head = f'<section id="diff" aria-labelledby="h-diff">{title}'
    if not kinds:
        return f'{head}<p class="changes">Everything ran as planned.</p></section>'
    counts = "".join(f"<span><b>{len(changes):,}</b> {kind}</span>" for kind, changes in kinds.items())
    lists = "".join(_changes_of(kind, changes, redact) for kind, changes in kinds.items())
    return f'{head}<div class="counts">{counts}</div><div class="changes">{lists}</div></section>'


def _changes_of(kind: str, changes: list[Change], redact: Redact) -> str:
    items: list[str] = []
    for change in changes[:MOST_CHANGES]:
        by = f'<span class="by">by {text(change.by)}</span>' if change.by else ""
        why = f'<span class="note">{text(redact(change.why))}</span>' if change.why else ""
        items.append(f'<li><span class="mono">{text(change.where)}</span>{by}{why}</li>')
    if len(changes) > MOST_CHANGES:
        items.append(f"<li>… {len(changes) - MOST_CHANGES:,} more: filter the stages above</li>")
    opened = " open" if len(changes) <= 5 else ""
    return (
        f"<details{opened}><summary>{kind[:1].upper()}{kind[1:]} <small>{len(changes):,}</small></summary>"
        f"<ul>{''.join(items)}</ul></details>"
    )


def _store(run: Run, values: bool) -> str:
    hint = "" if values else "<small>types and sizes; values on request</small>"
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
