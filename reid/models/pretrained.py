"""Weights of others: ImageNet's through the publisher's loader, or a local file, matched by name and shape."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reid.core.errors import ReidError
from reid.models.backbones import Backbone

# Scores that torchreid's checkpoints hold beside the tensors are NumPy's numbers; to make one runs no code.
_PLAIN_NUMBERS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]
NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net")


@dataclass(frozen=True)
class WeightsReport:
    """What became of each tensor. `matched`, `missing` and `misshapen` are names in the backbone (or whatever `of`
    says), `unexpected` in the file; batch counters (`num_batches_tracked`) are left out. `by_order`: the names differ,
    and the tensors were matched by their order."""

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unexpected: tuple[str, ...]
    by_order: bool = False
    of: str = "the backbone"

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.misshapen)
        how = ", matched by their order as the names differ" if self.by_order else ""
        parts = [f"{len(self.matched)} of {total} tensors of {self.of} come from {self.source}{how}"]
        for words, names in (
            ("missing there", self.missing),
            ("of another shape", self.misshapen),
            ("only in the file", self.unexpected),
        ):
            if names:
                parts.append(f"{len(names)} {words} ({_few(names)})")
        return "; ".join(parts) + "."


def load_weights(backbone: Backbone, name: str, weights: str | Path) -> WeightsReport | None:
    """Fill `backbone.module` from `weights`: "none", "imagenet" or a file (.pth, .pt, .safetensors).

    A file may hold the tensors at the top or under "state_dict", "model_state_dict", "model" or "net", and their names
    may carry a common prefix such as `module.` or `backbone.`. Tensors that the file lacks keep their first values.
    Where the names are others but kinds and shapes follow each other in the file just as in the backbone, at one place
    only, they are matched by that order.

    Raises:
        ReidError: no published ImageNet weights, no network, no such file, a file that is no dictionary of tensors, or
            less than half of the backbone's tensors matched.
    """
    if str(weights) == "none":
        return None
    if str(weights) == "imagenet":
        return _fill(backbone, name, fetch_imagenet(backbone, name), "ImageNet")
    return _fill(backbone, name, read_weights(weights), str(weights))


def fetch_imagenet(backbone: Backbone, name: str) -> dict[str, Tensor]:
    """The published ImageNet weights, from the cache of their loader or the network.

    Raises:
        ReidError: there are none, or they cannot be fetched; names the address and the local-file way.
    """
    if backbone.imagenet is None:
        raise ReidError(
            f"weights=imagenet: no ImageNet weights of {name} can be downloaded. Give a local file "
            "(weights=/path/to/file.pth), or weights=none to start from scratch."
        )
    try:
        return dict(backbone.imagenet.fetch())
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ReidError(
            f"weights=imagenet: cannot download the weights of {name} from {backbone.imagenet.url}: {error}. "
            "Without a network, fetch that file elsewhere and give it as weights=/path/to/file, or start from scratch "
            "with weights=none."
        ) from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a .pth, .pt or .safetensors file, by name. Nothing is unpickled but tensors and plain containers.

    Raises:
        ReidError: no such file, unreadable, not such a file, or without any named tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise ReidError(f"weights={path}: no such file. Give 'none', 'imagenet', or a .pth, .pt or .safetensors file.")
    content: Any
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as error:
            raise ReidError(f"weights={path}: to read .safetensors, run: pip install safetensors") from error
        try:
            content = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ReidError(f"weights={path}: not a readable safetensors file ({error}).") from error
    else:
        try:
            with torch.serialization.safe_globals(_PLAIN_NUMBERS):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ReidError(
                f"weights={path}: not a file of plain tensors ({reason}). It is damaged, or holds "
                "Python objects, which are not loaded as they could run code: save its state_dict alone."
            ) from error
    for key in NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise ReidError(f"weights={path}: it holds no dictionary of named tensors.")
    return tensors


def _fill(backbone: Backbone, name: str, tensors: Mapping[str, Tensor], source: str) -> WeightsReport:
    own = {k: v for k, v in backbone.module.state_dict().items() if not k.endswith("num_batches_tracked")}
    given = _renamed(tensors, own, backbone.renames)
    matched = [k for k in own if k in given and given[k].shape == own[k].shape]
    ordered = _in_order(tensors, own) if len(matched) < len(own) / 2 else None
    if ordered is not None:
        given, matched = ordered, list(own)
    report = WeightsReport(
        source,
        matched=tuple(matched),
        missing=tuple(k for k in own if k not in given),
        misshapen=tuple(k for k in own if k in given and given[k].shape != own[k].shape),
        unexpected=tuple(k for k in given if k not in own),
        by_order=ordered is not None,
    )
    if len(matched) < len(own) / 2:
        differing = [
            f"{k}: {list(own[k].shape)} here, {list(given[k].shape) if k in given else 'nothing'} there"
            for k in own
            if k not in matched
        ]
        raise ReidError(
            f"weights={source} do not fit {name}: {len(matched)} of its {len(own)} tensors match by name and shape. "
            f"First that do not: {'; '.join(differing[:3])}. Names only in the file: {_few(report.unexpected)}. "
            "Choose the backbone that these weights belong to, or another file."
        )
    backbone.module.load_state_dict({k: given[k] for k in matched}, strict=False)
    return report


def _renamed(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], renames: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    """`tensors` under the backbone's names, without `module.` and the common prefix that hides most of them."""
    names = {key: re.sub(r"^(module\.)+", "", key) for key in tensors if not key.endswith("num_batches_tracked")}
    for pattern, replacement in renames:
        names = {key: re.sub(pattern, replacement, name) for key, name in names.items()}
    anchor = next(iter(own))
    prefixes = [""] + [n.removesuffix(anchor) for n in names.values() if n.endswith("." + anchor)]
    prefix = max(prefixes, key=lambda p: sum(n.removeprefix(p) in own for n in names.values() if n.startswith(p)))
    return {name.removeprefix(prefix): tensors[key] for key, name in names.items()}


def _in_order(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """`tensors` under the backbone's names by their order, where kinds (the last part of a name) and shapes follow each
    other in it as in `own` from one place on, and from no other; else None."""

    def kinds(some: Mapping[str, Tensor], names: list[str]) -> list[tuple[str, torch.Size]]:
        return [(name.rpartition(".")[2], some[name].shape) for name in names]

    names = [name for name in tensors if not name.endswith("num_batches_tracked")]
    there, here = kinds(tensors, names), kinds(own, list(own))
    starts = [i for i in range(len(there) - len(here) + 1) if there[i : i + len(here)] == here]
    if len(starts) != 1:
        return None
    place = dict(zip(names[starts[0] :], own, strict=False))
    return {place.get(name, name): tensors[name] for name in names}


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "none"
