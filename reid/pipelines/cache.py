"""List and remove the packed stores in the cache."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reid.core.errors import check_choice
from reid.core.locks import exclusive
from reid.data.store import cache_folder, is_store


@dataclass(frozen=True)
class CachedStore:
    """A packed store in the cache: its folder, its bytes on disk, and when it was built, in seconds since 1970."""

    path: Path
    n_bytes: int
    built: float


def list_cache(folder: Path | None = None) -> list[CachedStore]:
    """Return the packed stores in a folder (default: `cache_folder()`), by name. Other folders are left out."""
    folder = folder or cache_folder()
    stores = sorted(filter(is_store, folder.iterdir())) if folder.is_dir() else []
    found = []
    for store in stores:
        sizes = [file.stat().st_size for file in store.iterdir()]
        found.append(CachedStore(store, sum(sizes), store.stat().st_mtime))
    return found


def clear_cache(names: Sequence[str] = (), folder: Path | None = None) -> list[CachedStore]:
    """Remove packed stores, and return them. They are built again when they are needed.

    Args:
        names: of the stores' folders; empty: all.
        folder: default: `cache_folder()`.

    Raises:
        ConfigError: there is no store of that name; nothing was removed.
        DataError: another process builds a store.
    """
    stores = {store.path.name: store for store in list_cache(folder)}
    for name in names:
        check_choice("packed store", name, stores)
    chosen = [stores[name] for name in names or stores]
    for store in chosen:
        with exclusive(store.path):
            shutil.rmtree(store.path)
    return chosen
