"""The examples of parallel groups, run as their readers run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import flowdeco

EXAMPLES = Path(__file__).parents[1] / "examples"
IMPORT_PATH = os.pathsep.join(filter(None, [str(Path(flowdeco.__file__).parents[1]), os.environ.get("PYTHONPATH")]))


def performed(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Python with the examples' folder as its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        capture_output=True,
        check=False,
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONPATH": IMPORT_PATH, **environment},
        text=True,
        timeout=60,
    )


def output_of(script: str, *arguments: str) -> str:
    """Return what a script prints; it must succeed, without warnings."""
    done = performed(EXAMPLES / script, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# Downloads.


@pytest.fixture(scope="module")
def downloads() -> list[tuple[str, float, str]]:
    """How 30 files were downloaded, how long it took, and what came of it."""
    found = re.findall(r"^(\S.*?) +([\d.]+) s   (.*)$", output_of("parallel_downloads.py", "30"), re.MULTILINE)
    return [(how, float(seconds), totals) for how, seconds, totals in found]


def test_every_way_to_download_gives_the_same(downloads: list[tuple[str, float, str]]) -> None:
    """All files, in branch order, as they were served."""
    sizes = {f"file-{n:03}.txt": f"{n}\n".encode() * (100 * n + 1) for n in range(30)}
    expected = "[" + ", ".join(
        f"Download(name={name!r}, size={len(content)}, checksum={zlib.crc32(content)})"
        for name, content in sizes.items()
    ) + "]"  # fmt: skip
    total = sum(map(len, sizes.values()))
    assert {totals for _, _, totals in downloads} == {
        f"30 files, {total:,} bytes, checksum {zlib.crc32(expected.encode()):08x}"
    }


def test_downloads_side_by_side_take_a_fraction_of_the_time(downloads: list[tuple[str, float, str]]) -> None:
    """In threads and as coroutines: 16 at a time should be 10 times as fast; a busy machine leaves a third of that."""
    hows = [how for how, _, _ in downloads]
    assert hows == [
        "one after the other", "in threads: flow.run()", "coroutines: await flow.arun()", "coroutines: flow.run()",
    ]  # fmt: skip
    alone, *together = [seconds for _, seconds, _ in downloads]
    assert alone >= 31 * 0.05
    assert max(together) < alone / 3


# The census on a Dask cluster.


def test_the_census_on_a_cluster_is_the_census() -> None:
    """Line by line the table of the example that runs in one process; its calls were in two others."""
    pytest.importorskip("distributed")
    table, _, rest = output_of("dask_census.py").rpartition("\n\n")
    _, _, alone = output_of("stdlib_census.py").partition("\n\n")
    expected, summary, _, _ = alone.split("\n\n")
    assert table == expected
    stages = re.findall(r"^(\d+) stages ran", summary)
    assert re.fullmatch(rf"{stages[0]} stages ran in [\d.]+ s, their calls in 2 other processes\.\n", rest)


def test_without_dask_the_census_says_what_to_install() -> None:
    """In one line, and without a traceback."""
    blocked = (
        "import sys, runpy; sys.modules['distributed'] = None; runpy.run_path('dask_census.py', run_name='__main__')"
    )
    done = performed("-c", "import sys; sys.path.insert(0, '.'); " + blocked)
    assert done.returncode == 1
    assert done.stderr == "This example needs Dask: pip install 'flowdeco[dask]'\n"
    assert done.stdout == ""
