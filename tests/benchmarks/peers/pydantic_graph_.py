"""pydantic-graph: steps of a graph, one after the other, and a map over a list with a join."""

import asyncio
from importlib.metadata import version

from _steps import STEPS, measure
from pydantic_graph import GraphBuilder, StepContext


async def increment(ctx: StepContext[None, None, int]) -> int:
    return ctx.inputs + 1


builder = GraphBuilder(input_type=int, output_type=int)
steps = [builder.step(node_id=f"increment{i}")(increment) for i in range(STEPS)]
builder.add(
    builder.edge_from(builder.start_node).to(steps[0]),
    *(builder.edge_from(one).to(next) for one, next in zip(steps, steps[1:])),
    builder.edge_from(steps[-1]).to(builder.end_node),
)
line = builder.build()


def chain() -> int:
    return asyncio.run(line.run(inputs=0))


measure(version("pydantic-graph"), chain=chain)
