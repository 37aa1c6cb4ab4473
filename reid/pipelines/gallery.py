"""Fill galleries from files, and search them with photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.core.atomic import write_csv, write_json
from reid.core.console import warn
from reid.core.errors import ConfigError, DataError
from reid.core.reading import read_json
from reid.data.crops import IMAGE_SUFFIXES
from reid.data.images import decode
from reid.data.listing import find_files
from reid.embedding.embedder import Embedder
from reid.embedding.table import Embeddings
from reid.evaluation.calibration import Calibration
from reid.gallery import Added, Answer, Gallery, Trajectory, find_trajectory, search
from reid.gallery.gallery import CAMERAS
from reid.gallery.learned_times import learned_times, store_learned_times
from reid.gallery.matched import read_matched
from reid.gallery.pictures import small_picture
from reid.gallery.review import mask_others
from reid.gallery.rows import camera_names
from reid.gallery.times import show_time
from reid.gallery.trajectory import ground_positions
from reid.mtmc.cameras import Cameras, read_cameras
from reid.pipelines.calibrate import find_calibration
from reid.pipelines.pictures_file import NAME as PICTURES
from reid.pipelines.pictures_file import read_pictures
from reid.pipelines.settings import GalleryAddSettings, SearchSettings
from reid.report.answer_page import AnswerOptions, write_answer_page

Embed = Callable[[list[NDArray[np.uint8]]], Embeddings]

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
    cameras = _cameras(settings.cameras, gallery, table)
    sightings = places = None
    epoch = gallery.epoch_of(cameras, settings.start)
    if is_match:
        found, owner, places = read_matched(path, table, epoch)
        sightings = found, owner
    elif cameras is None and epoch is not None and table.frames is not None:
        warn("No --cameras: assuming 25 frames per second and equal clocks.")
    if epoch is None:
        warn("Times are unknown. Pass --start, or put an epoch into cameras.yaml and pass --cameras.")
    source = settings.source or path.absolute().with_suffix("").name
    picture_of = None
    if is_match and (path / PICTURES).is_file() and gallery.settings.pictures != "none":
        picture_of = read_pictures(path / PICTURES, table)
    added = gallery.add(
        table,
        source=source,
        cameras=cameras,
        start=settings.start,
        sightings=sightings,
        places=places,
        picture_of=picture_of,
    )
    if is_match:
        store_learned_times(gallery.path, source, path)
    return added


def _cameras(path: Path | None, gallery: Gallery, table: Embeddings) -> Cameras | None:
    stored = gallery.path / CAMERAS
    if path is None and not stored.is_file():
        return None
    names = sorted({name for name in camera_names(table).tolist() if name is not None})
    cameras = read_cameras(path or stored, names)
    for text in cameras.warnings if path else ():
        warn(text)
    return cameras


@dataclass(frozen=True, eq=False)
class Found:
    """Result of `search_files`.

    Attributes:
        galleries: that were searched.
        answer: the hits.
        trajectory: chained from the hits that chance does not explain; without a calibration from all hits if there is
            a largest distance, else None.
        photos: JPEG files of the person, as the galleries allow pictures.
        cameras: of the trajectory, if known.
    """

    galleries: list[Gallery]
    answer: Answer
    trajectory: Trajectory | None
    photos: list[bytes]
    cameras: Cameras | None = None

    @property
    def zone(self) -> str:
        """Time zone of printed times."""
        return self.galleries[0].settings.zone


def search_files(paths: Sequence[Path], settings: SearchSettings) -> Found:
    """Search galleries for the person of the photos, or of the embeddings, that the settings name.

    Args:
        paths: of one or more galleries of one model.
        settings: photos, model, filters and output.

    Raises:
        ReidError: a gallery, photo or model cannot be used, or they do not fit each other.
    """
    galleries = [Gallery.open(path) for path in paths]
    photos, crops = query_embeddings(settings)
    for gallery in galleries:
        gallery.check_query(photos)
    names = {name for gallery in galleries for name in gallery.index().cameras}
    cameras = trajectory_cameras(galleries, settings.cameras)
    answer = search(
        galleries,
        photos.features,
        scope=galleries[0].scope(settings.camera or None, settings.after, settings.before, known=names),
        top=settings.top,
        within=settings.within,
        expected_false=settings.expected_false,
        camera=settings.photo_camera,
        calibration=_calibration(paths, settings, photos.meta.get("model")),
        purpose=settings.purpose,
    )
    if settings.mask_others:
        answer = mask_others(answer)
    trajectory = None
    if answer.found is not None or settings.within is not None:
        hits = answer.hits if answer.found is None else answer.accepted
        trajectory = find_trajectory(hits, cameras, tolerance=settings.tolerance, learned=learned_times(paths))
    allowed = {gallery.settings.pictures for gallery in galleries}
    shown = [] if "none" in allowed else [small_picture(crop, pixelate="pixelate" in allowed) for crop in crops]
    return Found(galleries, answer, trajectory, shown, cameras)


def trajectory_cameras(galleries: Sequence[Gallery], path: Path | None = None) -> Cameras | None:
    """Read a cameras.yaml for all cameras of some galleries: the given one, else the first that a gallery has.

    Raises:
        ConfigError: the file cannot be used.
    """
    names = sorted({name for gallery in galleries for name in gallery.index().cameras})
    if path is not None:
        return read_cameras(path, names, partial=True)
    return next(filter(None, (gallery.cameras(names) for gallery in galleries)), None)


def _calibration(paths: Sequence[Path], settings: SearchSettings, model: str | None) -> Calibration | None:
    """Return the calibration of the settings, of a gallery, or next to the model."""
    nearby = [path / "calibration.json" for path in paths]
    nearby += [] if settings.model is None else [Path(settings.model)]
    found = find_calibration(settings.calibration, nearby, model)
    return None if found is None else found.calibration


def open_for_search(paths: Sequence[Path], settings: SearchSettings) -> tuple[list[Gallery], Embed, Calibration | None]:
    """Open galleries, their model and its calibration, for many searches.

    Returns:
        The galleries, the function that embeds crops, and the calibration, if there is one.

    Raises:
        ReidError: a gallery or the model cannot be used, or they do not fit each other.
    """
    galleries = [Gallery.open(path) for path in paths]
    embedder = open_embedder(settings)
    meta = embedder.describe()
    for gallery in galleries:
        gallery.check_fits(meta, embedder.dimension, f"--model {settings.model}")
    return galleries, embedder.table, _calibration(paths, settings, meta["model"])


def query_embeddings(settings: SearchSettings) -> tuple[Embeddings, list[NDArray[np.uint8]]]:
    """Return the features of the photos, and the crops: embedded with the model, or read from a file of embeddings.

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
        return Embeddings.concat([Embeddings.load(file) for file in tables], list(map(str, tables))), []
    if settings.box is not None and len(files) > 1:
        raise ConfigError("--box is of one photo. Pass a single --photo.")
    crops = [crop_person(decode(file, upright=True), settings.box, str(file)) for file in files]
    return open_embedder(settings).table(crops), crops


def open_embedder(settings: SearchSettings) -> Embedder:
    """Return the model that embeds photos."""
    if settings.model is None:
        raise ConfigError("A photo needs --model: the model of the gallery's features.")
    options = settings.model_dump(include={"device", "weights", "flip"})
    return Embedder(settings.model, runtime=settings.runtime_for(), **options)


def crop_person(image: NDArray[np.uint8], box: Sequence[int] | None, name: str) -> NDArray[np.uint8]:
    """Return the part of a photo that shows the person.

    Args:
        image: RGB `[H, W, 3]`.
        box: left, top, width and height in pixels; None if the photo shows only this person.
        name: of the photo, for error messages.

    Raises:
        ConfigError: the box is outside of the photo, or a wide photo has no box.
    """
    height, width = image.shape[:2]
    if box is not None:
        x, y, w, h = box
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if right <= left or bottom <= top:
            raise ConfigError(f"The box {x},{y},{w},{h} is outside of {name}, which is {width}×{height}. Correct it.")
        return np.ascontiguousarray(image[top:bottom, left:right])
    if width > _WIDEST * height:
        raise ConfigError(
            f"{name} is {width}×{height}: too wide for a crop of one standing person, so it may show several people or "
            "much background. Draw or pass the person's box in pixels (--box X,Y,WIDTH,HEIGHT)."
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


def hit_columns(answer: Answer, zone: str, trajectory: Trajectory | None = None) -> dict[str, list[Any]]:
    """Return the hits as columns of text and numbers."""
    hits = answer.hits
    chain = Trajectory([], []) if trajectory is None else trajectory
    steps = {id(step.hit): number for number, step in enumerate(chain.steps, 1)}
    reasons = {id(one.hit): one.reason for one in chain.dropped}
    return {
        "rank": list(range(1, len(hits) + 1)),
        "person": answer.person_numbers(),
        "camera": [hit.camera or "unknown" for hit in hits],
        "from": [show_time(hit.start, zone) for hit in hits],
        "to": [show_time(hit.end, zone) for hit in hits],
        "track": ["" if hit.track is None else hit.track for hit in hits],
        "distance": [round(hit.distance, 4) for hit in hits],
        "strangers": ["" if hit.strangers is None else float(f"{hit.strangers:.3g}") for hit in hits],
        "p_same": ["" if hit.probability is None else round(hit.probability, 4) for hit in hits],
        "accepted": ["" if hit.accepted is None else "yes" if hit.accepted else "no" for hit in hits],
        "step": [steps.get(id(hit), "") for hit in hits],
        "dropped": [reasons.get(id(hit), "") for hit in hits],
        "source": [hit.source for hit in hits],
        "path": [hit.path or "" for hit in hits],
        "tracklet": [hit.tracklet for hit in hits],
    }


def write_answer(found: Found, path: Path) -> None:
    """Write an answer as JSON, CSV or HTML, by the suffix of the file.

    Raises:
        ConfigError: another suffix.
    """
    answer, trajectory = found.answer, found.trajectory
    if path.suffix == ".json":
        chain = None if trajectory is None else trajectory.as_dict(answer.hits)
        write_json(path, {**answer.as_dict(), "trajectory": chain})
    elif path.suffix == ".csv":
        write_csv(path, hit_columns(answer, found.zone, trajectory))
    elif path.suffix == ".html":
        about = {"gallery": ", ".join(gallery.name for gallery in found.galleries)}
        positions = {hit.tracklet: ground_positions(hit, found.cameras)[:, 1:3] for hit in answer.hits}
        options = AnswerOptions("Where was this person?", found.zone, trajectory, found.photos, positions, about)
        write_answer_page(path, answer, options)
    else:
        raise ConfigError(f"--out {path} must end in .json, .csv or .html.")
