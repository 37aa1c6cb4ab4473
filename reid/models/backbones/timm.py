"""Backbones of timm."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from reid.core.errors import ConfigError, did_you_mean
from reid.models.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, Pretrained


class TimmBackbone(nn.Module):
    """A timm network without its head, as a feature map: [B, 3, H, W] → [B, channels, h, w].

    Tokens [B, n, C] are arranged on a grid with the aspect ratio of the image, without class and register tokens. Maps
    with channels last are permuted.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.prefix_tokens = int(getattr(network, "num_prefix_tokens", 0))
        sizes = {getattr(network, key, None) for key in ("num_features", "head_hidden_size")}
        training = network.training
        with torch.no_grad():
            raw = network.eval()(torch.zeros(1, 3, *size))
        network.train(training)
        if not isinstance(raw, Tensor) or raw.ndim not in (3, 4):
            raise ConfigError("This timm network returns neither a feature map nor tokens. Use another one.")
        self.channels_last = raw.ndim == 3 or (raw.shape[1] not in sizes and raw.shape[3] in sizes)
        self.channels = raw.shape[-1 if self.channels_last else 1]

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, channels, h, w]."""
        x = self.network(images)
        if x.ndim == 3:
            x = x[:, self.prefix_tokens :]
            height = round(math.sqrt(x.shape[1] * images.shape[2] / images.shape[3]))
            x = x.unflatten(1, (height, x.shape[1] // height))
        return x.permute(0, 3, 1, 2) if self.channels_last else x


def timm_backbone(name: str, *, last_stride: int, size: tuple[int, int]) -> Backbone:
    """Build timm's network `name` (without "timm:"), for `size` if it depends on the input size.

    Strides are timm's. ImageNet weights, mean and std are those of timm's default tag.

    Raises:
        ConfigError: timm is not installed, has no such network or cannot build it for this size, or `last_stride` is 2.
    """
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(f"backbone timm:{name} needs timm. Install it: pip install 'timm>=1.0'") from error
    if last_stride != 1:
        raise ConfigError(f"last_stride is 2, but timm:{name} has fixed strides. Set last_stride=1.")
    if not timm.is_model(name):
        similar = did_you_mean(name, timm.list_models()).partition(" Known:")[0]
        raise ConfigError(f"timm {timm.__version__} has no network {name!r}.{similar} timm.list_models() lists them.")
    try:
        module = TimmBackbone(_create(timm, name, size), size)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"timm:{name} cannot be built for images of {size[0]}×{size[1]}: {error}") from error
    published: Any = module.network.pretrained_cfg
    imagenet = None
    if published.get("hf_hub_id") or published.get("url"):
        url = published.get("url") or f"https://huggingface.co/{published['hf_hub_id']}"
        imagenet = Pretrained(url, lambda: _create(timm, name, size, pretrained=True).state_dict())
    return Backbone(
        module,
        module.channels,
        imagenet,
        tuple(published.get("mean", IMAGENET_MEAN)),
        tuple(published.get("std", IMAGENET_STD)),
    )


def _create(timm: Any, name: str, size: tuple[int, int], **options: Any) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=0, global_pool="", img_size=size, **options)
    except TypeError:  # most convolutional networks take no img_size
        return timm.create_model(name, num_classes=0, global_pool="", **options)
