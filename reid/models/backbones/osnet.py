"""OSNet ×1.0, ×0.75, ×0.5 and ×0.25, OSNet-IBN and OSNet-AIN, implemented from their papers.

Architecture (table 1 of the first paper): a 7×7 convolution of stride 2, a 3×3 max pooling of stride 2, three stages of
two omni-scale blocks with 256, 384 and 512 channels (times the width), a 2×2 average pooling after the first two
stages, and a 1×1 convolution. Shapes: images [B, 3, H, W] → feature map [B, 512 × width, H/16, W/16]. The 512-
dimensional layer after the global pooling belongs to the head: `embedding_dim=512`.

- Zhou et al. 2019, "Omni-Scale Feature Learning for Person Re-Identification": lite convolution (section 3.1),
  omni-scale block (sections 3.2 and 3.3, figure 4).
- Zhou et al. 2021, "Learning Generalisable Omni-Scale Representations for Person Re-Identification": OSNet-AIN, with
  instance norm where its architecture search placed it (figure 4).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from reid.core.errors import ConfigError
from reid.models.backbones.backbone import Backbone

CHANNELS = (64, 256, 384, 512)
WIDTHS = {"x1_0": 1.0, "x0_75": 0.75, "x0_5": 0.5, "x0_25": 0.25}
STREAMS = 4
REDUCTION = 4
GATE_REDUCTION = 16

# Instance norm of the two blocks of each stage: after the sum ("outside") or instead of the last batch norm ("inside")
PLAIN = (("", ""), ("", ""), ("", ""))
IBN = (("outside", "outside"), ("", ""), ("", ""))
AIN = (("inside", "inside"), ("", "inside"), ("inside", ""))

# The authors' weight files name the four streams conv2a … conv2d, and their layers conv, bn, fc1, fc2.
RENAMES = (
    (r"\.conv2a\.", ".streams.0.0."),
    (r"\.conv2b\.", ".streams.1."),
    (r"\.conv2c\.", ".streams.2."),
    (r"\.conv2d\.", ".streams.3."),
    (r"\.conv2\.(\d)\.layers\.(\d)\.", r".streams.\1.\2."),
    (r"(^|\.)pool([23])\.0\.", r"\1conv\2.2.0."),
    (r"(streams\.\d\.\d)\.conv1\.", r"\1.0."),
    (r"(streams\.\d\.\d)\.conv2\.", r"\1.1."),
    (r"(streams\.\d\.\d)\.bn\.", r"\1.2."),
    (r"(conv[234]\.[01])\.conv1\.", r"\1.reduce."),
    (r"(conv[234]\.[01])\.conv3\.", r"\1.expand."),
    (r"\.downsample\.", ".shortcut."),
    (r"\.gate\.fc1\.", ".gate.1."),
    (r"\.gate\.fc2\.", ".gate.3."),
    (r"(conv[23]\.2)\.0\.(conv|bn)\.", r"\1.\2."),
    (r"\.conv\.weight$", ".0.weight"),
    (r"\.bn\.", ".1."),
    (r"\.IN\.", ".norm."),
)
AIN_RENAMES = (*RENAMES[:-1], (r"\.IN\.", ".expand.1."))


class OmniScaleBlock(nn.Module):
    """Omni-scale residual block: [B, C, h, w] → [B, C', h, w].

    x → ReLU(shortcut(x) + expand(Σₜ G(xₜ) ⊙ xₜ)), where xₜ is reduce(x), of C' / 4 channels, after t lite convolutions,
    t = 1 … 4. Stream t has a receptive field of (2t + 1) × (2t + 1). All streams share the gate G, a small network on
    the averaged stream (Zhou et al. 2019, section 3.3).

    Args:
        inputs: C.
        outputs: C'.
        instance: place of an instance norm: "outside" (of the sum, before the last ReLU), "inside" (instead of the
            batch norm of `expand`), or "" for none.
    """

    def __init__(self, inputs: int, outputs: int, instance: str = "") -> None:
        super().__init__()
        inner = outputs // REDUCTION
        self.reduce = unit(inputs, inner)
        self.streams = nn.ModuleList(nn.Sequential(*(_lite(inner) for _ in range(t))) for t in range(1, STREAMS + 1))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inner, inner // GATE_REDUCTION, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner // GATE_REDUCTION, inner, 1),
            nn.Sigmoid(),
        )
        self.expand = linear(inner, outputs)
        if instance == "inside":
            self.expand[1] = nn.InstanceNorm2d(outputs, affine=True)
        self.shortcut: nn.Module = nn.Identity() if inputs == outputs else linear(inputs, outputs)
        self.norm: nn.Module = nn.InstanceNorm2d(outputs, affine=True) if instance == "outside" else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → [B, C', h, w]."""
        reduced = self.reduce(x)
        streams = [stream(reduced) for stream in self.streams]
        return self.relu(self.norm(self.shortcut(x) + self.expand(add_gated(streams, self.gate))))


def osnet(width: float, instance: tuple[tuple[str, str], ...] = PLAIN, *, last_stride: int) -> Backbone:
    """Build OSNet without its head: [B, 3, H, W] → [B, 512 × width, H/16, W/16].

    `instance` is `PLAIN`, `IBN` or `AIN`. With instance norm in any block, it also follows the first convolution.

    Raises:
        ConfigError: `last_stride` is 2; OSNet's last stage has no stride.
    """
    if last_stride != 1:
        raise ConfigError("last_stride is 2, but OSNet's last stage has no stride. Set last_stride=1.")
    stem, second, third, fourth = (int(c * width) for c in CHANNELS)
    module: Any = nn.Sequential()
    module.conv1 = unit(3, stem, kernel=7, stride=2)
    if instance != PLAIN:
        module.conv1[1] = nn.InstanceNorm2d(stem, affine=True)
    module.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
    module.conv2 = nn.Sequential(*_stage(stem, second, instance[0]), unit(second, second), nn.AvgPool2d(2))
    module.conv3 = nn.Sequential(*_stage(second, third, instance[1]), unit(third, third), nn.AvgPool2d(2))
    module.conv4 = nn.Sequential(*_stage(third, fourth, instance[2]))
    module.conv5 = unit(fourth, fourth)
    initialise(module)
    return Backbone(module, fourth, renames=AIN_RENAMES if instance == AIN else RENAMES)


def _stage(inputs: int, outputs: int, instance: tuple[str, str]) -> list[nn.Module]:
    return [OmniScaleBlock(inputs, outputs, instance[0]), OmniScaleBlock(outputs, outputs, instance[1])]


def unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return convolution, batch norm and ReLU: [B, inputs, h, w] → [B, outputs, h / stride, w / stride]."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def linear(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 1×1 convolution and batch norm, without ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def add_gated(streams: Sequence[Tensor], gate: nn.Module) -> Tensor:
    """Return the sum of the streams [B, C, h, w], each multiplied by its gate [B, C, 1, 1]."""
    return functools.reduce(operator.add, (stream * gate(stream) for stream in streams))


def initialise(module: nn.Module) -> None:
    """Initialise convolutions as He et al. 2015 ("Delving Deep into Rectifiers", fan-out mode); biases are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _lite(channels: int) -> nn.Sequential:
    """Return a lite convolution: 1×1 across channels, 3×3 within each channel, batch norm, ReLU."""
    across = nn.Conv2d(channels, channels, 1, bias=False)
    return nn.Sequential(across, *unit(channels, channels, kernel=3, groups=channels))
