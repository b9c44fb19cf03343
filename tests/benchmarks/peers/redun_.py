"""redun: tasks that are cached in its database, here SQLite in memory."""

import logging
from importlib.metadata import version

from _steps import STEPS, measure
from redun import Scheduler, task

logging.disable(logging.CRITICAL)
redun_namespace = "peers"


@task(cache=False)
def increment(n: int) -> int:
    return n + 1


@task(cache=False)
def square(n: int) -> int:
    return n * n


@task(cache=False)
def total(numbers: list) -> int:
    return sum(numbers)


def chain() -> int:
    n = 0
    for _ in range(STEPS):
        n = increment(n)
    return Scheduler().run(n)


def fan_out() -> int:
    return Scheduler().run(total([square(i) for i in range(STEPS)]))


measure(version("redun"), chain=chain, fan_out=fan_out)
