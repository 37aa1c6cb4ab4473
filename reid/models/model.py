"""The model: backbone, pooling, optional embedding layer, neck and classifier."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from reid.config import ModelConfig
from reid.core.errors import ConfigError, check_number
from reid.models.backbones import Backbone, build_backbone
from reid.models.backbones.resnet import start_as_identity
from reid.models.pooling import POOLINGS, StripePool
from reid.models.preprocessing import Preprocessing
from reid.models.pretrained import WeightsReport, load_weights

Module = TypeVar("Module", bound=nn.Module)


class ModelOutput(NamedTuple):
    """Result of a forward pass.

    Attributes:
        features: [B, D], before the neck; input of metric losses.
        embeddings: [B, D], after the neck, not normalised; compared at test time.
        logits: [B, C] of the classifier, or [B, 1 + num_stripes, C]; None without a classifier.
    """

    features: Tensor
    embeddings: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Counts:
    """Size of a model without its classifier.

    `flops` counts multiply-accumulates of convolutions, linear layers and attention for one image, as publications of
    the field do; these are twice as many floating-point operations.
    """

    parameters: int
    flops: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.2f} M parameters, {self.flops / 1e9:.3f} GFLOPs (multiply-accumulates)"


class ReIDModel(nn.Module):
    """The network of Luo et al. 2019, "Bag of Tricks and a Strong Baseline for Deep Person Re-Identification".

    - feature f = pool(backbone(image)), through a linear layer without bias if `embedding_dim` > 0;
    - embedding e = BN(f) with the bias fixed at 0 (neck "bnneck", section 3.5), e = ReLU(BN(f)) (neck "bn_relu", the
      head of torchreid's OSNet), or e = f (neck "none");
    - logits = W e, without bias.

    With `num_stripes` > 0, f is the concatenation of the pooled whole map and its pooled stripes (`StripePool`). Each
    of these 1 + `num_stripes` slices of e has a separate W, and logits are [B, 1 + num_stripes, C].

    Build it with `build_model`.

    Attributes:
        spec: plain Python; `build_model(**spec)` builds the same structure (`weights` is "none" in it).
        preprocessing: how images are prepared; it is part of `spec`.
        embedding_size: D of features and embeddings.
        weights_report: tensors that came from a file or from ImageNet; None without initial weights.
    """

    def __init__(self, backbone: Backbone, config: ModelConfig, *, num_classes: int, seed: int) -> None:
        super().__init__()
        stripes, neck = config.num_stripes, config.neck
        self.preprocessing = Preprocessing(
            size=(config.height, config.width),
            mean=config.mean or backbone.mean,
            std=config.std or backbone.std,
            channel_order=config.channel_order,
        )
        self.spec: dict[str, Any] = {
            **config.as_dict(),
            "weights": "none",
            "mean": list(self.preprocessing.mean),
            "std": list(self.preprocessing.std),
            "num_classes": num_classes,
            "seed": seed,
        }
        self.embedding_size = config.embedding_dim or backbone.channels * (1 + stripes)
        self.weights_report: WeightsReport | None = None
        self.backbone = backbone.module
        pool = POOLINGS[config.pooling]()
        self.pool = StripePool(pool, stripes) if stripes else pool
        self.embedding: nn.Module = nn.Identity()
        if config.embedding_dim:
            self.embedding = nn.Linear(backbone.channels, config.embedding_dim, bias=False)
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
                _SliceClassifier(1 + stripes, backbone.channels, num_classes)
                if stripes
                else nn.Linear(self.embedding_size, num_classes, bias=False)
            )
            nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor) -> ModelOutput:
        """Compute features, embeddings and logits of preprocessed images, float [B, 3, H, W].

        Logits are also computed in evaluation mode. In training mode with a BNNeck, B must be at least 2 (one sample
        has no variance).
        """
        features = self.embedding(self.pool(self.backbone(images)))
        embeddings = self.neck(features)
        return ModelOutput(features, embeddings, None if self.classifier is None else self.classifier(embeddings))

    @torch.no_grad()
    def embed(self, images: Tensor, *, flip: bool = False) -> Tensor:
        """Embed uint8 [B, H, W, 3] RGB images: float32 [B, D] of length 1, on the model's device.

        Runs in evaluation mode and restores the mode of every module. With `flip`, the embedding is the mean with that
        of the mirrored image, before normalisation. An embedding of zeros is not changed.
        """
        parameter = next(self.parameters())
        x = self.preprocessing(images.to(parameter.device)).to(parameter.dtype)
        with evaluating(self):
            embeddings = self._embeddings(x)
            if flip:
                embeddings = (embeddings + self._embeddings(x.flip(3))) / 2
        return functional.normalize(embeddings, eps=1e-12)

    def _embeddings(self, x: Tensor) -> Tensor:
        return self.neck(self.embedding(self.pool(self.backbone(x)))).float()

    @torch.no_grad()
    def activation_map(self, images: Tensor) -> Tensor:
        """Compute where the backbone's feature map is active: uint8 [B, H, W, 3] RGB → float32 [B, h, w] in 0..1.

        `M(y, x) = Σ_c A(c, y, x)²` divided by its largest value, for the feature map A [C, h, w] before pooling, in
        evaluation mode (attention map of Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", eq. 1
        with p = 2). A map of zeros is not changed.
        """
        parameter = next(self.parameters())
        with evaluating(self):
            activations = self.backbone(self.preprocessing(images.to(parameter.device)).to(parameter.dtype)).float()
        maps = activations.square().sum(dim=1)
        return maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

    def count(self) -> Counts:
        """Count parameters and multiply-accumulates for one image, without the classifier. Only shapes are computed."""
        parameters = {k: p for k, p in self.named_parameters() if not k.startswith("classifier.")}
        model, image = _on_meta(self, self.preprocessing.size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model._embeddings(image)
        return Counts(sum(p.numel() for p in parameters.values()), counter.get_total_flops() // 2)


def build_model(
    backbone: str | ModelConfig = "resnet50", *, num_classes: int = 0, seed: int = 0, **settings: Any
) -> ReIDModel:
    """Build a model. The same arguments give the same weights; global random generators are not used.

    Args:
        backbone: all settings, or the name of the backbone: a key of `BACKBONES`, or "timm:NAME".
        num_classes: identities of the classifier; 0: no classifier.
        seed: seed of the initial weights.
        settings: further settings by the names in `reid.config.ModelConfig`.

    Raises:
        ReidError: an unknown name, a value out of range, an image size that is too small for the backbone, or initial
            weights that are missing or do not match.

    Example:
        >>> import torch
        >>> model = build_model("light10", num_classes=751, height=64, width=32)
        >>> features, embeddings, logits = model.eval()(torch.zeros(2, 3, 64, 32))
        >>> embeddings.shape, logits.shape
        (torch.Size([2, 256]), torch.Size([2, 751]))
        >>> model.embed(torch.zeros(2, 64, 32, 3, dtype=torch.uint8)).shape
        torch.Size([2, 256])
    """
    given = backbone.as_dict() if isinstance(backbone, ModelConfig) else {"backbone": backbone}
    config = ModelConfig(**{**given, **settings})
    check_number("num_classes (0: no classifier)", num_classes)
    if config.num_stripes and config.embedding_dim:
        raise ConfigError(
            f"num_stripes={config.num_stripes} and embedding_dim={config.embedding_dim} exclude each other: a linear "
            "layer would mix the slices that are classified separately. Set one of them to 0."
        )
    if config.zero_residual and config.weights != "none":
        raise ConfigError("zero_residual=true would change the weights given by `weights`. Use one of them.")
    with torch.random.fork_rng(devices=[]):  # only the CPU generator is seeded
        torch.default_generator.manual_seed(seed)
        built = build_backbone(config.backbone, last_stride=config.last_stride, size=(config.height, config.width))
        _check_size(built, config)
        model = ReIDModel(built, config, num_classes=num_classes, seed=seed)
        model.weights_report = load_weights(built, config.backbone, config.weights)
    if config.zero_residual and not start_as_identity(built.module):
        raise ConfigError(f"zero_residual=true: {config.backbone} has no ResNet blocks. Set it to false.")
    return model


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode; restore the modes at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check_size(backbone: Backbone, config: ModelConfig) -> None:
    height, width, name = config.height, config.width, config.backbone
    try:
        module, image = _on_meta(backbone.module, (height, width))
        with torch.no_grad():
            shape = list(module(image).shape)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"{name} cannot take images of {height}×{width}: {error}.") from error
    if len(shape) != 4 or shape[1] != backbone.channels or 0 in shape:
        raise ConfigError(
            f"Images of {height}×{width} are too small for {name}: its feature map would be {shape[1:]}. Increase "
            "height and width."
        )
    if shape[2] < config.num_stripes:
        raise ConfigError(
            f"num_stripes is {config.num_stripes}, but the feature map of {name} has {shape[2]} rows at "
            f"{height}×{width}. Lower num_stripes or increase the height."
        )


class _SliceClassifier(nn.Module):
    """One classifier without bias for each of n slices of an embedding: [B, n · D] → [B, n, C]."""

    def __init__(self, slices: int, dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(slices, num_classes, dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        slices, _, dim = self.weight.shape
        return (embeddings.unflatten(1, (slices, dim)).transpose(0, 1) @ self.weight.mT).transpose(0, 1)


def _on_meta(module: Module, size: tuple[int, int]) -> tuple[Module, Tensor]:
    """Return a copy in evaluation mode and an image of `size` on the meta device, which computes shapes only."""
    memo: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in (*module.parameters(), *module.buffers())}
    image = torch.empty(1, 3, *size, device="meta", dtype=next(module.parameters()).dtype)
    return copy.deepcopy(module, memo).eval(), image
