"""Embed any number of image files into one Parquet file: in little memory, resumable, with several processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.core.console import progress_bar
from reid.core.distributed import DistributedContext
from reid.core.errors import DataError
from reid.data.crops import Crops
from reid.embedding.batches import Images, check_files, file_batches, list_files
from reid.embedding.embedder import Embedder
from reid.embedding.shards import SHARD_SIZE, Keys, Shards, fill, shard_folder
from reid.embedding.table import Embeddings, check_paths, known_columns, known_names, save_rows, saved_folder

_FORMAT = 1


@dataclass(frozen=True)
class WrittenEmbeddings:
    """A file of embeddings and how it was made.

    Attributes:
        path: the Parquet file.
        rows: number of its rows.
        finished: number of images or boxes that an earlier run had embedded.
        left_out: what has no row, and the reason.
        notes: other messages.
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
    distributed: DistributedContext | None = None,
    shard_size: int = SHARD_SIZE,
    root: str | Path | None = None,
) -> WrittenEmbeddings | None:
    """Embed image files into one Parquet file with the content of `Embedder.table`.

    While it runs, finished rows are stored in `OUT.shards/`, in a folder for each model, preprocessing and flip. A file
    is identified by its path, size and modification time. A later run, for instance after a crash, embeds only what
    is missing. When the file is complete, the shards are removed.

    The batches do not depend on the rows that were finished before or on the number of processes. The features are
    therefore the same if the model gives the same output for the same batch.

    Args:
        embedder: the model.
        images: `Crops`, a folder, or a list of paths and folders.
        out: the file to write. An existing file stays until the new one is complete.
        unreadable: "error", or "skip" to leave out files that cannot be decoded.
        distributed: the processes that share the work (`init_distributed`). All must make this call with the same
            arguments.
        shard_size: rows in a shard: the most that an interruption loses.
        root: folder that the paths are written relative to (see `Embeddings.save`); by default they are as given.

    Returns:
        The result; None in all processes except the first.

    Raises:
        DataError: arrays instead of files, a file that cannot be read (with "error"), no file that can be read, a
            folder that cannot be written. Rows finished before the error are kept.
        ModelError: the output of the model is not finite.
    """
    distributed = distributed or DistributedContext(0, 1, embedder.device)
    out = Path(out)
    crops = list_files(images)
    if crops is None:
        raise DataError(
            "embed_to_parquet takes files: Crops, a folder or a list of paths. Use Embedder.table for arrays."
        )
    meta, size = embedder.describe(), embedder.preprocessing.size
    check_paths(crops.paths)
    folder = shard_folder(temporary_folder(out), meta["model"], [_FORMAT, meta])
    keys, first_rows = _file_keys(crops.paths)
    shards = Shards(folder, embedder.dimension)
    unused = shards.count_others(keys)
    found = shards.find(keys, failed=False) >= 0
    starts = np.arange(0, len(first_rows), embedder.batch_size)
    own_starts = np.array_split(starts, distributed.world_size)[distributed.rank].tolist()
    batches = [first_rows[start : start + embedder.batch_size] for start in own_starts]
    unfinished = [rows[~found[rows]] for rows in batches if not found[rows].all()]
    missing = np.concatenate([np.zeros(0, np.int64), *unfinished])
    check_files(crops.take(missing), size, unreadable)
    decoded = file_batches(crops.paths, unfinished, size, unreadable, embedder.threads)
    with progress_bar() as bar:
        task = bar.add_task("Embedding", total=len(missing), visible=distributed.is_first)
        for done in fill(shards, keys, embedder.embed_batches(decoded), shard_size):
            bar.advance(task, len(done))
    finished = sum_over_processes(distributed, sum(int(found[rows].sum()) for rows in batches))
    if not distributed.is_first:
        return None
    if distributed.world_size > 1:
        shards = Shards(folder, embedder.dimension)
    positions = shards.find(keys)
    if (positions < 0).any():
        lost = np.flatnonzero(positions < 0)
        raise DataError(
            f"{len(lost)} of {len(crops)} rows are missing from {folder}, the first {crops.paths[lost[0]]}. Files were "
            "changed, or another run ended, during this one. Run it again: finished rows are kept."
        )
    reasons = shards.read(positions, "reason")
    saved_in = "" if root is None else saved_folder(crops.paths, root)
    left_out = [f"{crops.paths[row].removeprefix(saved_in)}: {reasons[row]}" for row in np.flatnonzero(reasons != "")]
    kept = np.flatnonzero(reasons == "")
    if len(crops) and not len(kept):
        raise DataError(f"None of the {len(crops)} images can be read. The first: {left_out[0]}.")
    if left_out:
        meta["left_out"] = left_out
    meta |= known_names(crops, labelled=isinstance(images, Crops))
    columns = known_columns(crops, labelled=isinstance(images, Crops))
    columns["paths"] = np.array([text.removeprefix(saved_in) for text in crops.paths], object)

    def read(rows: NDArray[np.int64]) -> Embeddings:
        values = {name: column[rows] for name, column in columns.items()}
        return Embeddings(shards.read(positions[rows], "features"), **values)

    save_rows(out, kept, read, meta)
    notes = [*shards.notes, *remove_shards(temporary_folder(out), [shards])]
    if unused:
        notes.append(f"{unused:,} rows of an earlier run were not used: their files changed or are not in this run.")
    return WrittenEmbeddings(out, len(kept), finished, tuple(left_out), tuple(notes))


def sum_over_processes(distributed: DistributedContext, number: int) -> int:
    """Return the sum over all processes. It waits for all of them; afterwards their shards are complete."""
    return int(np.concatenate(distributed.gather_rows(np.array([number], np.float32))).sum())


def temporary_folder(out: Path) -> Path:
    """Return the folder for the shards of `out`."""
    return out.with_name(f"{out.name}.shards")


def remove_shards(folder: Path, used: Sequence[Shards]) -> list[str]:
    """Remove the shards that are now in the file. Return messages about other contents of the folder."""
    for shards in used:
        shards.remove()
    with contextlib.suppress(OSError):
        folder.rmdir()
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [
        f"{folder / name} was not used: it belongs to another model, preprocessing, flip or video. "
        "Delete it if it is not needed."
        for name in others
    ]


def _file_keys(paths: NDArray[np.object_]) -> tuple[Keys, NDArray[np.int64]]:
    """Return a key `[N]` of each file's path, size and modification time, and the first row of each key, ascending."""
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
