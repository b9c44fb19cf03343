"""The examples, run as their readers run them: what they print is what they promise."""

from __future__ import annotations

import ast
import email
import encodings
import json
import os
import platform
import re
import runpy
import subprocess
import sys
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import flowdeco
from flowdeco import action, pipeline

EXAMPLES = Path(__file__).parents[1] / "examples"
IMPORT_PATH = os.pathsep.join(filter(None, [str(Path(flowdeco.__file__).parents[1]), os.environ.get("PYTHONPATH")]))


def output_of(script: str, *arguments: str | Path) -> str:
    """Return what a script prints; it must succeed, without warnings."""
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / script, *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": IMPORT_PATH},
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_example_is_run_here() -> None:
    """An example without a test would rot."""
    found = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".ipynb"}}
    source = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*examples.py"))
    assert set() == {name for name in found if f'"{name}"' not in source}


# The census of the standard library.


@pytest.fixture(scope="module")
def census() -> str:
    """What the census prints."""
    return output_of("stdlib_census.py")


@pytest.fixture(scope="module")
def counts(census: str) -> dict[str, list[int]]:
    """The rows of the census' table: modules, lines, functions, classes."""
    rows = re.findall(r"^(\S.*?) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+)$", census, re.MULTILINE)
    return {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in rows}


def packages() -> list[Path]:
    """Return the folders of the standard library's packages, found by walking through all folders."""
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    found: list[Path] = []
    for folder, subfolders, files in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = [name for name in subfolders if name not in left_out]
        if "__init__.py" in files and folder != sysconfig.get_path("stdlib"):
            found.append(Path(folder))
    return found


def test_the_census_has_a_stage_for_each_package_of_the_standard_library(census: str) -> None:
    """The packages are those that a walk through the folders finds, and each got its stage."""
    expected = len(packages())
    assert expected > 30
    assert f"\nall {expected} packages " in census
    assert re.search(
        rf"^{expected + 2} stages ran in .* s, {expected} of them inserted by discover", census, re.MULTILINE
    )
    assert re.search(r"census\[asyncio\] .* inserted by discover/discover\n", census)  # the tree


def test_the_census_counts_all_modules_and_lines(counts: dict[str, list[int]]) -> None:
    """The totals are those of the files."""
    sources = [path.read_bytes() for package in packages() for path in package.glob("*.py")]
    total = counts[f"all {len(packages())} packages"]
    assert [len(sources), sum(len(source.splitlines()) for source in sources)] == total[:2]


@pytest.mark.parametrize("package", ["asyncio", "email", "unittest"])
def test_the_census_counts_functions_and_classes(package: str, counts: dict[str, list[int]]) -> None:
    """There are as many as there are keywords `def` and `class`."""
    keywords: Counter[str] = Counter()
    for path in Path(sysconfig.get_path("stdlib"), package).glob("*.py"):
        with path.open("rb") as source:
            keywords.update(token.string for token in tokenize.tokenize(source.readline) if token.type == tokenize.NAME)
    assert [keywords["def"], keywords["class"]] == counts[package][2:]


def test_the_census_shows_the_largest_packages_first_and_adds_up(counts: dict[str, list[int]]) -> None:
    """Twelve packages by their lines, then the others, then the sum of both."""
    *largest, others, total = counts.values()
    lines = [row[1] for row in largest]
    assert len(lines) == 12
    assert sorted(lines, reverse=True) == lines
    assert [sum(column) for column in zip(*largest, others, strict=True)] == total


# The discovery of resources.

DISCOVERED = """\
Resources: 8 checked, 2 to look at: orders-us (340 s behind), web-2 (93% used)
  discover                                          completed
    process[databases]                              completed  discover/plan
      check[databases, orders]                      completed  process[databases]/each
        replication[databases, orders, orders-eu]   completed  check[databases, orders]/replicas
        replication[databases, orders, orders-us]   completed  check[databases, orders]/replicas
      check[databases, users]                       completed  process[databases]/each
        replication[databases, users, users-eu]     completed  check[databases, users]/replicas
    process[caches]                                 completed  discover/plan
      check[caches, sessions]                       completed  process[caches]/each
    process[servers]                                completed  discover/plan
      check[servers, web-1]                         completed  process[servers]/each
      check[servers, web-2]                         completed  process[servers]/each
  report                                            completed
"""


def test_the_discovery_inserts_stages_three_levels_deep_in_order() -> None:
    """The first half of the output: everything ran, depth first, and it is recorded who inserted what."""
    everything, _ = output_of("resource_discovery.py").split("\n\n")
    assert everything + "\n" == DISCOVERED


def test_the_discovery_skips_by_tag_what_is_inserted_later() -> None:
    """The second half: the same stages in the same order, those tagged "slow" skipped, and their findings missing."""
    _, without_slow = output_of("resource_discovery.py").split("\n\n")
    first, *lines = without_slow.splitlines()
    assert first == "Resources: 5 checked, 1 to look at: web-2 (93% used)"
    expected = [
        line.replace("completed", "skipped  ") if "replication" in line else line
        for line in DISCOVERED.splitlines()[1:]
    ]
    assert expected == lines


def test_the_discovery_follows_the_inventory_that_it_is_given(tmp_path: Path) -> None:
    """Another inventory, other stages: nothing but the file says what there is to do."""
    inventory = tmp_path / "inventory.toml"
    inventory.write_text(
        "[queues.mail]\nused = 0.95\nreplicas = { copy = 61 }\n\n[queues.jobs]\nused = 0.9\n", encoding="utf-8"
    )
    everything, _ = output_of("resource_discovery.py", inventory).split("\n\n")
    first, *lines = everything.splitlines()
    assert first == "Resources: 3 checked, 2 to look at: mail (95% used), copy (61 s behind)"
    names = [re.split(" {2,}", line.strip())[0] for line in lines]
    assert names == [
        "discover",
        "process[queues]",
        "check[queues, mail]",
        "replication[queues, mail, copy]",
        "check[queues, jobs]",
        "report",
    ]


# The database transaction.


def test_the_transaction_is_committed_or_leaves_the_database_as_it_was() -> None:
    """The transfer that fails had noted itself and paid in before: both are undone."""
    assert output_of("sqlite_transaction.py") == (
        "before: ada 100, grace 20; transfers: 0\n"
        "\n"
        "moving 30: note completed, pay_in completed, pay_out completed\n"
        "completed: ada 70, grace 50; transfers: 1\n"
        "\n"
        "moving 1000: note completed, pay_in completed, pay_out failed\n"
        "IntegrityError: CHECK constraint failed: balance >= 0\n"
        "failed: ada 70, grace 50; transfers: 1\n"
    )


# Polling.


def test_polling_comes_back_until_the_archive_is_packed() -> None:
    """Each look but the last one found the process at work; then the archive has every module."""
    *looks, last = output_of("polling.py").splitlines()
    sizes = [int(size) for line in looks for size in re.findall(r"^packing encodings: +(\d+) KiB$", line)]
    assert len(sizes) == len(looks) >= 1
    assert sorted(sizes) == sizes
    modules = len(list(Path(encodings.__file__).parent.glob("*.py")))
    assert re.fullmatch(rf"done: {modules} modules packed, after {len(looks) + 1} looks in \d+\.\d s", last)


def test_polling_leaves_no_process_behind_when_it_fails() -> None:
    """The middleware ends the process when something inside fails."""
    flow = runpy.run_path(str(EXAMPLES / "polling.py"))["flow"]
    started: list[Any] = []

    @action
    async def fail(packer: Any) -> None:
        started.append(packer)
        raise ValueError("something else is wrong")

    with pytest.raises(ValueError, match="something else is wrong"):
        pipeline(fail, *flow, use=flow.use).run()
    assert [bool(packer.returncode) for packer in started] == [True]


# The notebook.

NOTEBOOK = EXAMPLES / "notebook.ipynb"
JSON_MODULES = sorted(Path(json.__file__).parent.glob("*.py"))


@pytest.fixture(scope="module")
def output_of_cell(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Execute the notebook, and give what the cell of an id puts out, as text."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", IMPORT_PATH)
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        client = NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(EXAMPLES)}})
        client.execute()
    cells = {cell.id: cell for cell in notebook.cells}

    def text(cell: str) -> str:
        outputs = cells[cell].outputs
        return "".join(output["text"] if "text" in output else output["data"]["text/plain"] for output in outputs)

    return text


def lengths(count: Callable[[list[str]], int]) -> list[int]:
    """Return the length of each module, counted in some way."""
    return [count(path.read_text(encoding="utf-8").splitlines()) for path in JSON_MODULES]


def test_the_notebook_is_stored_without_outputs_for_the_usual_kernel() -> None:
    """What is in the repository is the source: nothing that changes with every execution."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_actions_and_helpers_are_still_called_like_functions_in_the_notebook(
    output_of_cell: Callable[[str], str],
) -> None:
    """A cell calls both."""
    (decoder,) = (length for length, path in zip(lengths(len), JSON_MODULES, strict=True) if path.name == "decoder.py")
    assert f"({decoder}, 5)" == output_of_cell("plain")


def test_the_notebook_shows_what_ran_and_who_inserted_it(output_of_cell: Callable[[str], str]) -> None:
    """A stage for each module of `json`, between the two that were there from the start."""
    expected = [["discover", "completed"]]
    expected += [[f"measure[{path.name}]", "completed", "discover/discover"] for path in JSON_MODULES]
    expected += [["total", "completed"]]
    assert expected == [line.split() for line in output_of_cell("stages").splitlines()]
    assert re.fullmatch(rf"<Run \w+ completed, {len(expected)} stages in [\d.]+ s>", output_of_cell("run"))


def test_the_notebook_shows_the_store(output_of_cell: Callable[[str], str]) -> None:
    """What was collected, in order, and the total."""
    measured = [(path.name, length) for path, length in zip(JSON_MODULES, lengths(len), strict=True)]
    assert {"lengths": measured, "total": sum(lengths(len))} == ast.literal_eval(output_of_cell("store"))


def test_a_function_changed_in_a_cell_counts_in_the_next_run(output_of_cell: Callable[[str], str]) -> None:
    """The same pipeline gives another total, and the first run keeps its own."""

    def code(lines: list[str]) -> int:
        return len([line for line in lines if line.strip() and not line.strip().startswith("#")])

    assert f"{sum(lengths(len))} lines, {sum(lengths(code))} of them with code\n" == output_of_cell("change")
    assert sum(lengths(code)) < sum(lengths(len))


def test_a_function_is_repaired_in_its_cell_and_the_run_goes_on(output_of_cell: Callable[[str], str]) -> None:
    """The run fails at the module without a line; resumed, it reads that one again, and those that come after it."""
    package = Path(email.__file__).parent
    names = [path.relative_to(package).as_posix() for path in sorted(package.rglob("*.py"))]
    lines = [(package / name).read_text(encoding="utf-8").splitlines() for name in names]
    empty = [name for name, content in zip(names, lines, strict=True) if not content]
    means = [sum(map(len, content)) / len(content) if content else 0.0 for content in lines]
    before = names.index(empty[0])
    assert 0 < before < len(names) - 1
    assert output_of_cell("fail") == (
        f"failed in look[{empty[0]}] - division by zero\n{before} of {len(names)} modules\n"
    )
    assert output_of_cell("repair") == (
        f"completed - {len(names)} modules, the widest is {max(zip(means, names, strict=True))[1]}\n"
        f"read twice: [{empty[0]!r}]\n"
    )


def test_coroutines_run_in_a_notebook_whose_loop_is_running(output_of_cell: Callable[[str], str]) -> None:
    """`flow.run()` and `await flow.arun()` give the same."""
    version = f"Python {platform.python_version()}"
    assert f"a loop is running: True\nrun:  {version}\narun: {version}\n" == output_of_cell("coroutines")
