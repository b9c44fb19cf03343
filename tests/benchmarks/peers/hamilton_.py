"""Hamilton: a dataflow of functions that are named after what they compute; made here, as its users write them."""

from _steps import STEPS, measure
from hamilton import ad_hoc_utils, driver, version

source = "def n0(start: int) -> int:\n    return start\n"
source += "".join(f"def n{i}(n{i - 1}: int) -> int:\n    return n{i - 1} + 1\n" for i in range(1, STEPS + 1))
source += "".join(f"def square{i}() -> int:\n    return {i} * {i}\n" for i in range(STEPS))
functions: dict[str, object] = {}
exec(source, functions)
module = ad_hoc_utils.create_temporary_module(*(value for value in functions.values() if callable(value)))
built = driver.Builder().with_modules(module).build()


def chain() -> int:
    return built.execute([f"n{STEPS}"], inputs={"start": 0})[f"n{STEPS}"]


def fan_out() -> int:
    return sum(built.execute([f"square{i}" for i in range(STEPS)]).values())


measure(".".join(map(str, version.VERSION)), chain=chain, fan_out=fan_out)
