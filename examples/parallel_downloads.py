"""Download many files at a time: with plain functions in threads, and with coroutines in an event loop.

The example starts a slow HTTP server on this machine. `index` lists the files, and returns a parallel group with a branch
for each of them; `total` adds up the collected sizes. Both kinds of download run in the same pipeline, and give the same
result.

    python examples/parallel_downloads.py [number of files]
"""

from __future__ import annotations

import asyncio
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import sleep
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import urlopen

from flowdeco import Parallel, Pipeline, Run, Stage, action, parallel, stage
from flowdeco.executors import serial

LATENCY = 0.05  # seconds
AT_ONCE = 16  # downloads at a time


class Download(NamedTuple):
    """A downloaded file."""

    name: str
    size: int
    checksum: int


# Two ways to download: the branches of the group.


@stage
def blocking(name: str) -> None:
    """Download one file, blocking; in a group, this runs in a thread."""

    @action(collect="downloads")
    def download(server: str) -> Download:
        with urlopen(f"{server}/{name}") as response:
            content = response.read()
        return Download(name, len(content), zlib.crc32(content))


@stage
def awaiting(name: str) -> None:
    """Download one file without blocking: a task in the event loop."""

    @action(collect="downloads")
    async def download(server: str) -> Download:
        content = await get(f"{server}/{name}")
        return Download(name, len(content), zlib.crc32(content))


async def get(url: str) -> bytes:
    """Return the content of a URL; a real program would use a library for that."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(f"GET {address.path} HTTP/1.0\r\nHost: {address.netloc}\r\n\r\n".encode())
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    if head.split()[1] != b"200":
        raise OSError(f"{url}: {head.splitlines()[0].decode()}")
    return content


# The pipeline: the same for both.


def downloads_by(way: Callable[[str], Stage]) -> Pipeline:
    """Return the pipeline that downloads all files of the server."""

    @action
    def index(server: str) -> Parallel:
        with urlopen(f"{server}/index.json") as response:
            names = json.load(response)
        return parallel(*map(way, names), name="downloads", limit=AT_ONCE)

    return index >> total


@action
def total(downloads: list[Download]) -> str:
    """Add up the sizes, which are collected in branch order, whatever the timing."""
    checksum = zlib.crc32(repr(downloads).encode())
    return f"{len(downloads)} files, {sum(download.size for download in downloads):,} bytes, checksum {checksum:08x}"


# The server.


@contextmanager
def serving(count: int) -> Iterator[str]:
    """Serve this many files on this machine; yield the address."""
    files = {f"/file-{number:03}.txt": f"{number}\n".encode() * (100 * number + 1) for number in range(count)}
    files["/index.json"] = json.dumps([path.strip("/") for path in files]).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sleep(LATENCY)
            content = files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def show(how: str, run: Run) -> None:
    print(f"{how:32}{run.elapsed:6.2f} s   {run['total']}")


def main(count: int) -> None:
    with serving(count) as server:
        print(f"{count} files, each of them {LATENCY * 1000:.0f} ms away, {AT_ONCE} at a time\n")
        inputs = {"server": server}
        show("one after the other", downloads_by(blocking).run(inputs, executor=serial()))
        show("in threads: flow.run()", downloads_by(blocking).run(inputs))
        show("coroutines: await flow.arun()", asyncio.run(downloads_by(awaiting).arun(inputs)))
        show("coroutines: flow.run()", downloads_by(awaiting).run(inputs))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
