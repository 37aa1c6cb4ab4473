"""`Gallery`: tracklets of many cameras, stored for days, searched by photo."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from reid.core.atomic import atomic_folder
from reid.core.errors import ConfigError, DataError, check_choice, first_few
from reid.core.locks import exclusive
from reid.embedding.calibration_file import load_calibration, stored_calibration
from reid.embedding.table import Embeddings
from reid.gallery.answers import EXPECTED_FALSE, Answer, Seen, search
from reid.gallery.audit import NAME as AUDIT
from reid.gallery.audit import append_entry, read_log
from reid.gallery.engines import open_store
from reid.gallery.erasure import (
    ERASED,
    Receipt,
    erase_rows,
    erase_with_receipt,
    erased_hashes,
    finish,
    hash_tracklet,
    unfinished,
)
from reid.gallery.index import Index
from reid.gallery.learned_times import FILE as TRANSITIONS
from reid.gallery.pictures import PictureOf, allowed_pictures
from reid.gallery.rows import (
    FORMAT,
    UNKNOWN_TIME,
    Clock,
    Places,
    Sightings,
    feature_matrix,
    find_places,
    group_crops,
    make_rows,
    schema,
)
from reid.gallery.scope import Scope
from reid.gallery.settings import GalleryFile, GallerySettings, describe_model
from reid.gallery.store import RowsChanged
from reid.gallery.times import parse_time, to_ms
from reid.mtmc.cameras import Cameras, read_cameras

if TYPE_CHECKING:
    from reid.evaluation.calibration import Calibration

T = TypeVar("T")

CAMERAS = "cameras.yaml"

_ATTEMPTS = 5

_DETAILS = ("source", "camera", "track", "identity", "start", "end", "crops", "path", "picture")


@dataclass(frozen=True)
class Added:
    """What `Gallery.add` did.

    Attributes:
        rows, tracklets: stored.
        replaced: tracklets that were there already.
        left_out: crops without a valid feature.
        erased: tracklets left out because they were erased before.
        expired: tracklets left out because their retention is over.
    """

    rows: int
    tracklets: int
    replaced: int
    left_out: int
    erased: int = 0
    expired: int = 0


class Gallery:
    """Tracklets of many cameras, stored in a folder and searched by photo.

    A row is a prototype of a tracklet: up to four crops represent it. All features are of one model; the first `add`
    stores which. One process writes at a time, others wait; searches never wait.

    Attributes:
        path: the folder.
        name: of the folder.

    Example:
        >>> import tempfile
        >>> gallery = Gallery.create(tempfile.mkdtemp() + "/shop")
        >>> people = Embeddings([[1, 0], [0, 1], [0.6, 0.8]], camids=[1, 1, 2], tracks=[1, 2, 1], frames=[25, 25, 50])
        >>> gallery.add(people, source="monday", start="2026-11-23T08:00:00Z").tracklets
        3
        >>> [(hit.camera, round(hit.distance, 3)) for hit in gallery.search([[0, 1]], top=2).hits]
        [('cam01', 0.0), ('cam02', 0.2)]
    """

    def __init__(self, path: Path, file: GalleryFile) -> None:
        self.path, self.name, self._file = path, path.name, file
        self._store = open_store(path, file.settings.store, file.owner)
        self._index: Index | None = None
        self._calibration: tuple[int, Calibration] | None = None

    @classmethod
    def create(cls, path: str | Path, settings: GallerySettings | None = None) -> Gallery:
        """Create an empty gallery in a new folder.

        Raises:
            DataError: the folder exists and is not empty, or is not writable; a package is not installed; or the server
                does not answer, or has the collection already.
        """
        path = Path(path)
        file = GalleryFile.new(settings or GallerySettings())
        open_store(path, file.settings.store, file.owner).check_new()
        with atomic_folder(path) as folder:
            file.write(folder)
        return cls(path, file)

    @classmethod
    def open(cls, path: str | Path) -> Gallery:
        """Open an existing gallery.

        Raises:
            DataError: there is none, it is damaged, or it has another format.
        """
        return cls(Path(path), GalleryFile.read(Path(path)))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._store.count()

    def __repr__(self) -> str:
        return f"Gallery({str(self.path)!r}, {len(self):,} rows)"

    @property
    def settings(self) -> GallerySettings:
        """Settings that the gallery was created with."""
        return self._file.settings

    @property
    def model(self) -> dict[str, Any] | None:
        """What the features are of; None until something is added."""
        if self._file.model is None:
            self._file = GalleryFile.read(self.path)
        return self._file.model

    def add(
        self,
        table: Embeddings,
        *,
        source: str,
        cameras: Cameras | None = None,
        start: str | datetime | None = None,
        sightings: tuple[Sightings, NDArray[np.int64]] | None = None,
        places: Places | None = None,
        picture_of: PictureOf | None = None,
    ) -> Added:
        """Add crops, grouped into tracklets, completely or not at all. Adding them again replaces them.

        Args:
            table: embeddings with cameras, tracks and frames where known (`rows.group_crops`).
            source: name of the recording; part of the ids. The same tracks under another name are other tracklets.
            cameras: frame rates, clocks and the epoch; 25 frames per second and equal clocks if not given.
            start: time of second 0 of the cameras' clock; the epoch of `cameras` by default. Without either, times
                are unknown.
            sightings: the tracklets, and the tracklet of each crop `[N]` (-1: none), instead of `group_crops`.
            places: time and box of each crop; by default the times follow from frames and clocks, and boxes are
                unknown.
            picture_of: gives the JPEG of a crop, by its row, or None. By default the image files of `table.paths` that
                exist are used. The gallery's setting `pictures` applies to both.

        Raises:
            ModelError: the features do not fit those of the gallery; the property is named.
            DataError: no valid feature, or the folder cannot be written.
        """
        subject = f"source {source!r}"
        self._file.check_fits(table.meta, table.dimension, subject, str(self.path))
        now = round(1000 * time.time())
        clock = Clock(cameras, self.epoch_of(cameras, start))
        places = find_places(table, clock) if places is None else places
        paths = table.paths
        has_files = paths is not None and len(paths) > 0 and Path(paths[0]).is_file()
        path_of = (lambda row: str(paths[row])) if paths is not None and has_files else None
        rows, left_out = make_rows(
            table,
            group_crops(table, places.time) if sightings is None else sightings,
            places,
            source=source,
            added=now,
            retention=self.settings.retention_ms,
            picture_of=allowed_pictures(self.settings.pictures, picture_of, path_of),
            keep_paths=self.settings.pictures == "keep",
        )
        with self._writing():
            self._file.check_fits(table.meta, table.dimension, subject, str(self.path))
            rows, erased, expired = self._without_refused(rows, now)
            if self._file.model is None:
                self._file.model = describe_model(table.meta, table.dimension)
                self._file.write(self.path)
            tracklets = rows["tracklet"].unique()
            known = self._tracklets()
            replaced = [] if known is None else tracklets.filter(pc.is_in(tracklets, known)).to_pylist()
            if len(rows):
                self._store.upsert(rows, replaced)
        return Added(len(rows), len(tracklets), len(replaced), left_out, erased, expired)

    def _without_refused(self, rows: pa.Table, now: int) -> tuple[pa.Table, int, int]:
        """Return the rows without tracklets that were erased or have expired, and the numbers of those."""
        tracklets = rows["tracklet"].unique().to_pylist()
        hashes = erased_hashes(self.path)
        erased = [name for name in tracklets if hashes and hash_tracklet(name, self._file.salt) in hashes]
        rows = rows.filter(pc.invert(pc.is_in(rows["tracklet"], pa.array(erased, pa.string()))))
        over = pc.fill_null(pc.less_equal(rows["expires"].cast(pa.int64()), now), False)
        expired = len(rows.filter(over)["tracklet"].unique())
        return rows.filter(pc.invert(over)), len(erased), expired

    def epoch_of(self, cameras: Cameras | None, start: str | datetime | None) -> int | None:
        """Return the time of second 0 in milliseconds since 1970; None if it is unknown."""
        given = start if start is not None else None if cameras is None else cameras.epoch
        return None if given is None else to_ms(parse_time(given, self.settings.zone, "The start"))

    def scope(
        self,
        cameras: Collection[str] | None = None,
        after: str | datetime | None = None,
        before: str | datetime | None = None,
        *,
        known: Collection[str] | None = None,
    ) -> Scope:
        """Return the scope of cameras and times; texts without an offset are in the gallery's time zone.

        Args:
            cameras: names; None for all.
            after, before: see `Scope`.
            known: names that exist; by default those of this gallery.

        Raises:
            ConfigError: an unknown camera, or not a time.
        """
        for name in cameras or ():
            check_choice("camera", name, self.index().cameras if known is None else known)
        times = [
            None if text is None else to_ms(parse_time(text, self.settings.zone, what))
            for text, what in ((after, "from"), (before, "to"))
        ]
        return Scope(None if cameras is None else tuple(cameras), *times)

    def search(
        self,
        photos: ArrayLike | Embeddings,
        *,
        cameras: Collection[str] | None = None,
        after: str | datetime | None = None,
        before: str | datetime | None = None,
        top: int = 10,
        within: float | None = None,
        expected_false: float = EXPECTED_FALSE,
        purpose: str | None = None,
    ) -> Answer:
        """Find the tracklets that look most like the person of some photos; `answers.search` has more options.

        Args:
            photos: `[Q, D]` features, or embeddings, of photos of one person.
            cameras: names of the cameras to search.
            after, before: only tracklets seen between these times.
            top: largest number of hits.
            within: largest distance.
            expected_false: a hit is accepted if at most so many strangers are expected at its distance or nearer.
            purpose: for the audit log.

        Raises:
            ModelError: photos of another model.
            ConfigError: an unknown camera, not a time, a number out of range, or no purpose where one is required.
            DataError: the audit log cannot be written.
        """
        if isinstance(photos, Embeddings):
            self.check_query(photos)
            photos = photos.features
        features = np.atleast_2d(np.asarray(photos, np.float32))
        options: dict[str, Any] = {"top": top, "within": within, "expected_false": expected_false, "purpose": purpose}
        scope = self.scope(cameras, after, before)
        return search([self], features, scope=scope, calibration=self.calibration(), **options)

    def check_query(self, photos: Embeddings, subject: str = "The photo") -> None:
        """Raise an error if photos cannot be compared with this gallery.

        Raises:
            ModelError: naming the property that differs.
        """
        self.check_fits(photos.meta, photos.dimension, subject)

    def check_fits(self, meta: Mapping[str, Any], dimension: int, subject: str) -> None:
        """Raise an error if features of a model (`Embeddings.meta`) cannot be compared with this gallery.

        Raises:
            ModelError: naming the property that differs.
        """
        if self.model is not None:
            self._file.check_fits({**meta, "dimension": dimension}, dimension, subject, str(self.path))

    def calibration(self) -> Calibration | None:
        """Return the calibration in the gallery's folder (calibration.json), if there is one."""
        path = stored_calibration(self.path)
        if path is None:
            return None
        changed = path.stat().st_mtime_ns
        if self._calibration is None or self._calibration[0] != changed:
            self._calibration = changed, load_calibration(path)
        return self._calibration[1]

    def cameras(self, names: Sequence[str] | None = None) -> Cameras | None:
        """Return the cameras of cameras.yaml in the gallery's folder, if there is one.

        Args:
            names: of the cameras of all galleries that are searched together; by default those of this one.

        Raises:
            ConfigError: the file cannot be used.
        """
        path = self.path / CAMERAS
        if not path.is_file():
            return None
        return read_cameras(path, self.index().cameras if names is None else names, partial=True)

    def index(self) -> Index:
        """Return the newest rows in memory; they are read again only when they have changed."""
        return self._with_index(lambda index: index)

    def nearest(
        self, queries: NDArray[np.float32], scope: Scope, top: int, within: float | None
    ) -> tuple[Index, NDArray[np.int64] | None, list[tuple[float, str]]]:
        """Return the newest rows, those of them that are in a scope (None: all), and the nearest tracklets.

        Arguments and result are those of `Index.nearest`.
        """

        def find(index: Index) -> tuple[Index, NDArray[np.int64] | None, list[tuple[float, str]]]:
            rows = index.rows_in(scope)
            return index, rows, index.nearest(queries, rows, top, within, scope) if len(index) else []

        return self._with_index(find)

    def _with_index(self, use: Callable[[Index], T]) -> T:
        """Return the result of `use` for the newest rows; try again if other processes remove some meanwhile."""
        for _ in range(_ATTEMPTS):
            with suppress(RowsChanged):
                version = self._store.version()
                if self._index is None or self._index.version != version:
                    model = self.model
                    hidden = unfinished(self.path)
                    self._index = Index.load(self._store, 1 if model is None else model["dimension"], hidden)
                return use(self._index)
        raise DataError(f"{self.path}: other processes keep replacing or erasing tracklets. Try again later.")

    def details(self, tracklets: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return columns of the most typical row of each tracklet, by id."""
        crop = [name for name in ("frame", "time", "box") if name in self._store.columns()]
        rows = self._store.rows_of(tracklets, ["prototype", *_DETAILS, *crop], "tracklet")
        if rows is None:
            return {}
        for name in ("start", "end", *({"time"} & set(crop))):
            rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].cast(pa.int64()))
        first = sorted(rows.to_pylist(), key=lambda row: row["prototype"], reverse=True)
        seen: dict[str, list[Seen]] = {}
        for row in first if crop else ():
            if row["frame"] is not None:
                box = row["box"] and (row["box"][0], row["box"][1], row["box"][2], row["box"][3])
                seen.setdefault(row["tracklet"], []).append(Seen(row["frame"], row["time"], box))
        return {
            row["tracklet"]: {
                **{name: row[name] for name in _DETAILS},
                "seen": tuple(sorted(seen.get(row["tracklet"], ()), key=lambda one: one.frame)),
            }
            for row in first
        }

    def features(self, tracklets: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the features `[n, D]` of some tracklets, by id; missing ones are left out."""
        rows = self._store.rows_of(tracklets, ["features"], "tracklet")
        if rows is None:
            return {}
        matrix = feature_matrix(rows["features"]).astype(np.float32)
        names = np.array(rows["tracklet"].to_pylist(), object)
        return {name: matrix[names == name] for name in dict.fromkeys(names.tolist())}

    def count_parts(self, source: str, camera: str, track: int) -> int:
        """Return the number of tracklets of one track: above 1 if it was split, or has several identities."""
        equal: dict[str, str | int] = {"source": source, "camera": camera, "track": int(track)}
        return len({name for batch in self._store.read(["tracklet"], equal) for name in batch["tracklet"].to_pylist()})

    def find(self, *, scope: Scope | None = None, source: str | None = None, identity: int | None = None) -> list[str]:
        """Return the tracklets in a scope, or of a source and identity, sorted; none of an interrupted erasure.

        Raises:
            ConfigError: neither a scope nor a source.
        """
        if scope is None and source is None:
            raise ConfigError("Nothing is selected. Pass a scope (cameras, times) or a source, or ids of tracklets.")
        found = None
        if scope is not None:
            index = self.index()
            rows = index.rows_in(scope)
            codes = np.unique(index.tracklet if rows is None else index.tracklet[rows])
            found = set(index.tracklets.take(pa.array(codes, pa.int64())).to_pylist())
        if source is not None:
            equal: dict[str, str | int] = {"source": source}
            equal |= {} if identity is None else {"identity": int(identity)}
            batches = list(self._store.read(["tracklet"], equal))
            named = {name for batch in batches for name in batch.column("tracklet").to_pylist()}
            found = named if found is None else found & named
        return sorted((found or set()) - set(unfinished(self.path)))

    def erase(self, tracklets: Sequence[str], *, reason: str = "", dry_run: bool = False) -> Receipt:
        """Erase tracklets from the table and from the disk; they stay out when they are added again.

        Other copies (backups, the files that were added) are not touched.

        Args:
            tracklets: ids, see `find` and `Hit.tracklet`.
            reason: stored in the receipt and the audit log.
            dry_run: only count and scan.

        Returns:
            A receipt: the stored bytes of all files are searched for the features, before and after.

        Raises:
            DataError: an unknown id, or the folder cannot be written.
        """
        with self._writing():
            known = self._tracklets()
            missing = sorted(set(tracklets) - set([] if known is None else known.to_pylist()))
            if missing:
                raise DataError(f"{self.path} has no tracklet {first_few(missing, 3)}. Search for it again.")
            salt = self._file.salt
            receipt = erase_with_receipt(
                self.path, self._store, sorted(set(tracklets)), salt, reason=reason, dry_run=dry_run
            )
            if not dry_run:
                counts = {"tracklets": receipt.tracklets, "rows": receipt.rows, "found_after": receipt.found_after}
                self._log({"action": "erase", "reason": reason, **counts, "hashes": self._hashes(tracklets)})
        return receipt

    def expire(self, *, dry_run: bool = False) -> int:
        """Remove tracklets whose retention is over from the table and from the disk; return their number.

        They are not searched from the moment they expire, even before this is called.
        """
        with self._writing():
            index = self.index()
            rows = (index.expires != UNKNOWN_TIME) & (index.expires <= 1000 * time.time())
            codes = pa.array(np.unique(index.tracklet[rows]), pa.int64())
            tracklets = index.tracklets.take(codes).to_pylist()
            if tracklets and not dry_run:
                erase_rows(self.path, self._store, tracklets, self._file.salt, remember=False)
                self._log({"action": "expire", "tracklets": len(tracklets)})
        return len(tracklets)

    def log(self) -> tuple[list[dict[str, Any]], str]:
        """Return the entries of the audit log and the hash of the last one, after checking the chain.

        Raises:
            DataError: the log was changed; the line is given.
        """
        return read_log(self.path)

    def log_search(self, answer: Answer, features: NDArray[np.float32], scope: Scope, purpose: str | None) -> None:
        """Record a search: purpose, scope, salted digest of the photos, and salted hashes of the hits."""
        digest = hashlib.blake2b(features.tobytes(), key=self._file.salt, digest_size=16).hexdigest()
        hits = [hit.tracklet for hit in answer.hits if hit.gallery == self.name]
        where = {"cameras": None if scope.cameras is None else sorted(scope.cameras)}
        times = {"after": scope.after, "before": scope.before}
        entry = {"action": "search", "purpose": purpose, "scope": {**where, **times}, "tracklets": answer.tracklets}
        self._log({**entry, "photos": digest, "found": answer.found, "hits": self._hashes(hits)})

    def log_review(self, confirmed: Collection[str], rejected: Collection[str], purpose: str | None) -> None:
        """Record which tracklets of this gallery a person confirmed and rejected, as salted hashes."""
        known = self.details(sorted({*confirmed, *rejected}))
        decided = {
            name: self._hashes(sorted(known.keys() & set(ids)))
            for name, ids in (("confirmed", confirmed), ("rejected", rejected))
        }
        if known:
            self._log({"action": "review", "purpose": purpose, **decided})

    def _log(self, entry: dict[str, Any]) -> None:
        if self.settings.audit:
            append_entry(self.path, entry)

    def _hashes(self, tracklets: Sequence[str]) -> list[str]:
        return [hash_tracklet(tracklet, self._file.salt) for tracklet in tracklets]

    def describe(self) -> dict[str, Any]:
        """Return model, settings, numbers of rows and tracklets, and cameras with first and last time (ms or None)."""
        index = self.index()
        cameras = []
        for code, name in [*enumerate(index.cameras), (-1, None)]:
            rows = np.flatnonzero(index.camera == code)
            if len(rows):
                start, end = index.start[rows], index.end[rows]
                timed = start != UNKNOWN_TIME
                times = (int(start[timed].min()), int(end[timed].max())) if timed.any() else (None, None)
                tracklets = len(np.unique(index.tracklet[rows]))
                cameras.append({"camera": name, "tracklets": tracklets, "first": times[0], "last": times[1]})
        return {
            "model": self.model,
            "settings": self.settings.as_dict(),
            "tracklets": len(index.tracklets),
            "rows": len(index),
            "cameras": cameras,
        }

    def check(self) -> list[str]:
        """Return the problems of the stored rows; none if all is well."""
        problems = []
        index = self.index()
        bad = 0
        for batch in self._store.read(["features"]):
            lengths = np.linalg.norm(feature_matrix(batch["features"]).astype(np.float32), axis=1)
            bad += int((~(np.abs(lengths - 1) < 0.01)).sum())
        if bad:
            problems.append(f"{bad:,} features are not of length 1")
        backward = int((index.end < index.start).sum())
        if backward:
            problems.append(f"{backward:,} rows end before they start")
        ids = [batch.column("id") for batch in self._store.read(["id"])]
        repeated = len(index) - len(pa.chunked_array(ids, pa.string()).unique())
        if repeated:
            problems.append(f"{repeated:,} ids occur more than once")
        hashes = erased_hashes(self.path)
        returned = hashes & set(self._hashes(index.tracklets.to_pylist() if hashes else []))
        if returned:
            problems.append(f"{len(returned):,} tracklets are there although they were erased")
        try:
            self.log()
        except DataError as error:
            problems.append(str(error))
        if len(index) and self.model is None:
            problems.append("gallery.json does not describe the model of the rows")
        return problems

    def copy(self, target: str | Path, store: str | None = None) -> Gallery:
        """Copy everything to a new folder, completely or not at all; older versions of the rows are not copied.

        Args:
            target: the folder.
            store: where the copy has its rows, as `GallerySettings.store`; by default in the folder.

        Raises:
            DataError: the folder exists and is not empty, it is not writable, or the server refuses the rows.
        """
        settings = GallerySettings(**{**self.settings.as_dict(), "store": store})
        with self._writing(), atomic_folder(target) as folder:
            file = GalleryFile(settings, self._file.salt, self._file.model, self._file.format)
            copied = open_store(folder, store, file.owner)
            copied.check_new()
            file.write(folder)
            if (calibration := stored_calibration(self.path)) is not None:
                shutil.copyfile(calibration, folder / calibration.name)
            for name in (ERASED, AUDIT, CAMERAS, TRANSITIONS):
                if (self.path / name).is_file():
                    shutil.copyfile(self.path / name, folder / name)
            if names := self._store.columns():
                kind = schema(file.model["dimension"] if file.model else 1)
                copied.fill(self._store.read(names), pa.schema([kind.field(name) for name in names]))
        return Gallery.open(target)

    def _tracklets(self) -> pa.Array | None:
        batches = [batch.column("tracklet") for batch in self._store.read(["tracklet"])]
        return pa.chunked_array(batches, pa.string()).unique() if batches else None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Let no other process write; wait for one that does."""
        with exclusive(self.path, wait=True):
            self._file = GalleryFile.read(self.path)
            if self._file.format < FORMAT:  # columns first: a killed process leaves a gallery of the old format
                self._store.add_columns(schema(1 if self._file.model is None else self._file.model["dimension"]))
                self._file.format = FORMAT
                self._file.write(self.path)
            self._store.finish()
            finish(self.path, self._store, self._file.salt)
            yield
