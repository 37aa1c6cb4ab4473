"""Result of a backbone builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torchvision import models

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pretrained:
    """Published weights: their address, for error messages, and the function that downloads them."""

    url: str
    fetch: Callable[[], Mapping[str, Tensor]]

    @classmethod
    def torchvision(cls, name: str) -> Pretrained:
        """Return the first version of torchvision's ImageNet weights, which published baselines start from."""
        published = models.get_model_weights(name)["IMAGENET1K_V1"]
        return cls(published.url, partial(published.get_state_dict, progress=False, check_hash=True, weights_only=True))


@dataclass(frozen=True)
class Backbone:
    """A network without its head.

    Attributes:
        module: images [B, 3, H, W] → feature map [B, channels, h, w].
        channels: channels of the feature map.
        imagenet: published ImageNet weights; None if there are none to download.
        mean: mean that those weights expect (RGB, values in 0..1).
        std: standard deviation that those weights expect.
        renames: (regular expression, replacement) pairs that turn parameter names of published weight files into
            those of `module`.
    """

    module: nn.Module
    channels: int
    imagenet: Pretrained | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    renames: tuple[tuple[str, str], ...] = ()
