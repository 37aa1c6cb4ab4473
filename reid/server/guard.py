"""What every request must pass: host, origin, token, rate and size. It also adds the security headers of answers."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

UPLOAD_SECONDS = 60.0
"""Longest time that the body of a request may take to arrive."""

_MAX_CLIENTS = 4096


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is of this machine only.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class RateLimit:
    """Allow a client a number of requests in any minute.

    Example:
        >>> limit = RateLimit(2)
        >>> [limit.wait("a", now) for now in (0.0, 1.0, 2.0, 60.5)]
        [0.0, 0.0, 58.0, 0.0]
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, client: str, now: float) -> float:
        """Count a request; return 0, or the seconds until the next one is allowed (it is then not counted)."""
        times = self._times.setdefault(client, deque())
        self._times.move_to_end(client)
        while len(self._times) > _MAX_CLIENTS:
            self._times.popitem(last=False)
        while times and times[0] <= now - 60:
            times.popleft()
        if len(times) >= self.per_minute:
            return times[0] + 60 - now
        times.append(now)
        return 0.0


class Guard:
    """ASGI application around another one; it refuses requests before it sees them.

    - The `Host` header must be an IP address or one of `hosts`: a page of another site whose name was made to point
      here (DNS rebinding) has another one.
    - A request from a page of another origin (`Origin`, `Sec-Fetch-Site`) is refused, so that no page can search.
    - If there is a token, everything except the `public` paths needs `Authorization: Bearer TOKEN`.
    - The body is received completely, up to `max_bytes`, before the application runs.
    """

    def __init__(
        self, app: App, *, hosts: Collection[str], public: Iterable[str], token: str | None, max_bytes: int,
        per_minute: int,
    ) -> None:  # fmt: skip
        self.app, self.hosts, self.public = app, {host.lower() for host in hosts}, frozenset(public)
        self.token, self.max_bytes, self.rate = token, max_bytes, RateLimit(per_minute)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        body = b""
        if refusal is None:
            try:
                body, refusal = await asyncio.wait_for(self._body(headers, receive), UPLOAD_SECONDS)
            except asyncio.TimeoutError:
                refusal = 408, f"The request took longer than {UPLOAD_SECONDS:.0f} s to arrive.", {}
        if refusal is not None:
            await _refuse(send_with_headers, *refusal)
            return
        given: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive_again() -> Message:
            return next(given, None) or await receive()

        await self.app(scope, receive_again, send_with_headers)

    def _refusal(self, scope: Message, headers: dict[str, str]) -> tuple[int, str, dict[str, str]] | None:
        host = headers.get("host", "")
        if not self._is_allowed(host):
            fix = "Use the address that `reid serve` printed, or start it with --allow-host NAME."
            return 421, f"This server does not answer for the host {host[:100]!r}. {fix}", {}
        origin = headers.get("origin")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and scope["path"] != "/":
            return 403, "Requests from pages of other sites are refused.", {}
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "Requests from pages of other sites are refused.", {}
        if scope["path"] in self.public:
            return None
        client = (scope.get("client") or ("unknown",))[0]
        if wait := self.rate.wait(client, time.monotonic()):
            text = f"More than {self.rate.per_minute} requests in a minute. Wait {wait:.0f} s."
            return 429, text, {"retry-after": f"{wait + 1:.0f}"}
        if self.token is not None:
            expected, given = f"Bearer {self.token}", headers.get("authorization", "")
            if not hmac.compare_digest(expected.encode(), given.encode("latin-1", "replace")):
                return 401, "A token is required: open the address that `reid serve` printed.", {
                    "www-authenticate": "Bearer"
                }  # fmt: skip
        return None

    def _is_allowed(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            ipaddress.ip_address(name)
        except ValueError:
            return bool(host) and urlsplit(f"//{host}").hostname in self.hosts if "[" not in host else False
        return True

    async def _body(
        self, headers: dict[str, str], receive: Receive
    ) -> tuple[bytes, tuple[int, str, dict[str, str]] | None]:
        refusal: tuple[int, str, dict[str, str]] = (
            413,
            f"The request has more than {self.max_bytes / 2**20:g} MiB. Send smaller photos.",
            {},
        )
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > self.max_bytes:
            return b"", refusal
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"", (400, "The request ended before it was complete.", {})
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                return b"", refusal
            if not message.get("more_body"):
                return bytes(body), None


async def _refuse(send: Send, status: int, text: str, headers: dict[str, str]) -> None:
    import json

    body = json.dumps({"error": text}).encode()
    given = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    lines = [(name.encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})
