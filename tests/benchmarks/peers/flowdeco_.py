"""flowdeco: a chain of actions, a parallel group, and the same chain with a journal."""

import tempfile
from pathlib import Path

from _steps import STEPS, measure

import flowdeco
from flowdeco import Stage, action, parallel, pipeline, stage


@action(returns="n")
def increment(n: int) -> int:
    return n + 1


@stage
def square(n: int) -> None:
    @action(collect="squares")
    def squared() -> int:
        return n * n


chain_of_actions = Stage("chain", [increment.with_options(name=f"increment-{i}") for i in range(STEPS)])
squares = parallel(*(square(i) for i in range(STEPS)), name="squares")


def chain() -> int:
    return chain_of_actions.run({"n": 0})["n"]


def fan_out() -> int:
    return sum(squares.run()["squares"])


def durable() -> int:
    with tempfile.TemporaryDirectory() as folder:
        return chain_of_actions.run({"n": 0}, journal=Path(folder) / "runs.db")["n"]


pipeline()
measure(flowdeco.__version__, chain=chain, fan_out=fan_out, durable=durable)
