"""Messages of actions as data for a page: redacted, and values with a bound for all of them.

HTML goes into a frame without scripts. It is redacted between its tags and in their attributes, so that a value such as
"table" leaves the markup as it is.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape, unescape
from typing import Any, Final

from flowdeco.engine.messages import MOST_SHOWN, MessageRecord
from flowdeco.engine.runs import ActionRecord, Run
from flowdeco.engine.shown import size
from flowdeco.show.formatting import printable
from flowdeco.show.html import asset
from flowdeco.show.markdown import elements
from flowdeco.show.redaction import Redact

__all__ = ["PageMessages", "has_html", "message_line", "texts_of"]

HIGHEST: Final = 440  # pixels of a frame


class PageMessages:
    """Turns the messages of a run into data, until its shown values are as large as a page may be."""

    def __init__(self, redact: Redact) -> None:
        self._redact = redact
        self._room = MOST_SHOWN

    def of(self, record: ActionRecord) -> list[dict[str, Any]]:
        """Return the messages of an action."""
        return list(map(self._message, record.messages))

    def _message(self, message: MessageRecord) -> dict[str, Any]:
        when = datetime.fromtimestamp(message.time, UTC)
        data: dict[str, Any] = {
            "k": message.kind, "a": message.failures, "t": f"{when:%H:%M:%S}.{when.microsecond // 1000:03}",
            "d": f"{when:%Y-%m-%d %H:%M:%S UTC}",
        }  # fmt: skip
        payload = message.payload
        if message.kind == "emit":
            values = payload["payload"].items()
            data.update(
                n=self._text(payload["kind"]), of=[[self._text(name), self._text(value)] for name, value in values]
            )
        elif message.kind == "log":
            data.update(l=printable(payload["level"]), text=self._text(payload["text"]))
        elif message.kind == "show":
            data.update(self._shown(payload))
        elif message.kind == "ended":
            data.update(s=payload["status"], text=self._text(payload["error"]))
        else:
            data.update(text=message_line(message))
        return data

    def _text(self, value: object) -> str:
        return self._redact("\n".join(map(printable, str(value).split("\n"))))

    def _shown(self, payload: Any) -> dict[str, Any]:
        kind, content, note = payload["type"], payload["content"], payload["note"]
        if len(content) > self._room:
            return {
                "note": f"{size(len(content))} are not in the page: it has {MOST_SHOWN / 1e6:.0f} MB of values before"
            }
        self._room -= len(content)
        data = {"note": note} if note else {}
        if not content:
            return data
        if kind == "text/html":
            html = redacted_html(content, self._redact)
            return {**data, "html": asset("frame.html") + html, "high": _height(html)}
        if kind == "image/svg+xml":
            svg = redacted_html(b64decode(content).decode("utf-8", "replace"), self._redact)
            content = b64encode(svg.encode()).decode()
        if kind.startswith("image/"):
            return {**data, "src": f"data:{kind};base64,{content}"}
        if kind == "text/markdown":
            return {**data, "md": elements(self._redact(content))}
        return {**data, "text": self._text(content)}


def has_html(run: Run) -> bool:
    """Whether a run shows a value that needs a frame."""
    return any(each.payload["type"] == "text/html" for each in _messages(run) if each.kind == "show")


def texts_of(run: Run) -> Iterator[str]:
    """Yield the texts of all messages of a run, as they may repeat a value."""
    for message in _messages(run):
        payload = message.payload
        if message.kind == "emit":
            yield from (str(text) for pair in payload["payload"].items() for text in pair)
            yield payload["kind"]
        elif message.kind == "show" and payload["type"] == "image/svg+xml":
            yield unescape(b64decode(payload["content"]).decode("utf-8", "replace"))
        elif message.kind == "show" and payload["type"].startswith("text/"):
            yield unescape(payload["content"]) if payload["type"] == "text/html" else payload["content"]
        else:
            yield str(payload.get("text") or payload.get("error") or "")


def message_line(message: MessageRecord) -> str:
    """Return a message as one line of text."""
    payload = message.payload
    if message.kind == "emit":
        return ", ".join([payload["kind"], *(f"{name}={value}" for name, value in payload["payload"].items())])
    if message.kind == "log":
        return f"{payload['level']} {payload['text']}"
    if message.kind == "show":
        note = f", {payload['note']}" if payload["note"] else ""
        return f"showed {payload['type']}, {size(len(payload['content']))}{note}"
    if message.kind == "ended":
        return f"{payload['status']}: {payload['error']}; resumed"
    count: int = payload["count"]
    return f"… {count:,} {'message' if count == 1 else 'messages'} not kept"


def _messages(run: Run) -> Iterator[MessageRecord]:
    return (message for record in run.stages for action in record.actions for message in action.messages)


_TOKEN: Final = re.compile(r"(<!--.*?(?:-->|\Z)|<style\b.*?(?:</style\s*>|\Z)|<[^>]*>)", re.DOTALL | re.IGNORECASE)
_ATTRIBUTE: Final = re.compile(r"""([^\s"'<>/=]+)(\s*=\s*)("[^"]*"|'[^']*'|[^\s"'<>]+)""")
_IMAGE: Final = re.compile(r"\s*data:image/[\w.+-]+;base64,")
_LAYOUT: Final = frozenset({"class", "style", "id", "align", "valign"})  # attributes that have words of CSS


def redacted_html(source: str, redact: Redact) -> str:
    """Return HTML, or SVG, with its text and its attributes redacted, and without comments."""
    return "".join(_redacted_token(token, redact) for token in _TOKEN.split(source))


def _redacted_token(token: str, redact: Redact) -> str:
    if token.startswith("<!--"):
        return ""
    if token[:6].lower() == "<style":
        return token
    if token.startswith("<") and token.endswith(">"):
        return _ATTRIBUTE.sub(lambda found: _redacted_attribute(found, redact), token)
    return _redacted_text(token, redact)


def _redacted_attribute(found: re.Match[str], redact: Redact) -> str:
    name, equals, value = found.groups()
    quote = value[0] if value[0] in "\"'" else ""
    inner = value.strip(quote) if quote else value
    is_fixed = name.lower() in _LAYOUT or _IMAGE.match(inner)
    changed = inner if is_fixed else _redacted_text(inner, redact)
    return found[0] if changed == inner else f'{name}{equals}"{changed}"'


def _redacted_text(text: str, redact: Redact) -> str:
    plain = unescape(text)
    changed = redact(plain)
    return text if changed == plain else escape(changed)


_LINES: Final = re.compile(r"<(?:br|p|li|h[1-6]|pre|tr|div)\b", re.IGNORECASE)
_PICTURE: Final = re.compile(r"<(?:img|svg|canvas)\b", re.IGNORECASE)


def _height(html: str) -> int:
    """Return the height of the frame of this HTML, in pixels; nothing outside of the frame can measure it."""
    tags: list[str] = [tag[1:].lower() for tag in _LINES.findall(html[:200_000])]
    is_table = "tr" in tags  # in some `div`, which has no height of its own
    high = 8 + sum({"tr": 28, "div": 0 if is_table else 21}.get(tag, 21) for tag in tags)
    return max(48, min(HIGHEST, max(high, 340) if _PICTURE.search(html) else high))
