"""`reid serve`: the search page and the REST API of galleries."""

from __future__ import annotations

from reid.server.app import ServerSettings, create_app

__all__ = ["ServerSettings", "create_app"]
