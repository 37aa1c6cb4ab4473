"""Import of checkpoints of torchreid, fast-reid and reid-strong-baseline, recognised by their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from reid.core.errors import ModelError, check_choice
from reid.models.backbones import BACKBONES
from reid.models.model import ReIDModel, build_model
from reid.models.pretrained import CHECKPOINT_FORMAT, check_finite_tensors, find_prefix, named_tensors, read_content

BOT, FASTREID, TORCHREID = "reid-strong-baseline (BoT)", "fast-reid", "torchreid"
FAMILIES = {"bot": BOT, "fast-reid": FASTREID, "torchreid": TORCHREID}
"""Projects by the name that `import_model` takes. torchreid's ResNet is that of torchvision."""

_NETWORKS = (("conv1.weight", "layer4.0.conv1.weight"), ("conv1.conv.weight", "conv5.conv.weight"))
"""Tensors that a ResNet and an OSNet have under one prefix."""
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
        prefix: of the names of the backbone's tensors in the file.
        assumed: descriptions of values that the file does not contain.
    """

    family: str
    spec: dict[str, Any]
    head: dict[str, str]
    bias: str | None
    prefix: str
    assumed: tuple[str, ...]


def import_model(
    path: str | Path,
    *,
    size: Sequence[int] = (256, 128),
    last_stride: int | None = None,
    pooling: str | None = None,
    before_neck: bool = False,
    family: str | None = None,
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
        family: a key of `FAMILIES`; needed for a ResNet without the parts by which its project is recognised, because
            the projects compute differently with the same tensors.

    Returns:
        The model in evaluation mode, with a `weights_report` over all tensors, and the structure that was found.

    Raises:
        ConfigError: an unknown family.
        ModelError: unreadable, not recognised, missing tensors, values that are not finite, or parts that `ReIDModel`
            does not have.
    """
    if family is not None:
        check_choice("family", family, FAMILIES)
    content = read_content(path)
    if isinstance(content, Mapping) and content.get("format") == CHECKPOINT_FORMAT:
        raise ModelError(f"{path} is a checkpoint of this project already. Use it without converting it.")
    tensors = named_tensors(content, path)
    found = recognise(tensors, str(path), family)
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
    used = {name.removeprefix(found.prefix) for name in (*found.head.values(), found.bias or "")}
    unused = [name for name in report.unexpected if name not in used]
    unknown = [name for name in unused if not re.fullmatch(rf"(.*\.)?({_NOT_FOR_EMBEDDING})", name)]
    if report.missing or report.misshapen or unknown:
        parts = f" Unknown parts: {', '.join(unknown[:3])}." if unknown else ""
        raise ModelError(f"{path} is similar to {spec['backbone']} of {found.family}, but differs. {report}{parts}")
    matched = (*(f"backbone.{name}" for name in report.matched), *(key for key in head if key in model.state_dict()))
    model.weights_report = replace(report, matched=matched, unexpected=tuple(unused), target="the model")
    return model.eval(), replace(found, spec=model.spec, assumed=tuple(assumed))


def recognise(tensors: Mapping[str, Tensor], source: str, given: str | None = None) -> Recognised:
    """Find the project and the structure of a checkpoint from the names and shapes of its tensors.

    All names may have a common prefix. A project is recognised by its head together with the place of its backbone.

    Args:
        tensors: by name.
        source: name of the file.
        given: a key of `FAMILIES` if the project is known.

    Raises:
        ModelError: an unknown network, or a network that several projects compute differently.
    """
    found = [find_prefix(tensors, parts, source) for parts in _NETWORKS]
    prefix = next((prefix for prefix, count in found if count == len(_NETWORKS[0])), "")
    body = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    place = prefix.split(".")[-2] if prefix else ""
    outer = prefix.removesuffix(f"{place}.")
    family = _family(tensors, outer, place, body)
    plain = _backbone(body)
    fits = {key: _variant(plain, name) for key, name in FAMILIES.items() if _variant(plain, name) in BACKBONES}
    if given and family not in (None, FAMILIES[given]):
        raise ModelError(f"{source} has the parts of {family}, not of {FAMILIES[given]}. Leave out the family.")
    if family is None and given is None and len(fits) > 1:
        networks = " or ".join(f"{network} of {key}" for key, network in fits.items())
        raise ModelError(
            f"{source} fits {networks}: it lacks the head by which the project is recognised, and each computes "
            f"differently with these tensors. Name the project: family={' | '.join(fits)} (on the command line "
            "--family). A plain ResNet of torchvision is that of torchreid."
        )
    family = FAMILIES[given] if given else family or TORCHREID
    backbone = _variant(plain, family)
    if backbone not in BACKBONES:
        raise ModelError(
            f"{source}: {f'this is {backbone} of {family}' if backbone else 'unknown network'}. Supported are "
            "ResNet-50 and its IBN-a variant of torchreid, BoT and fast-reid, and the OSNet family of torchreid "
            f"(and {', '.join(BACKBONES)} by weights=FILE). Its first tensors: {', '.join(list(tensors)[:3])}."
        )
    start = prefix if family == TORCHREID else outer
    tensors = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
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
    head = {key: start + name for key, name in head.items()}
    return Recognised(family, spec, head, bias and start + bias, prefix, tuple(assumed))


def _family(tensors: Mapping[str, Tensor], outer: str, place: str, body: Mapping[str, Tensor]) -> str | None:
    """Return the project that has this head next to a backbone of this name; None if there is no such evidence."""
    if place == "backbone" and any(name.startswith(f"{outer}heads.") for name in tensors):
        return FASTREID
    if place == "base" and (f"{outer}bottleneck.weight" in tensors or f"{outer}classifier.weight" in tensors):
        return BOT
    has_head = {"classifier.weight", "classifier.bias"} <= body.keys() or "fc.0.weight" in body
    return TORCHREID if has_head or "conv5.conv.weight" in body else None


def _backbone(body: Mapping[str, Tensor]) -> str:
    """Return the name of the network without its variants by project; "" if it is not recognised."""
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
    return name


def _variant(network: str, family: str) -> str:
    """Return the name of a network as a project computes it; it may be missing in `BACKBONES`."""
    if not network.startswith("resnet") or family == TORCHREID:
        return network
    if family == FASTREID:
        return f"{network}_fastreid"
    return network if "_ibn_a" in network else f"{network}_bot"


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
    check_finite_tensors(values, path)
    model.load_state_dict(values, strict=False)
