"""Groups that are inserted into each other without end are limited by memory, not by Python's stack."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowdeco import Pipeline, Run, Stage, action, cli, durable, parallel
from flowdeco.show import ran, write_page

DEPTH = 250
ROOM = 240  # frames: enough for whatever a group, or the rendering of a page, needs; not for one per group


class Calls:
    depths: list[int] = []
    works = False


@action
def dive(depth: int) -> object:
    Calls.depths.append(depth)
    if depth:
        return parallel(Stage("level", [dive], data={"depth": depth - 1}))
    if not Calls.works:
        raise ValueError("the bottom")
    return None


flow = Pipeline([Stage("level", [dive], data={"depth": DEPTH})])


@pytest.fixture(autouse=True)
def shallow_stack() -> Iterator[None]:
    Calls.depths, Calls.works = [], False
    frame, used = sys._getframe(), 0  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None:
        frame, used = frame.f_back, used + 1
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(used + ROOM)
    yield
    sys.setrecursionlimit(limit)


def check_failed(run: Run) -> None:
    assert (run.status, repr(run.error), len(run.stages)) == ("failed", "ValueError('the bottom')", DEPTH + 1)


def test_a_run_fails_at_the_bottom_is_read_and_continues_there(tmp_path: Path) -> None:
    """Nothing that was done before is repeated."""
    journal = str(tmp_path / "runs.db")
    check_failed(flow.run(journal=journal, run_id="r", check=False))
    check_failed(durable.read(journal, "r"))
    assert Calls.depths == [*range(DEPTH, -1, -1)]

    Calls.depths, Calls.works = [], True
    resumed = flow.resume("r", journal=journal)
    assert (resumed.status, Calls.depths) == ("completed", [0])
    assert len(durable.read(journal, "r").stages) == DEPTH + 1


def test_a_run_in_memory_continues_at_the_bottom() -> None:
    """The same run again."""
    run = flow.run(check=False)
    check_failed(run)
    Calls.depths, Calls.works = [], True
    assert (flow.resume(run).status, Calls.depths) == ("completed", [0])


def test_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As text, as a page and by the command line: what is nested too deep to be seen stands at the deepest level."""
    journal = str(tmp_path / "runs.db")
    run = flow.run(journal=journal, run_id="r", check=False)
    assert "ValueError: the bottom" in str(ran(run))
    assert "ValueError: the bottom" in write_page(run, tmp_path / "page.html", values=True).read_text()
    assert cli.main(["show", "r", "--journal", journal]) == 0
    assert "ValueError: the bottom" in capsys.readouterr().out


def test_the_note_of_its_error_names_a_few_branches() -> None:
    """Those next to the failure, and the outermost."""
    (note,) = flow.run(check=False).error.__notes__  # type: ignore[union-attr]  # pyright: ignore
    assert f"{DEPTH - 8} more branches" in note
    assert len(note) < 1_000
