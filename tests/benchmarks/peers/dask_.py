"""Dask: delayed functions, with its threaded scheduler."""

import dask
from _steps import STEPS, measure


@dask.delayed
def increment(n: int) -> int:
    return n + 1


@dask.delayed
def square(n: int) -> int:
    return n * n


def chain() -> int:
    n = 0
    for _ in range(STEPS):
        n = increment(n)
    return n.compute(scheduler="threads", optimize_graph=False)


def fan_out() -> int:
    return sum(dask.compute(*(square(i) for i in range(STEPS)), scheduler="threads"))


measure(dask.__version__, chain=chain, fan_out=fan_out)
