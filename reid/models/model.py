"""Image → embedding: backbone, pooling, optional embedding layer, BNNeck, classifier."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from reid.core.errors import ReidError, did_you_mean
from reid.models.backbones import Backbone, build_backbone
from reid.models.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from reid.models.pooling import POOLINGS, StripePool
from reid.models.preprocessing import Preprocessing
from reid.models.pretrained import WeightsReport, load_weights

NECKS = ("bnneck", "bn_relu", "none")


class ModelOutput(NamedTuple):
    """What a forward pass gives.

    features [B, D]: before the neck, for the metric losses. embeddings [B, D]: after it, what is compared at test time
    (not normalised). logits [B, C]: of the classifier on the embeddings, None where the model has none.
    """

    features: Tensor
    embeddings: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Counts:
    """The size of an embedder: everything but the classifier, which is not run after training.

    `flops` are multiply-accumulates of convolutions, linear layers and attention for one image, which is what
    publications in this field call FLOPs; twice as many floating-point operations.
    """

    parameters: int
    flops: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.2f} M parameters, {self.flops / 1e9:.3f} GFLOPs (multiply-accumulates)"


class ReIDModel(nn.Module):
    """The network of Luo et al. 2019, "Bag of Tricks and a Strong Baseline for Deep Person Re-Identification".

    feature f = pool(backbone(image)), through a linear layer without bias where `embedding_dim` > 0;
    embedding e = BN(f) with the bias fixed at 0 (BNNeck, section 3.5), or e = f where `neck` is "none", or
    e = ReLU(BN(f)) where it is "bn_relu" (with the layer before it, the head of torchreid's OSNet);
    logits = W e, without bias. Build it with `build_model`.

    With `num_stripes` > 0, f is the concatenation of the pooled whole map and its pooled stripes (`StripePool`). Each
    of these 1 + `num_stripes` slices of e has a separate W, and logits are [B, 1 + num_stripes, C].

    Attributes:
        spec: plain Python from which `build_model(**spec)` makes the same structure, with `weights` "none".
        preprocessing: how images must come in; it is part of `spec`.
        embedding_size: D of features and embeddings.
        weights_report: which tensors came from a file or from ImageNet; None where none did.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        preprocessing: Preprocessing,
        num_classes: int,
        pooling: str,
        neck: str,
        embedding_dim: int,
        num_stripes: int,
        spec: dict[str, Any],
    ) -> None:
        super().__init__()
        self.spec = spec
        self.preprocessing = preprocessing
        self.embedding_size = embedding_dim or backbone.channels * (1 + num_stripes)
        self.weights_report: WeightsReport | None = None
        self.backbone = backbone.module
        pool = POOLINGS[pooling]()
        self.pool = StripePool(pool, num_stripes) if num_stripes else pool
        self.embedding: nn.Module = nn.Identity()
        if embedding_dim:
            self.embedding = nn.Linear(backbone.channels, embedding_dim, bias=False)
            nn.init.kaiming_normal_(self.embedding.weight, mode="fan_out")
        self.neck: nn.Module = nn.Identity()
        if neck == "bnneck":
            self.neck = nn.BatchNorm1d(self.embedding_size)
            self.neck.bias.requires_grad_(False)
        elif neck == "bn_relu":
            self.neck = nn.Sequential(nn.BatchNorm1d(self.embedding_size), nn.ReLU())
        self.classifier: nn.Linear | _SliceClassifier | None = None
        if num_classes:
            self.classifier = (
                _SliceClassifier(1 + num_stripes, backbone.channels, num_classes)
                if num_stripes
                else nn.Linear(self.embedding_size, num_classes, bias=False)
            )
            nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor) -> ModelOutput:
        """Preprocessed images, float [B, 3, H, W] → features and embeddings [B, D]; logits [B, C] (stripes: [B, n, C]).

        Logits are given in evaluation too, and None where there is no classifier. In training mode B must be at least
        2 with a BNNeck (a batch norm of one sample has no variance).
        """
        features = self.embedding(self.pool(self.backbone(images)))
        embeddings = self.neck(features)
        return ModelOutput(features, embeddings, None if self.classifier is None else self.classifier(embeddings))

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] RGB on any device → float32 [B, 3, h, w] there, normalised, channels_last.

        Images of another size than `preprocessing.size` are resized (see `Preprocessing`).
        """
        return self.preprocessing(images)

    @torch.no_grad()
    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        """uint8 [B, H, W, 3] RGB → float32 [B, D] of length 1, in evaluation mode, on the model's device.

        With `flip` the embedding of the mirrored image is averaged in before normalisation. An embedding that is all
        zeros stays so. The training mode of every module is afterwards what it was.
        """
        parameter = next(self.parameters())
        x = self.preprocess(images.to(parameter.device)).to(parameter.dtype)
        with evaluating(self):
            embeddings = self._embeddings(x)
            if flip:
                embeddings = (embeddings + self._embeddings(x.flip(3))) / 2
        return functional.normalize(embeddings, eps=1e-12)

    def _embeddings(self, x: Tensor) -> Tensor:
        return self.neck(self.embedding(self.pool(self.backbone(x)))).float()

    @torch.no_grad()
    def activation_map(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] RGB → float32 [B, h, w] in 0..1: where on each image the backbone's last map is active.

        `M(y, x) = Σ_c A(c, y, x)²` over its largest value, for the feature map A [C, h, w] before pooling, in
        evaluation mode (the attention map of Zagoruyko and Komodakis 2017, "Paying More Attention to Attention",
        eq. 1 with p = 2). A map that is all zeros stays so. It tells where something is answered to, not what for.
        """
        parameter = next(self.parameters())
        with evaluating(self):
            activations = self.backbone(self.preprocess(images.to(parameter.device)).to(parameter.dtype)).float()
        maps = activations.square().sum(dim=1)
        return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

    def count(self) -> Counts:
        """Parameters and multiply-accumulates for one image of `preprocessing.size`, without the classifier.

        Nothing is computed: shapes alone are passed through.
        """
        parameters = {k: p for k, p in self.named_parameters() if not k.startswith("classifier.")}
        with FlopCounterMode(display=False) as counter, torch.no_grad(), evaluating(self):
            _on_meta(self, "_embeddings", self.preprocessing.size)
        return Counts(sum(p.numel() for p in parameters.values()), counter.get_total_flops() // 2)


def build_model(
    backbone: str = "resnet50",
    *,
    num_classes: int = 0,
    pooling: str = "avg",
    neck: str = "bnneck",
    embedding_dim: int = 0,
    num_stripes: int = 0,
    weights: str | Path = "none",
    last_stride: int = 1,
    size: Sequence[int] = (256, 128),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channel_order: str = "rgb",
    seed: int = 0,
) -> ReIDModel:
    """Build a model; the same arguments give the same numbers, and the global generators stay as they were.

    Args:
        backbone: a key of `BACKBONES`, or "timm:NAME" for one of timm's.
        num_classes: identities for the classifier; 0 builds none.
        pooling: "avg", "max" or "gem".
        neck: "bnneck", "bn_relu" or "none" (see `ReIDModel`).
        embedding_dim: size of a linear layer before the neck; 0 builds none and the backbone's channels are the size.
        num_stripes: horizontal stripes pooled beside the whole map, each with a classifier of its own; 0: none.
        weights: "none", "imagenet", or a file of weights for the backbone (see `load_weights`).
        last_stride: 1 or 2, of the backbone's last stage (1 doubles the resolution of the feature map).
        size: (height, width) in pixels that images are resized to.
        mean, std: of the channels, values in 0..1; None is what the backbone's published weights expect.
        channel_order: "rgb" or "bgr", what the backbone's weights expect; images always come in as RGB.
        seed: of the first weights.

    Raises:
        ReidError: an unknown name or a value out of range, a size too small for the backbone, or weights that cannot
            be had or do not fit.
    """
    for key, value, known in (("pooling", pooling, tuple(POOLINGS)), ("neck", neck, NECKS)):
        if value not in known:
            raise ReidError(f"{key} is {value!r}.{did_you_mean(str(value), known)}")
    for key, number in (("num_classes", num_classes), ("embedding_dim", embedding_dim), ("num_stripes", num_stripes)):
        if number < 0:
            raise ReidError(f"{key} is {number}: it must be 0 (none) or more.")
    if num_stripes and embedding_dim:
        raise ReidError(
            f"num_stripes={num_stripes} and embedding_dim={embedding_dim} exclude each other: a linear layer "
            "would mix the slices that are classified separately. Set one of them to 0."
        )
    if last_stride not in (1, 2):
        raise ReidError(f"last_stride is {last_stride}: it must be 1 or 2.")
    checked = Preprocessing(size, IMAGENET_MEAN, IMAGENET_STD, channel_order).size  # type: ignore[arg-type]
    with _seeded(seed):
        built = build_backbone(backbone, last_stride=last_stride, size=checked)
        preprocessing = Preprocessing(
            checked,
            built.mean if mean is None else mean,  # type: ignore[arg-type]
            built.std if std is None else std,  # type: ignore[arg-type]
            channel_order,
        )
        spec: dict[str, Any] = {
            "backbone": backbone,
            "num_classes": int(num_classes),
            "pooling": pooling,
            "neck": neck,
            "embedding_dim": int(embedding_dim),
            "num_stripes": int(num_stripes),
            "weights": "none",
            "last_stride": int(last_stride),
            **preprocessing.as_dict(),
            "seed": int(seed),
        }
        _check_size(built, backbone, checked, num_stripes)
        model = ReIDModel(
            built,
            preprocessing=preprocessing,
            num_classes=num_classes,
            pooling=pooling,
            neck=neck,
            embedding_dim=embedding_dim,
            num_stripes=num_stripes,
            spec=spec,
        )
        model.weights_report = load_weights(built, backbone, weights)
    return model


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode inside; each is as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws inside come from `seed`; the global generator of the CPU goes on afterwards where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _check_size(backbone: Backbone, name: str, size: tuple[int, int], num_stripes: int) -> None:
    try:
        with torch.no_grad(), evaluating(backbone.module):
            shape = list(_on_meta(backbone.module, "forward", size).shape)
    except (RuntimeError, AssertionError) as error:
        raise ReidError(f"size is {size}, which {name} cannot take: {error}.") from error
    if len(shape) != 4 or shape[1] != backbone.channels or 0 in shape:
        raise ReidError(f"size is {size}: the feature map of {name} would be {shape[1:]}. Give a larger size.")
    if shape[2] < num_stripes:
        raise ReidError(
            f"num_stripes is {num_stripes}, but the feature map of {name} has {shape[2]} rows at {size[0]}×{size[1]}. "
            "Lower num_stripes or increase the height."
        )


class _SliceClassifier(nn.Module):
    """A classifier without bias for each of n slices of an embedding: [B, n · D] → [B, n, C]."""

    def __init__(self, slices: int, dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(slices, num_classes, dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        slices, _, dim = self.weight.shape
        return (embeddings.unflatten(1, (slices, dim)).transpose(0, 1) @ self.weight.mT).transpose(0, 1)


class _Method(nn.Module):
    """One method of a module as its forward, so that `functional_call` can run it."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, images: Tensor) -> Tensor:
        return getattr(self.module, self.method)(images)


def _on_meta(module: nn.Module, method: str, size: tuple[int, int]) -> Tensor:
    """The method's result for one image of `size` in shapes alone: no numbers are computed, nothing is copied."""
    wrapped = _Method(module, method)
    tensors = {k: t.to("meta") for k, t in (*wrapped.named_parameters(), *wrapped.named_buffers())}
    image = torch.empty(1, 3, *size, device="meta", dtype=next(module.parameters()).dtype)
    return torch.func.functional_call(wrapped, tensors, (image,))
