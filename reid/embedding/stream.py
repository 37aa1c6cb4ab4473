"""Embed any number of image files into one Parquet file: in little memory, resumable, here or on a cluster."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reid.core.console import progress_bar
from reid.core.errors import DataError
from reid.core.storage import is_remote
from reid.data.crops import Crops
from reid.embedding.batches import Images, check_files, file_batches, list_files
from reid.embedding.embedder import Embedder
from reid.embedding.shards import SHARD_SIZE, Keys, Shards, batch_table, fill, shard_folder
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
    shard_size: int = SHARD_SIZE,
    root: str | Path | None = None,
    pixels: NDArray[np.int64] | None = None,
    cluster: Cluster | None = None,
) -> WrittenEmbeddings:
    """Embed image files into one Parquet file with the content of `Embedder.table`.

    While it runs, finished rows are stored in `OUT.shards/`, in a folder for each model, preprocessing and flip. A file
    is identified by its path, size and modification time. A later run, for instance after a crash, embeds only what
    is missing. When the file is complete, the shards are removed.

    The batches do not depend on the rows that were finished before or on the cluster. The features are
    therefore the same if the model gives the same output for the same batch.

    Args:
        embedder: the model.
        images: `Crops`, a folder, or a list of paths and folders.
        out: the file to write. An existing file stays until the new one is complete.
        unreadable: "error", or "skip" to leave out files that cannot be decoded.
        shard_size: rows in a shard: the most that an interruption loses.
        root: folder that the paths are written relative to (see `Embeddings.save`); by default they are as given.
        pixels: `[N, 4]` left, top, right, bottom of a box in each image; None for whole images.
        cluster: embeds on other processes and machines, which must reach the files and the folder of `out`; by default
            this process does.

    Raises:
        DataError: arrays instead of files, a file that cannot be read (with "error"), no file that can be read, a
            folder that cannot be written. Rows finished before the error are kept.
        ModelError: the output of the model is not finite.
    """
    out = Path(out)
    crops = list_files(images)
    if crops is None:
        raise DataError(
            "embed_to_parquet takes files: Crops, a folder or a list of paths. Use Embedder.table for arrays."
        )
    meta, size = embedder.describe(), embedder.preprocessing.size
    check_paths(crops.paths)
    folder = shard_folder(temporary_folder(out), meta["model"], [_FORMAT, meta])
    keys, first_rows = _file_keys(crops.paths, pixels)
    shards = Shards(folder, embedder.dimension)
    unused = shards.count_others(keys)
    found = shards.find(keys, failed=False) >= 0
    if cluster is not None:
        size_of_unit = embedder.batch_size * max(1, shard_size // embedder.batch_size)
        full = np.array([path if is_remote(path) else os.path.abspath(path) for path in crops.paths], object)
        pieces = np.split(first_rows, range(size_of_unit, len(first_rows), size_of_unit))
        units = [
            make_unit(keys[rows].tobytes(), keys[rows], full[rows], None if pixels is None else pixels[rows])
            for rows in pieces
        ]
        cluster.run(partial(embed_unit, unreadable=unreadable), units, folder, meta)
        shards = Shards(folder, embedder.dimension)
    else:
        batches = np.split(first_rows, range(embedder.batch_size, len(first_rows), embedder.batch_size))
        unfinished = [rows[~found[rows]] for rows in batches if not found[rows].all()]
        missing = np.concatenate([np.zeros(0, np.int64), *unfinished])
        if pixels is None:
            check_files(
                crops.take(missing[~np.array([is_remote(crops.paths[row]) for row in missing], bool)]), size, unreadable
            )
        decoded = file_batches(crops.paths, unfinished, size, unreadable, embedder.threads, pixels)
        with progress_bar() as bar:
            task = bar.add_task("Embedding", total=len(missing))
            for done in fill(shards, keys, embedder.embed_batches(decoded), shard_size):
                bar.advance(task, len(done))
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
    return WrittenEmbeddings(out, len(kept), int(found[first_rows].sum()), tuple(left_out), tuple(notes))


class Cluster(Protocol):
    """Other processes that do units of work, each with an object that was opened there, such as an `Embedder`."""

    def run(
        self, work: Callable[[Any, Unit], pa.Table], units: Sequence[Unit], folder: Path, meta: Mapping[str, Any]
    ) -> None:
        """Call `work` for each unit that an interrupted run did not finish, and write the tables to `folder`.

        Args:
            work: returns the rows of a shard, from the object and a unit.
            units: the work.
            folder: for shards, and for what the cluster needs to resume.
            meta: `describe()` of the object in this process, which every worker must agree with.
        """


class Unit(TypedDict):
    """Work for one worker at a time: an id that depends on nothing else, and pickled arguments."""

    id: str
    content: bytes


def make_unit(identity: bytes, *content: Any) -> Unit:
    """Return a unit with this content; equal identities give equal ids."""
    return Unit(id=hashlib.blake2b(identity, digest_size=16).hexdigest(), content=pickle.dumps(content))


def embed_unit(embedder: Embedder, unit: Unit, *, unreadable: str) -> pa.Table:
    """Embed a unit in batches of the embedder's size, and return the rows of a shard.

    Raises:
        DataError, ModelError: as `embed_to_parquet`.
    """
    keys, paths, pixels = pickle.loads(unit["content"])
    rows = np.split(np.arange(len(paths)), range(embedder.batch_size, len(paths), embedder.batch_size))
    decoded = file_batches(paths, rows, embedder.preprocessing.size, unreadable, embedder.threads, pixels)
    return pa.concat_tables([batch_table(keys, batch) for batch in embedder.embed_batches(decoded)])


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


def _file_keys(paths: NDArray[np.object_], pixels: NDArray[np.int64] | None = None) -> tuple[Keys, NDArray[np.int64]]:
    """Return a key `[N]` of each row, and the first row of each key, ascending.

    A key is made of the path, size and modification time of a file, or the address of an object, and the box.
    """
    digests = []
    for row, path in enumerate(paths):
        box = b"" if pixels is None else pixels[row].astype("<i8").tobytes()
        if is_remote(path):
            digests.append(hashlib.blake2b(path.encode() + b"\0" + box, digest_size=16).digest())
            continue
        try:
            status = os.stat(path)
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            state = "absent"
        digests.append(hashlib.blake2b(f"{os.path.abspath(path)}\0{state}".encode() + box, digest_size=16).digest())
    keys = np.frombuffer(b"".join(digests), "S16")
    return keys, np.sort(np.unique(keys, return_index=True)[1]).astype(np.int64)
