"""A census of the standard library: a workflow that discovers its work as it runs.

`discover` finds the packages in the standard library of the running Python, and returns a stage for each of them. They run
right after it and count modules, lines, functions and classes; `report` adds up the results.

    python examples/stdlib_census.py
"""

from __future__ import annotations

import ast
import platform
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flowdeco import Stage, action, stage

STDLIB = Path(sysconfig.get_path("stdlib"))
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


class Count(NamedTuple):
    """The counts of one package, or of several."""

    name: str
    modules: int
    lines: int
    functions: int
    classes: int


@stage(tags=["census"])
def census(package: str) -> None:
    """Count one package, without its subpackages."""

    @action(returns="sources")
    def read() -> list[bytes]:
        return [path.read_bytes() for path in STDLIB.joinpath(*package.split(".")).glob("*.py")]

    @action(collect="counts")
    def count(sources: list[bytes]) -> Count:
        lines = sum(len(source.splitlines()) for source in sources)
        kinds = Counter(type(node) for source in sources for node in ast.walk(ast.parse(source)))
        functions = kinds[ast.FunctionDef] + kinds[ast.AsyncFunctionDef]
        return Count(package, len(sources), lines, functions, kinds[ast.ClassDef])


@action
def discover() -> list[Stage]:
    """Find the packages; the returned stages run right after this one."""
    return [census(package) for package in packages(STDLIB)]


def packages(folder: Path, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the packages in a folder, with their subpackages."""
    for init in sorted(folder.glob("*/__init__.py")):
        if init.parent.name not in LEFT_OUT:
            yield prefix + init.parent.name
            yield from packages(init.parent, f"{prefix}{init.parent.name}.")


@stage(tags=["reporting"])
def report() -> None:
    """Print a table: the largest packages, the others, and the total."""

    @action
    def rows(counts: list[Count], top: int = 10) -> list[Count]:
        by_size = sorted(counts, key=lambda count: count.lines, reverse=True)
        others = by_size[top:]
        return [*by_size[:top], total(f"{len(others)} others", others), total(f"all {len(counts)} packages", counts)]

    @action
    def show(rows: list[Count]) -> None:
        print(f"{'package':22}{'modules':>9}{'lines':>10}{'functions':>11}{'classes':>9}\n{'-' * 61}")
        for row in rows:
            print("{:22}{:9,}{:10,}{:11,}{:9,}".format(*row))


def total(name: str, counts: list[Count]) -> Count:
    """Add up counts."""
    return Count(name, *(sum(getattr(count, field) for count in counts) for field in Count._fields[1:]))


flow = discover >> report

if __name__ == "__main__":
    print(f"The standard library of {platform.python_implementation()} {platform.python_version()}\n")
    run = flow.run({"top": 12})
    found = [record for record in run.stages if record.inserted_by == "discover/discover"]
    print(f"\n{len(run.stages)} stages ran in {run.elapsed:.1f} s, {len(found)} of them inserted by discover.\n")
    print(run.ran())
    print(f"\nIts page: {run.to_html(Path(tempfile.mkdtemp(), 'census.html'))}")
