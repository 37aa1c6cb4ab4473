"""`reid serve`: search galleries in a browser."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path
from typing import Any

import click

from reid.commands.options import PATH, Command, option, settings_options
from reid.core.console import console
from reid.core.errors import ConfigError
from reid.pipelines.settings import SearchSettings

GROUPS = {"Input": ["calibration"], "Model": ["model", "weights", "flip", "trust"], "Computation": ["device"]}


@click.command("serve", cls=Command)
@click.argument("galleries", nargs=-1, required=True, type=PATH, metavar="GALLERY...")
@settings_options(SearchSettings, GROUPS)
@option("Address", "--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@option("Address", "--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
        help="Port to listen on; 0: any that is free.")  # fmt: skip
@option("Address", "--allow-host", multiple=True, metavar="NAME", help="Name under which clients reach it; repeatable.")
@option("Address", "--tls-certificate", type=PATH, help="PEM file of the certificate, for https.")
@option("Address", "--tls-key", type=PATH, help="PEM file of its key.")
@option("Limits", "--max-megabytes", type=click.IntRange(1, 200), default=20, show_default=True,
        help="Largest request.")  # fmt: skip
@option("Limits", "--per-minute", type=click.IntRange(1), default=60, show_default=True,
        help="Requests of one address in a minute.")  # fmt: skip
def cli(galleries: tuple[Path, ...], host: str, port: int, **options: Any) -> None:
    """Search one GALLERY, or several of one model, by photo in a browser or through a REST API.

    \b
    reid serve shop --model best.pt
    reid serve shop --model best.pt --host 0.0.0.0 --allow-host search.example.org

    Without --host, only this computer can connect. Any other address needs a token: the environment variable
    REID_TOKEN, or a random one, which is printed. The API is described at /openapi.json. Every search is in the
    gallery's audit log.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError("The server needs uvicorn. Install it with: pip install 'reid-toolkit[serve]'") from error
    from reid.pipelines.gallery import open_for_search
    from reid.server import ServerSettings, create_app
    from reid.server.guard import is_loopback

    settings = SearchSettings(**{name: options[name] for names in GROUPS.values() for name in names})
    token = os.environ.get("REID_TOKEN") or (None if is_loopback(host) else secrets.token_urlsafe(24))
    if token is not None and len(token) < 16:
        raise ConfigError("REID_TOKEN has fewer than 16 characters. Use a longer, random one.")
    if (options["tls_certificate"] is None) != (options["tls_key"] is None):
        raise ConfigError("Pass --tls-certificate and --tls-key together.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host}, port {port}: {error.strerror}. Pass another --port.") from error
    opened, embed, calibration = open_for_search(galleries, settings)
    limits = ServerSettings(
        ("localhost", host, *options["allow_host"]), token, options["max_megabytes"] * 2**20, options["per_minute"]
    )
    app = create_app(opened, embed, calibration, limits)
    protocol = "http" if options["tls_certificate"] is None else "https"
    shown = f"[{host}]" if ":" in host else host
    end = "" if token is None else f"#token={token}"
    port = listening.getsockname()[1]
    console.print(f"Open {protocol}://{shown}:{port}/{end} (stop with Ctrl+C)", soft_wrap=True, highlight=False)
    if protocol == "http" and not is_loopback(host):
        console.print("Photos and the token are sent unencrypted. Use --tls-certificate, or a proxy with TLS.")
    key = {"ssl_certfile": options["tls_certificate"], "ssl_keyfile": options["tls_key"]}
    config = uvicorn.Config(
        app, log_config=None, log_level="warning", server_header=False, proxy_headers=False, limit_concurrency=32, **key
    )
    with listening, contextlib.suppress(KeyboardInterrupt):  # the server has already closed its connections
        uvicorn.Server(config).run(sockets=[listening])
