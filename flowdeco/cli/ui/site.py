"""The pages of a journal, and what their forms do."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final

from flowdeco import durable
from flowdeco.cli.inputs import UsageError
from flowdeco.cli.journals import run_page, state_of, workflow_name
from flowdeco.cli.report import error_message
from flowdeco.cli.ui import pages
from flowdeco.cli.ui.guard import Asked, Reply, refusal
from flowdeco.cli.ui.pages import Attempt, Listing
from flowdeco.cli.ui.work import Problem, Resumer, answer
from flowdeco.cli.wake import why_not
from flowdeco.durable import RunInfo, SqliteJournal
from flowdeco.errors import FlowdecoError, JournalError
from flowdeco.show.html import asset

__all__ = ["Site"]

SHOWN: Final = 50  # runs on a page
_ORDER: Final = ("running", "suspended", "failed", "crashed", "cancelled", "completed", "bailed", "damaged")
_ASSETS: Final = {
    "ui.css": ("flowdeco.cli.ui", "text/css"),
    "ui.js": ("flowdeco.cli.ui", "text/javascript"),
    "page.css": ("flowdeco.show", "text/css"),
}


class Site:
    """Answers requests that the guard has let pass; with `unpickle` the values of pickle journals are loaded."""

    def __init__(self, path: str, *, unpickle: bool = False) -> None:
        self._path = path
        self._name = os.path.basename(path)
        self._journal = SqliteJournal(path)
        self._unpickle = unpickle
        self.resumer = Resumer(path)
        self._gets: dict[str, Callable[[Asked], Reply]] = {"/": self._list, "/run": self._run}
        self._posts = {"/answer": self._answer, "/cancel": self._cancel, "/resume": self._resume}

    def has(self, path: str) -> bool:
        """Whether there is a page at this path."""
        return path in self._gets

    def reply(self, asked: Asked) -> Reply:
        """Return the reply to a request."""
        folder, _, name = asked.path.rpartition("/")
        gets = asked.method in ("GET", "HEAD")
        if gets and folder == "/assets" and name in _ASSETS:
            package, kind = _ASSETS[name]
            return Reply(asset(name, package), type=kind)
        handlers = self._gets if gets else self._posts if asked.method == "POST" else {}
        if asked.path not in handlers:
            elsewhere = asked.path in self._gets or asked.path in self._posts
            return refusal(405 if elsewhere else 404, "There is no such page", "")
        try:
            reply = handlers[asked.path](asked)
        except FlowdecoError as error:
            return refusal(409, "That did not work", error_message(error))
        return reply._replace(headers={**reply.headers, "Content-Security-Policy": pages.strict(reply.body)})

    # Pages.

    def _list(self, asked: Asked) -> Reply:
        search, status = asked.field("q").strip(), asked.field("status")
        words = search.casefold().split()
        found = [info for info in self._journal.runs() if _matches(info, words)]
        counts = Counter(map(state_of, found))
        if status:
            found = [info for info in found if state_of(info) == status]
        last = max(1, -(-len(found) // SHOWN))
        wanted = asked.field("page")
        page = min(last, max(1, int(wanted) if wanted.isdecimal() and len(wanted) < 9 else 1))
        first = (page - 1) * SHOWN
        known = {each: counts[each] for each in _ORDER if counts[each] or each == status}
        listing = Listing(
            self._name, search, status, page, last, first + 1, len(found), known, found[first : first + SHOWN]
        )
        version = _version(pages.list_page(listing, ""))
        return _unless_known(asked, version, lambda: pages.list_page(listing, version))

    def _run(self, asked: Asked) -> Reply:
        info = self._info(asked.field("id"))
        if info is None:
            return self._missing(asked.field("id"))
        return _unless_known(asked, self._state(info), lambda: self._page(info, said=asked.field("said")))

    def _page(self, info: RunInfo, *, said: str = "", attempt: Attempt | None = None) -> str:
        additions = pages.served(info, self._name, self._state(info), self.resumer.note(info), said, attempt)
        try:
            return run_page(self._path, info, unpickle=self._unpickle, served=additions)
        except (JournalError, UsageError) as error:
            return pages.unreadable_page(info, additions, error_message(error))

    def _info(self, run_id: str) -> RunInfo | None:
        return next(iter(self._journal.runs(run_id=run_id)), None)

    def _state(self, info: RunInfo) -> str:
        """Return a string that changes with the page of a run."""
        return _version(repr((info, self.resumer.note(info))))

    def _missing(self, run_id: str) -> Reply:
        return refusal(404, "There is no such run", f"{self._name} has no run {run_id!r}: it may have been deleted.")

    # Forms.

    def _answer(self, asked: Asked) -> Reply:
        info = self._info(asked.field("run"))
        if info is None:
            return self._missing(asked.field("run"))
        given = {name.removeprefix("value:"): value for name, value in asked.fields if name.startswith("value:")}
        given = {key: value.replace("\r\n", "\n") for key, value in given.items()}
        as_json = frozenset(name.removeprefix("json:") for name, _ in asked.fields if name.startswith("json:"))
        problem = self._answered(info, {key: value for key, value in given.items() if value}, as_json)
        if problem is not None:
            return Reply(self._page(info, attempt=Attempt(given, as_json, problem)), 422)
        if asked.field("then") == "resume" and why_not(info) is None:
            self.resumer.start(info)
            return _to(pages.run_url(info.id, said="resuming"))
        return _to(pages.run_url(info.id, said="answered"))

    def _answered(self, info: RunInfo, given: dict[str, str], as_json: frozenset[str]) -> Problem | None:
        """Record answers, all or none; returns why not."""
        import json

        if info.status != "suspended":
            return Problem(f"the run is {state_of(info)}, and asks nothing")
        if not given:
            return Problem("No answer was given.")
        values: dict[str, Any] = {}
        for key, value in given.items():
            if key not in {question.key for question in info.questions}:
                return Problem(f"the run does not ask for {key!r} any more")
            try:
                values[key] = json.loads(value) if key in as_json else value
            except (ValueError, RecursionError) as error:
                return Problem(f"it is not valid JSON: {error}", key)
        return answer(self._path, info, values, frozenset(values) - as_json)

    def _cancel(self, asked: Asked) -> Reply:
        durable.cancel(self._journal, asked.field("run"))
        return _to(pages.run_url(asked.field("run"), said="cancelled"))

    def _resume(self, asked: Asked) -> Reply:
        info = self._info(asked.field("run"))
        if info is None:
            return self._missing(asked.field("run"))
        problem = why_not(info)
        if problem is not None:
            return refusal(409, "It cannot be resumed from here", problem)
        self.resumer.start(info)
        return _to(pages.run_url(info.id, said="resuming"))


def _matches(info: RunInfo, words: list[str]) -> bool:
    if not words:
        return True
    names = " ".join((info.id, info.pipeline, workflow_name(info), info.entry or "")).casefold()
    return all(word in names for word in words)


def _version(state: str) -> str:
    return sha256(state.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def _unless_known(asked: Asked, version: str, make: Callable[[], str]) -> Reply:
    tag = {"ETag": f'"{version}"'}
    if asked.headers.get("if-none-match") == tag["ETag"]:
        return Reply("", 304, headers=tag)
    return Reply(make(), headers=tag)


def _to(url: str) -> Reply:
    return Reply("", 303, headers={"Location": url})
