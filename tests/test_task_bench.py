"""The 11 dependence patterns of Task Bench: however a pattern is written and performed, every point has its value.

E. Slaughter et al.: Task Bench, SC20. The value of a point is a digest of its place and of the values it depends on, so a
value that is read too early, from the wrong row or twice changes everything that depends on it.
"""

import asyncio
import random
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import crash
import pytest
import task_bench
from task_bench import CALLS, ENDING, FORMS, PATTERNS, expected, flow

from flowdeco.durable import MemoryJournal
from flowdeco.executors import serial

SMALL = [pattern for pattern in PATTERNS if pattern.endswith("-8x8")]


class Interrupted(BaseException):
    """No middleware catches it, as if the process had ended."""


def interrupt():
    """End the run."""
    raise Interrupted


@pytest.fixture(autouse=True)
def no_calls():
    """No calls are left over from another test."""
    CALLS.clear()
    ENDING.clear()


@pytest.fixture(scope="module")
def threads():
    """Two threads, for all patterns."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def processes():
    """Two processes, for all patterns."""
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as executor:
        yield executor


@pytest.fixture(scope="module")
def parent():
    """The process that forks those that are killed."""
    made = crash.Parent()
    yield made
    made.close()


def forms(pattern):
    """Return the forms in which a pattern is written: a large one in one of them, in turn."""
    possible = [form for form in FORMS if form != "naming" or "all_to_all" not in pattern]
    return possible if pattern in SMALL else possible[list(PATTERNS).index(pattern) // 2 % len(possible) :][:1]


small = pytest.mark.parametrize("pattern", SMALL)


def test_all_patterns_of_task_bench_are_here():
    """Eleven, in two sizes."""
    assert {"-8x8": 11, "-16x16": 11} == Counter(f"-{pattern.rpartition('-')[2]}" for pattern in PATTERNS)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_point_has_its_value(run, pattern):
    """By `run` and by `arun`; points are recorded row by row, in the order of the branches."""
    values = expected(pattern)
    for form in forms(pattern):
        done = run(flow(pattern, form))
        assert values == dict(done.store), form
        assert list(values) == list(done.store), form
        assert len(values) == len(done.stages), form


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_point_has_its_value_on_any_executor_in_this_process(threads, pattern):
    """On `serial()`, and on a pool of two threads."""
    values = expected(pattern)
    for form in forms(pattern):
        for executor in (serial(), threads):
            assert values == dict(flow(pattern, form).run(executor=executor).store), form


@small
def test_every_point_has_its_value_in_processes(processes, pattern):
    """Two of them: a point that reads the store takes its view of it along."""
    for form in set(forms(pattern)) - {"awaiting"}:
        CALLS.clear()
        assert expected(pattern) == dict(flow(pattern, form).run(executor=processes).store), form
        assert not CALLS


@small
def test_an_interrupted_pattern_is_resumed_until_every_point_has_its_value(pattern):
    """At random points, in two forms; a point is computed again only if it was under way when its run was interrupted."""
    chance, values = random.Random(pattern), expected(pattern)
    for form in chance.sample(forms(pattern), 2):
        CALLS.clear()
        journal, whole, interruptions, how = MemoryJournal(), flow(pattern, form), 0, chance.choice(["run", "arun"])
        while True:
            ENDING[:] = [chance.randrange(1 + len(values) // 3), interrupt] if interruptions < 3 else []
            done = None
            try:
                done = getattr(whole, how)(journal=journal, run_id="r", if_exists="resume")
                done = asyncio.run(done) if how == "arun" else done
                break
            except (Interrupted, BaseExceptionGroup):
                interruptions += 1
        assert values == dict(done.store), form
        assert values.keys() == set(CALLS), form
        assert max(Counter(CALLS).values()) <= 1 + interruptions, form


@small
def test_a_killed_pattern_is_resumed_until_every_point_has_its_value(parent, tmp_path, pattern):
    """Twice by SIGKILL, in the middle of a row or of a write; the last process computes what is missing."""
    chance, values = random.Random(pattern), expected(pattern)
    form = chance.choice(forms(pattern))
    for calls in (*(chance.randrange(len(values) // 5, len(values) // 4) for _ in range(2)), None):
        outcome = parent.call(tmp_path, task_bench.until_killed, str(tmp_path), pattern, form, calls)
        assert (outcome.signal, outcome.error) == (signal.SIGKILL if calls is not None else 0, "")
    store, called = outcome.value
    assert values == store
    assert 0 < len(called) < len(values)
