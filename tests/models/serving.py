"""A server on loopback in place of the hosts of published models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from reid.models import zoo

ROW = {
    "kind": "embedder",
    "format": "torchreid",
    "architecture": "a network",
    "input": {},
    "output": "numbers",
    "licence": "MIT",
    "trained_on": "ten people",
    "terms": "research use only",
    "source": "a page",
}


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `ranges` are the ranges asked for, and a body ends after `cut` bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.cut: int | None = None
        self.knows_ranges = True
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body, wanted = self.server.files.get(self.path), self.headers["Range"]
        self.server.ranges.append(wanted)
        if body is None:
            self.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted and self.server.knows_ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : self.server.cut])

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[Server]:
    """Start a server that all addresses of models lead to, with an empty cache in `folder`."""
    with Server() as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        patch.setenv("REID_MODELS_URL", f"{server.url}/mirror/")
        patch.setenv("REID_CACHE", str(folder / "cache"))
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield server
        server.shutdown()


def publish(patch: pytest.MonkeyPatch, server: Server, bodies: dict[str, bytes], **row: Any) -> zoo.PublishedModel:
    """Make a model of `bodies` (by file name) the only published one."""
    for name, content in bodies.items():
        server.files[f"/mirror/rev/{name}"] = content
    content = {"name": "small", **ROW, "files": [{"url": f"https://example.org/rev/{name}"} for name in bodies], **row}
    model = zoo.PublishedModel(**content)
    patch.setattr(zoo, "read_table", lambda: {model.name: model})
    return model
