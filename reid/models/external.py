"""Import of checkpoints of torchreid, fast-reid and reid-strong-baseline, recognised by their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from reid.core.errors import ModelError
from reid.models.backbones import BACKBONES
from reid.models.model import ReIDModel, build_model
from reid.models.pretrained import read_weights

BOT, FASTREID, TORCHREID = "reid-strong-baseline (BoT)", "fast-reid", "torchreid"

# blocks of stage 3, and whether they are bottlenecks → depth
_DEPTHS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101}
_WIDTHS = {64: "x1_0", 48: "x0_75", 32: "x0_5", 16: "x0_25"}
# Only used in training, or not part of the network; BoT's IBN-a network contains an unused ImageNet classifier.
_NOT_FOR_EMBEDDING = r"(classifier|fc)\.(weight|bias)|heads\.(classifier\.)?weight|pixel_(mean|std)"
_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Recognised:
    """Structure of a checkpoint, found from its tensors.

    Attributes:
        family: the project that wrote it.
        spec: arguments of `build_model`.
        head: name in the file of each tensor after the backbone, by its name in `ReIDModel`.
        bias: name in the file of a linear layer's bias, which is merged into the batch norm after it.
        assumed: descriptions of values that the file does not contain.
    """

    family: str
    spec: dict[str, Any]
    head: dict[str, str]
    bias: str | None
    assumed: tuple[str, ...]


def import_model(
    path: str | Path,
    *,
    size: Sequence[int] = (256, 128),
    last_stride: int | None = None,
    pooling: str | None = None,
    before_neck: bool = False,
) -> tuple[ReIDModel, Recognised]:
    """Build the model of a checkpoint of another project, with the embedding that the original code uses.

    The embedding is that compared at test time: after the BNNeck (BoT, fast-reid), or before the classifier
    (torchreid; for OSNet, after the layer of 512 with batch norm and ReLU). Preprocessing is RGB with ImageNet's mean
    and deviation, and antialiased bilinear resizing. The classifier is left out.

    Args:
        path: .pth, .pt or .safetensors file.
        size: height and width used in training, which the file does not contain.
        last_stride: stride of the last stage; None: the default of that project.
        pooling: None: "gem" if the file has a learned exponent, else "avg".
        before_neck: whether the embedding is the feature before the BNNeck.

    Returns:
        The model in evaluation mode, with a `weights_report` over all tensors, and the structure that was found.

    Raises:
        ModelError: unreadable, not recognised, missing tensors, or parts that `ReIDModel` does not have.
    """
    tensors = {re.sub(r"^(module\.)+", "", name): tensor for name, tensor in read_weights(path).items()}
    found = recognise(tensors, str(path))
    spec = found.spec | {"height": size[0], "width": size[1]}
    assumed = [f"size {size[0]}×{size[1]}", *found.assumed]
    for key, value in (("last_stride", last_stride), ("pooling", pooling)):
        if value is not None:
            spec[key] = value
            assumed = [text for text in assumed if not text.startswith(key)]
    head = found.head
    if before_neck:
        if spec["neck"] != "bnneck":
            raise ModelError(f"{path} has no BNNeck. Leave out before_neck.")
        spec["neck"] = "none"
    if spec["pooling"] != "gem":
        head = {key: name for key, name in head.items() if key != "pool.p"}
    model = build_model(**spec, weights=path)
    report = model.weights_report
    assert report is not None
    _fill_head(model, head, found.bias, tensors, path)
    used = {*found.head.values(), found.bias}
    unused = [name for name in report.unexpected if name not in used]
    unknown = [name for name in unused if not re.fullmatch(rf"(.*\.)?({_NOT_FOR_EMBEDDING})", name)]
    if report.missing or report.misshapen or unknown:
        parts = f" Unknown parts: {', '.join(unknown[:3])}." if unknown else ""
        raise ModelError(f"{path} is similar to {spec['backbone']} of {found.family}, but differs. {report}{parts}")
    matched = (*(f"backbone.{name}" for name in report.matched), *(key for key in head if key in model.state_dict()))
    model.weights_report = replace(report, matched=matched, unexpected=tuple(unused), target="the model")
    return model.eval(), replace(found, spec=model.spec, assumed=tuple(assumed))


def recognise(tensors: Mapping[str, Tensor], source: str) -> Recognised:
    """Find the project and the structure of a checkpoint from the names and shapes of its tensors.

    Raises:
        ModelError: an unknown project or network.
    """
    family, prefix = TORCHREID, ""
    if any(name.startswith("base.") for name in tensors):
        family, prefix = BOT, "base."
    elif any(name.startswith("backbone.") for name in tensors):
        family, prefix = FASTREID, "backbone."
    body = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    backbone = _backbone(body, family)
    if backbone not in BACKBONES:
        raise ModelError(
            f"{source}: {f'this is {backbone} of {family}' if backbone else 'unknown network'}. Supported are "
            "ResNet-50 and its IBN-a variant of torchreid, BoT and fast-reid, and the OSNet family of torchreid "
            f"(and {', '.join(BACKBONES)} by weights=FILE). Its first tensors: {', '.join(list(tensors)[:3])}."
        )
    if family == TORCHREID and "fc.weight" in tensors:
        raise ModelError(
            f"{source} is an ImageNet classifier, not an embedding model. Use it for training: model.weights={source}."
        )
    spec: dict[str, Any] = {
        "backbone": backbone,
        "pooling": "avg",
        "neck": "none",
        "embedding_dim": 0,
        "last_stride": 1,
    }
    head: dict[str, str] = {}
    bias = None
    assumed = []
    if family == BOT and "bottleneck.weight" in tensors:
        spec["neck"] = "bnneck"
        head = {f"neck.{part}": f"bottleneck.{part}" for part in _NORM}
    elif family == TORCHREID and "fc.0.weight" in tensors:
        spec |= {"neck": "bn_relu", "embedding_dim": len(tensors["fc.0.weight"])}
        head = {"embedding.weight": "fc.0.weight"} | {f"neck.0.{part}": f"fc.1.{part}" for part in _NORM}
        bias = "fc.0.bias"
    elif family == FASTREID:
        norm = "heads.bnneck" if "heads.bnneck.weight" in tensors else "heads.bottleneck.0"
        first = tensors.get("heads.bottleneck.0.weight")
        if first is not None and first.ndim == 4:
            spec["embedding_dim"], norm = len(first), "heads.bottleneck.1"
            head["embedding.weight"] = "heads.bottleneck.0.weight"
        if f"{norm}.weight" in tensors:
            spec["neck"] = "bnneck"
            head |= {f"neck.{part}": f"{norm}.{part}" for part in _NORM}
        if "heads.pool_layer.p" in tensors:
            spec["pooling"] = "gem"
            head["pool.p"] = "heads.pool_layer.p"
        else:
            assumed.append("pooling avg (gem, if POOL_LAYER was GeneralizedMeanPooling)")
        if "pixel_mean" in tensors:
            spec |= {key: (tensors[f"pixel_{key}"].flatten() / 255).tolist() for key in ("mean", "std")}
    if backbone.startswith("resnet"):
        if family == TORCHREID and "fc.0.weight" not in tensors:
            spec["last_stride"] = 2
        assumed.append(f"last_stride {spec['last_stride']}, the default of that project")
    return Recognised(family, spec, head, bias, tuple(assumed))


def _backbone(body: Mapping[str, Tensor], family: str) -> str:
    """Return the name of the network, which may be missing in `BACKBONES`; "" if it is not recognised."""
    if "conv1.conv.weight" in body and "conv5.conv.weight" in body:
        kind = "ain_" if any(".layers." in name for name in body) else "ibn_" if "conv2.0.IN.weight" in body else ""
        return f"osnet_{kind}{_WIDTHS.get(len(body['conv1.conv.weight']), 'of another width')}"
    if "conv1.weight" not in body or "layer4.0.conv1.weight" not in body:
        return ""
    blocks = len({name.split(".")[1] for name in body if name.startswith("layer3.")})
    name = f"resnet{_DEPTHS.get((blocks, 'layer1.0.conv3.weight' in body), ' of another depth')}"
    name += "_ibn_a" * ("layer1.0.bn1.IN.weight" in body) + "_nl" * any(key.startswith("NL_") for key in body)
    name += "_ibn_b" * ("layer1.0.IN.weight" in body or "layer1.2.IN.weight" in body)
    name += "_se" * any(".se." in key or ".se_module." in key for key in body)
    if family == FASTREID:
        return f"{name}_fastreid"
    return f"{name}_bot" if family == BOT and "_ibn_a" not in name else name


def _fill_head(
    model: ReIDModel, head: Mapping[str, str], bias: str | None, tensors: Mapping[str, Tensor], path: str | Path
) -> None:
    expected = model.state_dict()
    values = {}
    for key, name in head.items():
        if key not in expected:  # the neck, if the embedding is the feature before it
            continue
        if name not in tensors or tensors[name].numel() != expected[key].numel():
            shape = list(tensors[name].shape) if name in tensors else "missing"
            raise ModelError(
                f"{path}: {name} is {shape}; {list(expected[key].shape)} is required. The file is damaged."
            )
        values[key] = tensors[name].reshape(expected[key].shape)
    if bias is not None and bias in tensors:
        values["neck.0.running_mean"] = values["neck.0.running_mean"] - tensors[bias]
    model.load_state_dict(values, strict=False)
