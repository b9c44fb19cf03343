"""Plans, runs and diffs as mermaid flowcharts, which GitHub, JupyterLab and many editors draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Final

from flowdeco.engine.runs import Status
from flowdeco.show.folding import Fold, Folding, folded
from flowdeco.show.formatting import MARKS, plural, printable, state
from flowdeco.show.parts import Part

__all__ = ["flowchart"]

# No renderer draws more than a few hundred nodes well, and mermaid refuses more than 500 edges.
FOLDING: Final = Folding(dynamic=(5, 3), branches=(8, 5), others=(40, 20), most=60)

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
    """Return a flowchart from top to bottom; inserted nodes are dashed, and reached by a dotted arrow."""
    drawing = _Drawing()
    body = list(drawing.chain(parts, "  "))
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
    def __init__(self) -> None:
        self._numbers = count(1)
        self.nodes_by_class: dict[str, list[str]] = {}

    def chain(self, parts: Sequence[Part], indent: str) -> Iterator[str]:
        """Yield the lines of parts that follow each other."""
        before, previous = "", None
        for part in folded(parts, FOLDING):
            node = f"n{next(self._numbers)}"
            yield from self._more(part, node, indent) if isinstance(part, Fold) else self._node(part, node, indent)
            by = (part.parts[0] if isinstance(part, Fold) else part).inserted_by
            if before:
                arrow = "-->" if by is None else "-.->" if by == previous else f"-. {quoted(f'inserted by {by}')} .->"
                yield f"{indent}{before} {arrow} {node}"
            before, previous = node, by

    def _more(self, fold: Fold, node: str, indent: str) -> Iterator[str]:
        self._class(node, "more")
        yield f"{indent}{node}([{quoted(fold.label)}])"

    def _node(self, part: Part, node: str, indent: str) -> Iterator[str]:
        if part.kind in ("pipeline", "parallel") and part.parts:
            yield f"{indent}subgraph {node}[{quoted(part.name)}]"
            yield f"{indent}  direction TB"  # places branches, which no arrow joins, side by side
            inner = self._branches(part, indent + "  ") if part.kind == "parallel" else None
            yield from inner or self.chain(part.parts, indent + "  ")
            yield f"{indent}end"
            return
        lines = [self._headline(part)]
        if not part.is_bare:
            lines += [
                self._headline(one) if isinstance(one, Part) else one.label for one in folded(part.parts, FOLDING)
            ]
        label = "<br/>".join(quoted(line)[1:-1] for line in lines)
        self._class(node, *self._classes(part))
        yield f'{indent}{node}["{label}"]'

    def _branches(self, part: Part, indent: str) -> Iterator[str]:
        for branch in folded(part.parts, FOLDING):
            node = f"n{next(self._numbers)}"
            if isinstance(branch, Fold):
                yield from self._more(branch, node, indent)
            elif len(branch.parts) == 1:
                yield from self._node(branch.parts[0], node, indent)
            elif branch.parts:
                yield f"{indent}subgraph {node}[{quoted(f'branch {branch.record}')}]"
                yield f"{indent}  direction TB"
                yield from self.chain(branch.parts, indent + "  ")
                yield f"{indent}end"

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
