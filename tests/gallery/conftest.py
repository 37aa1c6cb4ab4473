"""The engines that the contract of a gallery is tested with."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable

import pytest

from reid import Gallery
from reid.gallery import GallerySettings
from reid.gallery.milvus_store import connect, parse_address

SERVER = os.environ.get("REID_MILVUS")
"""host:port of a Milvus server; without it only the embedded engine is tested."""


@pytest.fixture(scope="module", params=["lancedb", "milvus"] if SERVER else ["lancedb"])
def create(request) -> Callable[..., Gallery]:
    """Function that creates a gallery of one engine in a folder."""
    addresses: list[str] = []

    def make(folder, **settings) -> Gallery:
        if request.param == "milvus":
            addresses.append(f"milvus://{SERVER}/test_{uuid.uuid4().hex}")
            settings["store"] = addresses[-1]
        return Gallery.create(folder, GallerySettings(**settings))

    yield make
    for address in addresses:
        connect(address).drop_collection(parse_address(address).name)
