"""What a backbone's builder hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pretrained:
    """Weights that can be fetched: where from (`url`, for the error message) and the call that fetches them."""

    url: str
    fetch: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Backbone:
    """A network without its head.

    `module` maps images [B, 3, H, W] to a feature map [B, channels, h, w]. `imagenet` is None where nobody publishes
    ImageNet weights at an address we can load from. `mean` and `std` (RGB, of values in 0..1) are what those weights
    expect. `renames` are (regular expression, replacement) pairs that turn the parameter names of published weight
    files into those of `module`.
    """

    module: nn.Module
    channels: int
    imagenet: Pretrained | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    renames: tuple[tuple[str, str], ...] = ()
