"""What the documentation shows is what happens: every Python block and every docstring example is run."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import traceback
import types
from contextlib import closing
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import pytest

import flowdeco
from flowdeco.model.definitions import Unit

ROOT = Path(__file__).parents[1]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *REFERENCE]
LINKING = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
SHELL = {"sh", "bash", "shell", "console"}
# A block after `<!-- needs: loky -->` runs where that can be imported; a word that is no module keeps it from running.
FENCE = re.compile(
    r"^(?:<!-- needs: (?P<needs>[\w. -]+) -->\n)?^(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?P<target>[^)#:\s]+)(?:#[^)\s]*)?\)")


class Block(NamedTuple):
    """A fenced block of a page: its language, its text, the number of the line before it."""

    language: str
    code: str
    line: int
    needs: str = ""

    @property
    def is_session(self) -> bool:
        return self.code.lstrip().startswith(">>>")


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"].strip(), found["code"], text.count("\n", 0, found.start("code")), found["needs"] or "")
        for found in FENCE.finditer(text)
    ]


def python_blocks_of(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.language in ("python", "pycon")]


def examples_in(block: Block, page: Path, namespace: dict[str, object]) -> doctest.DocTest:
    parser = doctest.DocTestParser()
    return parser.get_doctest(block.code, namespace, f"{page.name}:{block.line}", str(page), block.line)


def run_examples(test: doctest.DocTest) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    report: list[str] = []
    runner.run(test, out=report.append, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def run_block(block: Block, page: Path, namespace: dict[str, object]) -> None:
    code = compile("\n" * block.line + block.code, str(page), "exec", dont_inherit=True)
    try:
        exec(code, namespace)
    except Exception:  # pytest would show the whole page as the source of the failing code
        pytest.fail(f"in {page.name}, block at line {block.line}:\n{traceback.format_exc()}", pytrace=False)


def is_importable(name: str) -> bool:
    """Whether a module of that name, or a name in a module, is there."""
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute) if module else bool(importlib.import_module(name))
    except ImportError:
        return False


def run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(folder)
    for block in python_blocks_of(page):
        if block.needs and not is_importable(block.needs):
            continue
        if block.is_session:
            run_examples(examples_in(block, page, module.__dict__))
        else:
            run_block(block, page, module.__dict__)


class Command(NamedTuple):
    """A command of a console block, and what it puts out."""

    words: list[str]
    output: str
    line: int


def commands_of(page: Path) -> list[Command]:
    found: list[Command] = []
    for block in blocks_of(page):
        if block.language == "console":
            for number, line in enumerate(block.code.splitlines(keepends=True), start=block.line + 1):
                if line.startswith("$ "):
                    found.append(Command(shlex.split(line[2:]), "", number))
                else:
                    found[-1] = found[-1]._replace(output=found[-1].output + line)
    return found


def output_of_query(path: str, query: str) -> str:
    """Return what the sqlite3 shell puts out for a query."""
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None)) as connection:
        rows = connection.execute(query).fetchall()
    return "".join("|".join("" if value is None else str(value) for value in row) + "\n" for row in rows)


def docstring_examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = [found.name for found in pkgutil.walk_packages(flowdeco.__path__, "flowdeco.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith(".__main__")]
    return [test for module in (flowdeco, *modules) for test in finder.find(module) if test.examples]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page share one module, so that a reader can paste them one after the other."""
    run_page(page, tmp_path, monkeypatch)


@pytest.mark.parametrize("shell", ["python", "sqlite3"])
def test_the_queries_of_a_journal_give_what_they_show(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Python's module, and by the shell itself where there is one."""
    if shell == "sqlite3" and shutil.which(shell) is None:
        pytest.skip("there is no sqlite3 shell here")
    page = ROOT / "docs" / "journal.md"
    run_page(page, tmp_path, monkeypatch)
    commands = commands_of(page)
    assert len(commands) > 10
    for command in commands:
        program, path, query = command.words
        assert program == "sqlite3"
        if shell == "python":
            output = output_of_query(path, query)
        else:
            output = subprocess.run(command.words, capture_output=True, check=True, text=True, timeout=60).stdout
        shown = doctest.OutputChecker().check_output(command.output, output, doctest.ELLIPSIS)
        assert shown, f"{page.name}:{command.line} gives\n{output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_shows_something_that_is_checked(page: Path) -> None:
    """A block asserts, or is a session with at least one output: a block that only runs proves nothing."""
    unchecked: list[str] = []
    for block in python_blocks_of(page):
        if block.is_session:
            checked = any(example.want for example in examples_in(block, page, {}).examples)
        else:
            checked = any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(block.code)))
        if not checked:
            unchecked.append(f"{page.name}:{block.line + 1}")
    assert unchecked == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_code_block_of_a_page_says_its_language(page: Path) -> None:
    """A block of Python under another name would escape the tests."""
    known = {"python", "pycon", "text", "ini", "{eval-rst}", "{toctree}", *SHELL}
    assert {block.language for block in blocks_of(page)} <= known


@pytest.mark.parametrize("example", docstring_examples(), ids=lambda test: test.name)
def test_docstring_examples_give_what_they_show(example: doctest.DocTest) -> None:
    """The examples in docstrings run against the code that they are written in."""
    run_examples(example)


def test_the_readme_has_exactly_two_set_up_commands() -> None:
    """One to see it work, one to run the tests; each is one line that works from a clone."""
    commands = [block.code.strip() for block in blocks_of(ROOT / "README.md") if block.language in SHELL]
    assert commands == [
        "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/python examples/stdlib_census.py",
        "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/python -m pytest -n auto",
    ]


def test_the_guide_for_contributors_lists_the_modules_that_exist() -> None:
    """Every file it names exists, and every module of the model, the engine, the drivers and the journals is named."""
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    package = ROOT / "flowdeco"
    aside = {"outcome.py", "requests.py", "branch.py", "docs/"}  # in a sentence that says where they are
    assert {name for name in named - aside if not ((package / name).exists() or (ROOT / name).exists())} == set()
    packages = [package / name for name in ("model", "engine", "drivers", "durable")]
    modules = {path.relative_to(package).as_posix() for folder in packages for path in folder.glob("[!_]*.py")}
    assert modules - named == set()


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    """Links are to files of this repository, or to addresses with a scheme."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = {found["target"] for found in LINK.finditer(prose)}
    assert [target for target in sorted(targets) if not (page.parent / target).exists()] == []


PUBLIC = ["flowdeco"] + [
    f"flowdeco.{name}" for name in (
        "middleware", "durable", "executors", "testing", "show", "show.progress", "observers.otel", "events", "errors",
        "pytest_plugin",
    )
]  # fmt: skip
# Exported for other modules of the package.
INTERNAL = {
    "flowdeco.executors": {"broken", "is_local", "is_serial", "lost", "perform", "receive", "refused", "shipped"},
    "flowdeco.show": {"html_of", "plan", "ran", "write_page"},  # behind methods of definitions and runs
    "flowdeco.show.progress": {"Shown", "Watcher", "watcher"},
    "flowdeco.errors": {"Wait"},
    "flowdeco.pytest_plugin": {"pytest_runtest_makereport"},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_reference_describes_every_public_name_of_a_module(name: str) -> None:
    """Each has an entry of its own, or its module is described as a whole."""
    reference = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE)
    described = set(re.findall(r"(?:auto|py:)\w+:: ([\w.]+)", reference))
    described |= {f"{name}.{entry}" for entry in described if "." not in entry}
    exported = set(importlib.import_module(name).__all__) - INTERNAL.get(name, set())
    whole = f"automodule:: {name}\n" in reference
    names = {entry.rpartition(".")[2] for entry in described} if name == "flowdeco" else described
    missing = {each for each in exported if (each if name == "flowdeco" else f"{name}.{each}") not in names}
    assert missing - ({"Sleep"} if name == "flowdeco.middleware" else set()) == set() or whole


@pytest.mark.parametrize("method", ["run", "arun", "resume", "aresume"])
def test_every_option_of_a_run_is_described(method: str) -> None:
    """The docstring of `run` has an item for each of its options, that of `resume` names the others."""
    options = [
        each.name for each in signature(getattr(Unit, method)).parameters.values() if each.kind is each.KEYWORD_ONLY
    ]
    described = (Unit.run.__doc__ or "") + ("" if method.endswith("run") else Unit.resume.__doc__ or "")
    assert [name for name in options if not re.search(rf"`{name}[`=]", described)] == []
