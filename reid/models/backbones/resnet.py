"""ResNet-18/34/50/101 and their IBN-a variants: torchvision's networks without the head.

He et al. 2016, "Deep Residual Learning for Image Recognition"; the last stage's stride of 1 is from Sun et al. 2018
(PCB, section 3.1) and Luo et al. 2019 ("Bag of Tricks", section 3.4). Parameter names are torchvision's own.
"""

from __future__ import annotations

from functools import partial

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


def resnet(depth: int, *, last_stride: int, size: tuple[int, int]) -> Backbone:
    """ResNet-`depth`; its ImageNet weights are torchvision's first version, where published baselines start from."""
    module = ResNet(depth, last_stride)
    published = models.get_model_weights(f"resnet{depth}")["IMAGENET1K_V1"]
    fetch = partial(published.get_state_dict, progress=False, check_hash=True, weights_only=True)
    return Backbone(module, module.channels, Pretrained(published.url, fetch))


def resnet_ibn_a(depth: int, *, last_stride: int, size: tuple[int, int]) -> Backbone:
    """ResNet-`depth` with IBN as the first norm of every block of stages 1 to 3 (the fourth keeps batch norm)."""
    module = ResNet(depth, last_stride)
    for stage in (module.layer1, module.layer2, module.layer3):
        for block in stage:
            block.bn1 = IBN(block.bn1.num_features)
    return Backbone(module, module.channels)
