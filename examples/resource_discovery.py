"""Discover resources and check each of them: stages that insert stages that insert stages.

`discover` reads an inventory and returns a stage for each kind of resource, which returns a stage for each resource of
that kind, which returns a stage for each of its replicas. The findings are collected, and reported at the end. The second
run skips stages tagged "slow", although none of them existed when the run began.

    python examples/resource_discovery.py [inventory.toml]
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from flowdeco import Context, Run, Stage, action, stage

Inventory = dict[str, dict[str, dict[str, Any]]]


class Finding(NamedTuple):
    """A finding about a resource, and whether it is fine."""

    name: str
    what: str
    fine: bool


@stage
def discover() -> None:
    """Read the inventory, and insert a stage for each kind of resource in it."""

    @action(returns="inventory")
    def read(path: Path) -> Inventory:
        return tomllib.loads(path.read_text(encoding="utf-8"))

    @action
    def plan(inventory: Inventory) -> list[Stage]:
        return [process(kind) for kind in inventory]


@stage(tags=["dynamic"])
def process(kind: str) -> None:
    """Insert a stage for each resource of a kind."""

    @action
    def each(inventory: Inventory) -> list[Stage]:
        return [check(kind, name) for name in inventory[kind]]


@stage(tags=["dynamic"], data={"limits.used": 0.9})
def check(kind: str, name: str) -> None:
    """Check a resource, and insert a stage for each of its replicas."""

    @action(collect="findings")
    def usage(inventory: Inventory, limit: Annotated[float, "limits.used"]) -> Finding:
        used = inventory[kind][name]["used"]
        return Finding(name, f"{used:.0%} used", used <= limit)

    @action
    def replicas(inventory: Inventory) -> Iterator[Stage]:
        for replica in inventory[kind][name].get("replicas", {}):
            yield replication(kind, name, replica)


@stage(tags=["dynamic", "slow"], data={"limits.lag": 60})
def replication(kind: str, name: str, replica: str) -> None:
    """Check how far a replica lags behind."""

    @action(collect="findings")
    def lag(inventory: Inventory, limit: Annotated[int, "limits.lag"]) -> Finding:
        seconds = inventory[kind][name]["replicas"][replica]
        return Finding(replica, f"{seconds} s behind", seconds <= limit)


@stage(tags=["reporting"], data={"report.title": "Resources"})
def report() -> None:
    """Summarize the findings."""

    @action
    def summary(findings: list[Finding], title: Annotated[str, "report.title"]) -> str:
        concerns = [f"{finding.name} ({finding.what})" for finding in findings if not finding.fine]
        return f"{title}: {len(findings)} checked, {len(concerns)} to look at: {', '.join(concerns)}"

    @action
    def table(findings: list[Finding], ctx: Context) -> None:
        rows = [f"| {one.name} | {one.what} | {'fine' if one.fine else '**look at it**'} |" for one in findings]
        ctx.show("\n".join(["| resource | found | |", "| --- | --- | --- |", *rows]))  # on the page of the run


flow = discover >> report


def show(run: Run) -> None:
    """Print the summary, and the stages in execution order, each below the one that inserted it."""
    print(run["summary"])
    depths: dict[str, int] = {}
    for record in run.stages:
        inserter = record.inserted_by.partition("/")[0] if record.inserted_by else None
        depths[record.name] = depths[inserter] + 1 if inserter else 0
        name = "  " * depths[record.name] + record.name
        print(f"  {name:50}{record.status:11}{record.inserted_by or ''}".rstrip())


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("resources.toml")
    show(flow.run({"path": path}))
    print()
    show(flow.run({"path": path}, skip=["tag:slow"]))
