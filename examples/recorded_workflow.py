"""Run a recorded scientific workflow: any instance in WfFormat 1.5, as collected in WfInstances.

A task waits for its recorded duration times `--scale`, and its value is a digest of its id and of the values of its
parents. There are two forms, which give the same values:

- `levels`: the tasks without unfinished parents form a parallel group, then those that depend on these, and so on;
- `discovered`: there is no layout; a task that finishes inserts its children whose other parents have finished.

With a journal, a run that was killed continues where it stopped:

    python examples/recorded_workflow.py montage.json --form discovered --scale 0.01 --journal runs.db
    python examples/recorded_workflow.py montage.json --form discovered --scale 0.01 --journal runs.db --resume

WfInstances: https://github.com/wfcommons/WfInstances; WfFormat: https://github.com/wfcommons/WfFormat.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

from flowdeco import Context, Parallel, Pipeline, Run, Stage, action, parallel, pipeline, stage


class Task(NamedTuple):
    """A task, as described in an instance."""

    parents: tuple[str, ...]
    children: tuple[str, ...]
    seconds: float


Workflow = dict[str, Task]  # by id, in the order of the file


# The workflow.


def digest(id: str, values: Iterable[str]) -> str:
    """Return the value of a task, from those of its parents in their order."""
    return sha256("\n".join([id, *values]).encode()).hexdigest()


def value_of(id: str) -> str:
    """Return the key of a task's value in the store."""
    return f"value of {id}"


@stage(name="{id}")
def task(id: str, parents: Sequence[str], seconds: float, discovers: bool = False) -> None:
    """Do the work of a task; in the discovered form, insert the children that are now ready."""

    @action(returns=value_of(id))
    def work(scale: float, ctx: Context) -> str:
        sleep(seconds * scale)
        return digest(id, [ctx.store[value_of(parent)] for parent in parents])

    if discovers:

        @action
        def release(instance: Path, ctx: Context) -> list[Stage]:
            workflow, done = load(instance), ctx.store
            return [
                discovering(child, workflow)
                for child in workflow[id].children
                if all(value_of(parent) in done for parent in workflow[child].parents)
            ]


def discovering(id: str, workflow: Workflow) -> Stage:
    """Return the stage of a task that inserts its children."""
    return task(id, workflow[id].parents, workflow[id].seconds, discovers=True)


@action
def start(instance: Path) -> list[Stage]:
    """Insert the tasks without parents."""
    workflow = load(instance)
    return [discovering(id, workflow) for id, known in workflow.items() if not known.parents]


def discovered(workflow: Workflow) -> Pipeline:
    """Return the form in which every task inserts its children: it is the same for all workflows."""
    return pipeline(start, name="discovered")


def levels(workflow: Workflow) -> Pipeline:
    """Return the form in which each level is a parallel group."""
    order = TopologicalSorter({id: known.parents for id, known in workflow.items()})
    order.prepare()
    groups: list[Parallel] = []
    while order.is_active():
        ready = order.get_ready()
        order.done(*ready)
        tasks = [task(id, workflow[id].parents, workflow[id].seconds) for id in ready]
        groups.append(parallel(*tasks, name=f"level {len(groups)}"))
    return pipeline(*groups, name="levels")


FORMS: dict[str, Callable[[Workflow], Pipeline]] = {"levels": levels, "discovered": discovered}


# The file.


class InstanceError(ValueError):
    """A file that is not an instance, or whose tasks cannot be put in order."""


@cache
def load(path: Path) -> Workflow:
    """Read the tasks of an instance, and check that they can be run."""
    try:
        instance = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InstanceError(f"it is not JSON: {error}") from error
    workflow = field(instance, "the file", "workflow", dict)
    specified = field(field(workflow, "workflow", "specification", dict), "workflow.specification", "tasks", list)
    parents: dict[str, tuple[str, ...]] = {}
    for number, known in enumerate(specified):
        where = f"workflow.specification.tasks[{number}]"
        id = field(known, where, "id", str)
        if id in parents:
            raise InstanceError(f"{where} has the id {id!r}, as an earlier task has")
        parents[id] = tuple(field(known, f"{where} ({id!r})", "parents", list))
    check(parents)
    children: dict[str, dict[str, None]] = {id: {} for id in parents}
    for id, needed in parents.items():
        for parent in needed:
            children[parent][id] = None
    seconds = seconds_of(workflow)
    return {id: Task(needed, tuple(children[id]), seconds.get(id, 0.0)) for id, needed in parents.items()}


def field(owner: Any, where: str, name: str, kind: type | tuple[type, ...]) -> Any:
    """Return a field of a JSON object; raise `InstanceError` if it is missing or something else."""
    if not isinstance(owner, dict) or name not in owner:
        found = f"only {', '.join(owner) or 'nothing'}" if isinstance(owner, dict) else f"it is {owner!r:.40}"
        raise InstanceError(f"{where} has no field {name!r}, {found}: is it an instance in WfFormat 1.5?")
    if not isinstance(owner[name], kind):
        raise InstanceError(f"the field {name!r} of {where} is {owner[name]!r:.40}, which is of the wrong type")
    return owner[name]


def seconds_of(workflow: dict[str, Any]) -> dict[str, float]:
    """Return the duration of each task, if it was recorded: a workflow need not have been executed."""
    if "execution" not in workflow:
        return {}
    executed = field(field(workflow, "workflow", "execution", dict), "workflow.execution", "tasks", list)
    return {
        field(known, where, "id", str): field(known, where, "runtimeInSeconds", (int, float))
        for number, known in enumerate(executed)
        for where in [f"workflow.execution.tasks[{number}]"]
    }


def check(parents: dict[str, tuple[str, ...]]) -> None:
    """Raise `InstanceError` for parents that are not tasks, and for tasks that wait for each other."""
    for id, needed in parents.items():
        unknown = next((parent for parent in needed if not isinstance(parent, str) or parent not in parents), None)
        if unknown is not None:
            raise InstanceError(f"task {id!r} has the parent {unknown!r}, which is not a task of the workflow")
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        raise InstanceError(f"tasks wait for each other: {' -> '.join(error.args[1])}") from error


# The command.


def execute(path: Path, form: str, scale: float, journal: Path | None, resume: bool) -> Run:
    """Run an instance, or continue its run in a journal."""
    return FORMS[form](load(path)).run(
        {"instance": path, "scale": scale},
        journal=journal,
        run_id=f"{path.stem}-{form}" if journal else None,
        if_exists="resume" if resume else "error",
    )


def summary(run: Run) -> str:
    """Summarize the number of tasks, how many of them this process ran, and the result."""
    done = sum(did.name == "work" and not did.restored for record in run.stages for did in record.actions)
    workflow = load(run["instance"])
    whole = digest("all", (run[value_of(id)] for id in workflow))
    return f"{run.status}: {len(workflow)} tasks, {done} of them in this process; digest of all values: {whole}"


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("instance", type=Path, help="a file in WfFormat 1.5")
    parser.add_argument("--form", choices=FORMS, default="levels")
    parser.add_argument(
        "--scale", type=float, default=0.0, help="wait for this fraction of a task's recorded duration (0)"
    )
    parser.add_argument("--journal", type=Path, help="the journal file")
    parser.add_argument("--resume", action="store_true", help="continue the run of the journal, if there is one")
    options = parser.parse_args()
    if options.resume and not options.journal:
        parser.error("--resume needs the --journal of the run to continue")
    try:
        run = execute(options.instance, options.form, options.scale, options.journal, options.resume)
    except (OSError, InstanceError) as error:
        parser.error(f"{options.instance}: {error}")
    print(summary(run))


if __name__ == "__main__":
    main()
