"""Erase tracklets: journal, deletion, and a receipt that scans the stored bytes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.core.atomic import write_json, write_text
from reid.core.errors import DataError
from reid.core.reading import read_json
from reid.gallery.engines import Store
from reid.gallery.rows import feature_matrix

JOURNAL = "erasing.json"
ERASED = "erased.txt"

_NEEDLE = 32
_BLOCK = 2**26


@dataclass(frozen=True)
class Receipt:
    """What an erasure did.

    Attributes:
        gallery: its folder.
        time: UTC, ISO 8601.
        reason: as given.
        dry_run: nothing was erased.
        tracklets, rows: erased (or to be erased).
        vectors: different features that are searched for in the stored bytes.
        shared: features that are not searched for, because another tracklet, which stays, has the same.
        found_before, found_after: how many of them the bytes of all files contain before and after. `found_before`
            below `vectors` would mean that the scan cannot see them. None if the engine stores rows elsewhere.
        files, scanned_bytes: that were scanned after the erasure.
        pending: why the bytes of erased rows are not gone yet; None if they are.
    """

    gallery: str
    time: str
    reason: str
    dry_run: bool
    tracklets: int
    rows: int
    vectors: int
    shared: int
    found_before: int | None
    found_after: int | None
    files: int
    scanned_bytes: int
    pending: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the scan can see the vectors, and none of them is left."""
        return self.found_before == self.vectors and self.found_after == 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain Python, ready for JSON."""
        return {**asdict(self), "complete": self.complete}


def hash_tracklet(tracklet: str, salt: bytes) -> str:
    """Return the salted hash under which an erased tracklet is remembered."""
    return hashlib.blake2b(tracklet.encode(), key=salt, digest_size=16).hexdigest()


def erased_hashes(folder: Path) -> set[str]:
    """Return the hashes of erased tracklets."""
    path = folder / ERASED
    return set(path.read_text("ascii").split()) if path.is_file() else set()


def unfinished(folder: Path) -> list[str]:
    """Return the tracklets of an erasure that was interrupted. They are hidden until the next write finishes it."""
    path = folder / JOURNAL
    return list(map(str, read_json(path)["tracklets"])) if path.is_file() else []


def erase_rows(folder: Path, store: Store, tracklets: Sequence[str], salt: bytes, *, remember: bool) -> None:
    """Remove tracklets from the table and from the disk. The caller has the lock.

    Until the journal is written, nothing has changed; from then on readers hide the tracklets, and `finish` completes
    the erasure if the process is killed.

    Args:
        folder: of the gallery.
        store: its rows.
        tracklets: ids.
        salt: of the hashes.
        remember: whether they stay out when they are added again.
    """
    write_json(folder / JOURNAL, {"tracklets": sorted(tracklets), "remember": remember})
    finish(folder, store, salt)


def finish(folder: Path, store: Store, salt: bytes) -> None:
    """Complete an erasure whose journal exists."""
    journal = folder / JOURNAL
    if not journal.is_file():
        return
    content = read_json(journal)
    if content["remember"]:
        hashes = {hash_tracklet(tracklet, salt) for tracklet in content["tracklets"]}
        write_text(folder / ERASED, "".join(f"{text}\n" for text in sorted(hashes | erased_hashes(folder))))
    store.delete(content["tracklets"])
    store.purge()
    journal.unlink()


def erase_with_receipt(
    folder: Path,
    store: Store,
    tracklets: Sequence[str],
    salt: bytes,
    *,
    reason: str,
    dry_run: bool,
) -> Receipt:
    """Erase tracklets and prove it: their vectors are searched for in the bytes of all files, before and after.

    Args:
        folder, store, tracklets, salt: as in `erase_rows`.
        reason: stored in the receipt.
        dry_run: only count and scan.
    """
    table = store.rows_of(tracklets, ["features"], "tracklet")
    features = np.zeros((0, 1), np.float16) if table is None else feature_matrix(table["features"])
    is_here = store.erases_later is None
    shared = _shared(store, set(tracklets), {row.tobytes() for row in features}) if is_here else set()
    needles = {_needle(row) for row in features if row.tobytes() not in shared}
    before = count_in_files(folder, needles)[0] if is_here else None
    if not dry_run and len(tracklets):
        erase_rows(folder, store, tracklets, salt, remember=True)
    after, files, n_bytes = count_in_files(folder, needles) if is_here else (None, 0, 0)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    shown = None if dry_run else after
    counts = (len(tracklets), len(features), len(needles), len(shared), before, shown, files, n_bytes)
    return Receipt(str(folder), now, reason, dry_run, *counts, store.erases_later)


def _shared(store: Store, tracklets: set[str], features: set[bytes]) -> set[bytes]:
    """Return those features that tracklets have which stay."""
    shared = set()
    for batch in store.read(["tracklet", "features"]) if features else ():
        for tracklet, row in zip(batch["tracklet"].to_pylist(), feature_matrix(batch["features"]), strict=True):
            if tracklet not in tracklets and row.tobytes() in features:
                shared.add(row.tobytes())
    return shared


def _needle(row: NDArray[np.float16]) -> bytes:
    """Return the 32 bytes of a feature with the most different values, or the whole feature if it is shorter."""
    width = _NEEDLE // 2
    if len(row) <= width:
        return row.tobytes()
    windows = row[: len(row) // width * width].reshape(-1, width)
    return windows[int(np.argmax([len(np.unique(window)) for window in windows]))].tobytes()


def count_in_files(folder: Path, needles: Iterable[bytes]) -> tuple[int, int, int]:
    """Return how many different byte strings occur in the files of a folder, and the files and bytes that were read.

    Every offset is compared: first two bytes by a table, then the rest.
    """
    wanted = {needle for needle in needles if len(needle) >= 2}
    size = max(map(len, wanted), default=0)
    table = np.zeros(2**16, bool)
    second = np.zeros(2**16, bool)
    for needle in wanted:
        table[int.from_bytes(needle[:2], "little")] = True
        second[int.from_bytes(needle[2:4], "little")] = True
    found: set[bytes] = set()
    files = n_bytes = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files += 1
        with open(path, "rb") as file:
            rest = b""
            while block := file.read(_BLOCK):
                n_bytes += len(block)
                data = rest + block
                found |= _occurring(data, wanted, table, second, size)
                rest = data[max(len(data) - size + 1, 0) :] if size > 1 else b""
    return len(found), files, n_bytes


def _occurring(
    data: bytes, wanted: set[bytes], table: NDArray[np.bool_], second: NDArray[np.bool_], size: int
) -> set[bytes]:
    found: set[bytes] = set()
    lengths = sorted({len(needle) for needle in wanted})
    for shift in (0, 1):
        units = np.frombuffer(data, np.uint16, (len(data) - shift) // 2, shift) if len(data) > shift + 1 else None
        if units is None or not wanted:
            continue
        places = np.flatnonzero(table[units])
        if size >= 4:
            following = np.append(units[1:], 0)
            at_end = places == len(units) - 1
            places = places[second[following[places]] | at_end] if min(lengths) >= 4 else places
        for place in (2 * places + shift).tolist():
            for length in lengths:
                candidate = data[place : place + length]
                if candidate in wanted:
                    found.add(candidate)
    return found


def check_complete(receipt: Receipt) -> None:
    """Raise an error if an erasure left vectors on the disk.

    Raises:
        DataError: giving their number.
    """
    if not receipt.dry_run and receipt.pending is None and not receipt.complete:
        raise DataError(
            f"{receipt.gallery}: {receipt.found_after} of {receipt.vectors} erased features are still in the stored "
            f"bytes ({receipt.found_before} were found before). Copy the gallery with `reid gallery copy` and delete "
            "the old folder."
        )
