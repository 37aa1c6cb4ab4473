"""The engines that store the rows of galleries: LanceDB in the gallery's folder, or a Milvus server."""

from __future__ import annotations

from pathlib import Path

from reid.gallery.milvus_store import MilvusStore
from reid.gallery.store import LanceStore

Store = LanceStore | MilvusStore


def open_store(folder: Path, address: str | None, owner: str) -> Store:
    """Return the rows of a gallery.

    Args:
        folder: of the gallery.
        address: `milvus://host:port/name`; None for the folder itself.
        owner: text that identifies the gallery.

    Raises:
        DataError: a package is not installed.
    """
    return LanceStore(folder) if address is None else MilvusStore(folder, address, owner)
