"""The server: Starlette and uvicorn, which are known to this module only."""

from __future__ import annotations

import asyncio
import socket
import sys
from importlib import import_module
from threading import Event, Thread
from typing import Any, Final
from urllib.parse import parse_qsl

from flowdeco.cli.inputs import UsageError
from flowdeco.cli.process import handled
from flowdeco.cli.ui.guard import Asked, Guard, Reply
from flowdeco.cli.ui.site import Site

__all__ = ["PORT", "application", "bound", "require_extra", "serve"]

PORT: Final = 8347
_TRIED: Final = 20  # ports, if the first is taken
_MOST_BYTES: Final = 1 << 20  # of a form
_MOST_FIELDS: Final = 1000


def require_extra() -> None:
    """Raise `UsageError` if the extra is not installed."""
    try:
        import_module("starlette")
        import_module("uvicorn")
    except ImportError as error:
        raise UsageError("flowdeco ui needs starlette and uvicorn: pip install 'flowdeco[ui]'") from error


def bound(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens on this port; if none is wanted, on the first free one from `PORT` on."""
    wanted = range(PORT, PORT + _TRIED) if port is None else [port]
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise UsageError(f"--host {host}: there is no such address: {error.strerror}") from None
    problem: OSError | None = None
    for each in wanted:
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            if sys.platform != "win32":  # where it would let two processes listen
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((address[0], each, *address[2:]))
            listening.listen()
        except OSError as error:
            listening.close()
            problem = error
        else:
            return listening
    where = f"--port {port}" if port is not None else f"the ports {PORT} to {PORT + _TRIED - 1} of {host}"
    raise UsageError(f"{where}: {problem and problem.strerror}. Name another one, or --port 0 for any that is free")


def application(site: Site, guard: Guard) -> Any:
    """Return the ASGI application."""
    starlette: Any = import_module("starlette.applications")
    responses: Any = import_module("starlette.responses")
    routing: Any = import_module("starlette.routing")

    async def form(request: Any) -> list[tuple[str, str]] | None:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > _MOST_BYTES:
                return None
        return parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)

    async def reply(request: Any) -> Reply:
        asked = Asked(
            request.method, request.scope["path"], request.query_params.multi_items(), request.headers, request.cookies
        )
        refused = guard.check(asked, known=site.has(asked.path))
        if refused is not None:
            return refused
        if asked.method == "POST":
            fields = await form(request)
            if fields is None:
                return Reply("The form is too large.", 413, "text/plain")
            asked = asked._replace(fields=fields)
        return await asyncio.to_thread(site.reply, asked)

    async def respond(request: Any) -> Any:
        try:
            found = await reply(request)
        except ValueError:  # of `parse_qsl`
            found = Reply("The form has too many fields.", 413, "text/plain")
        # Half of a surrogate pair, which cannot be encoded, is shown as its number.
        body = found.body.encode("utf-8", "backslashreplace")
        return responses.Response(body, found.status, headers=found.with_headers())

    every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return starlette.Starlette(routes=[routing.Route("/{path:path}", respond, methods=every)])


def serve(site: Site, guard: Guard, listening: socket.socket, *, opens: bool) -> bool:
    """Serve until SIGINT or SIGTERM, and return whether one came; `opens` the page in a browser.

    uvicorn runs in a thread of its own: in the main thread it would raise the signal again after its end.
    """
    uvicorn: Any = import_module("uvicorn")
    config = uvicorn.Config(
        application(site, guard), lifespan="off", ws="none", loop="asyncio", http="h11", log_level="warning",
        access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = uvicorn.Server(config)
    asked = Event()
    working = Thread(target=server.run, kwargs={"sockets": [listening]}, name="flowdeco-ui")
    with handled(lambda number, frame: asked.set()):
        working.start()
        try:
            if opens:
                import webbrowser

                webbrowser.open(guard.address(guard.new_token()))
            while working.is_alive() and not asked.wait(0.2):
                pass
        finally:
            server.should_exit = True
            working.join()
    return asked.is_set()
