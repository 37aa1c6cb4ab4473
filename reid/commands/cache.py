"""`reid cache list|clear|path`: packed crops on disk."""

from __future__ import annotations

import time

import click

from reid.commands.options import Command
from reid.core.console import console, make_table


@click.group("cache")
def cli() -> None:
    """List or remove the packed crops that training keeps on disk."""


@cli.command("list", cls=Command)
def list_command() -> None:
    """List the packed stores and the published models in the cache with their sizes."""
    from rich.filesize import decimal

    from reid.data.store import cache_folder
    from reid.models.zoo import read_table
    from reid.pipelines.cache import list_cache

    stores = list_cache()
    if stores:
        rows = [(s.path.name, decimal(s.n_bytes), time.strftime("%Y-%m-%d", time.localtime(s.built))) for s in stores]
        console.print(make_table(("store", "size", "built"), rows))
    console.print(f"{len(stores)} packed stores, {decimal(sum(s.n_bytes for s in stores))} in {cache_folder()}")
    models = [model for model in read_table().values() if model.folder.is_dir()]
    if models:
        size = sum(file.stat().st_size for model in models for file in model.folder.iterdir())
        names = ", ".join(model.name for model in models)
        console.print(f"{len(models)} published models ({names}), {decimal(size)} in {models[0].folder.parent}")


@cli.command("clear", cls=Command)
@click.argument("stores", nargs=-1, metavar="[STORE]...")
def clear_command(stores: tuple[str, ...]) -> None:
    """Remove packed stores, by default all. They are built again when they are needed.

    \b
    reid cache clear
    reid cache clear market1501-256x128-0123456789ab
    """
    from rich.filesize import decimal

    from reid.pipelines.cache import clear_cache

    removed = clear_cache(stores)
    console.print(f"{len(removed)} packed stores removed, {decimal(sum(store.n_bytes for store in removed))}")


@cli.command("path", cls=Command)
def path_command() -> None:
    """Print the folder of the cache: $REID_CACHE, else ~/.cache/reid."""
    from reid.data.store import cache_folder

    console.print(str(cache_folder()))
