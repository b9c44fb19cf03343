"""Markdown as a tree of elements for a page: a small subset, and no HTML of its author.

Headings, paragraphs, emphasis, code, quotes, lists, tables, rules and links. An element is a list: its tag, then its
children; a link has its address in front of them, and a cell how it is aligned after its tag ("td.right"). Text is a
string, which a page shows as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, Final, TypeAlias

__all__ = ["Element", "elements"]

DEEPEST: Final = 8  # lists, quotes and emphasis that are nested deeper are text
LONGEST: Final = 20_000  # characters of a paragraph whose emphasis is looked for

Element: TypeAlias = "list[Any]"

_FENCE: Final = re.compile(r"\s{0,3}(```+|~~~+)")
_HEADING: Final = re.compile(r"\s{0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_RULE: Final = re.compile(r"\s{0,3}([-*_])(?:\s*\1){2,}\s*$")
_QUOTE: Final = re.compile(r"\s{0,3}> ?")
_ITEM: Final = re.compile(r"(\s*)([-*+]|\d{1,9}[.)])\s+")
_COLUMNS: Final = re.compile(r"\s*\|?(?:\s*:?-+:?\s*\|)+(?:\s*:?-+:?\s*)?$")
_CELL: Final = re.compile(r"(?<!\\)\|")

# Each span is short, so that markup that is never closed takes no time.
_INLINE: Final = re.compile(
    r"""\\(?P<escaped>[\\`*_{}\[\]()\#+\-.!|<>~])
    | (?P<ticks>`{1,3})(?P<code>[^`]{1,400})(?P=ticks)
    | !?\[(?P<label>[^\]\[]{0,300})\]\(\s*(?P<href>[^\s()]{0,1000})(?:\s+"[^"]{0,200}")?\s*\)
    | <(?P<address>(?:https?://|mailto:)[^<>\s]{1,1000})>
    | \*\*(?=\S)(?P<strong>.{1,300}?)(?<=\S)\*\*
    | (?<!\w)__(?=\S)(?P<strong_>.{1,300}?)(?<=\S)__(?!\w)
    | \*(?=[^\s*])(?P<em>.{1,300}?)(?<=[^\s*])\*(?!\*)
    | (?<!\w)_(?=[^\s_])(?P<em_>.{1,300}?)(?<=[^\s_])_(?!\w)
    | ~~(?=\S)(?P<del>.{1,300}?)(?<=\S)~~
    | (?P<br>(?:[ ]{2,}|\\)\n)""",
    re.VERBOSE | re.DOTALL,
)
_LINK: Final = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)


def elements(source: str) -> list[Element]:
    """Return the elements of a text in Markdown."""
    return list(_blocks(source.expandtabs(4).splitlines(), 0))


def _blocks(lines: Sequence[str], depth: int) -> Iterator[Element]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
        elif _FENCE.match(line):
            at, block = _fenced(lines, at)
            yield block
        elif heading := _HEADING.match(line):
            yield [f"h{min(6, len(heading[1]) + 2)}", *_inline(heading[2], 0)]  # the page has a title, and sections
            at += 1
        elif _RULE.match(line):
            yield ["hr"]
            at += 1
        elif depth < DEEPEST and _QUOTE.match(line):
            end = _end(lines, at, lambda each: bool(each.strip()))
            yield ["blockquote", *_blocks([_QUOTE.sub("", each, count=1) for each in lines[at:end]], depth + 1)]
            at = end
        elif depth < DEEPEST and (item := _ITEM.match(line)):
            at, block = _listed(lines, at, item, depth)
            yield block
        elif _begins_table(lines, at):
            end = _end(lines, at + 2, lambda each: "|" in each)
            yield _table([lines[at], *lines[at + 2 : end]], lines[at + 1])
            at = end
        else:
            end = at + 1
            while end < len(lines) and not _ends_paragraph(lines, end):
                end += 1
            yield ["p", *_inline("\n".join(each.lstrip() for each in lines[at:end]), 0)]
            at = end


def _end(lines: Sequence[str], at: int, belongs: Callable[[str], bool]) -> int:
    while at < len(lines) and belongs(lines[at]):
        at += 1
    return at


def _ends_paragraph(lines: Sequence[str], at: int) -> bool:
    line = lines[at]
    begins = any(pattern.match(line) for pattern in (_FENCE, _HEADING, _RULE, _QUOTE, _ITEM))
    return begins or not line.strip() or _begins_table(lines, at)


def _fenced(lines: Sequence[str], at: int) -> tuple[int, Element]:
    fence = lines[at].strip()[:3]
    end = _end(lines, at + 1, lambda each: not each.strip().startswith(fence))
    return end + 1, ["pre", "\n".join(lines[at + 1 : end])]


def _listed(lines: Sequence[str], at: int, first: re.Match[str], depth: int) -> tuple[int, Element]:
    """Return the list that begins here; deeper lines belong to the item above them."""
    indent, is_numbered = len(first[1]), first[2][0].isdigit()
    items: list[list[str]] = []
    while at < len(lines):
        line = lines[at]
        found = _ITEM.match(line)
        if found and len(found[1]) <= indent + 1:
            if found[2][0].isdigit() != is_numbered or len(found[1]) < indent:
                break
            items.append([line[found.end() :]])
        elif _continues(lines, at, indent):
            items[-1].append(line)
        else:
            break
        at += 1
    return at, ["ol" if is_numbered else "ul", *(["li", *_item(item, depth)] for item in items)]


def _continues(lines: Sequence[str], at: int, indent: int) -> bool:
    """Whether a line belongs to an item above it: it is deeper, or empty with another one or a deeper line after it."""
    line = lines[at]
    if line.strip():
        return len(line) - len(line.lstrip()) > indent
    after = lines[at + 1] if at + 1 < len(lines) else ""
    return bool(_ITEM.match(after)) or after.startswith(" " * (indent + 2))


def _item(lines: list[str], depth: int) -> Iterator[Any]:
    """Yield the contents of an item: the text of a single paragraph needs no element."""
    rest = lines[1:]
    inner = min((len(each) - len(each.lstrip()) for each in rest if each.strip()), default=0)
    blocks = list(_blocks([lines[0], *(each[inner:] for each in rest)], depth + 1))
    if blocks and blocks[0][0] == "p":
        yield from blocks.pop(0)[1:]
    yield from blocks


def _begins_table(lines: Sequence[str], at: int) -> bool:
    return "|" in lines[at] and at + 1 < len(lines) and bool(_COLUMNS.match(lines[at + 1]))


def _table(lines: Sequence[str], rules: str) -> Element:
    sides = [_side(each) for each in rules.strip().strip("|").split("|")]
    head, *rows = (
        [each.strip().replace("\\|", "|") for each in _CELL.split(line.strip().strip("|"))] for line in lines
    )
    return [
        "table",
        ["thead", _row("th", head, sides)],
        ["tbody", *(_row("td", row[: len(head)], sides) for row in rows)],
    ]


def _row(tag: str, cells: Sequence[str], sides: Sequence[str]) -> Element:
    return [
        "tr",
        *([f"{tag}{side}", *_inline(cell, 0)] for cell, side in zip_longest(cells, sides[: len(cells)], fillvalue="")),
    ]


def _side(rule: str) -> str:
    """Return how the column of this rule is aligned."""
    rule = rule.strip()
    return "" if not rule.endswith(":") else ".center" if rule.startswith(":") else ".right"


def _inline(source: str, depth: int) -> list[Any]:
    if depth > DEEPEST or len(source) > LONGEST:
        return [source]
    found: list[Any] = []
    at = 0
    for match in _INLINE.finditer(source):
        found += [source[at : match.start()], *_span(match, depth)]
        at = match.end()
    return [each for each in (*found, source[at:]) if each]


def _span(match: re.Match[str], depth: int) -> list[Any]:
    kind = match.lastgroup or ""
    parts = match.groupdict()
    if parts["label"] is not None:
        label = _inline(parts["label"], depth + 1)
        is_link = match[0][0] != "!" and _LINK.match(parts["href"])
        return [["a", parts["href"], *label]] if is_link else label  # an image would have to be loaded
    if kind == "address":
        return [["a", match["address"], match["address"]]]
    if kind == "escaped":
        return [match["escaped"]]
    if parts["code"] is not None:
        return [["code", parts["code"]]]
    if kind == "br":
        return [["br"]]
    return [[kind.rstrip("_"), *_inline(match[kind], depth + 1)]]
