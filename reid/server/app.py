"""The application: a page and a REST API that search galleries."""

import base64
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from reid.core.errors import ConfigError, ReidError
from reid.core.version import __version__
from reid.data.images import decode_bytes
from reid.gallery import Answer, Gallery, find_trajectory
from reid.gallery.learned_times import Pair, learned_times
from reid.gallery.review import as_constraints, describe_reviewed, search_reviewed
from reid.gallery.review import mask_others as pixelate_others
from reid.gallery.times import show_time
from reid.mtmc.cameras import Cameras
from reid.pipelines.gallery import Embed, crop_person, trajectory_cameras
from reid.server.guard import Guard

if TYPE_CHECKING:
    from reid.evaluation.calibration import Calibration

FILES = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
         "/page.css": ("page.css", "text/css")}  # fmt: skip
"""Static files by path. They contain no data, so they need no token."""

MAX_PHOTOS = 8


@dataclass(frozen=True)
class ServerSettings:
    """Limits of the server.

    Attributes:
        hosts: host names that requests may be addressed to, besides IP addresses.
        token: that requests must have; None: none.
        max_bytes: largest request.
        per_minute: requests that one address may send in a minute.
    """

    hosts: tuple[str, ...] = ("localhost",)
    token: str | None = None
    max_bytes: int = 20 * 2**20
    per_minute: int = 60


class HitModel(BaseModel):
    """One tracklet of an answer."""

    tracklet: str = Field(description="Id of the tracklet.")
    gallery: str
    source: str
    person: int = Field(description="Number of the person: equal for hits of one identity of `reid match`.")
    camera: str | None
    track: int | None
    first_seen: str = Field(description="Date and time in the gallery's time zone.")
    last_seen: str
    start: int | None = Field(description="Milliseconds since 1970.")
    end: int | None
    crops: int
    distance: float = Field(description="Cosine distance to the nearest photo.")
    strangers: float | None = Field(description="Strangers expected at this distance or nearer; null: no calibration.")
    probability: float | None = Field(description="p(same person); null without a calibration.")
    accepted: bool | None = Field(description="Whether chance does not explain it; null without a calibration.")
    confirmed: bool
    picture: str | None = Field(description="JPEG, Base64; null if the gallery has none.")


class StepModel(BaseModel):
    """One sighting of a trajectory."""

    hit: int = Field(description="Index in the hits.")
    confirmed: bool
    gap_s: float | None = Field(description="Seconds since the step before; negative: both cameras see the person.")
    expected_s: list[float | None] | None = Field(description="Least and largest expected seconds; null: unknown.")
    expected_is_learned: bool = Field(description="Expected are usual times that `reid match` learned, not a rule.")
    late: bool = Field(description="The gap is longer than expected: a sighting in between may be missing.")
    early: bool = Field(description="The gap is shorter than expected: one of the two may be another person.")


class DroppedModel(BaseModel):
    """A hit that one person cannot have made together with the steps."""

    hit: int = Field(description="Index in the hits.")
    reason: str
    step: int | None = Field(description="Index of the step that excludes it.")
    gap_s: float | None


class TrajectoryModel(BaseModel):
    """Accepted and confirmed hits in time order."""

    text: str
    steps: list[StepModel]
    dropped: list[DroppedModel]


class AnswerModel(BaseModel):
    """Answer of a search."""

    text: str = Field(description="The answer in one sentence.")
    found: bool | None = Field(description="Whether the person is there; null without a calibration.")
    expected_false: float
    tracklets: int = Field(description="Tracklets that were searched.")
    without_time: int = Field(description="Rows that a filter by time left out because their time is unknown.")
    hits: list[HitModel]
    trajectory: TrajectoryModel | None = Field(description="Null if no hit is accepted or confirmed.")


class DecisionsModel(BaseModel):
    """Decisions as files for `reid match --constraints`, by source."""

    files: dict[str, dict[str, Any]]
    left_out: list[str]


class GalleryModel(BaseModel):
    """What can be searched."""

    galleries: list[str]
    tracklets: int
    cameras: list[str]
    zone: str = Field(description="Time zone of times without an offset.")
    require_purpose: bool
    calibrated: bool
    max_bytes: int


def create_app(
    galleries: Sequence[Gallery], embed: Embed, calibration: "Calibration | None", settings: ServerSettings
) -> Any:
    """Return the ASGI application of some galleries of one model.

    Args:
        galleries: to search.
        embed: features of RGB crops, with `meta`.
        calibration: of the model; without one, hits are ranked only.
        settings: hosts, token and limits.

    Raises:
        ConfigError: FastAPI or python-multipart is not installed.
    """
    try:
        import python_multipart  # noqa: F401
        from fastapi import FastAPI, File, Form, Request
        from fastapi.responses import JSONResponse, Response
    except ImportError as error:
        raise ConfigError("The server needs FastAPI. Install it with: pip install 'reid-toolkit[serve]'") from error

    app = FastAPI(title="reid serve", version=__version__, docs_url=None, redoc_url=None)
    zone = galleries[0].settings.zone
    embedding = threading.Lock()

    @app.exception_handler(ReidError)
    def explain(request: Request, error: ReidError) -> JSONResponse:
        return JSONResponse({"error": _without_paths(str(error), galleries)}, 400)

    def record(purpose: str | None, request: Request) -> str:
        purpose = (purpose or "").strip()
        if not purpose and any(gallery.settings.require_purpose for gallery in galleries):
            raise ConfigError("This gallery requires the purpose of a search. Enter one.")
        client = request.client.host if request.client else "unknown"
        return f"{purpose or 'none given'} (reid serve, from {client})"

    def static(name: str, kind: str) -> Callable[[], Response]:
        content = resources.files("reid.server").joinpath(name).read_bytes()
        return lambda: Response(content, media_type=f"{kind}; charset=utf-8")

    for path, (name, kind) in FILES.items():
        app.add_api_route(path, static(name, kind), include_in_schema=False, response_class=Response)

    @app.get("/api/gallery", summary="Describe what can be searched")
    def describe() -> GalleryModel:
        indexes = [gallery.index() for gallery in galleries]
        return GalleryModel(
            galleries=[gallery.name for gallery in galleries],
            tracklets=sum(len(index.tracklets) for index in indexes),
            cameras=sorted({name for index in indexes for name in index.cameras}),
            zone=zone,
            require_purpose=any(gallery.settings.require_purpose for gallery in galleries),
            calibrated=calibration is not None,
            max_bytes=settings.max_bytes,
        )

    @app.post("/api/search", summary="Find the person of one or several photos")
    def find(
        request: Request,
        photo: Annotated[list[bytes], File(description=f"1 to {MAX_PHOTOS} photos of one person.")],
        box: Annotated[str | None, Form(description="The person in a single photo: X,Y,WIDTH,HEIGHT.")] = None,
        camera: Annotated[list[str], Form(description="Cameras to search; all by default.")] = [],  # noqa: B006
        after: Annotated[str | None, Form(description="Seen at this time (ISO 8601) or later.")] = None,
        before: Annotated[str | None, Form(description="Seen at this time or earlier.")] = None,
        top: Annotated[int, Form(ge=1, le=200)] = 20,
        within: Annotated[float | None, Form(ge=0, le=2)] = None,
        expected_false: Annotated[float, Form(gt=0, le=1e6)] = 0.1,
        purpose: Annotated[str | None, Form(max_length=500, description="For the audit log.")] = None,
        confirmed: Annotated[list[str], Form(description="Tracklets that are this person.")] = [],  # noqa: B006
        rejected: Annotated[list[str], Form(description="Tracklets that are not this person.")] = [],  # noqa: B006
        mask_others: Annotated[
            bool, Form(description="Pixelate heads, except of accepted and confirmed hits.")
        ] = False,
    ) -> AnswerModel:
        recorded = record(purpose, request)
        names = {name for gallery in galleries for name in gallery.index().cameras}
        scope = galleries[0].scope(camera or None, after or None, before or None, known=names)
        numbers = _read_box(box)
        _check_ids([*confirmed, *rejected])
        if len(photo) > MAX_PHOTOS or (numbers and len(photo) > 1):
            raise ConfigError(f"Send 1 to {MAX_PHOTOS} photos, and a box only with a single one.")
        with embedding:
            images = [decode_bytes(data, f"photo {n}", upright=True) for n, data in enumerate(photo, 1)]
            table = embed([crop_person(image, numbers, f"photo {n}") for n, image in enumerate(images, 1)])
        for gallery in galleries:
            gallery.check_query(table)
        answer = search_reviewed(
            galleries, table.features, confirmed, rejected,
            top=top, within=within, scope=scope, expected_false=expected_false, calibration=calibration,
            purpose=recorded,
        )  # fmt: skip
        answer = pixelate_others(answer) if mask_others else answer
        usual = learned_times([gallery.path for gallery in galleries])
        return _answer(answer, set(confirmed), zone, trajectory_cameras(galleries), usual)

    @app.post("/api/constraints", summary="Return decisions as constraints for `reid match`")
    def constraints(
        request: Request,
        purpose: Annotated[str | None, Form(max_length=500, description="For the audit log.")] = None,
        confirmed: Annotated[list[str], Form()] = [],  # noqa: B006
        rejected: Annotated[list[str], Form()] = [],  # noqa: B006
    ) -> DecisionsModel:
        _check_ids([*confirmed, *rejected])
        found = as_constraints(galleries, confirmed, rejected, record(purpose, request))
        return DecisionsModel(files=found.files, left_out=found.left_out)

    return Guard(app, hosts=settings.hosts, public=FILES, token=settings.token, max_bytes=settings.max_bytes,
                 per_minute=settings.per_minute)  # fmt: skip


def _read_box(text: str | None) -> list[int] | None:
    if not text:
        return None
    if not re.fullmatch(r"(-?\d{1,6},){3}-?\d{1,6}", text):
        raise ConfigError(f"The box is {text[:40]!r}. Send X,Y,WIDTH,HEIGHT in pixels.")
    return list(map(int, text.split(",")))


def _check_ids(ids: Sequence[str]) -> None:
    wrong = next((name for name in ids if not re.fullmatch("[0-9a-f]{20}", name)), None)
    if wrong is not None or len(ids) > 1000:
        raise ConfigError(f"{(wrong or 'A list of more than 1,000')[:40]!r} is no tracklet. Send ids of an answer.")


def _without_paths(text: str, galleries: Sequence[Gallery]) -> str:
    """Return a message with the names of galleries instead of their places on the disk."""
    for gallery in galleries:
        text = text.replace(str(gallery.path.absolute()), gallery.name).replace(str(gallery.path), gallery.name)
    return text


def _answer(
    answer: Answer, confirmed: set[str], zone: str, cameras: Cameras | None, usual: dict[Pair, tuple[float, float]]
) -> AnswerModel:
    hits = [
        HitModel(
            **{name: getattr(hit, name) for name in (
                "tracklet", "gallery", "source", "camera", "track", "start", "end", "crops", "distance", "strangers",
                "probability", "accepted",
            )},
            person=person,
            first_seen=show_time(hit.start, zone),
            last_seen=show_time(hit.end, zone),
            confirmed=hit.tracklet in confirmed,
            picture=None if hit.picture is None else base64.b64encode(hit.picture).decode(),
        )
        for hit, person in zip(answer.hits, answer.person_numbers(), strict=True)
    ]  # fmt: skip
    trajectory = None
    if accepted := answer.accepted:
        found = find_trajectory(accepted, cameras, confirmed=confirmed, learned=usual)
        trajectory = TrajectoryModel(text=found.describe(), **found.as_dict(answer.hits))
    return AnswerModel(
        trajectory=trajectory,
        text=describe_reviewed(answer, confirmed),
        found=answer.found,
        expected_false=answer.expected_false,
        tracklets=answer.tracklets,
        without_time=answer.without_time,
        hits=hits,
    )
