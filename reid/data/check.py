"""Examines a data set before anyone trains on it: what is in it, what is wrong, what to do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import UNKNOWN
from reid.core.console import progress_bar
from reid.data import images
from reid.data.crops import Benchmark, Crops, SkippedFile
from reid.data.layouts.dukemtmc import WITHDRAWN
from reid.data.layouts.market1501 import MADE
from reid.data.layouts.scanning import counted, difference, distinct_ids

PARTS = ("train", "query", "gallery")
BINS = (1, 2, 3, 4, 8, 16, 32, 64, 128)
"""Lower ends of the bins of crops per identity."""

CHUNK = 256
NO_MATCH = "no gallery image of that identity"
SAME_CAMERA = "all gallery images of that identity are of the query's own camera"


@dataclass(frozen=True)
class Part:
    """A part's counts; the official ones are None where there are none.

    `crops_per_id` is (fewest, median, most), the distractor left out.
    """

    name: str
    images: int
    ids: int
    cameras: int
    crops_per_id: tuple[int, float, int]
    official_images: int | None
    official_ids: int | None


@dataclass(frozen=True)
class Bin:
    """Identities of the train part with `fewest` to `most` crops (`most` None: no upper end)."""

    fewest: int
    most: int | None
    ids: int


@dataclass(frozen=True)
class Dropped:
    """Queries that cannot be scored, and why; `pids` are theirs, sorted."""

    reason: str
    queries: int
    pids: tuple[int, ...]


@dataclass(frozen=True)
class Duplicates:
    """Files with the very same bytes: in groups. `examples` are pairs of paths, the worst kind first."""

    groups: int
    files: int
    between_train_and_test: int
    between_identities: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Files:
    """What opening the files showed. Sizes are (smallest, median, largest) in pixels; None if nothing could be read."""

    examined: int
    decoded: bool
    n_bytes: int
    width: tuple[int, float, int] | None
    height: tuple[int, float, int] | None
    unreadable: tuple[SkippedFile, ...]
    duplicates: Duplicates | None


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, and what to do about it."""

    what: str
    mend: str


@dataclass(frozen=True)
class Report:
    """All that `examine` found; `findings` is what should be mended, `notes` what should be known.

    `cameras` has a row a camera: its number, then images and identities in train, query and gallery.
    `ids_by_cameras` says how many identities of (train, query + gallery) are seen by 1, 2, ... cameras.
    """

    name: str
    root: str
    made: bool
    cross_camera: bool
    parts: tuple[Part, ...]
    junk: int
    distractors: int
    official: dict[str, int]
    cameras: tuple[tuple[int, ...], ...]
    ids_by_cameras: tuple[tuple[int, int, int], ...]
    crops_per_train_id: tuple[Bin, ...]
    queries_kept: int
    queries_dropped: tuple[Dropped, ...]
    files: Files
    skipped: tuple[SkippedFile, ...]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Plain Python for JSON."""
        return asdict(self)


def examine(benchmark: Benchmark, *, decode: bool = True, workers: int = 0) -> Report:
    """Look at a data set from all sides.

    Args:
        benchmark: what `load_benchmark` gave.
        decode: decode every image and compare contents; otherwise only the head of each file is read, which
            misses damage inside a file and finds no duplicates.
        workers: threads to read with; 0 for one a core.
    """
    kept, dropped = _queries(benchmark)
    files = _files(benchmark, decode, workers or os.cpu_count() or 1)
    findings, notes = _judge(benchmark, dropped, files)
    return Report(
        name=benchmark.name,
        root=benchmark.root,
        made=_is_made(benchmark),
        cross_camera=benchmark.cross_camera,
        parts=tuple(_part(benchmark, part) for part in PARTS),
        junk=benchmark.n_junk,
        distractors=benchmark.n_distractors,
        official=dict(benchmark.official),
        cameras=_cameras(benchmark),
        ids_by_cameras=_ids_by_cameras(benchmark),
        crops_per_train_id=_histogram(benchmark.train),
        queries_kept=kept,
        queries_dropped=dropped,
        files=files,
        skipped=benchmark.skipped,
        findings=findings,
        notes=notes,
    )


def _is_made(benchmark: Benchmark) -> bool:
    return (Path(benchmark.root) / MADE).exists()


def _people(benchmark: Benchmark, crops: Crops) -> Crops:
    """The crops without distractors."""
    return crops.take(crops.pids != 0) if benchmark.n_distractors else crops


def _spread(values: NDArray[np.int64]) -> tuple[int, float, int]:
    return int(values.min()), float(np.median(values)), int(values.max())


def _part(benchmark: Benchmark, name: str) -> Part:
    crops: Crops = getattr(benchmark, name)
    counts = counted(benchmark)
    per_id = np.unique(_people(benchmark, crops).pids, return_counts=True)[1]
    return Part(
        name,
        images=len(crops),
        ids=counts[f"{name} ids"],
        cameras=len(_known_cameras(crops)),
        crops_per_id=_spread(per_id) if len(per_id) else (0, 0.0, 0),
        official_images=benchmark.official.get(f"{name} images"),
        official_ids=benchmark.official.get(f"{name} ids"),
    )


def _known_cameras(crops: Crops) -> NDArray[np.int64]:
    return np.unique(crops.camids[crops.camids != UNKNOWN])


def _cameras(benchmark: Benchmark) -> tuple[tuple[int, ...], ...]:
    crops = [getattr(benchmark, part) for part in PARTS]
    rows = []
    for camid in np.unique(np.concatenate([part.camids for part in crops])):
        row = [int(camid)]
        for part in crops:
            here = part.take(part.camids == camid)
            row += [len(here), distinct_ids(here, distractors=benchmark.n_distractors > 0)]
        rows.append(tuple(row))
    return tuple(rows)


def _cameras_per_id(crops: Crops) -> NDArray[np.int64]:
    """How many known cameras see each identity, in order of identity."""
    known = crops.camids != UNKNOWN
    pairs = np.unique(np.stack([crops.pids[known], crops.camids[known]]), axis=1)
    return np.unique(pairs[0], return_counts=True)[1]


def _ids_by_cameras(benchmark: Benchmark) -> tuple[tuple[int, int, int], ...]:
    """Rows of (number of cameras, train identities seen by so many, test identities seen by so many)."""
    test = _test(benchmark)
    train_counts, test_counts = (
        np.bincount(_cameras_per_id(part)) for part in (_people(benchmark, benchmark.train), test)
    )
    longest = max(len(train_counts), len(test_counts))
    columns = (np.pad(counts, (0, longest - len(counts))) for counts in (train_counts, test_counts))
    return tuple((n, int(a), int(b)) for n, (a, b) in enumerate(zip(*columns, strict=True)) if n and (a or b))


def _test(benchmark: Benchmark) -> Crops:
    """Query and gallery in one, without distractors; paths, pids and camids only are of use."""
    parts = [_people(benchmark, part) for part in (benchmark.query, benchmark.gallery)]
    return Crops.from_columns(
        [path for part in parts for path in part.paths],
        np.concatenate([part.pids for part in parts]),
        np.concatenate([part.camids for part in parts]),
    )


def _histogram(train: Crops) -> tuple[Bin, ...]:
    per_id = np.unique(train.pids, return_counts=True)[1]
    edges = [*BINS, np.inf]
    bins = [
        Bin(low, None if high == np.inf else int(high) - 1, int(((per_id >= low) & (per_id < high)).sum()))
        for low, high in zip(BINS, edges[1:], strict=True)
    ]
    while len(bins) > 1 and not bins[-1].ids:
        bins.pop()
    return tuple(bins)


def _queries(benchmark: Benchmark) -> tuple[int, tuple[Dropped, ...]]:
    """How many queries the protocol scores, and the dropped ones by reason."""
    query, gallery = benchmark.query, benchmark.gallery
    seen = np.isin(query.pids, gallery.pids)
    same_camera = np.zeros(len(query), dtype=bool)
    if benchmark.cross_camera and len(gallery):
        pairs = np.unique(np.stack([gallery.pids, gallery.camids]), axis=1)
        pids, n_cameras = np.unique(pairs[0], return_counts=True)
        single = pids[n_cameras == 1]
        camera_of = dict(pairs.T[np.isin(pairs[0], single)].tolist())
        same_camera = np.array(
            [
                camera_of.get(pid) == camid
                for pid, camid in zip(query.pids.tolist(), query.camids.tolist(), strict=True)
            ],
            dtype=bool,
        )
    dropped = [
        Dropped(reason, int(of_reason.sum()), tuple(np.unique(query.pids[of_reason]).tolist()))
        for reason, of_reason in ((NO_MATCH, ~seen), (SAME_CAMERA, same_camera))
        if of_reason.any()
    ]
    return int((seen & ~same_camera).sum()), tuple(dropped)


@dataclass(frozen=True)
class _Look:
    """What one file showed: `problem` in words, or else its size; `digest` where it was read whole."""

    problem: str = ""
    width: int = 0
    height: int = 0
    n_bytes: int = 0
    digest: bytes = b""


def _look(path: str, decode: bool) -> _Look:
    try:
        if not decode:
            height, width = images.probe(path)
            return _Look("", width, height, os.path.getsize(path))
        height, width, _ = images.decode(path).shape
        data = Path(path).read_bytes()
        return _Look("", width, height, len(data), hashlib.blake2b(data, digest_size=16).digest())
    except images.UnreadableImage as error:
        return _Look(error.reason)
    except OSError as error:
        return _Look(f"cannot be read: {error.strerror or error}")


def _files(benchmark: Benchmark, decode: bool, workers: int) -> Files:
    paths: list[str] = list(dict.fromkeys(path for part in PARTS for path in getattr(benchmark, part).paths))
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    looks: list[_Look] = []

    def look_at(chunk: Sequence[str]) -> list[_Look]:
        return [_look(path, decode) for path in chunk]

    with progress_bar() as bar, ThreadPoolExecutor(workers) as pool:
        task = bar.add_task("Decoding images" if decode else "Reading heads of images", total=len(paths))
        for done in pool.map(look_at, chunks):
            looks += done
            bar.advance(task, len(done))
    sizes = np.array([(look.width, look.height) for look in looks if not look.problem], dtype=np.int64).reshape(-1, 2)
    return Files(
        examined=len(paths),
        decoded=decode,
        n_bytes=sum(look.n_bytes for look in looks),
        width=_spread(sizes[:, 0]) if len(sizes) else None,
        height=_spread(sizes[:, 1]) if len(sizes) else None,
        unreadable=tuple(
            SkippedFile(path, look.problem) for path, look in zip(paths, looks, strict=True) if look.problem
        ),
        duplicates=_duplicates(benchmark, {path: look.digest for path, look in zip(paths, looks, strict=True)})
        if decode
        else None,
    )


def _duplicates(benchmark: Benchmark, digests: dict[str, bytes]) -> Duplicates:
    """Groups of files with the same bytes. A file that is in two parts by its path is no duplicate of itself."""
    groups: dict[bytes, dict[str, tuple[bool, int]]] = {}
    for part in PARTS:
        crops: Crops = getattr(benchmark, part)
        for path, pid in zip(crops.paths, crops.pids.tolist(), strict=True):
            if digests[path]:
                groups.setdefault(digests[path], {})[path] = (part == "train", pid)
    several = [group for group in groups.values() if len(group) > 1]
    leaks = [group for group in several if len({train for train, _ in group.values()}) > 1]
    mixed = [group for group in several if len({pid for _, pid in group.values()}) > 1]
    worst = [*leaks, *mixed, *several]
    examples = dict.fromkeys((first, second) for first, second, *_ in map(tuple, worst))
    return Duplicates(len(several), sum(map(len, several)), len(leaks), len(mixed), tuple(list(examples)[:10]))


def _judge(
    benchmark: Benchmark, dropped: Iterable[Dropped], files: Files
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """What should be mended, and what should be known."""
    found: list[Finding] = []
    notes: list[str] = []

    unlike = difference(benchmark)
    for warning in benchmark.warnings:
        if warning == WITHDRAWN:
            notes.append(f"{warning}.")
            continue
        mend = (
            "If this is meant to be the published set, unpack its archive anew; own data in this form may differ."
            if warning == unlike
            else "See the layout's rules in docs/data.md."
        )
        found.append(Finding(f"{warning[0].upper()}{warning[1:]}.", mend))
    if _is_made(benchmark):
        notes.append(f"The tree says by {MADE} that it is made data, so it is not compared with official counts.")

    if files.unreadable:
        found.append(
            Finding(
                f"{len(files.unreadable):,} of {files.examined:,} images cannot be read.",
                "Get these files anew or take them out; training stops at them, unless data.unreadable=skip.",
            )
        )
    if benchmark.skipped:
        found.append(
            Finding(
                f"{len(benchmark.skipped):,} files are not of the set and were not taken.",
                "Rename the images among them to the form of the layout, and move the others out.",
            )
        )
    if files.duplicates and files.duplicates.between_train_and_test:
        found.append(
            Finding(
                f"{files.duplicates.between_train_and_test:,} images are in train and in test, byte for byte.",
                "Take them out of train: the test would score what was learnt by heart.",
            )
        )
    if files.duplicates and files.duplicates.between_identities:
        found.append(
            Finding(
                f"{files.duplicates.between_identities:,} images stand under several identities, byte for byte.",
                "Give each image one identity, or remove it.",
            )
        )
    _judge_train(benchmark, found, notes)
    _judge_test(benchmark, dropped, found, notes)
    return tuple(found), tuple(notes)


def _judge_train(benchmark: Benchmark, found: list[Finding], notes: list[str]) -> None:
    train = benchmark.train
    if not len(train):
        return
    per_id = np.unique(train.pids, return_counts=True)[1]
    single, few = int((per_id == 1).sum()), int((per_id < 4).sum())
    if len(per_id) < 2:
        found.append(Finding("Train has one identity only.", "Bring more: nothing is learnt from one."))
    elif single > len(per_id) / 2:
        found.append(
            Finding(
                f"{single:,} of {len(per_id):,} train identities have a single crop, so no positive pair.",
                "Check that pids number people and not images; bring more crops of each.",
            )
        )
    elif few:
        notes.append(
            f"{few:,} of {len(per_id):,} train identities have fewer than 4 crops; "
            "batches of 4 crops an identity repeat theirs."
        )
    test_ids = np.unique(_test(benchmark).pids)
    both = np.intersect1d(np.unique(train.pids), test_ids)
    if len(both):
        found.append(
            Finding(
                f"{len(both):,} identities are in train and in test, such as {', '.join(map(str, both[:5].tolist()))}.",
                "If the numbers mean the same people, split by identity: the scores would be too good.",
            )
        )


def _judge_test(benchmark: Benchmark, dropped: Iterable[Dropped], found: list[Finding], notes: list[str]) -> None:
    query, gallery = benchmark.query, benchmark.gallery
    cameras = np.union1d(np.unique(query.camids), np.unique(gallery.camids))
    for drop in dropped:
        mend = (
            "Bring gallery images of them, or leave these queries out."
            if drop.reason == NO_MATCH
            else "Bring images of them from another camera, or leave these queries out."
        )
        if drop.reason == SAME_CAMERA and len(cameras) == 1:
            mend = (
                f"All cameras are equal ({cameras[0]}): mend the cameras; or, if there is but one, score by "
                "`reid test --any-camera` (own data: the layout table, without camid)."
            )
        all_of = "All" if drop.queries == len(query) else f"{drop.queries:,} of"
        found.append(Finding(f"{all_of} {len(query):,} queries will be dropped: {drop.reason}.", mend))
    if not benchmark.cross_camera and len(query):
        notes.append("Queries are matched with the whole gallery, their own camera included.")
    self_matched = int(np.isin(query.paths.astype(str), gallery.paths.astype(str)).sum()) if len(query) else 0
    if self_matched and not benchmark.cross_camera:
        found.append(
            Finding(
                f"{self_matched:,} queries are in the gallery too, so each finds itself.",
                "Take them out of the gallery.",
            )
        )
    lone = np.setdiff1d(_people(benchmark, gallery).pids, query.pids)
    if len(lone):
        notes.append(f"{len(lone):,} gallery identities have no query and act as distractors.")
