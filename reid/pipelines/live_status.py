"""The status page of `reid live`: what the cameras do now, for this machine only."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from reid.core.errors import ConfigError
from reid.report.page import Section, Table, render_template

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
REFRESH = "2"
"""Seconds after which a browser loads the page again."""

Status = Mapping[str, Any]


class StatusPage:
    """Serve `/`, a page, and `/status.json` on 127.0.0.1. Nothing can be changed through it.

    A request that names another host is refused, so that no page of another site can read the answer by a name that
    was made to point here.

    Args:
        port: 0 for any free port.
        status: returns the content; it is called for each request, from other threads.

    Attributes:
        url: of the page.

    Raises:
        ConfigError: the port is in use, or not allowed.
    """

    def __init__(self, port: int, status: Callable[[], Status]) -> None:
        try:
            self._server = _Server(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"Port {port} of the status page cannot be used: {error.strerror}. Pass another --status."
            ) from error
        self._server.status = status
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, name="status page", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    status: Callable[[], Status]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a browser that hangs up is no error of the run."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10.0

    def do_GET(self) -> None:
        port = self.server.server_port
        if self.headers.get("Host", "") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            return self._answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", "Open the address that reid live shows.")
        if self.path == "/status.json":
            text = json.dumps(self.server.status(), ensure_ascii=False, allow_nan=False)
            return self._answer(HTTPStatus.OK, "application/json", text)
        if self.path == "/":
            return self._answer(HTTPStatus.OK, "text/html", show_status(self.server.status()))
        return self._answer(HTTPStatus.NOT_FOUND, "text/plain", "There are / and /status.json.")

    do_HEAD = do_GET

    def _answer(self, code: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if kind == "text/html":
            self.send_header("Refresh", REFRESH)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "reid"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log no requests: messages of the run go to the same place."""


def show_status(status: Status) -> str:
    """Return the page of a status, as `live.run_live` makes it."""
    head = ["camera", "state", "frames/s", "frames", "dropped", "people now", "last frame", "error"]
    rows = [
        [
            camera["camera"],
            camera["state"],
            f"{camera['fps']:.1f}",
            f"{camera['frames']:,}",
            f"{camera['dropped']:,}",
            str(camera["people"]),
            camera["last_seen"] or "never",
            camera["error"] or "",
        ]
        for camera in status["cameras"]
    ]
    events = [[kind, f"{count:,}"] for kind, count in sorted(status["events"].items())]
    return render_template(
        "page.html",
        title="reid live",
        lead=f"Run {status['run']}, at {status['time']}: {status['identities']:,} identities so far. An identity is "
        f"known at most {status['delay']:g} s after the last box of a track.",
        sections=[
            Section("Cameras", [Table(head, rows, numbers=False)]),
            Section("Events", [Table(["event", "number"], events)]),
        ],
        embed=None,
    )
