"""LangGraph: nodes of a state graph; a checkpoint after each step, in SQLite, for the durable chain."""

import operator
import sqlite3
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypedDict

from _steps import STEPS, measure
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send


class State(TypedDict):
    n: int
    squares: Annotated[list[int], operator.add]


def increment(state: State) -> dict[str, int]:
    return {"n": state["n"] + 1}


def square(state: State) -> dict[str, list[int]]:
    return {"squares": [state["n"] ** 2]}


def line() -> StateGraph:
    graph = StateGraph(State)
    for i in range(STEPS):
        graph.add_node(f"increment{i}", increment)
        graph.add_edge(f"increment{i - 1}" if i else START, f"increment{i}")
    graph.add_edge(f"increment{STEPS - 1}", END)
    return graph


fan = StateGraph(State)
fan.add_node("square", square)
fan.add_conditional_edges(START, lambda state: [Send("square", {"n": i}) for i in range(STEPS)], ["square"])
fan.add_edge("square", END)
compiled, fanned, limits = line().compile(), fan.compile(), {"recursion_limit": STEPS + 5}


def chain() -> int:
    return compiled.invoke({"n": 0, "squares": []}, limits)["n"]


def fan_out() -> int:
    return sum(fanned.invoke({"n": 0, "squares": []}, limits)["squares"])


def durable() -> int:
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder) / "checkpoints.db", check_same_thread=False)
        kept = line().compile(checkpointer=SqliteSaver(connection))
        result = kept.invoke(
            {"n": 0, "squares": []}, {**limits, "configurable": {"thread_id": "1"}}, durability="sync"
        )["n"]
        connection.close()
    return result


measure(version("langgraph"), chain=chain, fan_out=fan_out, durable=durable)
