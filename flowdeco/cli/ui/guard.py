"""Who is answered: those who have the token, from a page of this server, under a name of this machine.

1. The `Host` is an address, or a name of this machine: a foreign name that leads here (DNS rebinding) is refused.
2. The token in the URL is exchanged for a cookie that scripts and other sites cannot use, and the browser is sent to the
   URL without it. Nothing else is shown without the cookie.
3. A GET changes nothing. A POST has the `Origin` of this very server.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from hmac import compare_digest
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import urlencode, urlsplit

from flowdeco.cli.ui.pages import message, strict

__all__ = ["Asked", "Guard", "Reply", "refusal"]

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with "no-referrer", browsers send no Origin
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_TOKEN: Final = "token"


class Asked(NamedTuple):
    """A request; `fields` are those of its query, or, of a POST, of its form."""

    method: str
    path: str
    fields: list[tuple[str, str]]
    headers: Mapping[str, str]
    cookies: Mapping[str, str]

    def field(self, name: str) -> str:
        """Return the first value of a field, "" if it is missing."""
        return next((value for each, value in self.fields if each == name), "")


class Reply(NamedTuple):
    """A response."""

    body: str
    status: int = 200
    type: str = "text/html"
    headers: Mapping[str, str] = {}

    def with_headers(self) -> dict[str, str]:
        """Return all headers of the response."""
        return {**_HEADERS, "Content-Type": f"{self.type}; charset=utf-8", **self.headers}


class Guard:
    """The token of a server, and the checks of each request."""

    def __init__(self, host: str, port: int) -> None:
        self.token = secrets.token_urlsafe(32)
        self._once: set[str] = set()
        self._session = secrets.token_urlsafe(32)
        self._cookie = f"flowdeco-{port}"  # cookies are shared by all ports
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self._base = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"
        self._names = {"localhost", host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}

    def address(self, token: str) -> str:
        """Return the URL with a token."""
        return f"{self._base}?{urlencode({_TOKEN: token})}"

    def new_token(self) -> str:
        """Return a token that is good once: other users of this machine see it in the command line of the browser."""
        token = secrets.token_urlsafe(32)
        self._once.add(token)
        return token

    def check(self, asked: Asked, *, known: bool) -> Reply | None:
        """Return the reply to a request that is refused or redirected, None for one that is to be answered.

        `known` are paths of pages: only to these a browser is sent with its cookie.
        """
        if not self._is_here(asked.headers.get("host", "")):
            return refusal(421, "This is not a name of this server", "Open the address that flowdeco ui has printed.")
        if asked.method == "GET" and asked.field(_TOKEN):
            return self._admitted(asked, known)
        if not _equal(asked.cookies.get(self._cookie, ""), self._session):
            return refusal(
                401,
                "You are not signed in",
                "Open the address that flowdeco ui has printed, with its token. If you have just followed a link to it "
                "from another site, reload this page.",
            )
        if asked.method not in ("GET", "HEAD") and not _is_own(asked.headers):
            return refusal(403, "This request came from another site", "Nothing was changed.")
        return None

    def _is_here(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            return bool(ip_address(name))
        except ValueError:
            return name.lower() in self._names

    def _admitted(self, asked: Asked, known: bool) -> Reply:
        token = asked.field(_TOKEN)
        once = next((each for each in self._once if _equal(each, token)), None)
        self._once.discard(once or "")
        if once is None and not _equal(token, self.token):
            return refusal(401, "This token is not valid", "Open the address that flowdeco ui has printed last.")
        query = urlencode([(name, value) for name, value in asked.fields if name != _TOKEN])
        target = (asked.path if known else "/") + (f"?{query}" if query else "")
        cookie = f"{self._cookie}={self._session}; HttpOnly; SameSite=Strict; Path=/"
        return Reply("", 303, headers={"Location": target, "Set-Cookie": cookie})


def _equal(given: str, expected: str) -> bool:
    return compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _is_own(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from a page of this server, as its browser states."""
    host, origin = headers.get("host", ""), headers.get("origin", "")
    return (
        origin in (f"http://{host}", f"https://{host}")
        and headers.get("sec-fetch-site", "same-origin") == "same-origin"
    )


def refusal(status: int, title: str, text: str) -> Reply:
    """Return a page that says why a request was not answered."""
    return Reply(message(title, text), status, headers={"Content-Security-Policy": strict()})
