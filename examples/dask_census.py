"""The census of the standard library on a Dask cluster: a parallel group of branches that nobody knew before.

`discover` looks for the packages, as in `stdlib_census.py`, and returns one parallel group with a branch for each. What
a branch calls is performed by one of two worker processes; all that travels is the name of a package there, and its
counts back. They are collected in branch order, so that the result is that of a run in one process.

    pip install 'flowdeco[dask]'
    python examples/dask_census.py
"""

from __future__ import annotations

import os
import sys

from stdlib_census import STDLIB, Count, census, packages, report

from flowdeco import Parallel, action, parallel, stage


@stage
def counted(package: str) -> None:
    """Count what is in one package, all in one call: its sources do not leave the worker."""

    @action(collect="counts")
    def count() -> Count:
        read, count = census(package)
        return count(read())  # actions are functions

    @action(collect="processes")
    def process() -> int:
        return os.getpid()


@action
def discover() -> Parallel:
    """Find the packages: the group that is returned runs right after this stage."""
    return parallel(*(counted(package) for package in packages(STDLIB)), name="packages")


flow = discover >> report


def main() -> None:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        sys.exit("This example needs Dask: pip install 'flowdeco[dask]'")
    # The dashboard may have any port that is free.
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        run = flow.run({"top": 12}, executor=client.get_executor())
    others = set(run["processes"]) - {os.getpid()}
    print(f"\n{len(run.stages)} stages ran in {run.elapsed:.1f} s, their calls in {len(others)} other processes.")


if __name__ == "__main__":
    main()
