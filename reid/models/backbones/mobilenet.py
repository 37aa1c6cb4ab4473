"""MobileNetV2 and MobileNetV3: torchvision's `features`, with its parameter names.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"; Howard et al. 2019, "Searching for
MobileNetV3".
"""

from __future__ import annotations

from torch import nn
from torchvision import models

from reid.models.backbones.backbone import Backbone, Pretrained


def mobilenet(name: str, *, last_stride: int) -> Backbone:
    """torchvision's network of that name without its head: [B, 3, H, W] → [B, C, H/16, W/16] (H/32 at last stride 2).

    `last_stride` sets the stride of the last strided convolution.
    """
    module = nn.Sequential()
    module.add_module("features", models.get_model(name, weights=None).features)
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    strided = [m for m in convolutions if m.stride == (2, 2)]
    strided[-1].stride = (last_stride, last_stride)
    return Backbone(module, convolutions[-1].out_channels, Pretrained.torchvision(name))
