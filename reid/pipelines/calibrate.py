"""Calibrate distances from embeddings, and find the calibration that belongs to a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.core.console import warn
from reid.core.errors import DataError, ReidError
from reid.embedding.calibration_file import NAME, load_calibration, save_calibration, stored_calibration
from reid.embedding.table import Embeddings
from reid.evaluation import Calibration, calibrate, calibrate_tracks
from reid.pipelines.settings import CalibrateSettings


@dataclass(frozen=True)
class FoundCalibration:
    """A calibration and its file."""

    path: Path
    calibration: Calibration

    def describe(self) -> str:
        """Return the source of the calibration."""
        overall, source = self.calibration.overall, self.calibration.source
        return (
            f"{self.path.name}, made from {source}: {overall.genuine:,} genuine and {overall.impostor:,} impostor "
            f"pairs. The probabilities under the rank lists are its p(same | distance) ({overall.method}) for two "
            f"random crops, where 1 pair in {1 / overall.prior:,.0f} is genuine."
        )


def find_calibration(given: Path | None, nearby: Iterable[Path], model: str | None) -> FoundCalibration | None:
    """Return the calibration of a model: the given file, else the first calibration.json next to some files.

    A file found there that belongs to another model is ignored with a warning.

    Args:
        given: a calibration file.
        nearby: files (checkpoint, embeddings) whose folders are searched if none is given. Files that do not exist,
            such as names of published models, are ignored.
        model: id of the model that made the embeddings.

    Raises:
        ReidError: the given file is missing or of another model; a file is damaged.
    """
    stored = (stored_calibration(file) for file in nearby if file.exists())
    path = given or next((found for found in stored if found is not None), None)
    if path is None:
        return None
    calibration = load_calibration(path)
    try:
        calibration.check_fits(model, "the features in use")
    except ReidError as error:
        if given is not None:
            raise type(error)(f"{path}: {error}") from error
        warn(f"{path} is not used. {error}")
        return None
    return FoundCalibration(path, calibration)


def calibrate_embeddings(table: Embeddings, settings: CalibrateSettings | None = None) -> Calibration:
    """Calibrate the distances of embeddings, with or without identity labels.

    With pids, genuine and impostor pairs across cameras are compared. Without, the columns camid, track and frame are
    used: tracks of one camera that overlap in time show different people, crops of one track show the same person.

    Raises:
        DataError: the columns needed are missing, or there are too few pairs for the false-match rate.
    """
    settings = settings or CalibrateSettings()
    options: dict[str, Any] = {"metric": table.meta.get("metric", "cosine"), "fmr": settings.fmr}
    options["model"] = str(table.meta.get("model") or "")
    labelled = table.pids is not None and bool((table.pids != -1).any())
    if labelled and not settings.label_free:
        if table.camids is None and not settings.any_camera:
            raise DataError(
                "The embeddings have no camid column, so pairs across cameras are unknown. Add the column, or count "
                "all pairs with --any-camera (any_camera=True)."
            )
        return calibrate(table, cross_camera=not settings.any_camera, **options)
    camids, tracks, frames = table.camids, table.tracks, table.frames
    if camids is None or tracks is None or frames is None:
        columns = {"camid": camids, "track": tracks, "frame": frames}
        raise DataError(
            f"Without {'labels' if settings.label_free else 'a pid column'} a calibration needs the columns camid, "
            f"track and frame. Add {', '.join(name for name, values in columns.items() if values is None)}."
        )
    if labelled and table.pids is not None:
        _check_tracks(table.pids, camids, tracks)
    return calibrate_tracks(table.features, camids, tracks, frames, **options)


def calibrate_files(
    files: Sequence[Path], out: Path | None = None, model: Path | None = None, settings: CalibrateSettings | None = None
) -> tuple[Calibration, Path]:
    """Calibrate from embedding files taken together, and write calibration.json.

    Args:
        files: Parquet files of embeddings of one model.
        out: the file to write. Default: calibration.json next to `model`, else next to the first file.
        model: the checkpoint, or run folder, that the calibration belongs to.
        settings: as for `calibrate`.

    Returns:
        The calibration and the path of its file.

    Raises:
        DataError: `model` does not exist, or as `calibrate`.
    """
    if model is not None and not model.exists():
        raise DataError(f"There is no model {model}. Pass an existing file with --model.")
    table = Embeddings.concat([Embeddings.load(path) for path in files], list(map(str, files)))
    calibration = calibrate_embeddings(table, settings)
    owner = model or files[0]
    return calibration, save_calibration(calibration, out or (owner if owner.is_dir() else owner.parent) / NAME)


def _check_tracks(pids: NDArray[np.int64], camids: NDArray[np.int64], tracks: NDArray[np.int64]) -> None:
    """Refuse tracks that show more than one person each, where labels reveal it."""
    rows = np.stack([camids, tracks, pids])[:, (pids != -1) & (camids != -1)]
    people, n_tracks = np.unique(rows, axis=1), np.unique(rows[:2], axis=1).shape[1]
    if people.shape[1] > 1.01 * n_tracks:
        raise DataError(
            f"The column track does not number tracks of one person: {n_tracks:,} tracks show {people.shape[1]:,} "
            "identities (in Market-1501 it numbers video sequences). Pass single-person tracks, or use labels."
        )
