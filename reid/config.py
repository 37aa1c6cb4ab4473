"""Settings of training and matching: types, units, defaults and ranges; YAML files and `key=value` overrides.

Every group of settings is a pydantic model derived from `Settings`. Ranges and choices are declared on the field and
nowhere else. Other packages derive their own settings from `Settings` and read them with `load_settings`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from reid.core.atomic import write_text
from reid.core.errors import ConfigError, check_choice, did_you_mean
from reid.core.reading import parse_yaml, read_yaml

T = TypeVar("T")
Triple = tuple[float, float, float]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Natural = Annotated[int, Field(ge=0)]  # a whole number, 0 or more
Positive = Annotated[int, Field(ge=1)]  # a whole number, 1 or more
OneOrMore = Annotated[list[T], BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value])]
"""A list; a single item stands for a list of one."""


class Settings(BaseModel):
    """Base class of all groups of settings: unknown keys and values out of range are errors.

    Construction and assignment raise `ConfigError`, which names the key, the value and the valid values.

    Example:
        >>> class Filter(Settings):
        ...     size: Positive = 3
        >>> Filter(size=5).as_dict()
        {'size': 5}
        >>> Filter(sise=5)
        Traceback (most recent call last):
        reid.core.errors.ConfigError: Unknown setting sise. Did you mean 'size'? Known: size.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            _raise(error, type(self))

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # nested groups are validated without it

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            _raise(error, type(self))

    @classmethod
    def from_dict(cls, content: dict[str, Any], source: str = "") -> Self:
        """Validate nested dicts of settings.

        Raises:
            ConfigError: an unknown key or an invalid value; `source` is named in the message.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            _raise(error, cls, source)

    def as_dict(self) -> dict[str, Any]:
        """Return all settings, defaults included, as plain Python (dicts, lists, numbers, strings)."""
        return self.model_dump(mode="json")


def _stages(stages: list[Any]) -> list[Any]:
    starts = [stage[0] for stage in stages]
    if starts and (starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1):
        raise ConfigError(f"the fractions must rise from 0 and stay below 1; got {starts}")
    return stages


def _chunk(crops: int) -> int:
    if crops == 1:
        raise ConfigError("1 crop is too few for batch normalisation. Use 2 or more, or 0 for the whole batch.")
    return crops


def _curve(points: list[Any]) -> list[Any]:
    if not points or any(a[0] >= b[0] for a, b in pairwise(points)):
        raise ConfigError("must be [[fraction, value], …] with rising fractions, e.g. [[0, 0], [0.5, 0.3]]")
    return points


Side = Annotated[int, Field(ge=8, le=4096)]
"""Height or width of an image, pixels."""
BatchSize = Annotated[int, Field(ge=2, le=1_000_000)]
"""Crops of a train batch: batch normalisation needs two."""
SizeStages = Annotated[list[tuple[float, Side, Side]], AfterValidator(_stages)]
BatchStages = Annotated[list[tuple[float, BatchSize]], AfterValidator(_stages)]
Curve = Annotated[list[tuple[Fraction, NonNegative]], AfterValidator(_curve)]


class DataConfig(Settings):
    """Data sets, and how their pixels are stored."""

    train: OneOrMore[str] = []
    """`LAYOUT:ROOT` of each train source, e.g. `market1501:/data/Market-1501-v15.09.15`."""
    test: OneOrMore[str] = []
    """`LAYOUT:ROOT` of each data set to evaluate on; empty: those of `train`."""
    store: Literal["packed", "files"] = "packed"
    """`packed`: all crops decoded once into one array on disk; `files`: decoded each time they are used."""
    store_dir: str = ""
    """Folder of the packed stores; empty: `$REID_CACHE`, else `~/.cache/reid`."""
    unreadable: Literal["error", "skip"] = "error"
    """How to handle images that cannot be decoded: stop with a list of them, or list and skip them."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Threads that decode images; 0: one per core."""


class AugmentConfig(Settings):
    """Random changes of train crops (BoT, Luo et al. 2019, section 3)."""

    flip: Fraction = 0.5
    """Probability of mirroring the image."""
    pad: int = Field(default=10, ge=0, le=1000)
    """Black pixels added on each side before a random crop back to the image size."""
    erase: Fraction = 0.5
    """Probability that a rectangle is filled with the mean colour (random erasing, Zhong et al. 2020)."""
    erase_area: tuple[Fraction, Fraction] = (0.02, 0.4)
    """Smallest and largest erased fraction of the image."""
    erase_ratio: float = Field(default=0.3, ge=0.01, le=1)
    """Smallest height-to-width ratio of the rectangle; the largest is its inverse."""
    brightness: Fraction = 0.0
    """Brightness is multiplied by a random factor in 1 ± this value; 0: off."""
    contrast: Fraction = 0.0
    """Like `brightness`, around the mean of the crop."""
    saturation: Fraction = 0.0
    """Like `brightness`, around the grey value of each pixel."""


class SamplerConfig(Settings):
    """Composition of a batch."""

    kind: Literal["identity", "random", "hard_identity"] = "identity"
    """`identity`: P identities × K crops; `random`: shuffled crops (for softmax alone); `hard_identity`: like
    `identity`, but similar identities share a batch. They are found by embedding the train set between epochs."""
    batch_size: BatchSize = 64
    """Crops per batch, summed over all processes; at least two per process."""
    crops_per_id: int = Field(default=4, ge=1, le=1_000_000)
    """K; the batch size must be a multiple of it. Losses that compare crops, such as the triplet loss, need K ≥ 2 and
    at least two identities per batch."""
    balance: Literal["none", "source"] = "none"
    """`source`: each batch contains equally many identities of each source of `data.train`."""
    lookalikes: int = Field(default=3, ge=1, le=100_000)
    """`hard_identity`: number of similar identities that join each randomly drawn identity in a batch."""
    mining_crops: int = Field(default=4, ge=0, le=1_000_000)
    """`hard_identity`: randomly drawn crops embedded per identity; 0: all."""
    mining_every: int = Field(default=1, ge=1, le=1_000_000)
    """`hard_identity`: epochs between two searches for similar identities."""

    @model_validator(mode="after")
    def _check_balance(self) -> Self:
        if self.kind == "hard_identity" and self.balance == "source":
            raise ConfigError("hard_identity does not support balance=source. Use kind=identity or balance=none.")
        return self


class ModelConfig(Settings):
    """The network. `reid.models.build_model` takes these settings."""

    backbone: str = "resnet50"
    """A key of `reid.models.BACKBONES`, or `timm:NAME`."""
    weights: Annotated[str, BeforeValidator(str)] = "none"
    """Initial weights of the backbone: `none`, `imagenet` (from torchvision), or a file."""
    pooling: Literal["avg", "max", "gem"] = "avg"
    """How the feature map becomes one vector."""
    neck: Literal["bnneck", "bn_relu", "none"] = "bnneck"
    """`bnneck`: batch normalisation with frozen bias between feature and classifier; `bn_relu`: batch normalisation
    and ReLU (torchreid's OSNet)."""
    embedding_dim: int = Field(default=0, ge=0, le=100_000)
    """Size of a linear layer after pooling; 0: none, the feature has the backbone's channels."""
    num_stripes: int = Field(default=0, ge=0, le=64)
    """Horizontal stripes that are pooled and classified separately, in addition to the whole map; 0: none. The feature
    is 1 + `num_stripes` times as long."""
    last_stride: int = Field(default=1, ge=1, le=2)
    """Stride of the backbone's last stage; 1 doubles the resolution of the feature map."""
    zero_residual: bool = False
    """Whether residual blocks start as the identity: γ of their last norm is 0 (Goyal et al. 2017, section 5.1)."""
    height: Side = 256
    """Pixels that images are resized to."""
    width: Side = 128
    """Pixels that images are resized to."""
    mean: Triple | None = None
    """Mean of the channels, 0..1, that is subtracted; `null`: that of the backbone's published weights."""
    std: Triple | None = None
    """Standard deviation of the channels, in the same units; `null`: that of the backbone's published weights."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """Order that the weights expect. Images are always passed as RGB."""


class ExtraLossConfig(Settings):
    """A further loss of the objective. All other keys are options of that loss; `reid.losses.make_loss` checks them."""

    model_config = ConfigDict(extra="allow")

    weight: NonNegative
    """Factor in the sum of losses."""
    input: Literal["features", "embeddings"] | None = None
    """`features` (before the neck) or `embeddings` (after it); `null`: embeddings for losses that classify."""
    lr: NonNegative | None = None
    """Learning rate of the loss's own weights (plain SGD); `null`: they are trained like the network."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the loss itself."""
        return dict(self.model_extra or {})


LABEL_LOSSES = ("center", "arcface", "cosface", "centroids", "proxy_nca", "proxy_anchor")
"""Losses that compare a crop with learned vectors, not with other crops."""

SCHEDULED = ("triplet_weight", "softmax_weight", "label_smoothing", "margin", "hardness")
"""Settings of `LossConfig` that `schedules` can change during training."""


class LossConfig(Settings):
    """The weighted sum of triplet, softmax and any further losses. `reid.losses.Objective` takes these settings."""

    triplet_weight: NonNegative = 1.0
    softmax_weight: NonNegative = 1.0
    label_smoothing: Fraction = 0.1
    """ε of the softmax loss."""
    margin: NonNegative | None = 0.3
    """Margin of the triplet loss, in units of `distance`; `null`: soft margin, log(1 + exp(d_ap − d_an))."""
    distance: str = "euclidean"
    """Distance of the triplet loss: a name accepted by `reid.losses.pairwise_distances`, or `mahalanobis[:RANK]`."""
    mining: str = "batch_hard"
    """Triplets of a batch that count: a key of `reid.losses.MINING_NAMES`."""
    reduction: Literal["auto", "mean", "active", "sum"] = "auto"
    """Of the triplet loss: mean over all triplets, mean over triplets with a positive loss, or sum; `auto`: `active`
    for batch_all, else `mean`."""
    camera_aware: bool = False
    """Whether the positives of an anchor come from other cameras, where there are any."""
    hardness: Fraction = 1.0
    """1: triplets as mined; smaller values: easier triplets in their place (see `TripletLoss`)."""
    extra: dict[str, ExtraLossConfig] = {}
    """Further losses: `{NAME: {weight: w, option: value}}` with a NAME of `reid.losses.LOSSES` or `pml:ClassName`."""
    schedules: dict[str, Curve] = {}
    """`{KEY: [[fraction, value], …]}`: piecewise linear over the fraction of training done, 0..1. A KEY is
    triplet_weight, softmax_weight, label_smoothing, margin, hardness, or NAME.weight of an extra loss."""
    chunk: Annotated[Natural, AfterValidator(_chunk)] = Field(default=0, le=1_000_000)
    """Crops that pass through the network at a time while the loss is that of the whole batch (gradient caching, see
    `reid.training.gradient_cache`), 2 or more; 0: the whole batch."""

    @model_validator(mode="after")
    def _check_schedules(self) -> Self:
        known = [*SCHEDULED, *(f"{name}.weight" for name in self.extra)]
        for key, points in self.schedules.items():
            check_choice("key of schedules", key, known)
            if key == "margin" and self.margin is None:
                raise ConfigError("schedules.margin needs a margin to start from. Set margin to a number.")
            if key in ("label_smoothing", "hardness") and max(value for _, value in points) > 1:
                raise ConfigError(f"schedules.{key} has a value above 1. Use values between 0 and 1.")
        return self

    def of_pairs(self) -> list[str]:
        """Names of the losses that compare the crops of a batch with each other; `pml:CLASS` is not known to."""
        extra = [name for name, loss in self.extra.items() if "memory" not in loss.options]
        extra = [name for name in extra if name not in LABEL_LOSSES and not name.startswith("pml:")]
        return ["triplet"] * self.in_use("triplet") + extra

    def in_use(self, term: Literal["triplet", "softmax"]) -> bool:
        """Whether the weight of a term is above 0, now or later in its schedule."""
        key = f"{term}_weight"
        return getattr(self, key) > 0 or any(value > 0 for _, value in self.schedules.get(key, ()))


class ParameterGroup(Settings):
    """Optimiser settings of the parameters that match a pattern."""

    lr: NonNegative = 1.0
    """Factor of the learning rate."""
    weight_decay: NonNegative | None = None
    """Replaces `optim.weight_decay`."""
    freeze_epochs: NonNegative = 0.0
    """Epochs at the start during which the parameters and their BatchNorm statistics do not change."""


class OptimConfig(Settings):
    """The optimiser."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: NonNegative = 3.5e-4
    """Base learning rate; the schedule multiplies it."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty added to the gradient (adam, sgd), or decoupled (adamw)."""
    decay_norms: bool = True
    """Whether weight decay also applies to biases and normalisation weights."""
    momentum: Fraction = 0.9
    """Momentum of sgd; β₁ of Adam."""
    nesterov: bool = False
    """Whether sgd uses Nesterov momentum."""
    clip_norm: NonNegative = 0.0
    """Largest global gradient norm; 0: no clipping."""
    ema: float = Field(default=0.0, ge=0, le=0.999999)
    """Decay per step of the moving average of all weights, which is then evaluated and saved (see `reid.training.ema`);
    0: none."""
    accumulate: int = Field(default=1, ge=1, le=100_000)
    """Batches whose mean gradient makes one step; triplets are mined within each batch. The last step of an epoch uses
    the remaining batches."""
    groups: dict[str, ParameterGroup] = {}
    """`{PATTERN: {lr: factor, weight_decay: value, freeze_epochs: epochs}}`. A PATTERN is the beginning of a dotted
    parameter name, with `*`, `?` and `[…]` as in file names (`backbone`, `backbone.layer[12]`). The first match
    counts."""


class ScheduleConfig(Settings):
    """Length of training, and what changes over it; see `reid.training.schedules`."""

    epochs: int = Field(default=120, ge=1, le=1_000_000)
    minutes: float = Field(default=0.0, ge=0, le=1_000_000)
    """Wall time after which training ends, regardless of `epochs`; `epochs`, `milestones` and `warmup_epochs` then only
    divide that time. Such runs cannot be repeated bit for bit. 0: no time limit."""
    kind: Literal["multistep", "cosine", "linear", "onecycle"] = "multistep"
    """Course of the learning rate."""
    milestones: OneOrMore[Positive] = [40, 70]
    """Epochs at which `multistep` multiplies the learning rate by `gamma`."""
    gamma: Fraction = 0.1
    warmup_epochs: NonNegative = 10.0
    warmup_start: Fraction = 0.01
    """Factor at the start of the warm-up (linear; half a cosine in `onecycle`)."""
    final: Fraction = 0.0
    """Factor at the end of `cosine`, `linear` and `onecycle`."""
    peak_momentum: Fraction | None = None
    """`onecycle`: momentum where the learning rate is highest; it starts and ends at `optim.momentum`. `null`: no
    change."""
    per: Literal["epoch", "step"] = "epoch"
    """`epoch`: the learning rate is constant within an epoch (BoT); `step`: it changes at every step."""
    sizes: SizeStages = []
    """`[[fraction, height, width], …]`: size of the train crops from that fraction of training on (0..1; the first 0).
    `augment.pad` is scaled with it. Evaluation uses `model.height` × `model.width`. Empty: that size throughout."""
    batch_sizes: BatchStages = []
    """`[[fraction, crops], …]`: like `sizes`, for `sampler.batch_size`."""


class EvalConfig(Settings):
    """Evaluation during training."""

    split: Literal["validation", "test", "none"] = "validation"
    """`validation`: identities held out of the train split; `test`: the benchmark's own test split; `none`."""
    fraction: float = Field(default=0.1, ge=0.001, le=0.9)
    """Fraction of the train identities that `validation` holds out."""
    every: Positive = 10
    """Epochs between evaluations; the last epoch is always evaluated."""
    batch_size: int = Field(default=128, ge=1, le=1_000_000)
    flip: bool = False
    """Whether the embedding of a crop is averaged with that of its mirror image."""


class Config(Settings):
    """All settings of a training run.

    Example:
        >>> config = Config(seed=7)
        >>> config.optim.lr
        0.00035
        >>> config.sampler.batch_size = 32
    """

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    sampler: SamplerConfig = SamplerConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    eval: EvalConfig = EvalConfig()
    seed: Natural = 0
    """Seed of all random draws."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1` or `mps`."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward pass (autocast); weights stay float32."""
    channels_last: bool = True
    """Memory order of the network; results differ by rounding only."""
    sync_batchnorm: bool = False
    """Whether several processes share their batch statistics."""
    keep_memory: bool = True
    """Whether freed memory stays with the process for the next step (CPU, Linux), so that no page is cleared again."""
    compile: bool = False
    """Whether to compile the network with torch.compile (needs a C++ compiler; takes minutes per crop size)."""
    log_every: Positive = 20
    """Steps between log lines."""
    save_every: Natural = 0
    """Steps between checkpoints within an epoch, besides the one at its end; 0: see `save_minutes`."""
    save_minutes: NonNegative = 10.0
    """Minutes between checkpoints within an epoch; 0: none."""
    on_nan: Literal["stop", "skip"] = "stop"
    """How to handle a loss or gradient that is not finite, or a loss above `loss_limit`: end training, or skip the step
    (every step then waits for the device)."""
    loss_limit: float = Field(default=1e6, ge=0, allow_inf_nan=True)
    max_skipped: Natural = 100
    """Steps that `on_nan=skip` may skip before training ends."""
    rank_timeout: float = Field(default=30.0, ge=0.01, le=10_000)
    """Minutes that a process waits for the others before training ends."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.check_batches()
        return self

    def check_batches(self) -> None:
        """Check that batches contain the pairs that the losses compare. A change within a group needs another call.

        Raises:
            ConfigError: one crop of each identity, or one identity.
        """
        pairs, k = self.loss.of_pairs(), self.sampler.crops_per_id
        sizes = [self.sampler.batch_size, *(size for _, size in self.schedule.batch_sizes)]
        if pairs and self.sampler.kind != "random" and (k == 1 or min(sizes) < 2 * k):
            has = f"sampler.crops_per_id={k}" if k == 1 else f"a batch of {min(sizes)} crops with crops_per_id={k}"
            fix = "crops_per_id of 2 or more" if k == 1 else f"batch_size of {2 * k} or more"
            raise ConfigError(
                f"The loss {pairs[0]} compares crops of the same and of different identities, but {has} contains only "
                f"{'different identities' if k == 1 else 'one identity'}. Use a {fix}, or remove that loss."
            )


Solver = Literal["agglomerative", "single_linkage", "hungarian", "correlation"]
NeighbourSearch = Literal["auto", "exact", "faiss"]


class MatchSettings(Settings):
    """Settings of `reid.mtmc.match`; `docs/matching-parameters.md` describes each."""

    solver: Solver = "agglomerative"
    """Algorithm that turns candidate pairs into identities."""
    threshold: NonNegative | None = None
    """Largest mean distance at which identities are joined; null: derived from the calibration or `fmr`, otherwise
    selected without labels."""
    fmr: float | None = Field(default=None, gt=0, lt=1)
    """False-match rate: the threshold below which this fraction of the certain negatives falls; null: not used."""
    join_undecided: bool = False
    """Whether identities are joined that only some of the thresholds selected from resampled data would join. By
    default they stay separate and are first in the review list."""
    neighbours: Positive = 30
    """Nearest tracklets that are considered for each tracklet."""
    neighbour_search: NeighbourSearch = "auto"
    """How they are found: `exact` compares all pairs; `faiss` (extra `faiss`) misses some, and its time does not grow
    with the square; `auto`: `faiss` above 30,000 tracklets if it is installed."""
    camera_whitening: float | None = Field(default=1.0, gt=0)
    """Ridge of the camera whitening, in units of the mean eigenvalue; null: no whitening."""
    rerank: bool = True
    """Whether distances are re-ranked with k-reciprocal neighbours."""
    k1: Positive | None = None
    """Neighbours in re-ranking; null: 1.5 times the estimated tracklets per identity, limited to 4..15."""
    transitions: bool = True
    """Whether transition times between cameras are learned from a first result and used as evidence in a second one."""
    featureless_max_gap: NonNegative = 0.0
    """Seconds: a tracklet without a feature joins the identity of a tracklet of its camera that ends before it or
    begins after it within this time, if there is exactly one such identity; 0: it stays alone."""
    reassign: bool | None = None
    """Whether single tracklets move to a better identity at the end; null: after `single_linkage` and `hungarian`."""


class StreamSettings(Settings):
    """Settings of online matching: when decisions are made, and how many tracklets are remembered."""

    close_after: NonNegative = 2.0
    """Seconds without a box after which a track has ended."""
    period: float = Field(default=60.0, gt=0)
    """Seconds between decisions. An identity is given within `close_after + period` seconds of a track's last box. A
    longer period is more accurate, because more tracklets are known at each decision."""
    memory: float = Field(default=3600.0, gt=0)
    """Seconds after its end for which a tracklet is remembered; a person who returns later is new."""
    max_per_identity: Positive = 8
    """Tracklets remembered for each identity, the latest."""
    max_tracklets: Positive = 1000
    """Tracklets remembered in total, the latest."""

    @property
    def delay(self) -> float:
        """Maximum seconds from the last box of a track to its identity."""
        return self.close_after + self.period


S = TypeVar("S", bound=Settings)


def shipped_configs() -> dict[str, Path]:
    """Return the files of `configs/` by name, in the installed package or in the repository.

    Example:
        >>> "quickstart.yaml" in shipped_configs()
        True
    """
    package = Path(__file__).parent
    folders = (package / "configs", package.parent / "configs")
    return {path.name: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _find_config(file: str | Path) -> Path:
    """Return the file, or the one of that name that comes with the package if it is `NAME` or `configs/NAME`."""
    file, shipped = Path(file), shipped_configs()
    if file.exists() or file.parent not in (Path(), Path("configs")):
        return file
    if file.name not in shipped:
        raise ConfigError(f"There is no file {file}. Check the path; these come with reid: {', '.join(shipped)}.")
    return shipped[file.name]


def load_settings(cls: type[S], file: str | Path | None = None, overrides: Sequence[str] = ()) -> S:
    """Read settings: the defaults of `cls`, then a YAML file, then `key.sub=value` overrides.

    The values of settings that are text (paths, data sets, names) are taken literally: `data.train=market1501:/my #1`.
    All others are YAML: `loss.margin=null`, `schedule.milestones=[40, 70]`; so are lists in brackets. Groups and other
    mappings are merged key by key. Nothing is interpolated: `${HOME}` stays as it is. The files of `configs/` are also
    in the installed package: where there is no such file, `quickstart.yaml` and `configs/quickstart.yaml` mean those.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown (the nearest one is suggested), or a value has
            the wrong type or is out of range.

    Example:
        >>> load_settings(OptimConfig, overrides=["lr=1e-3", "name=sgd"]).lr
        0.001
    """
    merged: dict[str, Any] = {}
    if file is not None:
        _merge(merged, read_yaml(_find_config(file)))
    sources: list[tuple[str, str]] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r} is not of the form key.sub=value, e.g. optim.lr=0.001.")
        names = key.split(".")
        value: Any = text if _is_text(cls, names, text) else parse_yaml(text, f"the value of {override!r}")
        for name in reversed(names):
            value = {name: value}
        _merge(merged, value)
        sources.append((key, f"the override {override!r}"))
    try:
        return cls.model_validate(merged)
    except ValidationError as error:
        _raise(error, cls, str(file or ""), sources)


def load_config(file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read the settings of a training run; see `load_settings`."""
    return load_settings(Config, file, overrides)


def save_settings(settings: Settings, path: str | Path) -> None:
    """Write all settings, defaults included, as YAML that `load_settings` reads."""
    write_text(path, yaml.safe_dump(settings.as_dict(), sort_keys=False))


def _is_text(cls: type[BaseModel], names: Sequence[str], text: str) -> bool:
    """Return whether the setting takes `text` as it is: it is a string, a path, or a list of strings."""
    kind: Any = cls
    for name in names:
        field = getattr(kind, "model_fields", {}).get(name)
        kind = None if field is None else field.annotation
    if type(None) in get_args(kind) and text in ("", "null", "~"):
        return False
    return kind in (str, Path, str | None, Path | None) or (kind == list[str] and not text.startswith("["))


def _merge(target: dict[str, Any], content: dict[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[str(key)] = value


def _raise(
    error: ValidationError, cls: type[Settings], file: str = "", overrides: Sequence[tuple[str, str]] = ()
) -> NoReturn:
    """Raise pydantic's error as a `ConfigError` with one sentence per problem."""
    problems = []
    for entry in error.errors():
        key = ".".join(str(name) for name in entry["loc"])
        given = [source for name, source in overrides if f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.")]
        source = given[-1] if given else file
        problems.append(_describe(key, source and f" in {source}", entry, cls))
    raise ConfigError("\n".join(problems)) from error


def _describe(key: str, place: str, error: Any, cls: type[BaseModel]) -> str:
    kind, value, context, names = error["type"], error["input"], error.get("ctx", {}), list(error["loc"])
    shown = repr(value) if len(repr(value)) <= 200 else f"{repr(value)[:200]}…"
    if kind == "extra_forbidden":
        return f"Unknown setting {key}{place}.{did_you_mean(str(names[-1]), _keys(_group(cls, names[:-1])))}"
    if kind == "model_type":
        known = ", ".join(f"{key}.{name}" for name in _keys(_group(cls, names)))
        return f"{key}{place} is a group of settings and cannot be set to {shown}. Known: {known}."
    if kind == "missing":
        return f"{key}{place} is missing: add it."
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return f"{key}={shown}{place} is not a valid choice.{did_you_mean(str(value), choices)}"
    if kind == "value_error":  # raised by a validator of this project
        return f"{key}{place}: {context['error']}" if key else f"{context['error']}"
    return f"{key}={shown}{place} is invalid: {error['msg'].replace('Input should', 'it must')}."


def _keys(cls: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in cls.model_fields.items()]


def _group(cls: type[BaseModel], names: Sequence[Any]) -> type[BaseModel]:
    """Return the group of settings that `names` lead to; keys of a mapping, such as `optim.groups`, are skipped."""
    for name in names:
        if name in cls.model_fields:
            annotation: Any = cls.model_fields[name].annotation
            cls = annotation if hasattr(annotation, "model_fields") else annotation.__args__[-1]
    return cls
