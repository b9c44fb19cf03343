"""Plans, runs and diffs as mermaid flowcharts, which GitHub, JupyterLab and many editors draw."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import count
from typing import Final

from flowdeco.engine.runs import Status
from flowdeco.show.formatting import MARKS, plural, printable, state
from flowdeco.show.parts import Part, walk
from flowdeco.show.tree import Collapsed, Node, collapsed, grown

__all__ = ["flowchart"]

MANY: Final = 60  # nodes: from here on, rows of one template are collapsed
ALIKE: Final = 6  # so many of one template are a row
MOST: Final = 200  # no renderer draws more well, and mermaid refuses more than 500 edges
MOST_ACTIONS: Final = 20

# Mid-tones with text colours of their own: legible on a light and on a dark page.
CLASSES: Final = {
    "dynamic": "stroke-dasharray: 5 3",
    "failed": "fill:#c62f2f,stroke:#8f1d1d,color:#fff",
    "recovered": "fill:#b7791f,stroke:#7c4f0f,color:#fff",
    "skipped": "fill:#8a94a3,stroke:#5d6673,color:#fff",
    "pending": "fill:#8a94a3,stroke:#5d6673,color:#fff,stroke-dasharray: 2 3",
    "more": "stroke-dasharray: 2 3,font-style:italic",
}
_PLAIN: Final = frozenset(" -_./,:+*=()'?!%@…→✓✗↻⊘⏏‖■▸·[]")


def flowchart(parts: Sequence[Part]) -> str:
    """Return a flowchart from top to bottom; inserted nodes are dashed, with a dotted arrow from their inserter."""
    nodes = sum(part.kind != "action" or part.is_dynamic for part in walk(parts))
    drawing = _Drawing(ALIKE if nodes >= MANY else None)
    body = list(drawing.chain(grown(parts), "  "))
    used = [
        f"  {line}"
        for name, style in CLASSES.items()
        if name in drawing.nodes_by_class
        for line in (f"classDef {name} {style}", f"class {','.join(drawing.nodes_by_class[name])} {name}")
    ]
    return "\n".join(["flowchart TD", *body, *used]) + "\n"


def quoted(text: str) -> str:
    """Return a label: characters with a meaning in mermaid or HTML are written as character codes."""
    safe = "".join(c if c.isalnum() or c in _PLAIN else f"#{ord(c)};" for c in printable(text).strip())
    head, dot, rest = safe.partition(".")
    if dot and head.isdigit():  # would be taken for a numbered list
        safe = f"{head}#46;{rest}"
    if safe[:1] in ("-", "*", "+"):  # for a list
        safe = f"#{ord(safe[0])};{safe[1:]}"
    return f'"{safe}"'


class _Drawing:
    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._numbers = count(1)
        self.nodes_by_class: dict[str, list[str]] = {}

    def chain(self, nodes: Sequence[Node], indent: str) -> Iterator[str]:
        """Yield the lines of parts that follow each other, each with the parts that it inserted."""
        before = ""
        for node in collapsed(nodes, self._limit, MOST):
            name = yield from self._unit(node, indent)
            by = None if isinstance(node, Collapsed) else node.via
            if before:
                is_fresh = (node.nodes[0] if isinstance(node, Collapsed) else node).part.is_dynamic
                yield f"{indent}{before} {_arrow(by) if is_fresh and by else '-.->' if is_fresh else '-->'} {name}"
            before = name

    def _unit(self, node: Node | Collapsed, indent: str) -> Generator[str, None, str]:
        """Yield the lines of a node and of those that it inserted, and return its name."""
        name = f"n{next(self._numbers)}"
        if isinstance(node, Collapsed):
            self._class(name, "more")
            yield f"{indent}{name}([{quoted(node.label)}])"
            return name
        yield from self._part(node.part, name, indent)
        for child in collapsed(node.inserted, self._limit, MOST):
            below = yield from self._unit(child, indent)
            by = None if isinstance(child, Collapsed) else child.via
            yield f"{indent}{name} {_arrow(by)} {below}"
        return name

    def _part(self, part: Part, name: str, indent: str) -> Iterator[str]:
        if part.kind in ("pipeline", "parallel") and part.parts:
            draw = self._branches if part.kind == "parallel" else self._units
            yield from _subgraph(name, part.name, draw(part, f"{indent}  "), indent)
            return
        self._class(name, *self._classes(part))
        if any(one.is_dynamic for one in part.parts):  # its actions are a tree, too
            yield from _subgraph(name, self._headline(part), self.chain(grown(part.parts), f"{indent}  "), indent)
            return
        lines = [self._headline(part)]
        if not part.is_bare:
            lines += [self._headline(one) for one in part.parts[:MOST_ACTIONS]]
            lines += [f"… {len(part.parts) - MOST_ACTIONS:,} more"] if len(part.parts) > MOST_ACTIONS else []
        label = "<br/>".join(quoted(line)[1:-1] for line in lines)
        yield f'{indent}{name}["{label}"]'

    def _units(self, pipeline: Part, indent: str) -> Iterator[str]:
        return self.chain(grown(pipeline.parts, pipeline.inserted_by), indent)

    def _branches(self, group: Part, indent: str) -> Iterator[str]:
        for node in collapsed(grown(group.parts), self._limit, MOST):
            if isinstance(node, Collapsed):
                yield from self._unit(node, indent)
                continue
            inner = grown(node.part.parts, group.inserted_by)
            if len(inner) == 1:
                yield from self._unit(inner[0], indent)
            elif inner:
                name = f"n{next(self._numbers)}"
                yield from _subgraph(name, f"branch {node.part.record}", self.chain(inner, f"{indent}  "), indent)

    def _headline(self, part: Part) -> str:
        action = part.parts[0] if part.is_bare else part
        mark = MARKS[state(part)].strip()
        attempts = f" ({plural(action.attempts, 'attempt')})" if action.attempts > 1 else ""
        inserts = " → units" if action.inserts and part.status is None else ""
        return f"{mark} {part.label}{attempts}{inserts}".strip()

    def _classes(self, part: Part) -> Iterator[str]:
        if part.is_dynamic:
            yield "dynamic"
        if part.status in (Status.FAILED, Status.CANCELLED) and not part.recovered:
            yield "failed"
        elif state(part) in ("recovered", "skipped", "pending"):
            yield state(part)

    def _class(self, node: str, *names: str) -> None:
        for name in names:
            self.nodes_by_class.setdefault(name, []).append(node)


def _subgraph(name: str, label: str, lines: Iterable[str], indent: str) -> Iterator[str]:
    """Yield a box around these lines; its direction places branches, which no arrow joins, side by side."""
    yield from (f"{indent}subgraph {name}[{quoted(label)}]", f"{indent}  direction TB", *lines, f"{indent}end")


def _arrow(by: str | None) -> str:
    return "-.->" if by is None else f"-. {quoted(f'by {by}')} .->"
