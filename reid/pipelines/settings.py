"""Settings of the pipelines. Free of torch, so that commands can list them quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from reid.config import (
    Config,
    Fraction,
    MatchSettings,
    Natural,
    NeighbourSearch,
    Positive,
    Settings,
    StreamSettings,
)

AveragePrecision = Literal["precision", "trapezoid"]


class PipelineSettings(Settings):
    """Base class: the docstring of a field is the help text of its command line option."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ModelSettings(PipelineSettings):
    """Base class of settings that open a model."""

    trust: bool = False
    """Load a TorchScript bundle, which can execute any code: only if its source is trusted."""

    def runtime_for(self, runtime: str = "auto") -> str:
        """Return the runtime to pass to `Embedder`, with consent to TorchScript if it was given."""
        return "torchscript" if self.trust and runtime in ("auto", "torch") else runtime


class TestSettings(ModelSettings):
    """How `test` scores a model."""

    __test__ = False  # not a test class for pytest

    rerank: bool = False
    """Also score after k-reciprocal re-ranking."""
    camera_aware: bool = False
    """Also score after camera-aware re-ranking (CA-Jaccard), which has its own k1 and k2."""
    k1: Positive | Literal["auto"] = 20
    """Neighbours in k-reciprocal re-ranking; "auto" fits k1 and k2 to the estimated crops per identity."""
    k2: Positive = 6
    """Number of neighbours in query expansion."""
    lambda_value: float = Field(default=0.3, ge=0, le=1)
    """Weight of the original distance in the re-ranked one."""
    neighbour_search: NeighbourSearch = "exact"
    """Search for neighbours in re-ranking: exact, faiss (approximate) or auto (faiss above 30,000 crops)."""
    ap: AveragePrecision = "precision"
    """Average precision: "precision" (most papers' code) or "trapezoid" (official Market-1501 code)."""
    any_camera: bool = False
    """Also count matches from the query's own camera."""
    flip: bool = False
    """Average each feature with that of the mirrored image; doubles the computation."""
    learned_metric: Path | None = None
    """Distance fitted by `reid metric fit`."""
    calibration: Path | None = None
    """Calibration file. Default: calibration.json next to the model, if present."""
    queries: tuple[str, ...] = ()
    """Queries to draw: row numbers from 0 ("3,17") or identities ("pid:42", "pid:anna"). Repeatable."""
    page: bool = True
    """Write evaluation.html."""
    skip_unreadable: bool = False
    """List and skip images that cannot be decoded, instead of stopping."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:N or mps."""
    batch_size: Positive = 128
    """Images per forward pass."""


class ReassociationSettings(PipelineSettings):
    """What `score_reassociation` scores. Give `embeddings`, or `tracks` and `videos`."""

    embeddings: Path | None = None
    """Embeddings of crops with frames and true ids (columns pid or track): score re-association, not ranking."""
    tracks: Path | None = None
    """Track files with true ids, whose boxes are cut out of --videos: score re-association, not ranking."""
    videos: Path | None = None
    """Video file, or folder of videos or frame folders named like the cameras; needs --tracks."""
    first_frame: Natural | None = None
    """Number that the track files give to the first frame. Default: 0 if there is a frame 0, else 1."""
    gaps: tuple[Positive, ...] = (1, 10, 30, 100)
    """Frames between a query and its gallery. Repeatable."""
    stride: Positive = 10
    """Frames between queries of one camera."""


class EmbedSettings(ModelSettings):
    """What `embed` reads and how. Give `images`, or `data` and `split`, or `videos` and `tracks`."""

    images: Path | None = None
    """Folder of images, searched recursively."""
    listing: str | None = None
    """List of images or of boxes in images: a .csv or .parquet file, or its address (s3://bucket/list.csv)."""
    data: str | None = None
    """Data set as LAYOUT:ROOT[?key=value&...]; needs --split."""
    split: Literal["train", "query", "gallery"] | None = None
    """Split of the data set."""
    videos: Path | None = None
    """Video file, or folder of videos or frame folders named like the cameras; needs --tracks."""
    tracks: Path | None = None
    """Track files whose boxes are cut out of the videos."""
    first_frame: Natural | None = None
    """Number that the track files give to the first frame. Default: 0 if there is a frame 0, else 1."""
    skip_untracked: bool = False
    """Leave out rows with id -1 (untracked detections) and count them, instead of stopping."""
    weights: str | None = None
    """Weights of a backbone named with --model: imagenet, none or a file."""
    flip: bool = False
    """Average each feature with that of the mirrored image; doubles the computation."""
    skip_unreadable: bool = False
    """List and skip images that cannot be decoded, instead of stopping."""
    runtime: str = "auto"
    """Runtime: auto, torch, onnx or openvino."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:N or mps."""
    batch_size: Positive = 64
    """Images per forward pass."""
    threads: Natural = 0
    """Decoding threads; 0: one per CPU."""
    engine: Literal["local", "ray"] = "local"
    """Where to compute: in this process, or on the workers of a Ray cluster."""
    workers: Natural = 0
    """Most workers of --engine ray; 0: as many as its CPUs and GPUs allow."""
    gpus: float = Field(default=0.0, ge=0, le=16)
    """GPUs per worker of --engine ray; a fraction, such as 0.25, lets several workers use one GPU."""


class IdentitySettings(ModelSettings):
    """Base class of settings of the commands that give identities to tracks."""

    constraints: Path | None = None
    """Cannot-link and must-link pairs, as saved by the match report."""
    truth: Path | None = None
    """Track files with true global identities to score against."""
    split: bool = True
    """Split tracks of 12 crops or more where their appearance changes, e.g. after an identity switch."""
    stitch: bool = True
    """Join tracks that one camera lost and found again."""
    self_calibrate: bool = True
    """Estimate clocks and ground planes of overlapping cameras from the tracks, if no camera has a homography."""
    online: bool = False
    """Match tracks as they end, as in a live stream, and compare with offline matching."""
    per_track: Positive = 8
    """Crops to embed of each track; with --encounters, of each stretch of a track."""
    encounters: bool = True
    """Embed more crops of tracks that met others: --per-track of each stretch between two encounters, where the
    tracker may have switched to another person."""


class MatchFiles(IdentitySettings):
    """What `match_files` reads and how. Appearance comes from `embeddings`, or from `videos` and `model`."""

    tracks: Path
    """Folder with one track file per camera, or one file with a camera column."""
    format: str = "auto"
    """Track file format: auto, mot, aicity, duke or parquet."""
    first_frame: Natural | None = None
    """Number that the track files give to the first frame. Default: 0 if there is a frame 0, else 1."""
    embeddings_first_frame: Natural | None = None
    """Number that the embeddings give to the first frame. Default: as the tracks."""
    truth_first_frame: Natural | None = None
    """Number that the truth gives to the first frame. Default: as the tracks."""
    skip_untracked: bool = False
    """Leave out rows with id -1 (untracked detections) and count them, instead of stopping."""
    embeddings: Path | None = None
    """Parquet file of embeddings with the columns camera (or camid), track and frame."""
    videos: Path | None = None
    """Folder of videos or frame folders named like the cameras; crops are embedded with --model."""
    model: Path | None = None
    """Checkpoint, run folder, bundle, .onnx or .xml file, or name of a published model, that embeds the crops of
    --videos. Default: intel-0287."""
    cameras: Path | None = None
    """Camera clocks, overlaps and transition times. Default: cameras.yaml next to the tracks, if present."""
    calibration: Path | None = None
    """Calibration file. Default: calibration.json next to the model or the embeddings, if present."""
    pixelate_heads: bool = False
    """Pixelate heads in the report's crops."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:N or mps."""
    batch_size: Positive = 64
    """Images per forward pass."""
    engine: Literal["local", "ray"] = "local"
    """Where to search for similar tracklets: in this process, or exactly on the workers of a Ray cluster."""
    workers: Natural = 0
    """Most workers of --engine ray; 0: as many as its CPUs allow."""


class CutSettings(PipelineSettings):
    """What `cut_tracks` reads, and how it divides people."""

    tracks: Path
    """Folder with one track file per camera, or one file with a camera column."""
    videos: Path
    """Video file, or folder of videos or frame folders named like the cameras."""
    first_frame: Natural | None = None
    """Number that the track files give to the first frame. Default: 0 if there is a frame 0, else 1."""
    skip_untracked: bool = False
    """Leave out rows with id -1 (untracked detections) and count them, instead of stopping."""
    per_track: Positive = 8
    """Crops per track."""
    global_ids: bool = False
    """Equal ids are one person in all cameras, as in tracks/ of `reid match`. Default: people are unknown (pid 0)."""
    test: float = Field(default=0.5, ge=0.05, le=0.95)
    """Fraction of the people, those who appear last, for query and gallery; with --global-ids."""
    layout: Literal["table", "market1501"] = "table"
    """Names and folders of the crops: one folder per camera, or those of Market-1501 (with --global-ids). Both have
    table.csv."""


class AdaptSettings(ModelSettings):
    """What `adapt` learns from and how. Give `data`, or `embeddings` and `crops`, or `tracks` and `videos`."""

    data: str | None = None
    """Data set as LAYOUT:ROOT[?key=value&...]. Its crops of one identity, camera and track are a track; the identities
    are used for nothing else."""
    embeddings: Path | None = None
    """Embeddings with the columns path, camera (or camid), track and frame; needs --crops."""
    crops: Path | None = None
    """Folder that the paths of the embeddings are relative to."""
    tracks: Path | None = None
    """Track files whose boxes are cut out of --videos."""
    videos: Path | None = None
    """Video file, or folder of videos or frame folders named like the cameras; needs --tracks."""
    per_track: Positive = 8
    """Crops per track to cut out of --videos."""
    constraints: Path | None = None
    """Cannot-link and must-link pairs, as saved by the match report of the same tracks."""
    weights: str | None = None
    """Initial weights of a backbone named with --model: imagenet or a file."""
    bn_only: bool = False
    """Only re-estimate the BatchNorm statistics, without training; takes seconds."""
    rounds: Positive = 4
    """Rounds of embedding, matching and training."""
    minutes: float = Field(default=0.0, ge=0, le=100_000)
    """Time for all rounds, in minutes; 0: `schedule.epochs` epochs per round."""
    confidence: Fraction = 0.7
    """Least mean p(same) of a tracklet with its identity."""
    uncertain: Literal["leave_out", "instance"] = "leave_out"
    """Tracklets below it: left out, or each a separate identity."""
    held_out: float = Field(default=0.15, ge=0.05, le=0.5)
    """Fraction of each camera's tracklets, the last ones, that are held out for the guard."""
    guard: bool = True
    """Keep the adapted model only if it separates held-out tracks better; otherwise return the given model."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:N or mps."""


class AdaptKeys(Config):
    """The `key=value` settings of `reid adapt`: those of training, and those of matching as `matching.key`."""

    matching: MatchSettings = MatchSettings(join_undecided=True)

    def training(self) -> Config:
        """Return the settings of training alone."""
        return Config(**self.model_dump(exclude={"matching"}))


class ExportSettings(PipelineSettings):
    """How `export` writes and checks a bundle."""

    to: Literal["onnx", "openvino", "torchscript", "safetensors"]
    """Format of the network file; safetensors: a folder for a model hub, which loads like a checkpoint."""
    data: str | None = None
    """Data set as LAYOUT:ROOT[?key=value&...] for the parity proof and for int8. Default: the model's train data."""
    images: Path | None = None
    """Folder of crops for the parity proof and the int8 calibration, instead of --data."""
    int8: bool = False
    """Quantise to 8-bit integers after training (OpenVINO only); faster on CPUs."""
    calibration_crops: Positive = 300
    """Crops on which int8 value ranges are measured."""
    split: Literal["validation", "test"] = "validation"
    """Split on which mAP before and after int8 is compared: held-out train identities, or the test split."""
    max_loss: float = Field(default=0.5, ge=0)
    """Largest acceptable loss by int8, in points of mAP."""


class CalibrateSettings(PipelineSettings):
    """How `calibrate` learns from embeddings."""

    fmr: float = Field(default=1e-3, gt=0, lt=1)
    """Default false-match rate: the fraction of impostor pairs accepted as the same person."""
    any_camera: bool = False
    """Also count pairs within one camera (with labels)."""
    label_free: bool = False
    """Ignore the pid column and learn from tracks of single cameras."""


class MetricSettings(PipelineSettings):
    """How `fit_metric` learns a distance."""

    method: Literal["kissme", "xqda"] = "xqda"
    """KISSME (Köstinger et al. 2012), or XQDA (Liao et al. 2015), which also reduces the dimension."""
    dimensions: Positive | None = None
    """Largest output dimension. Default: all directions that separate identities."""
    ridge: float = Field(default=1.0, gt=0)
    """Ridge regularisation, in units of the mean eigenvalue."""
    any_camera: bool = False
    """Also learn from pairs within one camera."""


class TrackerSettings(PipelineSettings):
    """How people are found in frames, and their boxes linked."""

    detector: str = "intel-adas-0002"
    """Detector: intel-adas-0002 or intel-person-detection-0203 for CPUs; dfine-n, dfine-s, dfine-m or dfine-l for GPUs;
    a model of torchvision, such as fasterrcnn_resnet50_fpn_v2; transformers:REPOSITORY of the Hugging Face hub; or an
    .onnx or OpenVINO .xml file with NAME.reid.json."""
    tracker: Literal["cbiou", "bytetrack", "botsort", "ocsort", "sort"] = "cbiou"
    """Tracker that links the boxes of one camera."""
    rate: float = Field(default=10.0, ge=0, le=1000)
    """Frames per second to analyse; 0: every frame."""
    floor: float = Field(default=0.1, ge=0.02, le=1)
    """Lowest confidence of the boxes that are tracked."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:N or mps."""


class TrackSettings(TrackerSettings):
    """How `track_videos` finds people and links their boxes."""

    detections: Path | None = None
    """Folder with the boxes of any detector, CAMERA.parquet or CAMERA.txt (MOTChallenge); replaces --detector."""
    fps: float | None = Field(default=None, gt=0, le=1000)
    """Frames per second of image folders, and of videos that do not define them.  [default: 25]"""
    workers: Natural = 0
    """Cameras to process at the same time; 0: as many as there are cores."""


class RunSettings(TrackSettings, IdentitySettings):
    """How `run_videos` tracks and matches."""

    model: Path = Path("intel-0287")
    """Model that embeds people: a published name (`reid model list --pretrained`), checkpoint, run folder, bundle,
    .onnx or OpenVINO .xml file."""
    cameras: Path | None = None
    """Camera clocks, overlaps and transition times. Default: frame rates and sizes of the videos alone."""
    calibration: Path | None = None
    """Calibration file. Default: calibration.json next to the model, if present."""
    draw: bool = False
    """Also write the videos with identities drawn in."""
    pixelate_heads: bool = False
    """Pixelate heads in the report's crops and in the drawn videos."""
    batch_size: Positive = 64
    """Crops per forward pass."""


class LiveSettings(TrackerSettings, ModelSettings):
    """How `run_live` tracks and matches live cameras."""

    model: Path = Path("intel-0287")
    """Model that embeds people: a published name (`reid model list --pretrained`), checkpoint, run folder, bundle,
    .onnx or OpenVINO .xml file."""
    per_track: Positive = 8
    """Crops per track to embed."""
    cameras: Path | None = None
    """Overlaps, transition times and homographies of the cameras; their clocks are not used."""
    calibration: Path | None = None
    """Calibration file. Default: calibration.json next to the model, if present."""
    split: bool = True
    """Split tracks of 12 crops or more where their appearance changes, e.g. after an identity switch."""
    stitch: bool = True
    """Join tracks that one camera lost and found again."""
    longest: float = Field(default=60.0, gt=0)
    """Seconds after which a track gets an identity although it has not ended."""
    every: float = Field(default=1.0, ge=0)
    """Seconds between two `update` events of a track."""
    gallery: Path | None = None
    """Gallery that the tracklets are added to as they get their identities, to search them meanwhile."""
    sources: Path | None = None
    """YAML file with `cameras: {NAME: SOURCE}`, read again when it changes: cameras are added and removed while others
    go on."""
    status: int | None = Field(default=None, ge=0, le=65535)
    """Port of a status page, for this machine only; 0: any free port."""
    loop: bool = False
    """Play files again when they end, as endless test streams."""
    batch_size: Positive = 64
    """Crops per forward pass."""


TrackFormat = Literal["auto", "mot", "aicity", "duke", "parquet"]


class ScoreSettings(PipelineSettings):
    """How `score_files` reads and compares tracks."""

    iou: float = Field(default=0.5, gt=0, le=1)
    """Smallest IoU of a match, for IDF1 and CLEAR."""
    truth_format: TrackFormat = "auto"
    """Format of the truth."""
    predicted_format: TrackFormat = "auto"
    """Format of the predicted tracks."""
    truth_first_frame: Natural | None = None
    """Number that the truth gives to the first frame. Default: frames are compared unchanged."""
    predicted_first_frame: Natural | None = None
    """Number that the predicted tracks give to the first frame. Default: frames are compared unchanged."""
    skip_untracked: bool = False
    """Leave out rows with id -1 (untracked detections) and count them, instead of stopping."""
    duplicates: Literal["error", "first", "confident"] = "error"
    """Which box to keep if one identity has several in one frame of one camera."""


class MatchKeys(MatchSettings):
    """The `key=value` settings of `reid match`: those of matching, and those of online matching as `stream.key`."""

    stream: StreamSettings = StreamSettings()

    def matching(self) -> MatchSettings:
        """Return the settings of matching alone."""
        return MatchSettings(**self.model_dump(exclude={"stream"}))


def _four_numbers(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


class GalleryAddSettings(PipelineSettings):
    """How `add_files` reads what is added to a gallery."""

    embeddings: Path | None = None
    """Embeddings that were matched, if the folder of the match does not contain them."""
    images: Path | None = None
    """Folder of the images that were embedded, which the paths in the embeddings are relative to."""
    source: str | None = None
    """Name of the recording. Adding the same tracks under one name replaces them. Default: the name of the input."""
    cameras: Path | None = None
    """cameras.yaml with frame rates, clocks and the epoch. Default: that of the gallery, if it has one."""
    start: str | None = None
    """Date and time of second 0 of the cameras' clock. Default: the epoch of cameras.yaml."""


class SearchSettings(ModelSettings):
    """What `search_files` looks for, where, and how."""

    photo: tuple[Path, ...] = ()
    """Photo, folder of photos or Parquet file of embeddings, all of one person."""
    model: str | None = None
    """Checkpoint, run folder, bundle, .onnx or OpenVINO .xml file, or a backbone's name: that of the gallery."""
    box: Annotated[tuple[int, int, int, int], BeforeValidator(_four_numbers)] | None = None
    """The person in the photo: left, top, width and height in pixels."""
    photo_camera: str | None = None
    """Camera that took the photo, if it is one of the calibrated cameras."""
    calibration: Path | None = None
    """Calibration file. Default: calibration.json in the gallery or next to the model, if present."""
    camera: tuple[str, ...] = ()
    """Search this camera only; repeat it for several."""
    after: str | None = None
    """Only tracklets seen at this time or later."""
    before: str | None = None
    """Only tracklets seen at this time or earlier."""
    top: Positive = 10
    """Largest number of hits."""
    within: float | None = Field(default=None, ge=0)
    """Largest distance of a hit."""
    expected_false: float = Field(default=0.1, gt=0)
    """Accept a hit if at most so many strangers are expected at its distance or nearer."""
    purpose: str | None = None
    """Purpose of the search, for the audit log."""
    mask_others: bool = False
    """Pixelate heads in the pictures of the page, except of accepted hits."""
    cameras: Path | None = None
    """cameras.yaml with transition times and overlaps, for the trajectory. Default: that of the gallery."""
    tolerance: float = Field(default=0.0, ge=0)
    """Seconds by which clocks may be wrong, for the trajectory."""
    weights: str | None = None
    """Weights of a backbone named with --model: imagenet, none or a file."""
    flip: bool = False
    """Average each feature with that of the mirrored photo, as the gallery's features were."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:N or mps."""
