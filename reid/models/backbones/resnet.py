"""ResNet-18/34/50/101 and their IBN-a variants: torchvision's networks without average pooling and classifier.

Architecture: He et al. 2016, "Deep Residual Learning for Image Recognition", table 1. A 7×7 convolution of stride 2 and
a 3×3 max pooling of stride 2, then four stages of residual blocks with 64, 128, 256 and 512 channels (ResNet-50 and
101: 256, 512, 1024 and 2048) and the strides 1, 2, 2 and `last_stride`. A last stride of 1 is used by Sun et al. 2018
("Beyond Part Models", section 3.1) and Luo et al. 2019 ("Bag of Tricks", section 3.4).

Shapes: images [B, 3, H, W] → feature map [B, C, H/16, W/16], or [B, C, H/32, W/32] with `last_stride` 2; C is 512 for
ResNet-18 and 34, and 2048 for ResNet-50 and 101. Parameter names are torchvision's.

Two public projects changed the network but no parameter: reid-strong-baseline (`resnet_bot`) has no ReLU after the
first batch norm, and fast-reid (`resnet_fastreid`) pools there without padding. Their weights need these variants.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck

from reid.models.backbones.backbone import Backbone, Pretrained

DEPTHS = (18, 34, 50, 101)


class IBN(nn.Module):
    """Instance norm on the first C // 2 channels, batch norm on the others: [B, C, h, w] → [B, C, h, w].

    Pan et al. 2018, "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", figure 3 (IBN-a).
    The submodules `IN` and `BN` have the names used in the authors' published weights.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.styled_channels = channels // 2
        self.IN = nn.InstanceNorm2d(self.styled_channels, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.styled_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → [B, C, h, w]."""
        styled, plain = x.split([self.styled_channels, x.shape[1] - self.styled_channels], dim=1)
        return torch.cat([self.IN(styled.contiguous()), self.BN(plain.contiguous())], dim=1)


class NonLocal(nn.Module):
    """Non-local block, as in fast-reid: [B, C, h, w] → [B, C, h, w].

    x + BN(w · y), with y(i) = θ(i) · mean over positions j of φ(j) g(j). θ, φ and g are 1×1 convolutions to one
    channel, w is one from one channel to C. Wang et al. 2018, "Non-local Neural Networks", equation 1 with the dot
    product. With one inner channel the sum over positions is a product, so that no [h·w, h·w] matrix is computed. The
    scale of BN starts at 0, so the block is initially the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g, self.theta, self.phi = (nn.Conv2d(channels, 1, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))
        nn.init.zeros_(self.out[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → [B, C, h, w]."""
        seen = (self.phi(x) * self.g(x)).mean((2, 3), keepdim=True)
        return x + self.out(self.theta(x) * seen)


class AttendedStage(nn.Module):
    """Stage of residual blocks with a `NonLocal` after each of the last `attended`: [B, C, h, w] → [B, C', h', w']."""

    def __init__(self, blocks: nn.Sequential, attended: int) -> None:
        super().__init__()
        for name, block in blocks.named_children():
            self.add_module(name, block)
        self.length, self.attended = len(blocks), attended
        channels = [m for m in blocks.modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features
        self.attention = nn.ModuleList(NonLocal(channels) for _ in range(attended))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → [B, C', h', w']."""
        first = self.length - self.attended
        for number in range(self.length):
            x = self.get_submodule(str(number))(x)
            if number >= first:
                x = self.attention[number - first](x)
        return x


def start_as_identity(backbone: nn.Module) -> int:
    """Set γ of the last norm of every residual block to 0, so that each block is initially the identity.

    Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 5.1. Returns the number of blocks.
    """
    last = [block.bn2 for block in backbone.modules() if isinstance(block, BasicBlock)]
    last += [block.bn3 for block in backbone.modules() if isinstance(block, Bottleneck)]
    for norm in last:
        nn.init.zeros_(norm.weight)
    return len(last)


def resnet(depth: int, *, last_stride: int, ibn: bool = False) -> Backbone:
    """Build ResNet-`depth`: [B, 3, H, W] → [B, C, H/16, W/16], or H/32 with `last_stride` 2.

    With `ibn`, the first norm of every block of stages 1 to 3 is `IBN` (IBN-a). ImageNet weights are torchvision's;
    there are none for IBN-a.
    """
    network: Any = models.get_model(f"resnet{depth}", weights=None)
    channels = network.fc.in_features
    module: Any = nn.Sequential(OrderedDict(list(network.named_children())[:-2]))  # without avgpool and fc
    first = module.layer4[0]
    strided = first.conv2 if isinstance(first, Bottleneck) else first.conv1
    strided.stride = first.downsample[0].stride = (last_stride, last_stride)
    for block in (*module.layer1, *module.layer2, *module.layer3) if ibn else ():
        block.bn1 = IBN(block.bn1.num_features)
    return Backbone(module, channels, None if ibn else Pretrained.torchvision(f"resnet{depth}"))


def resnet_bot(depth: int, *, last_stride: int) -> Backbone:
    """Build the ResNet of reid-strong-baseline (Luo et al. 2019): without ReLU before the max pooling.

    Shapes as `resnet`. The input of the first stage can be negative. ImageNet weights are torchvision's, as in that
    project.
    """
    built = resnet(depth, last_stride=last_stride)
    built.module.relu = nn.Identity()
    return built


def resnet_fastreid(
    depth: int, *, last_stride: int, ibn: bool = False, non_local: tuple[int, int] = (0, 0)
) -> Backbone:
    """Build the ResNet of fast-reid (He et al. 2020, "FastReID"): max pooling without padding and with ceil mode.

    Shapes as `resnet`. `non_local` is the number of the last blocks of stages 2 and 3 followed by a `NonLocal`.
    """
    built = resnet(depth, last_stride=last_stride, ibn=ibn)
    module: Any = built.module
    module.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    if any(non_local):
        module.layer2 = AttendedStage(module.layer2, non_local[0])
        module.layer3 = AttendedStage(module.layer3, non_local[1])
    renames = ((r"(^|\.)NL_(\d)\.(\d)\.", r"\1layer\2.attention.\3."), (r"(attention\.\d)\.W\.", r"\1.out."))
    return replace(built, renames=renames)
