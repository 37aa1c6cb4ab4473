"""A gallery of three tracklets, and an application whose features are mean colours."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from reid import Embeddings
from reid.gallery import Gallery, GallerySettings
from reid.server import ServerSettings, create_app
from tests.report.conftest import browser  # noqa: F401

pytest.importorskip("lancedb")
pytest.importorskip("fastapi")

COLOURS = {"red": (200, 10, 10), "green": (10, 200, 10), "blue": (10, 10, 200)}
META = {"model": "colours", "camera_names": ["door", "hall"]}


def embed(crops):
    """Return the mean colour of each crop."""
    return Embeddings(np.array([crop.mean(axis=(0, 1)) for crop in crops]), meta={"model": "colours"})


def picture(colour, size=(64, 32), suffix=".png"):
    image = np.full((*size, 3), COLOURS[colour], np.uint8)
    return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    gallery = Gallery.create(tmp_path_factory.mktemp("g") / "shop", GallerySettings(zone="Europe/Berlin"))
    colours = [np.array(colour, float) for colour in COLOURS.values()]
    features = [colours[0], colours[0] + 30, colours[1], colours[2]]
    table = Embeddings(features, camids=[0, 1, 0, 1], tracks=[5, 9, 6, 7], frames=[1, 501, 1001, 1501], meta=META)
    noise = np.random.default_rng(0).integers(0, 255, (4, 96, 48, 3), dtype=np.uint8)
    jpegs = [cv2.imencode(".jpg", image)[1].tobytes() for image in noise]
    gallery.add(table, source="monday", start="2026-07-01T06:00Z", picture_of=lambda row: jpegs[row])
    return gallery


@pytest.fixture
def make_app(gallery):
    return lambda **options: create_app([gallery], embed, None, ServerSettings(**options))
