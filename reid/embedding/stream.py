"""From any number of images or boxes to one Parquet file, a part at a time: nothing of size N × D is ever in memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.core.console import progress_bar
from reid.core.distributed import DistributedContext
from reid.core.errors import ReidError
from reid.data.crops import Crops
from reid.embedding.embedder import Embedder, Images, check_files, embed_batches, file_batches, list_files
from reid.embedding.shards import PART_SIZE, Keys, Parts, fill, part_folder
from reid.embedding.table import Embeddings, check_paths, known_columns, rows_per_group, save_stream

_FORMAT = 1


@dataclass(frozen=True)
class Streamed:
    """What became of the rows.

    Attributes:
        path: the Parquet file.
        rows: in it.
        finished: how many files, or boxes, had been embedded by an earlier run.
        left_out: in words, what has no row, and why.
        notes: what else was met, in words.
    """

    path: Path
    rows: int
    finished: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def embed_to_parquet(
    embedder: Embedder,
    images: Images,
    out: str | Path,
    *,
    unreadable: str = "error",
    ranks: DistributedContext | None = None,
    part_size: int = PART_SIZE,
) -> Streamed | None:
    """Embed files into one Parquet file, as `Embedder.table` does, in little memory and resumable.

    Finished rows are kept in `OUT.parts/` while it runs: in a folder for each model with its preprocessing and flip, a
    file known by its path, size and time of change. A later run, after a kill for instance, embeds only what is
    missing: other files and changed ones too, but none twice. When the file is whole, the parts are removed.

    The batches are the same whatever was finished before and however many processes share the work, so the features
    are too, where the model gives the same for the same batch.

    Args:
        embedder: the model.
        images: `Crops`, a folder, or a list of paths and folders.
        out: the file to write; what was there stays until the new one is whole.
        unreadable: "error", or "skip" to leave out the files that will not decode.
        ranks: the processes that share the work (`init_distributed`); all must call this with the same arguments.
        part_size: rows in a part: what a kill loses at most.

    Returns:
        What became of the rows; None in all processes but the first.

    Raises:
        ReidError: arrays instead of files, a file that cannot be read (with "error"), none that can, a model whose
            output is not finite, a folder that cannot be written. What was finished until then is kept.
    """
    ranks = ranks or DistributedContext(0, 1, embedder.device)
    out = Path(out)
    crops = list_files(images)
    if crops is None:
        raise ReidError("embed_to_parquet takes files: Crops, a folder or a list of paths. Arrays: Embedder.table.")
    meta = embedder.describe()
    check_paths(crops.paths)
    folder = part_folder(folder_of(out), meta["model"], [_FORMAT, meta])
    keys, first = _keys(crops.paths)
    parts = Parts(folder, embedder.dimension)
    others = parts.others(keys)
    found = parts.find(keys, failed=False) >= 0
    starts = np.arange(0, len(first), embedder.batch_size)
    own = np.array_split(starts, ranks.world_size)[ranks.rank].tolist()
    batches = [first[start : start + embedder.batch_size] for start in own]
    grid = [rows[~found[rows]] for rows in batches if not found[rows].all()]
    missing = np.concatenate([np.zeros(0, np.int64), *grid])
    check_files(crops.take(missing), embedder.preprocessing.size, unreadable)
    decoded = file_batches(crops.paths, grid, embedder.preprocessing.size, unreadable, embedder.threads)
    with progress_bar() as bar:
        task = bar.add_task("Embedding", total=len(missing), visible=ranks.is_first)
        for done in fill(parts, keys, embed_batches(embedder, decoded), part_size):
            bar.advance(task, len(done))
    shared = np.concatenate([np.zeros(0, np.int64), *batches])
    finished = total(ranks, int(found[shared].sum()))  # and all have written their parts
    if not ranks.is_first:
        return None
    if ranks.world_size > 1:
        parts = Parts(folder, embedder.dimension)
    places = parts.find(keys)
    if (places < 0).any():
        row = int(np.argmax(places < 0))
        raise ReidError(
            f"{int((places < 0).sum())} of {len(crops)} rows are missing from {folder}, the first {crops.paths[row]}: "
            "did files change, or another run end, while this one ran? Run it again: finished rows are kept."
        )
    reasons = parts.read(places, ["reason"])["reason"]
    left_out = [f"{crops.paths[row]}: {reasons[row]}" for row in np.flatnonzero(reasons != "")]
    kept = np.flatnonzero(reasons == "")
    if len(crops) and not len(kept):
        raise ReidError(f"None of the {len(crops)} images can be read. The first: {left_out[0]}.")
    if left_out:
        meta["left_out"] = left_out
    columns = known_columns(crops) if isinstance(images, Crops) else ()

    size = rows_per_group(embedder.dimension)

    def chunks() -> Iterator[Embeddings]:
        for start in range(0, max(len(kept), 1), size):
            rows = kept[start : start + size]
            features = parts.read(places[rows], ["features"])["features"]
            yield Embeddings(
                features, paths=crops.paths[rows], **{name: getattr(crops, name)[rows] for name in columns}
            )

    save_stream(out, chunks(), meta)
    notes = [*parts.notes, *close_folder(folder_of(out), [parts])]
    if others:
        notes.append(
            f"{others:,} rows that an earlier run had finished are of files that changed, or are not asked for."
        )
    return Streamed(out, len(kept), finished, tuple(left_out), tuple(notes))


def total(ranks: DistributedContext, number: int) -> int:
    """The sum over the ranks; all must ask."""
    return int(np.concatenate(ranks.gather_rows(np.array([number], np.float32))).sum())


def folder_of(out: Path) -> Path:
    """Where the parts of `out` lie while it is made."""
    return out.with_name(f"{out.name}.parts")


def close_folder(folder: Path, used: Sequence[Parts]) -> list[str]:
    """Remove the parts that became the file, and the folder when nothing else is in it; words on what else is."""
    for parts in used:
        parts.remove()
    with contextlib.suppress(OSError):
        folder.rmdir()
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [
        f"{folder / name} was made by another model, preprocessing or flip, or of another video, and was not used: "
        "delete it if nobody will."
        for name in others
    ]


def _keys(paths: NDArray[np.object_]) -> tuple[Keys, NDArray[np.int64]]:
    """What each file is known by `[N]`: path, size and time of change. And the first row of each, ascending."""
    digests = []
    for path in paths:
        try:
            status = os.stat(path)
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            state = "absent"
        digests.append(hashlib.blake2b(f"{os.path.abspath(path)}\0{state}".encode(), digest_size=16).digest())
    keys = np.frombuffer(b"".join(digests), "S16")
    return keys, np.sort(np.unique(keys, return_index=True)[1]).astype(np.int64)
