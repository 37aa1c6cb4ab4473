"""A residual network for small crops and machines without a GPU."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock

from reid.models.backbones.backbone import Backbone
from reid.models.backbones.resnet import IBN


def light_resnet(
    width: float, blocks: tuple[int, int, int, int], ibn: bool = False, *, last_stride: int, size: tuple[int, int]
) -> Backbone:
    """Basic residual blocks on 64, 128, 256, 512 × `width` channels: [B, 3, H, W] → [B, 512 × width, H/16, W/16].

    The blocks are those of He et al. 2016 (table 1), as many a stage as `blocks` says; the stem is two 3×3 convolutions
    of stride 2, and the strides of the stages are 1, 2, 2, `last_stride`. With `ibn`, the first norm of every block of
    stages 1 to 3 is IBN-a (Pan et al. 2018).
    """
    channels = [int(c * width) for c in (64, 128, 256, 512)]
    stem = channels[0]
    layers: list[nn.Module] = [*_unit(3, stem // 2, 3, 2), *_unit(stem // 2, stem, 3, 2)]
    inputs = stem
    for outputs, number, stride in zip(channels, blocks, (1, 2, 2, last_stride), strict=True):
        for i in range(number):
            first = i == 0 and (stride != 1 or inputs != outputs)
            shortcut = nn.Sequential(*_unit(inputs, outputs, 1, stride)[:2]) if first else None
            block = BasicBlock(inputs, outputs, stride if i == 0 else 1, shortcut)
            if ibn and outputs != channels[-1]:
                block.bn1 = IBN(outputs)
            layers.append(block)
            inputs = outputs
    module = nn.Sequential(*layers)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return Backbone(module, channels[-1])


def _unit(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
