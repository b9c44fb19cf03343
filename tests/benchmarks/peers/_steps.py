"""What every peer program shares: the number of steps, a clock around them, and the line that it prints.

A peer program is run as `python PROGRAM STEPS` by the Python of its own environment, and must not import flowdeco.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import perf_counter

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 100


def measure(version: str, **workloads: Callable[[], int]) -> None:
    """Run each workload twice, and print the microseconds per step of the second time as one JSON line.

    A workload returns its result, which is checked: `STEPS` steps that add one to a number, or the sum of as many squares.
    """
    expected = {"chain": STEPS, "durable": STEPS, "fan_out": sum(n * n for n in range(STEPS))}
    report: dict[str, object] = {"version": version}
    for name, workload in workloads.items():
        workload()  # imports, caches, databases that are created once
        begun = perf_counter()
        result = workload()
        spent = perf_counter() - begun
        if result != expected[name]:
            raise AssertionError(f"{name} gave {result!r}, not {expected[name]!r}")
        report[name] = spent / STEPS * 1e6
    print(json.dumps(report))
