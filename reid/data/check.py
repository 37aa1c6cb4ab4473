"""Check a data set before training: counts, cameras, files, duplicates, queries, and what to fix."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import UNKNOWN
from reid.core.console import progress_bar
from reid.core.workers import available_cores
from reid.data import images
from reid.data.crops import SPLITS, Benchmark, Crops, SkippedFile
from reid.data.layouts.dukemtmc import WITHDRAWN
from reid.data.layouts.market1501 import SYNTHETIC_MARKER, is_synthetic
from reid.data.layouts.scanning import count, count_difference, without_distractors
from reid.data.near_duplicates import LIMIT, closest_thumbnails, thumbnail

BINS = (1, 2, 3, 4, 8, 16, 32, 64, 128)
"""Lower ends of the bins of crops per identity."""

EXAMPLES = 10
"""Pairs of duplicates that a report contains."""

NO_MATCH = "no gallery image of that identity"
SAME_CAMERA = "all gallery images of that identity are from the query's camera"


@dataclass(frozen=True)
class SplitCounts:
    """Counts of a split; the official ones are None if there are none.

    `crops_per_id` is (minimum, median, maximum) without the distractor.
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
    """Number of train identities with `low` to `high` crops (`high` None: no upper limit)."""

    low: int
    high: int | None
    ids: int


@dataclass(frozen=True)
class DroppedQueries:
    """Queries that cannot be scored, the reason, and their identities in sorted order."""

    reason: str
    queries: int
    pids: tuple[int, ...]


@dataclass(frozen=True)
class Duplicates:
    """Rows and files that contain the same image. Without decoding, only equal paths are found.

    Attributes:
        repeated_rows: rows whose path occurs before in the same split.
        groups, files: groups of different files with the same bytes, and the files in them.
        between_train_and_test, between_identities: images (by their bytes) in both, or with several identities.
        near_train_and_test: test images that are an edited copy of a train image, with other bytes.
        examples: pairs of paths with the same bytes, the most harmful kind first.
        near_examples: pairs of a test and a train path, the most similar ones first.
    """

    repeated_rows: int
    groups: int
    files: int
    between_train_and_test: int
    between_identities: int
    near_train_and_test: int
    examples: tuple[tuple[str, str], ...]
    near_examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FileReport:
    """Result of opening the files. Sizes are (minimum, median, maximum) in pixels; None if no file could be read."""

    examined: int
    decoded: bool
    n_bytes: int
    width: tuple[int, float, int] | None
    height: tuple[int, float, int] | None
    unreadable: tuple[SkippedFile, ...]
    duplicates: Duplicates


@dataclass(frozen=True)
class Finding:
    """A problem of the data set and how to fix it."""

    problem: str
    fix: str


@dataclass(frozen=True)
class CheckReport:
    """Result of `check_benchmark`.

    Attributes:
        name, root, cross_camera, official, skipped: of the benchmark.
        synthetic: whether the data set is synthetic.
        splits: counts of train, query and gallery.
        junk, distractors: images with pid -1 and 0.
        cameras: a row per camera: its number, then images and identities in train, query and gallery.
        ids_by_cameras: rows of (number of cameras, train identities seen by so many, test identities seen by so many).
        crops_per_train_id: histogram.
        queries_kept, queries_dropped: queries that can and cannot be scored.
        files: result of opening the files.
        findings: what to fix.
        notes: what to know.
    """

    name: str
    root: str
    synthetic: bool
    cross_camera: bool
    splits: tuple[SplitCounts, ...]
    junk: int
    distractors: int
    official: dict[str, int]
    cameras: tuple[tuple[int, ...], ...]
    ids_by_cameras: tuple[tuple[int, int, int], ...]
    crops_per_train_id: tuple[Bin, ...]
    queries_kept: int
    queries_dropped: tuple[DroppedQueries, ...]
    files: FileReport
    skipped: tuple[SkippedFile, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self)


def check_benchmark(benchmark: Benchmark, *, decode: bool = True, workers: int = 0) -> CheckReport:
    """Check counts, cameras, splits, queries and every file of a data set.

    Args:
        benchmark: from `load_benchmark`.
        decode: decode every image and compare contents; otherwise only file headers are read, which misses damage
            inside a file and finds duplicates only by their path.
        workers: threads that read; 0 for one per CPU core.
    """
    kept, dropped = _queries(benchmark)
    files = _check_files(benchmark, decode, workers or available_cores())
    findings: list[Finding] = []
    notes: list[str] = []
    _judge_files(benchmark, files, findings, notes)
    _judge_train(benchmark, findings, notes)
    _judge_test(benchmark, dropped, findings, notes)
    return CheckReport(
        name=benchmark.name,
        root=benchmark.root,
        synthetic=is_synthetic(benchmark.root),
        cross_camera=benchmark.cross_camera,
        splits=tuple(_count_split(benchmark, name) for name in SPLITS),
        junk=benchmark.n_junk,
        distractors=benchmark.n_distractors,
        official=dict(benchmark.official),
        cameras=_count_cameras(benchmark),
        ids_by_cameras=_ids_by_cameras(benchmark),
        crops_per_train_id=_histogram(benchmark.train),
        queries_kept=kept,
        queries_dropped=dropped,
        files=files,
        skipped=benchmark.skipped,
        findings=tuple(findings),
        notes=tuple(notes),
    )


def _test_people(benchmark: Benchmark) -> Crops:
    """Return pids and camids of query and gallery, without distractors."""
    parts = [without_distractors(benchmark, part) for part in (benchmark.query, benchmark.gallery)]
    pids, camids = (np.concatenate([getattr(part, column) for part in parts]) for column in ("pids", "camids"))
    return Crops.from_columns([""] * len(pids), pids, camids)


def _spread(values: Sequence[int] | NDArray[np.int64]) -> tuple[int, float, int]:
    return int(np.min(values)), float(np.median(values)), int(np.max(values))


def _count_split(benchmark: Benchmark, name: str) -> SplitCounts:
    crops: Crops = getattr(benchmark, name)
    per_id = np.unique(without_distractors(benchmark, crops).pids, return_counts=True)[1]
    return SplitCounts(
        name,
        images=len(crops),
        ids=count(benchmark)[f"{name} ids"],
        cameras=len(np.unique(crops.camids[crops.camids != UNKNOWN])),
        crops_per_id=_spread(per_id) if len(per_id) else (0, 0.0, 0),
        official_images=benchmark.official.get(f"{name} images"),
        official_ids=benchmark.official.get(f"{name} ids"),
    )


def _count_cameras(benchmark: Benchmark) -> tuple[tuple[int, ...], ...]:
    splits: list[Crops] = [getattr(benchmark, name) for name in SPLITS]
    rows = []
    for camid in np.unique(np.concatenate([crops.camids for crops in splits])):
        row = [int(camid)]
        for crops in splits:
            of_camera = crops.take(crops.camids == camid)
            row += [len(of_camera), len(np.unique(without_distractors(benchmark, of_camera).pids))]
        rows.append(tuple(row))
    return tuple(rows)


def _ids_by_cameras(benchmark: Benchmark) -> tuple[tuple[int, int, int], ...]:
    counts = []
    for crops in (without_distractors(benchmark, benchmark.train), _test_people(benchmark)):
        seen = {(pid, camid) for pid, camid in zip(crops.pids.tolist(), crops.camids.tolist(), strict=True)}
        counts.append(Counter(Counter(pid for pid, camid in seen if camid != UNKNOWN).values()))
    train, test = counts
    return tuple((n, train[n], test[n]) for n in sorted({*train, *test}))


def _histogram(train: Crops) -> tuple[Bin, ...]:
    per_id = np.unique(train.pids, return_counts=True)[1]
    ids = np.histogram(per_id, [*BINS, np.inf])[0].tolist()
    highs = [high - 1 for high in BINS[1:]]
    bins = [Bin(*row) for row in zip(BINS, [*highs, None], ids, strict=True)]
    while len(bins) > 1 and not bins[-1].ids:
        bins.pop()
    return tuple(bins)


def _queries(benchmark: Benchmark) -> tuple[int, tuple[DroppedQueries, ...]]:
    """Return the number of queries that the protocol scores, and the dropped ones by reason.

    Two unknown cameras are not the same camera.
    """
    query, gallery = benchmark.query, benchmark.gallery
    cameras_of: defaultdict[int, set[int]] = defaultdict(set)
    for pid, camid in zip(gallery.pids.tolist(), gallery.camids.tolist(), strict=True):
        cameras_of[pid].add(camid)
    reasons: dict[str, list[int]] = {NO_MATCH: [], SAME_CAMERA: []}
    for pid, camid in zip(query.pids.tolist(), query.camids.tolist(), strict=True):
        if pid not in cameras_of:
            reasons[NO_MATCH].append(pid)
        elif benchmark.cross_camera and camid != UNKNOWN and cameras_of[pid] == {camid}:
            reasons[SAME_CAMERA].append(pid)
    dropped = [DroppedQueries(reason, len(pids), tuple(sorted(set(pids)))) for reason, pids in reasons.items() if pids]
    return len(query) - sum(drop.queries for drop in dropped), tuple(dropped)


class _File(NamedTuple):
    """One opened file: why it cannot be read, or else its size; digest and thumbnail if it was decoded."""

    problem: str = ""
    width: int = 0
    height: int = 0
    n_bytes: int = 0
    digest: bytes = b""
    thumbnail: NDArray[np.uint8] | None = None


def _open_file(path: str, decode: bool) -> _File:
    try:
        if not decode:
            height, width = images.probe(path)
            return _File("", width, height, os.path.getsize(path))
        image, data = images.decode(path), Path(path).read_bytes()
        digest = hashlib.blake2b(data, digest_size=16).digest()
        return _File("", image.shape[1], image.shape[0], len(data), digest, thumbnail(image))
    except images.UnreadableImage as error:
        return _File(error.reason)
    except OSError as error:
        return _File(f"cannot be read: {error.strerror or error}")


def _check_files(benchmark: Benchmark, decode: bool, workers: int) -> FileReport:
    paths: list[str] = list(dict.fromkeys(path for name in SPLITS for path in getattr(benchmark, name).paths))
    description = "Decoding images" if decode else "Reading image headers"
    with progress_bar() as bar, ThreadPoolExecutor(workers) as pool:
        found = pool.map(partial(_open_file, decode=decode), paths)
        files = dict(zip(paths, bar.track(found, total=len(paths), description=description), strict=True))
    readable = [file for file in files.values() if not file.problem]
    return FileReport(
        examined=len(paths),
        decoded=decode,
        n_bytes=sum(file.n_bytes for file in readable),
        width=_spread([file.width for file in readable]) if readable else None,
        height=_spread([file.height for file in readable]) if readable else None,
        unreadable=tuple(SkippedFile(path, file.problem) for path, file in files.items() if file.problem),
        duplicates=_duplicates(benchmark, files),
    )


def _duplicates(benchmark: Benchmark, files: dict[str, _File]) -> Duplicates:
    """Find rows of the same image. A path that is in query and gallery is no duplicate of itself."""
    groups: defaultdict[str | bytes, set[tuple[str, bool, int]]] = defaultdict(set)
    repeated = 0
    for name in SPLITS:
        crops: Crops = getattr(benchmark, name)
        repeated += len(crops) - len(set(crops.paths))
        for path, pid in zip(crops.paths, crops.pids.tolist(), strict=True):
            groups[files[path].digest or path].add((path, name == "train", pid))
    paths = {key: sorted({path for path, _, _ in group}) for key, group in groups.items()}
    several = [key for key in groups if len(paths[key]) > 1]
    leaks = [key for key, group in groups.items() if len({train for _, train, _ in group}) > 1]
    mixed = [key for key, group in groups.items() if len({pid for _, _, pid in group}) > 1]
    examples = dict.fromkeys((paths[key][0], paths[key][-1]) for key in [*leaks, *mixed, *several])
    near = _near_duplicates(benchmark, files)
    return Duplicates(
        repeated_rows=repeated,
        groups=len(several),
        files=sum(len(paths[key]) for key in several),
        between_train_and_test=len(leaks),
        between_identities=len(mixed),
        near_train_and_test=len(near),
        examples=tuple(list(examples)[:EXAMPLES]),
        near_examples=tuple(near[:EXAMPLES]),
    )


def _near_duplicates(benchmark: Benchmark, files: dict[str, _File]) -> list[tuple[str, str]]:
    """Return test and train path of each test image that is an edited copy of a train image."""
    train = {path for path in benchmark.train.paths if files[path].digest}
    in_train = {files[path].digest for path in train}
    test = {*benchmark.query.paths, *benchmark.gallery.paths}
    names = [sorted(path for path in test if files[path].digest and files[path].digest not in in_train), sorted(train)]
    if not names[0] or not names[1]:
        return []
    row, difference = closest_thumbnails(*(np.array([files[path].thumbnail for path in paths]) for paths in names))
    order = np.argsort(difference, kind="stable")
    return [(names[0][i], names[1][row[i]]) for i in order[: int((difference <= LIMIT).sum())]]


def _judge_files(benchmark: Benchmark, files: FileReport, found: list[Finding], notes: list[str]) -> None:
    """Append what to fix to `found` and what to know to `notes`, as the other `_judge` functions do."""
    difference = count_difference(benchmark)
    for warning in benchmark.warnings:
        problem, fix = f"{warning[0].upper()}{warning[1:]}.", "See the rules of the layout in docs/data.md."
        if warning == difference:
            fix = "Unpack the archive again if this should be the published set."
        if warning == WITHDRAWN:
            notes.append(problem)
        else:
            found.append(Finding(problem, fix))
    if is_synthetic(benchmark.root):
        notes.append(f"The data set is synthetic ({SYNTHETIC_MARKER}), so its counts are not compared.")
    same = files.duplicates
    unreadable_fix = "Replace or remove them; training stops at them unless data.unreadable=skip."
    problems = [
        (len(files.unreadable), f"of {files.examined:,} images cannot be read", unreadable_fix),
        (len(benchmark.skipped), "files were skipped", "Rename the images among them to the form of the layout."),
        (same.repeated_rows, "rows are repeated: the same image, twice in one split", "Remove the repeated rows."),
        (same.between_train_and_test, "images are in both train and test (identical bytes)", "Remove them from train."),
        (same.between_identities, "images belong to several identities (identical bytes)", "Give each one identity."),
        (
            same.near_train_and_test,
            "test images are nearly identical to a train image",
            "Remove them from train: the scores would be too good.",
        ),
    ]
    found += [Finding(f"{number:,} {problem}.", fix) for number, problem, fix in problems if number]


def _judge_train(benchmark: Benchmark, found: list[Finding], notes: list[str]) -> None:
    per_id = np.unique(benchmark.train.pids, return_counts=True)[1]
    n, single, few = len(per_id), int((per_id == 1).sum()), int((per_id < 4).sum())
    if n == 1:
        found.append(Finding("Train has only one identity.", "Add more people: one identity teaches nothing."))
    elif single > n / 2:
        problem = f"{single:,} of {n:,} train identities have a single crop, so no positive pair."
        found.append(Finding(problem, "Check that pids number people and not images; add more crops of each person."))
    elif few:
        notes.append(
            f"{few:,} of {n:,} train identities have fewer than 4 crops; batches of 4 per identity repeat them."
        )
    both = np.intersect1d(benchmark.train.pids, _test_people(benchmark).pids)
    if len(both):
        examples = ", ".join(map(str, both[:5].tolist()))
        problem = f"{len(both):,} identities are in both train and test, such as {examples}."
        fix = "Split by identity if these numbers mean the same people: the scores would be too good."
        found.append(Finding(problem, fix))


def _judge_test(
    benchmark: Benchmark, dropped: Sequence[DroppedQueries], found: list[Finding], notes: list[str]
) -> None:
    query, gallery = benchmark.query, benchmark.gallery
    cameras = np.setdiff1d(np.union1d(query.camids, gallery.camids), UNKNOWN)
    for drop in dropped:
        if drop.reason == NO_MATCH:
            fix = "Add gallery images of them, or remove these queries."
        elif len(cameras) == 1:
            fix = (
                f"All cameras are equal ({cameras[0]}). Correct them; if there is only one, score with "
                "`reid test --any-camera` (own crops: cross_camera=false)."
            )
        else:
            fix = "Add images of them from another camera, or remove these queries."
        number = "All" if drop.queries == len(query) else f"{drop.queries:,} of"
        found.append(Finding(f"{number} {len(query):,} queries will be dropped: {drop.reason}.", fix))
    if not benchmark.cross_camera and len(query):
        notes.append("Queries are matched with the whole gallery, including images from their own camera.")
        in_gallery = int(np.isin(query.paths.astype(str), gallery.paths.astype(str)).sum())
        if in_gallery:
            problem = f"{in_gallery:,} queries are also in the gallery, so each finds itself."
            found.append(Finding(problem, "Remove them from the gallery."))
    without_query = np.setdiff1d(without_distractors(benchmark, gallery).pids, query.pids)
    if len(without_query):
        notes.append(f"{len(without_query):,} gallery identities have no query and act as distractors.")
