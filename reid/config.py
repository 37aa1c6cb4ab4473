"""Every setting: its unit, its default, its range. YAML files and `key.sub=value` overrides go on top."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Optional

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from reid.core.atomic import write_text
from reid.core.errors import ReidError, did_you_mean


def _setting(default: Any, *, choices: Sequence[str] = (), low: float = -math.inf, high: float = math.inf) -> Any:
    """A dataclass field whose range is known: one of `choices`, or `low <= value <= high` (each item of a list)."""
    metadata = {"choices": tuple(choices), "low": low, "high": high}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataConfig:
    """Which data sets, and how their pixels are kept."""

    train: list[str] = _setting([])
    """`LAYOUT:ROOT` of each train source, e.g. `market1501:/data/Market-1501-v15.09.15`."""
    test: list[str] = _setting([])
    """`LAYOUT:ROOT` of each set to score on; empty: those of `train`."""
    store: str = _setting("packed", choices=("packed", "files"))
    """`packed`: every crop decoded once into one array on disk; `files`: decoded anew each time it is used."""
    store_dir: str = ""
    """Where packed stores are kept; empty: `$REID_CACHE`, else `~/.cache/reid`."""
    unreadable: str = _setting("error", choices=("error", "skip"))
    """What an image that will not decode does: stop with a list, or be listed and left out."""
    workers: int = _setting(0, low=0, high=1024)
    """Threads that decode images; 0: one a core."""


@dataclass
class AugmentConfig:
    """What happens to a train crop (BoT, Luo et al. 2019, section 3)."""

    flip: float = _setting(0.5, low=0, high=1)
    """Probability of a mirror image."""
    pad: int = _setting(10, low=0, high=1000)
    """Pixels of black added on each side before a random crop back to size."""
    erase: float = _setting(0.5, low=0, high=1)
    """Probability that a rectangle is filled with the mean colour (Zhong et al. 2020)."""
    erase_area: list[float] = _setting([0.02, 0.4], low=0, high=1)
    """Smallest and largest share of the crop that is erased."""
    erase_ratio: float = _setting(0.3, low=0.01, high=1)
    """Smallest height-to-width ratio of the rectangle; the largest is its inverse."""
    brightness: float = _setting(0.0, low=0, high=1)
    """Brightness is multiplied by a number drawn from 1 ± this; 0: off."""
    contrast: float = _setting(0.0, low=0, high=1)
    """As `brightness`, about the crop's mean."""
    saturation: float = _setting(0.0, low=0, high=1)
    """As `brightness`, about the pixel's grey."""


@dataclass
class SamplerConfig:
    """What a batch is made of."""

    kind: str = _setting("identity", choices=("identity", "random", "hard_identity"))
    """`identity`: P identities × K crops; `random`: shuffled crops (softmax alone); `hard_identity`: as `identity`, but
    look-alikes share a batch, as an embedding pass over the train set before each epoch but the first finds them."""
    batch_size: int = _setting(64, low=1, high=1_000_000)
    """Crops a step, over all processes together."""
    crops_per_id: int = _setting(4, low=1, high=1_000_000)
    """K; the batch size must be a multiple of it."""
    balance: str = _setting("none", choices=("none", "source"))
    """`source`: each batch holds as many identities of each source of `data.train`."""
    lookalikes: int = _setting(3, low=1, high=100_000)
    """`hard_identity`: how many of its nearest identities follow an identity drawn at random into a batch."""
    mining_crops: int = _setting(4, low=0, high=1_000_000)
    """`hard_identity`: crops of each identity that the pass embeds, drawn anew each time; 0: all."""
    mining_every: int = _setting(1, low=1, high=1_000_000)
    """`hard_identity`: epochs between two passes."""


@dataclass
class ModelConfig:
    """The network."""

    backbone: str = "resnet50"
    """A name from `reid.models.BACKBONES`, or `timm:NAME`."""
    weights: str = "none"
    """What the backbone starts from: `none`, `imagenet` (torchvision's loader), or a file."""
    pooling: str = _setting("avg", choices=("avg", "max", "gem"))
    """From the feature map to one vector."""
    neck: str = _setting("bnneck", choices=("bnneck", "none"))
    """`bnneck`: batch normalisation with frozen bias between the triplet and the softmax feature."""
    embedding_dim: int = _setting(0, low=0, high=100_000)
    """Size of a linear layer after pooling; 0: none, the backbone's own width."""
    parts: int = _setting(0, low=0, high=64)
    """Horizontal stripes pooled beside the whole, each classified by itself; 0: none. The feature grows by as many."""
    last_stride: int = _setting(1, low=1, high=2)
    """Stride of the last stage, where the backbone has one."""
    zero_residual: bool = False
    """Whether residual blocks start as the identity: γ of their last norm at 0 (Goyal et al. 2017, section 5.1)."""
    height: int = _setting(256, low=8, high=4096)
    """Pixels."""
    width: int = _setting(128, low=8, high=4096)
    """Pixels."""


@dataclass
class LossConfig:
    """The weighted sum of triplet, softmax and any further losses; see `reid.losses.Objective`."""

    triplet_weight: float = _setting(1.0, low=0)
    softmax_weight: float = _setting(1.0, low=0)
    label_smoothing: float = _setting(0.1, low=0, high=1)
    """ε of the softmax term."""
    margin: Optional[float] = _setting(0.3, low=0)  # noqa: UP045  (OmegaConf reads typing.Optional)
    """Of the triplet term, in units of `distance`; `null`: soft margin, log(1 + exp(d_ap − d_an))."""
    distance: str = "euclidean"
    """Of the triplet term: a name that `reid.losses.pairwise_distances` knows."""
    mining: str = "batch_hard"
    """Which triplets of a batch count: a key of `reid.losses.MINING`."""
    reduction: str = _setting("auto", choices=("auto", "mean", "active", "sum"))
    """Of the triplet term: mean over all triplets, mean over those above 0, or sum; `auto`: active for batch_all, else
    mean."""
    camera_aware: bool = False
    """Whether an anchor's positives come from other cameras, where it has any there."""
    hardness: float = _setting(1.0, low=0, high=1)
    """1: triplets as mined; towards 0: easier ones in their place (see `TripletLoss`)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further losses: `{NAME: {weight: w, …}}` with a NAME of `reid.losses.LOSSES` or `pml:ClassName`, and that loss's
    options; `input: embeddings` gives it the feature after the neck, `lr` its own weights a rate (plain SGD)."""
    schedules: dict[str, Any] = field(default_factory=dict)
    """`{KEY: [[share, value], …]}`: piecewise linear over the share of training done, 0..1. A KEY is triplet_weight,
    softmax_weight, margin, hardness, label_smoothing, or NAME.weight of an extra loss."""
    chunk: int = _setting(0, low=0, high=1_000_000)
    """Crops that pass through the network at once, with the loss of the whole batch (gradient caching; see
    `reid.training.gradient_cache`); 0: the whole batch at once."""


@dataclass
class OptimConfig:
    """How weights move."""

    name: str = _setting("adam", choices=("adam", "adamw", "sgd"))
    lr: float = _setting(3.5e-4, low=0)
    """Base learning rate, before the schedule's factor."""
    weight_decay: float = _setting(5e-4, low=0)
    """L2 added to the gradient (adam, sgd) or decoupled (adamw)."""
    decay_norms: bool = True
    """Whether biases and normalisation weights decay too."""
    momentum: float = _setting(0.9, low=0, high=1)
    """Of sgd; Adam's β₁."""
    nesterov: bool = False
    """Whether sgd looks ahead along its momentum (Nesterov 1983)."""
    clip_norm: float = _setting(0.0, low=0)
    """Largest global gradient norm; 0: not clipped."""
    ema: float = _setting(0.0, low=0, high=0.999999)
    """Decay a step of the moving average of all weights, which is then what is scored and saved (see
    `reid.training.ema`); 0: none."""
    accumulate: int = _setting(1, low=1, high=100_000)
    """Batches whose mean gradient makes one step; triplets are mined within each batch. The last step of an epoch takes
    what is left."""
    groups: dict[str, Any] = field(default_factory=dict)
    """`{PATTERN: {lr: factor, weight_decay: value, freeze_epochs: epochs}}`: parameters treated apart. A PATTERN is the
    beginning of a dotted name, `*`, `?` and `[…]` as in file names (`backbone`, `backbone.layer[12]`); the first that
    fits counts. While frozen, weights and BatchNorm statistics stand still."""


@dataclass
class ScheduleConfig:
    """The learning rate's factor over time; see `reid.training.schedules`."""

    epochs: int = _setting(120, low=1, high=1_000_000)
    minutes: float = _setting(0.0, low=0, high=1_000_000)
    """Wall time after which the run ends, whatever the number of its epochs; `epochs`, `milestones` and `warmup_epochs`
    then only divide that time, from which the learning rate follows. Such runs do not repeat bit for bit. 0: none."""
    kind: str = _setting("multistep", choices=("multistep", "cosine", "linear", "onecycle"))
    milestones: list[int] = _setting([40, 70], low=1)
    """Epochs at which `multistep` multiplies by `gamma`."""
    gamma: float = _setting(0.1, low=0, high=1)
    warmup_epochs: float = _setting(10.0, low=0)
    warmup_start: float = _setting(0.01, low=0, high=1)
    """Factor at the start of the warm-up (linear; a half cosine in `onecycle`)."""
    final: float = _setting(0.0, low=0, high=1)
    """Factor at the end of `cosine`, `linear` and `onecycle`."""
    peak_momentum: Optional[float] = _setting(None, low=0, high=1)  # noqa: UP045
    """`onecycle`: the momentum where the rate is highest; it moves against the rate from `optim.momentum` there and
    back. `null`: it stays."""
    per: str = _setting("epoch", choices=("epoch", "step"))
    """`epoch`: constant within an epoch (BoT); `step`: moves at every step."""
    sizes: list[Any] = field(default_factory=list)
    """`[[share, height, width], …]`: from that share of the run on (0..1; the first 0), epochs train on crops resized
    so; `augment.pad` shrinks along. Scored at `model.height` × `model.width`. Empty: that size throughout."""
    batch_sizes: list[Any] = field(default_factory=list)
    """`[[share, crops], …]`: as `sizes`, for `sampler.batch_size`."""


@dataclass
class EvalConfig:
    """How the model is scored while it trains."""

    split: str = _setting("validation", choices=("validation", "test", "none"))
    """`validation`: identities held out of the train set; `test`: the benchmark's own test split; `none`."""
    fraction: float = _setting(0.1, low=0.001, high=0.9)
    """Share of the train identities that `validation` holds out."""
    every: int = _setting(10, low=1)
    """Epochs between evaluations; the last epoch is always scored."""
    batch_size: int = _setting(128, low=1, high=1_000_000)
    flip: bool = False
    """Whether a crop's feature is the mean with its mirror image's."""


@dataclass
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: int = _setting(0, low=0)
    """All random draws follow from it."""
    device: str = "auto"
    """`auto`: a GPU if there is one; else `cpu`, `cuda`, `cuda:1`, `mps`."""
    precision: str = _setting("fp32", choices=("fp32", "bf16", "fp16"))
    """Of the forward pass (autocast); weights stay float32."""
    channels_last: bool = True
    """Memory order of the network; the numbers are the same but for rounding."""
    sync_batchnorm: bool = False
    """Whether processes share batch statistics when several train."""
    keep_memory: bool = True
    """On a CPU under Linux: whether memory that a step frees stays with the process for the next one. Else the C
    library gives large blocks back each time, and the system clears every page anew (docs/benchmarks.md)."""
    compile: bool = False
    """Whether torch.compile makes kernels for the network (needs a C++ compiler; minutes at each new crop size)."""
    log_every: int = _setting(20, low=1)
    """Steps between log lines."""
    save_every: int = _setting(0, low=0)
    """Steps between checkpoints within an epoch, beside the one at its end; 0: see `save_minutes`."""
    save_minutes: float = _setting(10.0, low=0)
    """The same by the clock; 0: none."""
    on_nan: str = _setting("stop", choices=("stop", "skip"))
    """What a loss or gradient that is not finite, or a loss above `loss_limit`, does: end the run, or leave that step
    out (each step then waits for the device)."""
    loss_limit: float = _setting(1e6, low=0)
    max_skipped: int = _setting(100, low=0)
    """Steps that `on_nan=skip` may leave out before the run ends."""
    rank_timeout: float = _setting(30.0, low=0.01, high=10_000)
    """Minutes that a process waits for the others before the run ends."""


def load_config(file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read the defaults, a YAML file over them, and `key.sub=value` overrides over that.

    Values are read as YAML: `loss.margin=null`, `data.train=[market1501:/data/Market-1501-v15.09.15]`. A lone
    string stands for a list of one.

    Raises:
        ReidError: file missing or not YAML, unknown key (the nearest is named), wrong type, value out of range.
    """
    config = OmegaConf.structured(Config)
    if file is not None:
        try:
            text = Path(file).read_text("utf-8")
            content = yaml.safe_load(text) or {}
        except OSError as error:
            raise ReidError(f"Cannot read the config {file}: {error.strerror}.") from error
        except yaml.YAMLError as error:
            raise ReidError(f"{file} is not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise ReidError(f"{file} must hold `key: value` settings, not a {type(content).__name__}.")
        config = _merged(config, content, str(file))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ReidError(f"{override!r} is not of the form key.sub=value, e.g. optim.lr=0.001.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ReidError(f"The value of {override!r} is not valid YAML: {error}") from error
        if isinstance(value, str):
            value = _number(value)
        for part in reversed(key.split(".")):
            value = {part: value}
        config = _merged(config, value, f"the override {override!r}")
    result: Config = OmegaConf.to_object(config)  # type: ignore[assignment]
    _check_ranges(result, "")
    return result


def _number(text: str) -> str | float:
    """YAML 1.1 reads `1e-3` as a string; people mean a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _numbers(value: Any) -> Any:
    """The same for the values of free-form settings, however deep."""
    if isinstance(value, dict):
        return {str(key): _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return _number(value) if isinstance(value, str) else value


def _merged(config: DictConfig, content: dict[str, Any], where: str) -> DictConfig:
    content = _tidy(content, Config, "", where)
    try:
        return OmegaConf.merge(config, content)  # type: ignore[return-value]
    except ConfigKeyError as error:
        raise ReidError(f"Unknown key in {where}: {error.full_key}.") from error
    except OmegaConfBaseException as error:
        words = str(error.msg or error).splitlines()[0]
        raise ReidError(f"Wrong value for {error.full_key!r} in {where}: {words}.") from error


def _tidy(content: dict[str, Any], schema: Any, prefix: str, where: str) -> dict[str, Any]:
    """Check keys against the schema and make a list of a lone item where a list is meant."""
    known, defaults = [item.name for item in fields(schema)], schema()
    result = {}
    for key, value in content.items():
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise ReidError(f"Unknown key {prefix}{key!s} in {where}.{hint}")
        default = getattr(defaults, key)
        if is_dataclass(default):
            if not isinstance(value, dict):
                names = ", ".join(f"{key}.{item.name}" for item in fields(default))
                raise ReidError(f"{prefix}{key} in {where} is a group of settings, not a value. Known: {names}.")
            value = _tidy(value, type(default), f"{prefix}{key}.", where)
        elif isinstance(default, list) and not isinstance(value, list):
            value = [value]
        elif isinstance(value, str) and isinstance(default, float):
            value = _number(value)
        elif isinstance(default, dict):
            value = _numbers(value)
        result[key] = value
    return result


def _check_ranges(settings: Any, prefix: str) -> None:
    for item in fields(settings):
        value = getattr(settings, item.name)
        key = f"{prefix}{item.name}"
        if is_dataclass(value):
            _check_ranges(value, f"{key}.")
            continue
        choices = item.metadata.get("choices", ())
        low, high = item.metadata.get("low", -math.inf), item.metadata.get("high", math.inf)
        if choices and value not in choices:
            raise ReidError(f"{key}={value!r} is not a choice.{did_you_mean(str(value), choices)}")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not low <= number <= high:
                raise ReidError(f"{key}={value} is out of range: it must lie between {low} and {high}.")


def as_dict(config: Config) -> dict[str, Any]:
    """The settings as plain Python."""
    return asdict(config)


def from_dict(content: dict[str, Any]) -> Config:
    """Settings that `as_dict` gave."""
    result: Config = OmegaConf.to_object(  # type: ignore[assignment]
        _merged(OmegaConf.structured(Config), content, "the saved settings")
    )
    _check_ranges(result, "")
    return result


def save_config(config: Config, path: str | Path) -> None:
    """Write every setting, defaults included, as YAML that `load_config` reads."""
    write_text(path, yaml.safe_dump(as_dict(config), sort_keys=False))
