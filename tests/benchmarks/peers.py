"""flowdeco next to its peers: `python tests/benchmarks/peers.py [--steps N] [--write] [NAME ...]`.

Each peer is installed into an environment of its own, in `--environments` (a temporary folder by default), and runs its
program in `peers/`: the same three workloads, written as its own documentation would. A peer that cannot be installed, or
whose program fails, is reported as such. `--write` writes the page docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"


class Peer(NamedTuple):
    """A peer: how it is shown, what is installed for it, and how it keeps the durable chain, if it has one."""

    title: str
    packages: tuple[str, ...]
    keeps: str = "–"


PEERS: Mapping[str, Peer] = {
    "flowdeco": Peer("flowdeco", (str(ROOT),), "each action, in SQLite"),
    "joblib": Peer("joblib", ("joblib",), "cached results, in files"),
    "dask": Peer("Dask (threads)", ("dask",)),
    "hamilton": Peer("Hamilton", ("sf-hamilton",)),
    "pipefunc": Peer("pipefunc", ("pipefunc",)),
    "pydantic_graph": Peer("pydantic-graph", ("pydantic-graph",)),
    "langgraph": Peer("LangGraph", ("langgraph", "langgraph-checkpoint-sqlite"), "a checkpoint per step, in SQLite"),
    "redun": Peer("redun", ("redun",)),
    "luigi": Peer("Luigi", ("luigi",)),
    "dbos": Peer("DBOS", ("dbos",), "each step, in SQLite"),
    "dagster": Peer("Dagster", ("dagster",), "events, in SQLite"),
    "prefect": Peer("Prefect", ("prefect",), "results, in files"),
}


class Result(NamedTuple):
    """The version and the microseconds per step of a peer, by workload; or why there are none."""

    version: str
    micros: Mapping[str, float]
    failure: str = ""


def main() -> int:
    """Measure the peers, and print or write the table."""
    arguments = _arguments()
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as scratch:
        environments = Path(arguments.environments or scratch)
        for name in arguments.names or PEERS:
            results[name] = _measured(name, environments, arguments.steps)
            print(name, results[name], file=sys.stderr, flush=True)
    page = _page(results, arguments.steps)
    if arguments.write:
        PAGE.write_text(page, encoding="utf-8")
    else:
        print(page)
    return int("flowdeco" in results and bool(results["flowdeco"].failure))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PEERS, []], metavar="NAME", help=f"of: {', '.join(PEERS)}")
    parser.add_argument("--steps", type=int, default=100, help="of each workload (100)")
    parser.add_argument("--environments", help="a folder that keeps the environments for the next time")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    return parser.parse_args()


def _measured(name: str, environments: Path, steps: int) -> Result:
    folder = environments / name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PEERS[name].packages]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        return Result("", {}, "could not be installed")
    program = [python, HERE / "peers" / f"{name}_.py", str(steps)]
    try:
        ran = subprocess.run(program, capture_output=True, text=True, check=True, timeout=600)
        found: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return Result("", {}, f"failed: {lines[-1] if lines else error}")
    version = found.pop("version")
    return Result(version, found)


def _page(results: Mapping[str, Result], steps: int) -> str:
    ours = results.get("flowdeco", Result("", {})).micros
    rows = [_row(PEERS[name], result, ours) for name, result in results.items()]
    load = f"{os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else "unknown"
    system = f"CPython {platform.python_version()} on {platform.system()}, {os.cpu_count()} cores, load average {load}"
    table = "\n".join(rows)
    return f"""# Benchmarks

Overhead per step in small workloads, for flowdeco and its peers. If your steps take a second, none of these figures matter;
if they take a millisecond, these figures decide whether they can be steps at all.

| | version | chain | fan-out | durable chain | keeps |
| --- | --- | ---: | ---: | ---: | --- |
{table}

Microseconds per step; in parentheses, the multiple of flowdeco's figure. A dash means that the peer has no equivalent.

- **chain**: {steps} steps in sequence, each adding one to the result of the previous one.
- **fan-out**: {steps} independent steps, each squaring a number, and their sum; threads, or the peer's own default.
- **durable chain**: the chain, set up to resume after a crash; the last column is what is saved, and where.

## Method

Measured with {system}, by one command. If the load average exceeds the
number of cores, the figures are only orders of magnitude.

```sh
python tests/benchmarks/peers.py --write
```

It installs the latest version of each peer into a separate environment, and runs its program from `tests/benchmarks/peers/`,
which follows the peer's documentation. Each workload runs twice; the second time is reported, and its result is checked.
Compiling or building a graph once is not counted. The programs are short, and corrections from people who know a peer better
are welcome.

Airflow and Temporal are missing, because they need their servers. So are all engines that are not written in Python.

In that time, peers do things that flowdeco leaves out, such as scheduling, a central server with a history of all runs, and
lineage: see the [comparison](compared.md). The costs of flowdeco itself are broken down in [the design](design.md#costs).
"""


def _row(peer: Peer, result: Result, ours: Mapping[str, float]) -> str:
    if result.failure:
        return f"| {peer.title} | | {result.failure} | | | |"
    cells = [_cell(result.micros.get(name), ours.get(name)) for name in ("chain", "fan_out", "durable")]
    return f"| {peer.title} | {result.version} | {' | '.join(cells)} | {peer.keeps} |"


def _cell(micros: float | None, ours: float | None) -> str:
    if micros is None:
        return "–"
    shown = f"{micros:,.0f}" if micros >= 10 else f"{micros:.1f}"
    if not ours or micros == ours:
        return shown
    times = micros / ours
    return f"{shown} ({times:.2f} ×)" if times < 1 else f"{shown} ({times:,.0f} ×)"


if __name__ == "__main__":
    sys.exit(main())
