"""pictures.parquet: small pictures of the crops that `reid match` embedded, for galleries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reid.core.atomic import atomic_file
from reid.core.console import warn
from reid.core.errors import DataError
from reid.embedding.table import Embeddings
from reid.gallery.pictures import shrink_jpeg
from reid.gallery.rows import camera_names

NAME = "pictures.parquet"
_KEY = ("camera", "track", "frame")


def write_pictures(table: Embeddings, jpegs: Sequence[bytes], path: Path, *, pixelate: bool) -> None:
    """Write the pictures of embedded crops: one row of camera, track, frame and JPEG for each row of the embeddings."""
    pictures = [shrink_jpeg(jpeg, pixelate=True) for jpeg in jpegs] if pixelate else list(jpegs)
    columns = dict(zip(_KEY, (pa.array(camera_names(table), pa.string()), table.tracks, table.frames), strict=True))
    with atomic_file(path) as temporary:
        pq.write_table(pa.table({**columns, "picture": pa.array(pictures, pa.binary())}), temporary)


def read_pictures(path: Path, table: Embeddings) -> Callable[[int], bytes | None]:
    """Return the function that gives the picture of a row of the embeddings; None for a row without one.

    Args:
        path: file of `write_pictures`.
        table: embeddings with tracks and frames.

    Raises:
        DataError: the file cannot be read, or a column is missing or of another type.
    """
    try:
        stored = pq.read_table(path, columns=[*_KEY, "picture"])
        row_of = {key: row for row, key in enumerate(zip(*(stored[name].to_pylist() for name in _KEY), strict=True))}
        pictures = stored["picture"].cast(pa.binary())
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}. Match again, or remove the file.") from error
    integers = (getattr(table, name).tolist() for name in ("tracks", "frames"))
    found = [row_of.get(key) for key in zip(camera_names(table), *integers, strict=True)]
    if missing := found.count(None):
        warn(f"{path} has no picture of {missing:,} of {len(found):,} crops.")
    return lambda row: None if found[row] is None else pictures[found[row]].as_py()
