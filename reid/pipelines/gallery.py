"""Fill galleries from files, and search them with photos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reid.core.atomic import write_csv, write_text
from reid.core.console import warn
from reid.core.errors import ConfigError, DataError
from reid.core.reading import read_json
from reid.data.crops import IMAGE_SUFFIXES
from reid.data.images import decode
from reid.data.listing import find_files
from reid.embedding.embedder import Embedder
from reid.embedding.table import Embeddings
from reid.gallery import Added, Answer, Gallery, search
from reid.gallery.matched import read_matched
from reid.gallery.rows import camera_names
from reid.gallery.times import show_time
from reid.mtmc.cameras import Cameras, read_cameras
from reid.pipelines.calibrate import find_calibration
from reid.pipelines.settings import GalleryAddSettings, SearchSettings

_WIDEST = 0.8
"""Width of a photo, in heights, above which it is taken to show more than one standing person."""


def add_files(gallery: Gallery, path: Path, settings: GalleryAddSettings) -> Added:
    """Add an embeddings file, or the folder of a `reid match`, to a gallery.

    Args:
        gallery: to add to.
        path: Parquet file of embeddings, or the folder with identities.csv.
        settings: how to read it.

    Raises:
        ReidError: a file cannot be used, or the features do not fit the gallery.
    """
    is_match = path.is_dir()
    file = settings.embeddings or (path / "embeddings.parquet" if is_match else path)
    if is_match and not file.is_file():
        raise DataError(f"{path} contains no embeddings.parquet. Pass the embeddings that were matched: --embeddings.")
    table = Embeddings.load(file, root=settings.images)
    cameras = _cameras(settings.cameras, table)
    sightings = None
    epoch = gallery.epoch_of(cameras, settings.start)
    if is_match:
        sightings = read_matched(path, table, epoch)
    elif cameras is None and epoch is not None and table.frames is not None:
        warn("No --cameras: assuming 25 frames per second and equal clocks.")
    if epoch is None:
        warn("Times are unknown. Pass --start, or put an epoch into cameras.yaml and pass --cameras.")
    source = settings.source or path.absolute().with_suffix("").name
    return gallery.add(table, source=source, cameras=cameras, start=settings.start, sightings=sightings)


def _cameras(path: Path | None, table: Embeddings) -> Cameras | None:
    if path is None:
        return None
    cameras = read_cameras(path, sorted({name for name in camera_names(table).tolist() if name is not None}))
    for text in cameras.warnings:
        warn(text)
    return cameras


def search_files(paths: Sequence[Path], settings: SearchSettings) -> tuple[list[Gallery], Answer]:
    """Search galleries for the person of the photos, or of the embeddings, that the settings name.

    Args:
        paths: of one or more galleries of one model.
        settings: photos, model, filters and output.

    Returns:
        The galleries and the answer.

    Raises:
        ReidError: a gallery, photo or model cannot be used, or they do not fit each other.
    """
    galleries = [Gallery.open(path) for path in paths]
    photos = query_embeddings(settings)
    for gallery in galleries:
        gallery.check_query(photos)
    nearby = [path / "calibration.json" for path in paths]
    if settings.model is not None and Path(settings.model).exists():
        nearby.append(Path(settings.model))
    found = find_calibration(settings.calibration, nearby, photos.meta.get("model"))
    cameras = settings.camera or None
    names = {name for gallery in galleries for name in gallery.index().cameras}
    answer = search(
        galleries,
        photos.features,
        scope=galleries[0].scope(cameras, settings.after, settings.before, known=names),
        top=settings.top,
        within=settings.within,
        expected_false=settings.expected_false,
        camera=settings.photo_camera,
        calibration=None if found is None else found.calibration,
        purpose=settings.purpose,
    )
    return galleries, answer


def query_embeddings(settings: SearchSettings) -> Embeddings:
    """Return the features of the photos: embedded with the model, or read from a file of embeddings.

    Raises:
        ConfigError: photos without a model, or a wide photo without a box.
        DataError: a file that cannot be read, or no photo.
    """
    files = [
        file for path in settings.photo for file in (find_files(path, IMAGE_SUFFIXES)[0] if path.is_dir() else [path])
    ]
    tables = [file for file in files if Path(file).suffix == ".parquet"]
    if not files:
        raise DataError("There is no photo. Pass --photo FILE.")
    if tables:
        if len(tables) < len(files):
            raise ConfigError("Pass photos or a file of embeddings, not both.")
        return Embeddings.concat([Embeddings.load(file) for file in tables], list(map(str, tables)))
    if settings.model is None:
        raise ConfigError("A photo needs --model: the model of the gallery's features.")
    crops = [_crop(Path(file), settings) for file in files]
    options = settings.model_dump(include={"device", "weights", "flip"})
    embedder = Embedder(settings.model, runtime=settings.runtime_for(), **options)
    return embedder.table(crops)


def _crop(path: Path, settings: SearchSettings) -> Any:
    image = decode(path)
    height, width = image.shape[:2]
    if settings.box is not None:
        if len(settings.photo) > 1:
            raise ConfigError("--box is of one photo. Pass a single --photo.")
        x, y, w, h = settings.box
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if right <= left or bottom <= top:
            raise ConfigError(f"--box {x},{y},{w},{h} is outside of {path}, which is {width}×{height}. Correct it.")
        return np.ascontiguousarray(image[top:bottom, left:right])
    if width > _WIDEST * height:
        raise ConfigError(
            f"{path} is {width}×{height}: too wide for a crop of one standing person, so it may show several people or "
            "much background. Pass the person's box in pixels: --box X,Y,WIDTH,HEIGHT."
        )
    return image


def select_tracklets(
    gallery: Gallery,
    tracklet: Sequence[str] = (),
    source: str | None = None,
    identity: int | None = None,
    answer: Path | None = None,
    camera: Sequence[str] = (),
    after: str | None = None,
    before: str | None = None,
) -> list[str]:
    """Return the tracklets to erase: given by id or as an answer, or selected by source, identity, camera and time.

    Raises:
        ConfigError: nothing is selected, or both ways are used.
        DataError: the answer cannot be read, or is of another gallery.
    """
    is_filter = bool(source or camera or after or before)
    if identity is not None and source is None:
        raise ConfigError("--identity needs --source, because each match counts its identities from 1.")
    if is_filter and (tracklet or answer):
        raise ConfigError(
            "Pass ids (--tracklet, --answer), or a selection (--source, --camera, --from, --to), not both."
        )
    if is_filter:
        scope = gallery.scope(camera or None, after, before) if camera or after or before else None
        return gallery.find(scope=scope, source=source, identity=identity)
    ids = list(tracklet)
    if answer is not None:
        try:
            hits = [(str(hit["gallery"]), str(hit["tracklet"])) for hit in read_json(answer)["hits"]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{answer} is not an answer of `reid search`. Write one with --out FILE.json.") from error
        ids += [name for where, name in hits if where == gallery.name]
    if not ids:
        raise ConfigError("No tracklet is selected. Pass --tracklet, --answer, --source, --camera, --from or --to.")
    return sorted(set(ids))


def hit_columns(answer: Answer, zone: str) -> dict[str, list[Any]]:
    """Return the hits as columns of text and numbers."""
    hits = answer.hits
    return {
        "rank": list(range(1, len(hits) + 1)),
        "person": [1 + [group[0].person for group in answer.people()].index(hit.person) for hit in hits],
        "camera": [hit.camera or "unknown" for hit in hits],
        "from": [show_time(hit.start, zone) for hit in hits],
        "to": [show_time(hit.end, zone) for hit in hits],
        "track": ["" if hit.track is None else hit.track for hit in hits],
        "distance": [round(hit.distance, 4) for hit in hits],
        "strangers": ["" if hit.strangers is None else float(f"{hit.strangers:.3g}") for hit in hits],
        "p_same": ["" if hit.probability is None else round(hit.probability, 4) for hit in hits],
        "accepted": ["" if hit.accepted is None else "yes" if hit.accepted else "no" for hit in hits],
        "source": [hit.source for hit in hits],
        "path": [hit.path or "" for hit in hits],
        "tracklet": [hit.tracklet for hit in hits],
    }


def write_answer(answer: Answer, path: Path, zone: str) -> None:
    """Write an answer as JSON or CSV, by the suffix of the file.

    Raises:
        ConfigError: another suffix.
    """
    if path.suffix == ".json":
        write_text(path, json.dumps(answer.as_dict(), indent=2, allow_nan=False) + "\n")
    elif path.suffix == ".csv":
        write_csv(path, hit_columns(answer, zone))
    else:
        raise ConfigError(f"--out {path} must end in .json or .csv.")
