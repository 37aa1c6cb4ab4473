"""Store the tracklets of a live run in a gallery, so that people can be searched meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reid.core.console import warn
from reid.core.errors import DataError
from reid.embedding.table import Embeddings
from reid.gallery import Gallery
from reid.gallery.rows import Sightings
from reid.pipelines.live_engine import Decided

MOST_PENDING = 10_000
"""Tracklets that wait for a gallery that cannot be written; then the run ends with its error."""


class GalleryOutput:
    """Add tracklets to a gallery as they get their identities.

    A tracklet that cannot be stored is tried again with the next ones. Adding it twice replaces it.

    Args:
        gallery: to add to.
        run: name of the run; the source in the gallery is `live RUN`, because each run counts from 1.
        meta: of the features, `Embedder.describe`.

    Raises:
        ModelError: the gallery contains features of another model.
    """

    def __init__(self, gallery: Gallery, run: str, meta: Mapping[str, Any]) -> None:
        gallery.check_fits(meta, meta["dimension"], "--model")
        self._gallery, self._meta = gallery, dict(meta)
        self.source = f"live {run}"
        self._pending: list[Decided] = []

    def send(self, decided: Sequence[Decided]) -> None:
        """Add tracklets; those without a feature are left out.

        Raises:
            DataError: the gallery cannot be written and `MOST_PENDING` tracklets wait.
        """
        self._pending += [tracklet for tracklet in decided if len(tracklet.features)]
        try:
            self.close()
        except DataError as error:
            if len(self._pending) > MOST_PENDING:
                raise
            warn(f"{error} {len(self._pending):,} tracklets wait.")

    def close(self) -> None:
        """Add what waits.

        Raises:
            DataError: the gallery cannot be written.
        """
        if not self._pending:
            return
        columns = list(zip(*self._pending, strict=True))
        camera, track, part, start, end, identity, _, features, pictures = columns
        counts = [len(rows) for rows in features]
        sightings = Sightings(
            np.array(camera, object),
            np.array(track, np.int64),
            np.array(part, object),
            np.rint(1000 * np.array(start)).astype(np.int64),
            np.rint(1000 * np.array(end)).astype(np.int64),
            np.array(counts, np.int64),
            np.array(identity, np.int64),
        )
        jpegs = [jpeg for group in pictures for jpeg in group]
        table = Embeddings(np.concatenate(features), meta=self._meta)
        owner = np.repeat(np.arange(len(counts)), counts)
        self._gallery.add(table, source=self.source, sightings=(sightings, owner), picture_of=jpegs.__getitem__)
        self._pending = []
