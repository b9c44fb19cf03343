"""The example of recorded workflows: every task has its value, in both forms, whatever happens to the run on its way."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from hashlib import sha256
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import examples

import flowdeco
from flowdeco import Run
from flowdeco.durable import MemoryJournal, SqliteJournal
from flowdeco.errors import JournalError
from flowdeco.executors import serial

SCRIPT = Path(__file__).parents[1] / "examples" / "recorded_workflow.py"
IMPORT_PATH = os.pathsep.join(filter(None, [str(Path(flowdeco.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
INSTANCES = sorted((Path(__file__).parent / "data" / "wfinstances").glob("*.json"))
FORMS = ["levels", "discovered"]
law = settings(max_examples=examples(30), deadline=None, suppress_health_check=list(HealthCheck))

every_form = pytest.mark.parametrize("form", FORMS)
every_instance = pytest.mark.parametrize("path", INSTANCES, ids=[path.name.partition("-")[0] for path in INSTANCES])


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """The example as a module that journals and other processes can refer to."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[SCRIPT.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[SCRIPT.stem]


def command(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start the example as a command."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": IMPORT_PATH},
        text=True,
    )


def output_of(*arguments: str | Path) -> tuple[int, str]:
    """Return how many tasks the command did, and its digest of all values; it must succeed, without warnings."""
    process = command(*arguments)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    found = re.fullmatch(r"completed: \d+ tasks, (\d+) of them in this process; digest of all values: (\w+)\n", output)
    assert found is not None, output
    return int(found[1]), found[2]


# The model: plain Python that knows nothing of flows.


def parents_of(path: Path) -> dict[str, list[str]]:
    """Return the parents of each task."""
    tasks = json.loads(path.read_text(encoding="utf-8"))["workflow"]["specification"]["tasks"]
    return {task["id"]: task["parents"] for task in tasks}


def seconds_of(path: Path, form: str) -> float:
    """Return how long a form takes that waits as long as its tasks took: one after the other, or along the longest path."""
    executed = json.loads(path.read_text(encoding="utf-8"))["workflow"]["execution"]["tasks"]
    seconds: dict[str, float] = {task["id"]: task["runtimeInSeconds"] for task in executed}
    if form == "discovered":
        return sum(seconds.values())
    parents, ends = parents_of(path), dict[str, float]()
    for id in values_of(parents):
        ends[id] = seconds[id] + max((ends[parent] for parent in parents[id]), default=0.0)
    return max(ends.values())


def values_of(parents: dict[str, list[str]]) -> dict[str, str]:
    """Return the value of each task, in an order in which they can be computed: whichever is ready, until none is left."""
    values: dict[str, str] = {}
    left = list(parents)
    while left:
        for id in [id for id in left if all(parent in values for parent in parents[id])]:
            values[id] = sha256("\n".join([id, *(values[parent] for parent in parents[id])]).encode()).hexdigest()
            left.remove(id)
    return values


def whole(path: Path) -> str:
    """Return the digest of all values, in the order of the file."""
    parents = parents_of(path)
    values = values_of(parents)
    return sha256("\n".join(["all", *(values[id] for id in parents)]).encode()).hexdigest()


def stored(run: Run) -> dict[str, str]:
    """Return the values of all tasks in a run."""
    before = "value of "
    return {key.removeprefix(before): value for key, value in run.store.items() if key.startswith(before)}


def instance(parents: dict[str, list[str]], **runtimes: float) -> dict[str, Any]:
    """Return an instance with these tasks."""
    tasks = [{"id": id, "name": id, "parents": needed, "children": []} for id, needed in parents.items()]
    executed = [{"id": id, "runtimeInSeconds": seconds} for id, seconds in runtimes.items()]
    return {"schemaVersion": "1.5", "workflow": {"specification": {"tasks": tasks}, "execution": {"tasks": executed}}}


@st.composite
def workflows(draw: st.DrawFn) -> dict[str, list[str]]:
    """Any graph without cycles, its tasks in any order, and the parents of a task as well."""
    size = draw(st.integers(0, 12))
    names = draw(st.permutations([f"task{number}" for number in range(size)]))
    parents = {
        name: draw(st.lists(st.sampled_from(names[:number]), unique=True, max_size=4)) if number else []
        for number, name in enumerate(names)
    }
    return {name: parents[name] for name in draw(st.permutations(names))}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, list[str]]], Path]:
    """Write an instance with these tasks, each to a file of its own."""
    folder, numbers = tmp_path_factory.mktemp("instances"), count()

    def write(parents: dict[str, list[str]]) -> Path:
        path = folder / f"{next(numbers)}.json"
        path.write_text(json.dumps(instance(parents)))
        return path

    return write


# What was recorded.


@every_form
@every_instance
def test_every_task_of_a_recorded_workflow_has_its_value(path: Path, form: str) -> None:
    """The command does all of it; its digest is that of the values that plain Python computes."""
    assert (len(parents_of(path)), whole(path)) == output_of(path, "--form", form)


@every_form
@every_instance
def test_a_killed_workflow_is_resumed_until_every_task_has_its_value(path: Path, form: str, tmp_path: Path) -> None:
    """By SIGKILL, twice, each time when a random number of further tasks is done; what is done is not done again."""
    values, chance, journal = values_of(parents_of(path)), random.Random(f"{path.stem} {form}"), tmp_path / "runs.db"
    scale = 1.5 / seconds_of(path, form)  # so much too long to be over when it is killed

    def done() -> int:
        try:
            rows = SqliteJournal(journal).history(f"{path.stem}-{form}")
        except JournalError:  # it has not begun
            return 0
        return sum(row.action == "work" and row.status == "completed" for row in rows)

    def arguments(scale: float) -> list[str | Path]:
        return [path, "--form", form, "--journal", journal, "--resume", "--scale", f"{scale:.9f}"]

    for least in sorted(chance.sample(range(1, len(values) // 2), 2)):
        process = command(*arguments(scale))
        while done() < least and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        assert (*process.communicate(), process.wait(10)) == ("", "", -signal.SIGKILL)
    before = done()
    assert (len(values) - before, whole(path)) == output_of(*arguments(0.0))


@every_form
def test_a_task_waits_as_long_as_it_took_times_the_scale(form: str) -> None:
    """A quarter of a second in all, one after the other or level by level."""
    began = time.perf_counter()
    output_of(INSTANCES[0], "--form", form, "--scale", f"{0.25 / seconds_of(INSTANCES[0], form):.9f}")
    assert time.perf_counter() - began >= 0.25


# Any other workflow.


def executors() -> list[Executor | None]:
    """Return one of each kind that shares this process' memory; none of them is used without groups."""
    return [None, serial(), ThreadPoolExecutor(3)]


@law
@given(parents=workflows())
def test_every_task_of_any_workflow_has_its_value(
    example: Any, written: Callable[[dict[str, list[str]]], Path], parents: dict[str, list[str]]
) -> None:
    """In both forms, by `run` and `arun`, on any executor."""
    path, values = written(parents), values_of(parents)
    workflow = example.load(path)
    inputs = {"instance": path, "scale": 0.0}
    discovered = example.discovered(workflow)
    assert values == stored(discovered.run(inputs)) == stored(asyncio.run(discovered.arun(inputs)))
    levels = example.levels(workflow)
    for executor in executors() if parents else [None]:
        assert values == stored(levels.run(inputs, executor=executor))
        assert values == stored(asyncio.run(levels.arun(inputs, executor=executor)))


class Interrupted(BaseException):
    """No middleware catches it, as if the process had ended."""


@law
@given(parents=workflows(), form=st.sampled_from(FORMS), calls=st.lists(st.integers(0, 5), max_size=6))
def test_any_workflow_is_resumed_until_every_task_has_its_value(
    example: Any,
    written: Callable[[dict[str, list[str]]], Path],
    parents: dict[str, list[str]],
    form: str,
    calls: list[int],
) -> None:
    """Interrupted at random tasks, again and again; a task is done again only if it was under way at an interruption."""
    path, values, journal = written(parents), values_of(parents), MemoryJournal()
    flow = example.FORMS[form](example.load(path))
    made: list[str] = []
    left = [0]

    def digest(id: str, parts: Any) -> str:
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted(id)
        made.append(id)
        return plain(id, parts)

    plain = example.digest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "digest", digest)
        for most in [*calls, len(parents)]:
            left[0] = most
            try:
                run = flow.run(
                    {"instance": path, "scale": 0.0}, journal=journal, run_id="r", if_exists="resume", executor=None
                )
            except BaseException as error:
                assert isinstance(error, Interrupted) or (
                    isinstance(error, BaseExceptionGroup) and error.split(Interrupted)[1] is None
                )
    assert values == stored(run)
    assert sorted(values) == sorted(made)


@every_instance
def test_levels_run_in_other_processes(example: Any, path: Path) -> None:
    """A task takes what it reads of the store along."""
    inputs = {"instance": path, "scale": 0.0}
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as executor:
        assert values_of(parents_of(path)) == stored(example.levels(example.load(path)).run(inputs, executor=executor))


def test_a_task_runs_when_all_its_parents_have_and_only_then(example: Any, tmp_path: Path) -> None:
    """The last parent to finish inserts it, and stands as its inserter."""
    path = tmp_path / "diamond.json"
    path.write_text(
        json.dumps(instance({"end": ["right", "left", "top"], "right": ["top"], "left": ["top"], "top": []}))
    )
    run = example.discovered(example.load(path)).run({"instance": path, "scale": 0.0})
    assert [
        ("start", None),
        ("top", "start/start"),
        ("right", "top/release"),
        ("left", "top/release"),
        ("end", "left/release"),
    ] == [(record.name, record.inserted_by) for record in run.stages]
    levels = example.levels(example.load(path))
    assert [["top"], ["right", "left"], ["end"]] == [[unit.name for unit in group.units] for group in levels]


# Files that are not an instance.

TASK = {"id": "a", "parents": []}


def specified(*tasks: object) -> dict[str, Any]:
    return {"workflow": {"specification": {"tasks": list(tasks)}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "it is not JSON: Expecting property name"),
        ("[]", "the file has no field 'workflow', it is []: is it an instance in WfFormat 1.5?"),
        ({"tasks": []}, "the file has no field 'workflow', only tasks: is it an instance in WfFormat 1.5?"),
        ({"workflow": {"tasks": []}}, "workflow has no field 'specification', only tasks: is it"),
        ({"workflow": {"specification": {}}}, "workflow.specification has no field 'tasks', only nothing: is it"),
        (specified(TASK, {"name": "b"}), "workflow.specification.tasks[1] has no field 'id', only name: is it"),
        (specified({"id": "a"}), "workflow.specification.tasks[0] ('a') has no field 'parents', only id: is it"),
        (specified({"id": 1, "parents": []}), "the field 'id' of workflow.specification.tasks[0] is 1, which is of the wrong type"),
        (specified(TASK, TASK), "workflow.specification.tasks[1] has the id 'a', as an earlier task has"),
        (specified({"id": "a", "parents": ["b"]}), "task 'a' has the parent 'b', which is not a task of the workflow"),
        (specified({"id": "a", "parents": [["a"]]}), "task 'a' has the parent ['a'], which is not a task of the workflow"),
        (specified({"id": "a", "parents": ["a"]}), "tasks wait for each other: a -> a"),
        (instance({"a": ["c"], "b": ["a"], "c": ["b"], "d": []}), "tasks wait for each other: "),
        (
            {"workflow": {"specification": {"tasks": [TASK]}, "execution": {"tasks": [{"id": "a"}]}}},
            "workflow.execution.tasks[0] has no field 'runtimeInSeconds', only id: is it",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_not_an_instance_is_refused(example: Any, tmp_path: Path, content: object, message: str) -> None:
    """The message says where, what is there, and what should be."""
    path = tmp_path / "instance.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(example.InstanceError, match=f"^{re.escape(message)}"):
        example.load(path)


def test_the_command_refuses_what_it_cannot_run(tmp_path: Path) -> None:
    """Usage errors: no file, no instance, nothing to resume; nothing is written."""
    (tmp_path / "no.json").write_text("{}")
    journal = tmp_path / "runs.db"
    for arguments, message in [
        ([tmp_path / "none.json"], "No such file or directory"),
        ([tmp_path / "no.json", "--journal", journal], "no.json: the file has no field 'workflow'"),
        ([INSTANCES[0], "--resume"], "--resume needs the --journal of the run to continue"),
    ]:
        process = command(*arguments)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (2, "")
        assert message in errors.splitlines()[-1]
    assert not journal.exists()


def test_a_run_that_the_journal_has_is_not_started_again(tmp_path: Path) -> None:
    """Without `--resume` it is an error; with it, the finished run is returned, and nothing is done."""
    arguments = [INSTANCES[0], "--journal", tmp_path / "runs.db"]
    done, digest = output_of(*arguments)
    process = command(*arguments)
    assert "RunExistsError" in process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert (0, digest) == output_of(*arguments, "--resume")
    assert done
