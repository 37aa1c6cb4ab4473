"""Export a trained model as a bundle that runs without torch, with a proof that it gives the same embeddings."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import platform
import shutil
import statistics
import tempfile
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reid.core.atomic import atomic_folder, write_json, write_text
from reid.core.errors import ConfigError, DataError, ModelError, check_choice, last_line
from reid.core.version import __version__
from reid.data.loader import read_batches
from reid.data.pixels import Pixels, Split
from reid.embedding import bundle as reader
from reid.embedding.conversion import openvino_network, quantise, save_openvino, trace
from reid.embedding.model_card import render_card
from reid.embedding.runtimes import ForeignModel, open_bundle
from reid.evaluation import evaluate
from reid.models import ReIDModel

FILES = {"onnx": "model.onnx", "openvino": "model.xml", "torchscript": "model.pt"}
BATCHES = (1, 8)
"""Batch sizes with which parity is proven."""

FLOAT_COSINE = 0.9999
"""Lowest cosine allowed between an embedding of the bundle and that of the exported model."""
INT8_COSINE = 0.99
"""Lowest cosine allowed for the check crops of an int8 bundle, because int8 kernels round differently by CPU."""

Images = NDArray[np.uint8]
Features = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Quantisation:
    """Data for int8: crops to measure ranges on, and labelled crops to measure the loss of accuracy.

    Attributes:
        calibration: uint8 `[N, h, w, 3]`, about 300 crops of people who are not in `split`.
        split: queries and gallery at the model's size. mAP is measured on it before and after.
        largest_loss: largest loss allowed, in points of mAP.
    """

    calibration: Images
    split: Split
    largest_loss: float = 0.5


def export_bundle(
    model: ReIDModel | ForeignModel,
    out: str | Path,
    *,
    to: str,
    model_id: str,
    crops: Images | None = None,
    quantisation: Quantisation | None = None,
    about: str = "",
) -> dict[str, Any]:
    """Write the folder `out`, which `open_bundle` and its own run.py read.

    The exported model takes uint8 `[N, h, w, 3]` RGB and gives float32 `[N, D]`, L2-normalised. Preprocessing and
    normalisation are inside; N is open. The folder is only written with a proof of parity: for random crops and for
    `crops`, with two batch sizes, the lowest cosine between the embeddings of the bundle and of the model is at least
    0.9999 in at least one installed runtime. Runtimes that fail are recorded as refused and never used. For int8 this
    is proven before quantisation, and the loss of mAP by quantisation must not exceed the limit in `quantisation`.

    Args:
        model: a `ReIDModel`, or an ONNX or OpenVINO file with its preprocessing (to "openvino" only).
        out: the folder; it must not exist or must be empty.
        to: "onnx", "openvino" or "torchscript".
        model_id: id of the model (`Embedder.describe`). "-int8" is appended for int8.
        crops: uint8 `[N, h, w, 3]`, real crops at the model's size; synthetic patterns if None.
        quantisation: makes the model int8 (to "openvino" only; by NNCF after training, Jacob et al. 2018,
            "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference").
        about: the model card in Markdown (`model_card`), appended to card.md.

    Returns:
        The content of bundle.json.

    Raises:
        ConfigError: an unknown form, an existing folder, or a form that the model does not support.
        DataError: crops of another type or size.
        ModelError: a missing package, a model that cannot be converted, or a proof that fails.
    """
    out = Path(out)
    _check_arguments(model, out, to, quantisation)
    size = model.preprocessing.size
    real = _patterns(size, 9, seed=1) if crops is None else _check_crops("crops", crops, size)
    random = np.random.default_rng(0).integers(0, 256, (sum(BATCHES), *size, 3), dtype=np.uint8)
    reference = _reference(model)
    with atomic_folder(out) as folder, tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch:
        path = folder / FILES[to]
        unproven = path if quantisation is None else Path(scratch) / path.name
        if to == "openvino":
            network = openvino_network(model, Path(scratch))
            save_openvino(network, unproven)
        else:
            assert isinstance(model, ReIDModel)
            trace(model, path, to)
        networks, refused, parity = _prove(unproven, to, reference, {"random": random, "real": real})
        source = "synthetic patterns" if crops is None else f"{len(real)} given crops"
        proof: dict[str, Any] = {
            "lowest_cosine": parity,
            "required": FLOAT_COSINE,
            "crops": {"random": "random bytes", "real": source},
        }
        if quantisation is not None:
            save_openvino(quantise(network, quantisation.calibration), path)
            before, networks = networks, {"openvino": reader.open_network(path, "openvino", None)}
            proof["int8"] = _prove_int8(before["openvino"], networks["openvino"], quantisation)
        expected = next(iter(networks.values())) if quantisation else reference
        check = _write_check(folder, size, expected, INT8_COSINE if quantisation else FLOAT_COSINE)
        speeds = sorted(((_speed(network, size), name) for name, network in networks.items()), reverse=True)
        manifest = {
            "format": reader.FORMAT,
            "version": reader.VERSION,
            "model": model_id + ("-int8" if quantisation else ""),
            "form": to,
            "file": path.name,
            "precision": "int8" if quantisation else "float32",
            "size": list(size),
            "dimension": int(reference(random[:1]).shape[1]),
            "preprocessing": model.preprocessing.as_dict(),
            "runtimes": {name: {"crops_per_second": speed} for speed, name in speeds},
            "refused": refused,
            "parity": proof,
            "check": check,
            "versions": _versions(networks),
            "sha256": {file.name: reader.digest(file) for file in sorted(folder.iterdir()) if file.is_file()},
        }
        write_json(folder / "bundle.json", manifest)
        write_text(folder / "card.md", card(out.name, manifest, about))
        shutil.copy(inspect.getfile(reader), folder / "run.py")
        for name in networks:
            open_bundle(folder, name, trust=True)
    return manifest


def _check_arguments(model: ReIDModel | ForeignModel, out: Path, to: str, quantisation: Quantisation | None) -> None:
    check_choice("form", to, FILES)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} already exists. Remove it, or use another folder.")
    if isinstance(model, ForeignModel) and to != "openvino":
        raise ConfigError(f"{model.path} is not a checkpoint of this package. Export it to openvino.")
    if quantisation is not None and to != "openvino":
        raise ConfigError(f"int8 is not available for {to}. Export to openvino.")
    if isinstance(model, ReIDModel) and to != "torchscript" and importlib.util.find_spec("onnx") is None:
        raise ModelError(f"Checkpoints are exported to {to} through ONNX. Run: pip install onnx")
    if not any(map(reader.installed, reader.READERS[to])):
        packages = " or ".join(f"pip install {reader.PACKAGES[name]}" for name in reader.READERS[to])
        raise ModelError(f"Parity cannot be proven without a runtime. Run: {packages}")
    if quantisation is not None:
        if importlib.util.find_spec("nncf") is None:
            raise ModelError("int8 needs NNCF. Run: pip install nncf")
        _check_crops("calibration crops", quantisation.calibration, model.preprocessing.size)


def _check_crops(name: str, images: Images, size: tuple[int, int]) -> Images:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*size, 3) or len(images) == 0:
        needed = f"uint8 [N, {size[0]}, {size[1]}, 3] in RGB, with N of 1 or more"
        raise DataError(f"The {name} are {images.dtype} {list(images.shape)}; they must be {needed}.")
    return images


def _reference(model: ReIDModel | ForeignModel) -> Callable[[Images], Features]:
    return lambda images: model.embed(torch.from_numpy(images)).cpu().numpy()


def _prove(
    path: Path, form: str, reference: Callable[[Images], Features], crops: Mapping[str, Images]
) -> tuple[dict[str, reader.Network], dict[str, str], dict[str, dict[str, float]]]:
    """Return the networks of the runtimes with parity, why others are refused, and the lowest cosines of the former."""
    expected = {kind: reference(images) for kind, images in crops.items()}
    for kind, rows in expected.items():
        if not np.isfinite(rows).all():
            raise ModelError(f"The model gives NaN or infinity for {kind} crops and cannot be exported.")
    networks: dict[str, reader.Network] = {}
    refused: dict[str, str] = {}
    parity: dict[str, dict[str, float]] = {}
    for name in filter(reader.installed, reader.READERS[form]):
        cosines: dict[str, float] = {}
        try:
            network = reader.open_network(path, name, None)
            for kind, images in crops.items():
                for batch in BATCHES:
                    rows = np.concatenate([network(images[i : i + batch]) for i in range(0, len(images), batch)])
                    cosines[f"{kind}, batch {batch}"] = _lowest_cosine(rows, expected[kind])
        except Exception as error:  # each runtime has its own exceptions
            refused[name] = last_line(error)
            continue
        worst = min(cosines, key=cosines.__getitem__)
        if cosines[worst] >= FLOAT_COSINE:
            networks[name], parity[name] = network, cosines
        else:
            refused[name] = f"cosine {cosines[worst]:.6f} on {worst}, required {FLOAT_COSINE}"
    if not networks:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ModelError(f"The exported model gives other embeddings: {reasons}. Nothing was written.")
    return networks, refused, parity


def _lowest_cosine(a: Features, b: Features) -> float:
    """Return the lowest cosine of equal rows; 1 for two rows of zeros, -1 if shapes differ or lengths are not 1."""
    if a.shape != b.shape or not all(np.isin(np.linalg.norm(x, axis=1).round(3), (0, 1)).all() for x in (a, b)):
        return -1.0
    cosines = (a.astype(np.float64) * b).sum(axis=1)
    return float(np.where((a == 0).all(axis=1) & (b == 0).all(axis=1), 1.0, cosines).min())


def _prove_int8(before: reader.Network, after: reader.Network, quantisation: Quantisation) -> dict[str, Any]:
    split = quantisation.split
    q, g = split.query.crops, split.gallery.crops
    queries, galleries = ([_embed(net, pixels) for net in (before, after)] for pixels in (split.query, split.gallery))
    scores = [
        evaluate(query, gallery, q.pids, g.pids, q.camids, g.camids, cross_camera=split.cross_camera)
        for query, gallery in zip(queries, galleries, strict=True)
    ]
    loss = 100 * (scores[0].mAP - scores[1].mAP)
    if not loss <= quantisation.largest_loss:
        raise ModelError(
            f"int8 loses {loss:.2f} points of mAP on {split.name} ({100 * scores[0].mAP:.2f} → "
            f"{100 * scores[1].mAP:.2f}); at most {quantisation.largest_loss:g} are allowed. Nothing was written. "
            "Calibrate on more crops, or on crops that are more similar to those of the application."
        )
    return {
        "split": split.name,
        "queries": len(q),
        "gallery": len(g),
        "mAP_float": scores[0].mAP,
        "mAP_int8": scores[1].mAP,
        "rank1_float": scores[0].rank(1),
        "rank1_int8": scores[1].rank(1),
        "points_lost": loss,
        "points_allowed": quantisation.largest_loss,
        "mean_cosine": float((queries[0] * queries[1]).sum(axis=1).mean()),
        "calibration_crops": len(quantisation.calibration),
    }


def _embed(network: reader.Network, pixels: Pixels) -> Features:
    batches = read_batches(pixels.store, np.arange(len(pixels.crops)), 64)
    return np.concatenate([network(np.ascontiguousarray(batch.numpy())) for batch in batches])


def _patterns(size: tuple[int, int], n: int, *, seed: int) -> Images:
    """Return synthetic images uint8 `[n, h, w, 3]`: waves of different colours, strongest in red, weakest in blue."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    waves = rng.uniform(-8, 8, (n, 3, 4, 2))
    phase = rng.uniform(0, 2 * np.pi, (n, 3, 4))
    turns = waves[..., 0, None, None] * (y / height) + waves[..., 1, None, None] * (x / width)
    images = np.sin(2 * np.pi * turns + phase[..., None, None]).mean(axis=2)
    level = np.array([170, 110, 60])[:, None, None] + rng.uniform(-40, 40, (n, 3, 1, 1))
    return np.ascontiguousarray((level + 80 * images).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def _write_check(
    folder: Path, size: tuple[int, int], network: Callable[[Images], Features], lowest: float
) -> dict[str, Any]:
    """Write two synthetic crops and their embeddings, chosen so that wrong channel orders and ranges change them."""

    def check(images: Images) -> tuple[Images, Features, dict[str, float]]:
        expected = network(images)
        reversed_channels, low_values = np.ascontiguousarray(images[..., ::-1]), (images > 127).astype(np.uint8)
        wrong = {"channels_reversed": reversed_channels, "values_0_to_1": low_values}
        return images, expected, {name: _lowest_cosine(network(x), expected) for name, x in wrong.items()}

    checks = [check(_patterns(size, 2, seed=10 + seed)) for seed in range(4)]
    images, expected, cosines = min(checks, key=lambda one: max(one[2].values()))
    np.savez(folder / "check.npz", images=images, embeddings=expected)
    return {
        "file": "check.npz",
        "lowest_cosine": lowest,
        "cosine_when_wrong": cosines,
        "detects_wrong_input": max(cosines.values()) < lowest - (1 - lowest),
    }


def _speed(network: reader.Network, size: tuple[int, int]) -> float:
    """Return crops per second in batches of 16 on all cores, the median of three."""
    images = np.random.default_rng(0).integers(0, 256, (16, *size, 3), dtype=np.uint8)
    network(images)
    times = timeit.repeat(lambda: network(images), number=1, repeat=3)
    return round(len(images) / statistics.median(times), 1)


def _versions(networks: Mapping[str, Any]) -> dict[str, str]:
    found = {"reid": __version__, "python": platform.python_version()}
    for name in ["torch", "numpy", *(reader.PACKAGES[name] for name in networks), "nncf"]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def card(name: str, manifest: Mapping[str, Any], about: str = "") -> str:
    """Return a Markdown description of a bundle and of its proof, from its manifest, and then of the model."""
    about = (about or render_card("purpose.md.jinja")).rstrip("\n")
    return render_card("bundle_card.md.jinja", name=name, m=manifest, packages=reader.PACKAGES, about=about)
