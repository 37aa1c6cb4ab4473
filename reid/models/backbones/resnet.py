"""ResNet-18/34/50/101 and their IBN-a variants: torchvision's networks without the head.

He et al. 2016, "Deep Residual Learning for Image Recognition"; the last stage's stride of 1 is from Sun et al. 2018
(PCB, section 3.1) and Luo et al. 2019 ("Bag of Tricks", section 3.4). Parameter names are torchvision's own.

Two public code bases changed the network without changing a parameter, so their weights need a network of their own:
`bot` (reid-strong-baseline) has no ReLU after the first batch norm, and `fastreid` pools there without padding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck

from reid.models.backbones.backbone import Backbone, Pretrained

STAGES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
}


class ResNet(models.ResNet):
    """torchvision's ResNet up to the last stage: [B, 3, H, W] → [B, C, H/16, W/16], or H/32 at last stride 2."""

    def __init__(self, depth: int, last_stride: int) -> None:
        block, layers = STAGES[depth]
        super().__init__(block, layers)
        self.channels = self.fc.in_features
        del self.fc, self.avgpool
        first = self.layer4[0]
        strided = first.conv2 if block is Bottleneck else first.conv1
        strided.stride = first.downsample[0].stride = (last_stride, last_stride)

    def forward(self, images: Tensor) -> Tensor:
        """The feature map of the last stage."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class IBN(nn.Module):
    """Instance norm on the first half of the channels, batch norm on the rest: [B, C, h, w] → [B, C, h, w].

    Pan et al. 2018, "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", figure 3 (IBN-a).
    The submodules are named as in the authors' published weights, so those load by name.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.styled_channels = channels // 2
        self.IN = nn.InstanceNorm2d(self.styled_channels, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.styled_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each half its own way."""
        styled, plain = x.split([self.styled_channels, x.shape[1] - self.styled_channels], dim=1)
        return torch.cat([self.IN(styled.contiguous()), self.BN(plain.contiguous())], dim=1)


class NonLocal(nn.Module):
    """x + BN(w · y), where y(i) = θ(i) · mean over j of φ(j) g(j), and θ, φ and g are 1×1 convolutions to one channel.

    The non-local block of Wang et al. 2018, "Non-local Neural Networks", equation 1 with the dot product, as fast-reid
    has it: with one inner channel the sum over positions factors, and no map of all pairs is needed.
    [B, C, h, w] → [B, C, h, w]; at first the identity, as BN starts at 0.
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
    """A stage of residual blocks, the last few of which are each followed by a non-local block."""

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
    """Set γ of the last norm of every residual block to 0, so that at first each gives what it gets.

    Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 5.1. Returns how many blocks there are.
    """
    last = [block.bn2 for block in backbone.modules() if isinstance(block, BasicBlock)]
    last += [block.bn3 for block in backbone.modules() if isinstance(block, Bottleneck)]
    for norm in last:
        nn.init.zeros_(norm.weight)
    return len(last)


def resnet(depth: int, *, last_stride: int, ibn: bool = False) -> Backbone:
    """ResNet-`depth`, or with `ibn` its IBN-a variant: IBN as the first norm of every block of stages 1 to 3.

    ImageNet weights are torchvision's; there are none for IBN-a.
    """
    module = ResNet(depth, last_stride)
    for block in (*module.layer1, *module.layer2, *module.layer3) if ibn else ():
        block.bn1 = IBN(block.bn1.num_features)
    return Backbone(module, module.channels, None if ibn else Pretrained.torchvision(f"resnet{depth}"))


def resnet_bot(depth: int, *, last_stride: int) -> Backbone:
    """The ResNet of reid-strong-baseline (Luo et al. 2019): no ReLU between the first batch norm and the pooling.

    What the first stage gets may be negative. ImageNet weights are torchvision's, as there.
    """
    built = resnet(depth, last_stride=last_stride)
    built.module.relu = nn.Identity()
    return built


def resnet_fastreid(
    depth: int, *, last_stride: int, ibn: bool = False, non_local: tuple[int, int] = (0, 0)
) -> Backbone:
    """The ResNet of fast-reid (He et al. 2020): the first pooling has no padding and keeps what sticks out at the end.

    `non_local` is how many of the last blocks of stages 2 and 3 are followed by a non-local block.
    """
    built = resnet(depth, last_stride=last_stride, ibn=ibn)
    module: Any = built.module
    module.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    if any(non_local):
        module.layer2 = AttendedStage(module.layer2, non_local[0])
        module.layer3 = AttendedStage(module.layer3, non_local[1])
    renames = ((r"(^|\.)NL_(\d)\.(\d)\.", r"\1layer\2.attention.\3."), (r"(attention\.\d)\.W\.", r"\1.out."))
    return replace(built, renames=renames)
