"""Initial weights of a backbone: published ImageNet weights or a local file, matched by name and shape."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reid.core.errors import ModelError, first_few
from reid.core.reading import failed_download
from reid.models.backbones import Backbone
from reid.models.backbones.timm import TimmBackbone

# torchreid's checkpoints also contain scores as NumPy numbers; loading these executes no code.
_NUMPY_NUMBERS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]
CHECKPOINT_FORMAT = "reid-checkpoint"
"""Value of the key `format` in checkpoints of this project."""
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net")


@dataclass(frozen=True)
class WeightsReport:
    """Result of loading weights.

    Attributes:
        source: the file, or "ImageNet".
        matched: names of tensors of the backbone that were loaded; batch counters are left out everywhere.
        missing: names of tensors of the backbone that the file does not have.
        misshapen: names of tensors that have another shape in the file.
        unexpected: names that only the file has.
        by_order: whether the names differ and tensors were matched by their order.
        target: what was loaded.
    """

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unexpected: tuple[str, ...]
    by_order: bool = False
    target: str = "the backbone"

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.misshapen)
        how = ", matched by their order because the names differ" if self.by_order else ""
        parts = [f"{len(self.matched)} of {total} tensors of {self.target} come from {self.source}{how}"]
        for problem, names in (
            ("missing in the file", self.missing),
            ("of another shape", self.misshapen),
            ("only in the file", self.unexpected),
        ):
            if names:
                parts.append(f"{len(names)} {problem} ({first_few(names, 3)})")
        return "; ".join(parts) + "."


def load_weights(backbone: Backbone, name: str, weights: str | Path) -> WeightsReport | None:
    """Load `weights` into `backbone.module`: "none", "imagenet" or a file (.pth, .pt, .safetensors).

    In a file the tensors may be nested in "state_dict", "model_state_dict", "model" or "net", and their names may have
    any common prefix, such as `module.`, `model.`, `_orig_mod.` or `net.backbone.`. Tensors that the file does not have
    keep their initial values. If the names differ, but kinds and shapes of consecutive tensors match the backbone at
    exactly one place, the tensors are matched by their order.

    Raises:
        ModelError: no published ImageNet weights, no network, no such file, a file without named tensors, or less than
            half of the backbone's tensors matched.
    """
    if str(weights) == "none":
        return None
    if str(weights) == "imagenet":
        return _fill(backbone, name, fetch_imagenet(backbone, name), "ImageNet")
    return _fill(backbone, name, read_weights(weights), str(weights))


def fetch_imagenet(backbone: Backbone, name: str) -> dict[str, Tensor]:
    """Return the published ImageNet weights, from the cache of their loader or the network.

    Raises:
        ModelError: there are none, or they cannot be downloaded.
    """
    if backbone.imagenet is None:
        raise ModelError(
            f"weights=imagenet: no ImageNet weights of {name} can be downloaded. Use a local file "
            "(weights=/path/to/file.pth), or weights=none to train from scratch."
        )
    try:
        return dict(backbone.imagenet.fetch())
    except Exception as error:  # the download raises errors of several libraries
        raise ModelError(
            f"weights=imagenet: cannot download the weights of {name} from {backbone.imagenet.url}: {error}. "
            "Download that file on another machine and pass it as weights=/path/to/file, or train from scratch with "
            "weights=none."
        ) from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the named tensors of a .pth, .pt or .safetensors file. Only tensors and plain containers are unpickled.

    Raises:
        ModelError: as `read_content`, or no named tensors.
    """
    return named_tensors(read_content(path), path)


def named_tensors(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Return the tensors in the content of a weights file; they may be nested under a key of `STATE_DICT_KEYS`.

    Raises:
        ModelError: there are no named tensors.
    """
    for key in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise ModelError(f"{path} contains no dictionary of named tensors. Save the model's state_dict.")
    return tensors


def read_content(path: str | Path) -> Any:
    """Read a .pth, .pt or .safetensors file onto the CPU. Nothing in it is executed.

    Raises:
        ModelError: no such file, a damaged file, another type of file, or Python objects in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"There is no file {path}. Pass a .pth, .pt or .safetensors file.")
    try:
        with open(path, "rb") as file:
            if problem := failed_download(file.read(64)):
                raise ModelError(f"{path} {problem}")
        if path.suffix == ".safetensors":
            return importlib.import_module("safetensors.torch").load_file(path)
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(f"{path}: reading .safetensors needs: pip install safetensors") from error
    except Exception as error:  # the readers raise errors of many types for damaged files
        found = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch's message also recommends an unsafe option
        problem = f"contains the Python object {found[1]}" if found else "is damaged or of another type"
        raise ModelError(
            f"{path} cannot be read as tensors: it {problem}. Python objects are never executed here. Copy the file "
            "again, or save only the state_dict of its model."
        ) from error


def check_finite_tensors(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise an error if weights contain NaN or infinity.

    Raises:
        ModelError: names the first such tensor.
    """
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise ModelError(
            f"{source}: {len(bad)} of {len(tensors)} tensors contain NaN or infinity, the first {bad[0]}. Use another "
            "file."
        )


def find_prefix(names: Collection[str], expected: Collection[str], source: str | Path) -> tuple[str, int]:
    """Return the prefix of `names`, such as `module.backbone.`, under which most of `expected` are found, and how many.

    Raises:
        ModelError: all of `expected` are found under two prefixes.
    """
    anchor = next(iter(expected))
    prefixes = ["", *(name.removesuffix(anchor) for name in names if name.endswith(f".{anchor}"))]
    counts = {prefix: sum(prefix + name in names for name in expected) for prefix in prefixes}
    best = max(counts, key=counts.__getitem__)
    complete = sorted(prefix for prefix, count in counts.items() if count == len(expected))
    if len(complete) > 1:
        raise ModelError(
            f"{source} contains the network more than once, under {' and '.join(map(repr, complete))}. Save only one."
        )
    return best, counts[best]


def _fill(backbone: Backbone, name: str, tensors: Mapping[str, Tensor], source: str) -> WeightsReport:
    module = backbone.module.network if isinstance(backbone.module, TimmBackbone) else backbone.module
    expected = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    found = _renamed(tensors, expected, backbone.renames, source)
    matched = [k for k in expected if k in found and found[k].shape == expected[k].shape]
    ordered = _in_order(tensors, expected) if len(matched) < len(expected) / 2 else None
    if ordered is not None:
        found, matched = ordered, list(expected)
    report = WeightsReport(
        source,
        matched=tuple(matched),
        missing=tuple(k for k in expected if k not in found),
        misshapen=tuple(k for k in expected if k in found and found[k].shape != expected[k].shape),
        unexpected=tuple(k for k in found if k not in expected),
        by_order=ordered is not None,
    )
    if len(matched) < len(expected) / 2:
        differing = differences(expected, {k: found[k] for k in expected if k in found})
        raise ModelError(
            f"weights={source} do not match {name}: {len(matched)} of its {len(expected)} tensors match by name and "
            f"shape. First differences: {'; '.join(differing[:3])}. Names only in the file: "
            f"{first_few(report.unexpected, 3) or 'none'}. Use the backbone of these weights, or another file."
        )
    weights = {k: found[k] for k in matched}
    check_finite_tensors(weights, source)
    module.load_state_dict(weights, strict=False)
    return report


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return one line for each tensor that is absent on one side or has another shape."""
    shapes = {
        name: [list(side[name].shape) if name in side else "absent" for side in (expected, found)]
        for name in dict.fromkeys((*expected, *found))
    }
    return [f"{name}: {a} expected, {b} in the file" for name, (a, b) in shapes.items() if a != b]


def _renamed(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], renames: tuple[tuple[str, str], ...], source: str
) -> dict[str, Tensor]:
    """Rename tensors as in the backbone: without their common prefix."""
    names = {key: key for key in tensors if not key.endswith("num_batches_tracked")}
    for pattern, replacement in renames:
        names = {key: re.sub(pattern, replacement, name) for key, name in names.items()}
    prefix, _ = find_prefix(set(names.values()), expected, source)
    return {name.removeprefix(prefix): tensors[key] for key, name in names.items()}


def _in_order(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Rename tensors by their order.

    Returns None unless kinds (the last part of a name) and shapes of consecutive tensors match at exactly one place.
    """
    names = [name for name in tensors if not name.endswith("num_batches_tracked")]
    found = [(name.rpartition(".")[2], tensors[name].shape) for name in names]
    wanted = [(name.rpartition(".")[2], tensor.shape) for name, tensor in expected.items()]
    starts = [i for i in range(len(found) - len(wanted) + 1) if found[i : i + len(wanted)] == wanted]
    if len(starts) != 1:
        return None
    new_names = dict(zip(names[starts[0] :], expected, strict=False))
    return {new_names.get(name, name): tensors[name] for name in names}
