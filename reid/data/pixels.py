"""Data of a training run: the train crops in their store, and the splits that it is scored on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reid.config import Config, DataConfig
from reid.core.arrays import UNKNOWN
from reid.core.console import console, warn
from reid.core.errors import ConfigError, DataError
from reid.data.crops import Benchmark, Crops, merge
from reid.data.layouts import load_benchmarks
from reid.data.splits import hold_out
from reid.data.store import Store, cache_folder, open_store


@dataclass(frozen=True, eq=False)
class Pixels:
    """Crops and the store of their pixels, with the same rows."""

    crops: Crops
    store: Store


@dataclass(frozen=True, eq=False)
class Split:
    """A query and a gallery to score a model on."""

    name: str
    query: Pixels
    gallery: Pixels
    cross_camera: bool


@dataclass(frozen=True, eq=False)
class TrainingData:
    """All data that a run reads. `left_out` lists unreadable images that `data.unreadable=skip` skipped."""

    train: Pixels
    splits: tuple[Split, ...]
    left_out: tuple[str, ...]

    def fingerprint(self) -> dict[str, Any]:
        """Return counts and a digest of names, identities and cameras: equal for runs on the same rows.

        It contains no local paths: of a skipped image the name and its folder's name.
        """
        parts = {"train": self.train}
        for split in self.splits:
            parts |= {f"{split.name} query": split.query, f"{split.name} gallery": split.gallery}
        lines = (line.partition(": ") for line in self.left_out)
        left_out = ["/".join(Path(path).parts[-2:]) + f": {reason}" for path, _, reason in lines]
        return {**{name: _describe(pixels.crops) for name, pixels in parts.items()}, "left_out": left_out}

    def changed_since(self, fingerprint: dict[str, Any]) -> str:
        """Describe the first difference from the fingerprint of an earlier run; empty if there is none."""
        for name, now in self.fingerprint().items():
            if now != fingerprint.get(name):
                return f"{name} was {fingerprint.get(name)}, and is now {now}"
        return ""


def _describe(crops: Crops) -> dict[str, Any]:
    digest = hashlib.sha256()
    for path, pid, camid in zip(crops.paths, crops.pids, crops.camids, strict=True):
        digest.update(os.fsencode(f"{os.path.basename(path)},{pid},{camid}\n"))
    return {
        "sources": list(crops.source_names),
        "crops": len(crops),
        "identities": len(np.unique(crops.pids)),
        "cameras": len(np.setdiff1d(crops.camids, UNKNOWN)),
        "sha256": digest.hexdigest(),
    }


def load_training_data(config: Config) -> TrainingData:
    """Load the train sources, hold out validation identities, and open (or build) the stores.

    The validation identities do not depend on `seed`, so that runs can be compared on them.

    Raises:
        ConfigError: no train source.
        DataError: a source that cannot be read or has no train crops.
    """
    if not config.data.train:
        raise ConfigError(
            "data.train is empty. Name a data set, such as data.train=market1501:/data/Market-1501-v15.09.15; to try "
            "without one, use `reid data synthesize --out datasets/synthetic` and then market1501:datasets/synthetic."
        )
    size = (config.model.height, config.model.width)
    sources = load_benchmarks(config.data.train)
    train: list[Crops] = []
    held_out: list[Crops] = []
    for benchmark in sources:
        for text in benchmark.warnings:
            warn(text)
        if len(benchmark.train) == 0:
            raise DataError(f"{benchmark.name} at {benchmark.root} has no train crops. Use it as data.test.")
        if config.eval.split == "validation":
            fraction, cross_camera = config.eval.fraction, benchmark.cross_camera
            rest, query, gallery = hold_out(benchmark.train, fraction=fraction, cross_camera=cross_camera)
            train.append(rest)
            held_out += [query, gallery]
        else:
            train.append(benchmark.train)
    left_out: list[str] = []
    packed = merge([benchmark.train for benchmark in sources])
    train_pixels, *validation = open_pixels(config.data, [merge(train), *held_out], size, left_out, of=packed)
    splits = [
        Split(f"{benchmark.name} validation", query, gallery, benchmark.cross_camera)
        for benchmark, query, gallery in zip(sources, validation[::2], validation[1::2], strict=False)
    ]
    if config.eval.split == "test":
        targets = load_benchmarks(config.data.test) or sources
        splits = [open_test_split(config.data, target, size, left_out) for target in targets]
    left_out = list(dict.fromkeys(left_out))
    for line in left_out:
        console.print(f"skipped: {line}")
    return TrainingData(train_pixels, tuple(splits), tuple(left_out))


def store_folder(data: DataConfig, of: Crops, size: tuple[int, int]) -> Path:
    """Return the folder of the packed store of these crops at this size."""
    base = Path(data.store_dir) if data.store_dir else cache_folder()
    digest = hashlib.sha256(os.fsencode("\n".join(of.paths))).hexdigest()[:12]
    name = "-".join(dict.fromkeys(source.replace("/", "_") or "crops" for source in of.source_names))[:80]
    return base / f"{name}-{size[0]}x{size[1]}-{digest}"


def packed_stores(config: Config) -> dict[Path, int]:
    """Return the packed stores that a run reads, and the bytes of each."""
    sources = load_benchmarks(config.data.train)
    packed = [merge([benchmark.train for benchmark in sources])]
    if config.eval.split == "test":
        packed += [_test_crops(target) for target in load_benchmarks(config.data.test) or sources]
    size = (config.model.height, config.model.width)
    return {store_folder(config.data, crops, size): len(crops) * size[0] * size[1] * 3 for crops in packed}


def open_pixels(
    data: DataConfig, parts: Sequence[Crops], size: tuple[int, int], left_out: list[str], *, of: Crops
) -> list[Pixels]:
    """Open one store for all of `parts`, without unreadable images.

    Args:
        data: kind of store, folder, and how to handle unreadable files.
        parts: crops to read.
        size: height and width in pixels.
        left_out: a line is appended for each unreadable file.
        of: the crops to pack, which include all of `parts`.
    """
    folder = store_folder(data, of, size)
    store = open_store(of, kind=data.store, size=size, folder=folder, workers=data.workers, unreadable=data.unreadable)
    left_out.extend(f"{item.path}: {item.reason}" for item in store.unreadable)
    row_of = {path: row for row, path in enumerate(of.paths)}
    result = []
    for part in parts:
        rows = np.array([row_of[path] for path in part.paths], dtype=np.int64)
        good = store.kept[rows] if len(rows) else np.zeros(0, dtype=bool)
        result.append(Pixels(part.take(good), store.take(rows[good])))
    return result


def open_test_split(data: DataConfig, benchmark: Benchmark, size: tuple[int, int], left_out: list[str]) -> Split:
    """Open the test split of a benchmark. A line is appended to `left_out` for each unreadable file."""
    parts, packed = [benchmark.query, benchmark.gallery], _test_crops(benchmark)
    query, gallery = open_pixels(data, parts, size, left_out, of=packed)
    return Split(f"{benchmark.name} test", query, gallery, benchmark.cross_camera)


def _test_crops(benchmark: Benchmark) -> Crops:
    paths = [*benchmark.query.paths, *benchmark.gallery.paths]
    return Crops.from_columns(paths, np.zeros(len(paths), dtype=np.int64), source=f"{benchmark.name}-test")
