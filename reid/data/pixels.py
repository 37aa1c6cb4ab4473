"""What a run works on: the train rows in their store, and the splits it is scored on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reid.config import Config, DataConfig
from reid.core.console import console, warn
from reid.core.errors import ReidError
from reid.data.crops import Benchmark, Crops, merge
from reid.data.layouts import load_benchmarks
from reid.data.splits import hold_out
from reid.data.store import Store, open_store


@dataclass(frozen=True, eq=False)
class Pixels:
    """Crops and their pixels, row by row."""

    crops: Crops
    store: Store


@dataclass(frozen=True, eq=False)
class Split:
    """One query-gallery pair that the run is scored on."""

    name: str
    query: Pixels
    gallery: Pixels
    cross_camera: bool


@dataclass(frozen=True, eq=False)
class TrainingData:
    """All that a run reads."""

    train: Pixels
    splits: tuple[Split, ...]
    left_out: tuple[str, ...]
    """Unreadable images that `data.unreadable=skip` left out, with their reasons."""

    def fingerprint(self) -> dict[str, Any]:
        """Counts and a digest of names, identities and cameras: two runs that agree trained on the same rows."""
        return {
            "train": _describe(self.train.crops),
            **{
                f"{split.name} {part}": _describe(pixels.crops)
                for split in self.splits
                for part, pixels in (("query", split.query), ("gallery", split.gallery))
            },
            "left_out": list(self.left_out),
        }

    def changed_since(self, fingerprint: dict[str, Any]) -> str:
        """What is different from an earlier run's fingerprint, in words; empty where nothing is."""
        now = self.fingerprint()
        return next(
            (
                f"{name} was {fingerprint.get(name)}, and is now {now[name]}"
                for name in now
                if now[name] != fingerprint.get(name)
            ),
            "",
        )


def _describe(crops: Crops) -> dict[str, Any]:
    digest = hashlib.sha256()
    for path, pid, camid in zip(crops.paths, crops.pids, crops.camids, strict=True):
        digest.update(os.fsencode(f"{os.path.basename(path)},{pid},{camid}\n"))
    return {
        "sources": list(crops.source_names),
        "crops": len(crops),
        "identities": len(np.unique(crops.pids)),
        "cameras": len(np.unique(crops.camids)),
        "sha256": digest.hexdigest(),
    }


def load_training_data(config: Config) -> TrainingData:
    """Load the sources, hold out validation identities, and open (or build) the stores.

    The validation identities are the same for every `seed`, so that runs can be compared on them.

    Raises:
        ReidError: no train source named, or anything wrong with one.
    """
    if not config.data.train:
        raise ReidError(
            "data.train is empty: name a data set, e.g. data.train=market1501:/data/Market-1501-v15.09.15. Without "
            "one, try data.train=market1501:datasets/synthetic after `reid data synthesize --out datasets/synthetic`."
        )
    size = (config.model.height, config.model.width)
    sources = load_benchmarks(config.data.train)
    for benchmark in sources:
        for text in benchmark.warnings:
            warn(text)
        if len(benchmark.train) == 0:
            raise ReidError(f"{benchmark.name} at {benchmark.root} has no train crops.")
    left_out: list[str] = []
    scored = config.eval.split
    held_out: list[Crops] = []
    kept: list[Crops] = []
    for benchmark in sources:
        if scored == "validation":
            train, query, gallery = hold_out(
                benchmark.train, fraction=config.eval.fraction, cross_camera=benchmark.cross_camera
            )
            kept.append(train)
            held_out += [query, gallery]
        else:
            kept.append(benchmark.train)
    every = merge([benchmark.train for benchmark in sources])
    train_pixels, *validation = open_pixels(config.data, [merge(kept), *held_out], size, left_out, of=every)
    splits = [
        Split(f"{benchmark.name} validation", query, gallery, benchmark.cross_camera)
        for benchmark, query, gallery in zip(sources, validation[::2], validation[1::2], strict=False)
    ]
    if scored == "test":
        targets = load_benchmarks(config.data.test) if config.data.test else sources
        splits = [open_test_split(config.data, benchmark, size, left_out) for benchmark in targets]
    left_out = list(dict.fromkeys(left_out))
    for line in left_out:
        console.print(f"left out: {line}")
    return TrainingData(train_pixels, tuple(splits), tuple(left_out))


def store_folder(data: DataConfig, of: Crops, size: tuple[int, int]) -> Path:
    """Where the packed store of these crops at this size stands."""
    base = Path(data.store_dir or os.environ.get("REID_CACHE") or Path.home() / ".cache/reid")
    digest = hashlib.sha256(os.fsencode("\n".join(of.paths))).hexdigest()[:12]
    name = "-".join(dict.fromkeys(source.replace("/", "_") or "crops" for source in of.source_names))[:80]
    return base / f"{name}-{size[0]}x{size[1]}-{digest}"


def packed_stores(config: Config) -> dict[Path, int]:
    """The packed stores that a run reads, and the bytes of each."""
    sources = load_benchmarks(config.data.train)
    packed = [merge([benchmark.train for benchmark in sources])]
    if config.eval.split == "test":
        targets = load_benchmarks(config.data.test) if config.data.test else sources
        packed += [_test_crops(benchmark) for benchmark in targets]
    size = (config.model.height, config.model.width)
    return {store_folder(config.data, crops, size): len(crops) * size[0] * size[1] * 3 for crops in packed}


def open_pixels(
    data: DataConfig, parts: Sequence[Crops], size: tuple[int, int], left_out: list[str], *, of: Crops
) -> list[Pixels]:
    """Open one store for all of `parts` and leave out what will not decode, adding it to `left_out`.

    Args:
        data: kind of store, folder, what to do with unreadable files.
        parts: crops to read.
        size: height and width in pixels.
        left_out: gets a line for each unreadable file.
        of: the crops to pack, which hold all of `parts`.
    """
    store = open_store(
        of,
        kind=data.store,
        size=size,
        folder=store_folder(data, of, size),
        workers=data.workers,
        unreadable=data.unreadable,
    )
    left_out.extend(f"{odd.path}: {odd.reason}" for odd in store.unreadable)
    row_of = {path: row for row, path in enumerate(of.paths)}
    result = []
    for part in parts:
        rows = np.array([row_of[path] for path in part.paths], dtype=np.int64)
        good = store.kept[rows] if len(rows) else np.zeros(0, dtype=bool)
        result.append(Pixels(part.take(good), store.take(rows[good])))
    return result


def open_test_split(data: DataConfig, benchmark: Benchmark, size: tuple[int, int], left_out: list[str]) -> Split:
    """A benchmark's test split, ready to be read; what will not decode is added to `left_out`."""
    both = _test_crops(benchmark)
    query, gallery = open_pixels(data, [benchmark.query, benchmark.gallery], size, left_out, of=both)
    return Split(f"{benchmark.name} test", query, gallery, benchmark.cross_camera)


def _test_crops(benchmark: Benchmark) -> Crops:
    paths = [*benchmark.query.paths, *benchmark.gallery.paths]
    return Crops.from_columns(paths, np.zeros(len(paths), dtype=np.int64), source=f"{benchmark.name}-test")
