"""Wait for something without blocking: a stage that returns itself until it is done.

A subprocess packs a package of the standard library into a zip archive. `watch` polls it, each time as a separate stage,
and the event loop is free in between. Middleware around the whole pipeline starts the process, and makes sure that it
ends, whatever happens.

    python examples/polling.py
"""

from __future__ import annotations

import asyncio
import encodings
import sys
import zipfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

from flowdeco import Stage, action, pipeline, stage
from flowdeco.middleware import Call

PACKED = Path(encodings.__file__).parent


async def packing(call: Call) -> AsyncIterator[dict[str, Process | Path]]:
    """Start the process, pass it to the actions, and end it if it is still running when they have finished."""
    with TemporaryDirectory() as folder:
        archive = Path(folder, "packed.zip")
        packer = await asyncio.create_subprocess_exec(sys.executable, "-m", "zipfile", "-c", archive, PACKED)
        try:
            yield {"packer": packer, "archive": archive}
        finally:
            if packer.returncode is None:
                packer.kill()
                await packer.wait()


@stage
def watch() -> None:
    """Check whether the process has finished; if not, wait a moment and check again."""

    @action
    async def look(packer: Process, archive: Path) -> Stage | None:
        if packer.returncode is None:
            size = archive.stat().st_size if archive.exists() else 0
            print(f"packing {PACKED.name}: {size // 1024:5} KiB")
            await asyncio.sleep(0.05)
            return watch
        if packer.returncode != 0:
            raise RuntimeError(f"packing failed with exit code {packer.returncode}")
        return None


@stage
def verify() -> None:
    """Read the archive back."""

    @action
    def packed(archive: Path) -> int:
        with zipfile.ZipFile(archive) as opened:
            damaged = opened.testzip()
            if damaged is not None:
                raise RuntimeError(f"{damaged} is damaged")
            return sum(name.endswith(".py") for name in opened.namelist())


flow = pipeline(watch, verify, name="pack", use=[packing])

if __name__ == "__main__":
    run = asyncio.run(flow.arun())
    looks = sum(record.name == "watch" for record in run.stages)
    print(f"done: {run['packed']} modules packed, after {looks} looks in {run.elapsed:.1f} s")
