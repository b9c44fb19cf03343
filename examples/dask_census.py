"""The census of the standard library on a Dask cluster: a parallel group whose branches are discovered at run time.

`discover` finds the packages, as in `stdlib_census.py`, and returns one parallel group with a branch for each. The calls
of the branches run in two worker processes, which receive the name of a package and return its counts. These are
collected in branch order, so the result is the same as in one process.

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
    """Count one package in a single call, so that its sources do not leave the worker."""

    @action(collect="counts")
    def count() -> Count:
        read, count = census(package)
        return count(read())  # actions are functions

    @action(collect="processes")
    def process() -> int:
        return os.getpid()


@action
def discover() -> Parallel:
    """Find the packages; the returned group runs right after this stage."""
    return parallel(*(counted(package) for package in packages(STDLIB)), name="packages")


flow = discover >> report


def main() -> None:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        sys.exit("This example needs Dask: pip install 'flowdeco[dask]'")
    # The dashboard may use any free port.
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        run = flow.run({"top": 12}, executor=client.get_executor())
    others = set(run["processes"]) - {os.getpid()}
    print(f"\n{len(run.stages)} stages ran in {run.elapsed:.1f} s, their calls in {len(others)} other processes.")


if __name__ == "__main__":
    main()
