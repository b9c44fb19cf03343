"""The table of docs/from-one-core-to-a-cluster.md: `python tests/benchmarks/cores.py`, on a machine that does nothing else.

One workflow with a group of branches that compute, and one with a group of branches that wait, on everything that can
perform them. Times are the best of a few runs, with the pool made beforehand, as a program would.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

from measure import seconds

from flowdeco import Parallel, action, parallel
from flowdeco.executors import serial

BRANCHES = 40
SECONDS = 0.05  # of each branch
RUNS = 3


@action(collect="totals")
def compute(rounds: int) -> int:
    """Keep a processor busy."""
    total = 0
    for number in range(rounds):
        total += number * number
    return total


@action
def wait() -> None:
    """Wait, as for an answer from elsewhere."""
    time.sleep(SECONDS)


@action
async def wait_in_a_loop() -> None:
    """Wait, and let others go on."""
    await asyncio.sleep(SECONDS)


def group(branch: Callable[..., object]) -> Parallel:
    return parallel(*[action(branch)] * BRANCHES)


def best(run: Callable[[], object]) -> float:
    run()
    return min(seconds(run) for _ in range(RUNS))


def row(
    what: str, run: Callable[[Executor], object], pool: AbstractContextManager[Executor], alone: float = 0.0
) -> float:
    with pool as executor:
        took = best(lambda: run(executor))
    print(f"| {what:58} | {took:6.2f} s | {(alone or took) / took:6.1f} x |", flush=True)
    return took


def main() -> None:
    rounds = int(SECONDS * 100_000 / min(seconds(lambda: compute(100_000)) for _ in range(5)))
    inputs = {"rounds": rounds}
    computing, waiting, awaiting = group(compute), group(wait), group(wait_in_a_loop)

    def computed(executor: Executor) -> object:
        return computing.run(inputs, executor=executor)

    def waited(executor: Executor) -> object:
        return waiting.run(executor=executor)

    print(f"| {f'{BRANCHES} branches of {SECONDS * 1000:.0f} ms':58} | {'took':>8} | {'faster':>8} |")
    print(f"| {'-' * 58} | {'-' * 7}: | {'-' * 7}: |")
    alone = row("compute, one after the other: `serial()`", computed, nullcontext(serial()))
    row("compute, in threads", computed, ThreadPoolExecutor(32), alone)
    row("compute, `ProcessPoolExecutor(1)`", computed, ProcessPoolExecutor(1), alone)
    row("compute, `ProcessPoolExecutor(2)`", computed, ProcessPoolExecutor(2), alone)
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        pass
    else:
        address = "127.0.0.1:0"
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=address) as cluster,
            Client(cluster) as client,
        ):
            row("compute, Dask with 2 worker processes", computed, nullcontext(client.get_executor()), alone)
    alone = row("wait, one after the other: `serial()`", waited, nullcontext(serial()))
    row("wait, in threads: the default", waited, ThreadPoolExecutor(32), alone)
    row("wait, coroutines in `arun`", lambda _: asyncio.run(awaiting.arun()), nullcontext(serial()), alone)
    row("wait, coroutines in `run`", lambda _: awaiting.run(), nullcontext(serial()), alone)


if __name__ == "__main__":
    main()
