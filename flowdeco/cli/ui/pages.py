"""The HTML of the pages: the list of runs, and the parts added to the page of a run.

Every string from a journal is escaped by `text`, and every one in a URL by `quote`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from flowdeco.cli.journals import state_of, workflow_name
from flowdeco.cli.report import shortened
from flowdeco.cli.ui.work import Problem
from flowdeco.cli.wake import why_not
from flowdeco.durable import Question, RunInfo
from flowdeco.durable.info import as_text
from flowdeco.errors import utc
from flowdeco.show.formatting import MARKS, duration
from flowdeco.show.html import asset, filled, name, text
from flowdeco.show.page import Served, policy

__all__ = ["Attempt", "Listing", "list_page", "message", "run_url", "served", "strict", "unreadable_page"]

_SAID: Final = {
    "answered": "The answer is recorded. The run has it as soon as it is resumed.",
    "resuming": "A process was started to resume the run.",
    "cancelled": "The run was cancelled. If it is running, it stops at its next step.",
}


class Listing(NamedTuple):
    """The part of a list of runs that is shown: `counts` by status are those of the search."""

    journal: str
    search: str
    status: str
    page: int
    pages: int
    first: int
    total: int
    counts: Mapping[str, int]
    infos: Sequence[RunInfo]


class Attempt(NamedTuple):
    """Answers that were refused: shown again, with the problem."""

    values: Mapping[str, str]
    as_json: frozenset[str]
    problem: Problem


_POLICY: Final = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')


def strict(html: str = "") -> str:
    """Return the content security policy of a response: that of its page, if it states one, and no frame around it."""
    stated = _POLICY.search(html)
    return f"{stated[1] if stated else policy(served=True)}; frame-ancestors 'none'"


def run_url(run_id: str, **more: str) -> str:
    """Return the address of the page of a run."""
    return f"/run?{urlencode({'id': run_id, **more}, quote_via=quote, errors='replace')}"


def message(title: str, said: str) -> str:
    """Return a page that needs nothing else from the server, for those who have no access."""
    body = (
        f'<header><p class="eyebrow">flowdeco ui</p><h1>{text(title)}</h1></header>'
        f'<main><p class="about">{text(said)}</p></main>'
    )
    return _document(f"{title}: flowdeco", "", body, style=f"<style>{asset('page.css')}</style>")


def _head(url: str, version: str) -> str:
    return (
        f'<link rel="stylesheet" href="/assets/ui.css"><script src="/assets/ui.js" defer></script>'
        f'<meta name="live" content="{text(url)}" data-version="{text(version)}">'
    )


_LINKED: Final = '<link rel="stylesheet" href="/assets/page.css">'


def _document(title: str, head: str, body: str, *, style: str = _LINKED) -> str:
    return filled(asset("document.html", "flowdeco.cli.ui"), TITLE=text(title), HEAD=f"{style}{head}", BODY=body)


# The list.


def list_page(listing: Listing, version: str) -> str:
    """Return the page with the runs of a journal."""
    body = filled(
        asset("list.html", "flowdeco.cli.ui"),
        JOURNAL=text(listing.journal),
        RANGE=_range(listing),
        SEARCH=text(listing.search),
        STATUS=_hidden("status", listing.status) if listing.status else "",
        CHIPS="".join(_chips(listing)),
        TABLE=_table(listing.infos),
        PAGES=_pages(listing),
    )
    return _document(f"{listing.journal}: runs", _head(_list_url(listing), version), body)


def _list_url(listing: Listing, **changed: Any) -> str:
    fields = {
        "q": listing.search,
        "status": listing.status,
        "page": listing.page if listing.page > 1 else "",
        **changed,
    }
    query = urlencode({key: value for key, value in fields.items() if value}, quote_via=quote, errors="replace")
    return f"/?{query}" if query else "/"


def _range(listing: Listing) -> str:
    if not listing.infos:
        return ""
    last = listing.first + len(listing.infos) - 1
    if listing.total == len(listing.infos):
        return f"{listing.total:,}"
    return f"{listing.first:,} to {last:,} of {listing.total:,}"


def _chips(listing: Listing) -> Iterator[str]:
    every = sum(listing.counts.values())
    for status, count in [("", every), *listing.counts.items()]:
        current = ' aria-current="true"' if status == listing.status else ""
        url = text(_list_url(listing, status=status, page=""))
        yield f'<a class="chip" href="{url}" data-key="{status}"{current}>{status or "all"} <small>{count:,}</small></a>'


def _table(infos: Sequence[RunInfo]) -> str:
    if not infos:
        return '<p class="nothing">No run matches.</p>'
    columns = "".join(f'<th scope="col">{each}</th>' for each in ("Status", "Run", "Started", "Duration", "Why"))
    return f'<table class="runs"><thead><tr>{columns}</tr></thead><tbody>{"".join(map(_row, infos))}</tbody></table>'


def _row(info: RunInfo) -> str:
    return (
        f'<tr data-key="{text(info.id)}"><td>{_status(info)}</td>'
        f'<td><a href="{text(run_url(info.id))}">{name(workflow_name(info))}</a> '
        f'<span class="id">{name(info.id)}</span></td>'
        f"<td>{_time(info.started)}</td><td>{_took(info)}</td><td>{_why(info)}</td></tr>"
    )


def _status(info: RunInfo) -> str:
    status = state_of(info)
    mark = MARKS.get(status, "!").strip()
    return f'<span class="state {status}"><span aria-hidden="true">{mark}</span> {status}</span>'


def _time(posix: float) -> str:
    shown = utc(posix)
    machine = shown.removesuffix(" UTC").replace(" ", "T")
    return text(shown) if machine == shown else f'<time datetime="{machine}Z">{shown}</time>'


def _took(info: RunInfo) -> str:
    if state_of(info) == "crashed":  # `updated` is not written at every step
        return ""
    taken = (time.time() if info.status == "running" else info.updated) - info.started
    return text(duration(max(0.0, taken))) if taken < 1e12 else ""


def _why(info: RunInfo) -> str:
    if info.error:
        return f'<span class="why bad">{text(_cut(info.error))}</span>'
    if info.questions:
        done = '<span class="why">answered</span> ' if info.answered else ""
        asked = ", ".join(dict.fromkeys(each.key for each in info.questions))
        return f'{done}<span class="why warn">asks for {text(_cut(asked))}</span>'
    why = "cancel pending" if info.cancelling else info.reason or ""
    return f'<span class="why">{text(_cut("its process ended" if state_of(info) == "crashed" else why))}</span>'


def _cut(said: str) -> str:
    return shortened(" ".join(said.split()), 160)


def _pages(listing: Listing) -> str:
    if listing.pages < 2:
        return ""
    turns = [("Newer", listing.page - 1), ("Older", listing.page + 1)]
    links = "".join(
        f'<a class="link" href="{text(_list_url(listing, page=to))}">{word}</a>'
        if 1 <= to <= listing.pages
        else f'<span class="link off">{word}</span>'
        for word, to in turns
    )
    return f'<nav class="pages" aria-label="Pages">{links}<span>Page {listing.page:,} of {listing.pages:,}</span></nav>'


# What a run's page has in addition.


def served(
    info: RunInfo, journal: str, version: str, process: tuple[bool, str], said: str, attempt: Attempt | None
) -> Served:
    """Return the additions: a way back, notices, the form of its questions, and the buttons.

    `process` tells whether one is about to resume the run, and the error of the last one (see `Resumer.note`).
    """
    state, unresumable, (starting, refused) = state_of(info), why_not(info), process
    notices = [_notice(_SAID[said])] if said in _SAID else []
    notices += [_notice("A process is about to resume the run.")] if starting else []
    notices += [_notice(f"It could not be resumed: {refused}", bad=True)] if refused else []
    asks = state == "suspended" and bool(info.questions)
    resumable = state in ("failed", "suspended", "cancelled", "crashed") and not starting
    parts = [*notices, _form(info, attempt, can_resume=not unresumable) if asks else ""]
    buttons: list[str] = []
    if resumable and not unresumable and (info.answered or not asks):
        buttons.append(_button("/resume", info.id, "Resume the run", main=not asks))
    if state in ("running", "suspended", "crashed") and not info.cancelling:
        buttons.append(_button("/cancel", info.id, "Cancel the run"))
    why = f"<p>It cannot be resumed from here: {text(unresumable)}</p>" if resumable and unresumable else ""
    if buttons or why:
        parts.append(f'<section class="acts" aria-label="Actions">{"".join(buttons)}{why}</section>')
    above = f'<a href="/">{text(journal)}</a> <span aria-hidden="true">›</span> run'
    return Served(
        _head(run_url(info.id), version),
        above,
        f'<div id="acts"><p class="unseen" id="live" role="status"></p>{"".join(parts)}</div>',
    )


def _notice(said: str, *, bad: bool = False) -> str:
    return f'<p class="notice{" bad" if bad else ""}" role="{"alert" if bad else "status"}">{text(said)}</p>'


def _hidden(field: str, value: str) -> str:
    return f'<input type="hidden" name="{field}" value="{_attribute(value)}">'


def _attribute(value: str) -> str:
    """Return a value that comes back in a form: escaped, and not made printable."""
    from html import escape

    return escape(value)


def _button(action: str, run_id: str, label: str, *, main: bool = False) -> str:
    return (
        f'<form method="post" action="{action}">{_hidden("run", run_id)}'
        f'<button class="{"main" if main else "link"}">{label}</button></form>'
    )


def _form(info: RunInfo, attempt: Attempt | None, *, can_resume: bool) -> str:
    questions = list({each.key: each for each in info.questions}.values())
    title = "The run asks a question" if len(questions) == 1 else f"The run asks {len(questions)} questions"
    fields = "".join(_question(number, each, attempt) for number, each in enumerate(questions))
    problem = attempt.problem if attempt is not None else None
    general = f'<p class="wrong" role="alert">{text(problem.text)}</p>' if problem and problem.key is None else ""
    note = (
        '<p class="soft">It was answered, and has not been resumed yet. The last answer counts.</p>'
        if info.answered
        else ""
    )
    resume = '<button class="main" name="then" value="resume">Answer and resume</button>' if can_resume else ""
    return (
        f'<section class="ask" aria-labelledby="h-ask"><h2 id="h-ask">{title}</h2>{note}'
        f'<form method="post" action="/answer">{_hidden("run", info.id)}{fields}{general}'
        f'<div class="buttons">{resume}<button class="{"link" if can_resume else "main"}" name="then" value="">'
        f"Record the answer</button></div></form></section>"
    )


def _question(number: int, question: Question, attempt: Attempt | None) -> str:
    key = question.key
    value = attempt.values.get(key, "") if attempt is not None else ""
    wrong = attempt is not None and attempt.problem.key == key
    described = [f"about-{number}"] if question.about is not None else []
    described += [f"until-{number}"] if question.deadline is not None else []
    described += [f"wrong-{number}"] if wrong else []
    shared = f' aria-describedby="{" ".join(described)}"' if described else ""
    shared += ' aria-invalid="true"' if wrong else ""
    label = f'<span class="mono">{name(key)}</span>'
    label += f' <span class="kind">{text(question.type)}</span>' if question.type else ""
    about = (
        f'<div class="about" id="about-{number}">{_about(question.about)}</div>' if question.about is not None else ""
    )
    until = "" if question.deadline is None else f'<p class="soft" id="until-{number}">{_until(question.deadline)}</p>'
    error = f'<p class="wrong" id="wrong-{number}">{text(attempt.problem.text)}</p>' if attempt and wrong else ""
    if question.classes == ("builtins:bool",):
        options = "".join(
            f'<label><input type="radio" name="value:{_attribute(key)}" value="{word}"'
            f"{' checked' if value == word else ''}> {word}</label>"
            for word in ("yes", "no")
        )
        control = (
            f'<fieldset{shared}><legend>{label}</legend>{about}{until}<div class="radios">{options}</div></fieldset>'
        )
        return f'<div class="question" data-key="{text(key)}">{control}{error}</div>'
    return (
        f'<div class="question" data-key="{text(key)}"><label for="value-{number}">{label}</label>{about}{until}'
        f"{_input(number, question, value, shared, attempt is not None and key in attempt.as_json)}{error}</div>"
    )


_SHORT: Final[dict[tuple[str, ...], str]] = {
    ("builtins:int",): ' inputmode="numeric"',
    ("builtins:float",): ' inputmode="decimal"',
    ("decimal:Decimal",): ' inputmode="decimal"',
    ("datetime:date",): ' placeholder="2025-01-31"',
    ("datetime:datetime",): ' placeholder="2025-01-31T12:00+01:00"',
}


def _input(number: int, question: Question, value: str, shared: str, as_json: bool) -> str:
    field, classes = f'id="value-{number}" name="value:{_attribute(question.key)}"{shared}', question.classes or ()
    if classes in _SHORT:
        return f'<input {field} value="{_attribute(value)}" autocomplete="off"{_SHORT[classes]}>'
    area = f'<textarea {field} rows="2">\n{_attribute(value)}</textarea>'
    if classes and set(classes) <= {"builtins:str", "builtins:list", "builtins:dict"}:
        hint = "" if "builtins:str" in classes else '<p class="soft">JSON</p>'
        return f"{area}{hint}"
    checked = " checked" if as_json else ""
    return (
        f'{area}<label class="json"><input type="checkbox" name="json:{_attribute(question.key)}" value="1"{checked}> '
        'it is JSON, not text (an empty text is "")</label>'
    )


def _about(about: Any) -> str:
    if isinstance(about, str):
        return f"<p>{text(about, lines=True)}</p>"
    return f"<pre>{text(json.dumps(about, indent=2, ensure_ascii=False, default=str), lines=True)}</pre>"


def _until(deadline: float) -> str:
    left = deadline - time.time()
    return f"until {_time(-(-deadline // 1))}" + (f", in {text(duration(left))}" if left > 0 else ", which has passed")


# A run whose page cannot be made.


def unreadable_page(info: RunInfo, additions: Served, why: str) -> str:
    """Return the page of a run of which only its description can be read."""
    facts: Iterable[tuple[str, str]] = (
        ("Steps", f"{info.steps:,}"),
        ("Started", _time(info.started)),
        ("Run", f'<span class="mono">{text(info.id)}</span>'),
        ("Codec", text(info.codec)),
    )
    listed = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts)
    said = [why, info.error or info.reason or "", *(f"asks for {as_text(each)}" for each in info.questions)]
    status = state_of(info)
    body = (
        f'<header><p class="eyebrow">{additions.above}</p><div class="top"><h1>{text(info.pipeline)}</h1>'
        f'<span class="pill {status}"><span aria-hidden="true">{MARKS.get(status, "!")}</span> {status}</span></div>'
        f'<dl class="facts">{listed}</dl></header><main>'
        f'<p class="reason">{"<br>".join(text(line) for line in dict.fromkeys(said) if line)}</p>{additions.actions}</main>'
    )
    return _document(f"{info.pipeline}: {status}", additions.head, body)
