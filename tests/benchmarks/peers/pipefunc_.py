"""pipefunc: a pipeline of functions, and a map over an array."""

import pipefunc as package
from _steps import STEPS, measure
from pipefunc import PipeFunc, Pipeline, pipefunc


def increment(n: int) -> int:
    return n + 1


@pipefunc(output_name="squared", mapspec="n[i] -> squared[i]")
def square(n: int) -> int:
    return n * n


line = Pipeline([PipeFunc(increment, f"n{i + 1}", renames={"n": f"n{i}"}) for i in range(STEPS)])
squares = Pipeline([square])


def chain() -> int:
    return line.run(f"n{STEPS}", kwargs={"n0": 0})


def fan_out() -> int:
    results = squares.map({"n": list(range(STEPS))}, parallel=False, storage="dict")
    return int(sum(results["squared"].output))


measure(package.__version__, chain=chain, fan_out=fan_out)
