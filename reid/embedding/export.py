"""A trained model as a bundle that runs without torch, and the proof that it is still the same model."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import json
import logging
import os
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from reid.core.atomic import atomic_folder
from reid.core.errors import ReidError, did_you_mean
from reid.core.version import __version__
from reid.data.loader import read_batches
from reid.data.pixels import Pixels, Split
from reid.embedding import bundle as reader
from reid.embedding.model_card import PURPOSE
from reid.embedding.runtimes import ForeignModel, open_bundle
from reid.evaluation import evaluate
from reid.models import ReIDModel

FILES = {"onnx": "model.onnx", "openvino": "model.xml", "torchscript": "model.pt"}
BATCHES = (1, 8)
"""Batch sizes at which parity is proven."""

FLOAT_COSINE = 0.9999
INT8_COSINE = 0.99
"""The lowest cosine that the check crops may have with what was recorded: int8 kernels round differently by CPU."""

Images = NDArray[np.uint8]
Features = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Quantisation:
    """What int8 needs: crops to measure ranges on, and labelled ones to prove that little is lost.

    Attributes:
        calibration: uint8 `[N, h, w, 3]`, of people that are not in `split`; some 300.
        split: queries and gallery of the model's size; mAP is taken on it before and after.
        largest_loss: in points of mAP; more is refused.
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
    """Write `out`, a folder that `open_bundle` and its own run.py read, or nothing at all.

    The model takes uint8 `[N, h, w, 3]` RGB and gives float32 `[N, D]` of length 1; preprocessing and normalisation
    are inside, N is open. It is written only with a proof: for random crops and for `crops`, at each of two batch
    sizes, the lowest cosine between the bundle's embeddings and the model's own is at least 0.9999, in at least one
    installed runtime (the others are recorded as refused and are never chosen). For int8 that holds of the model
    before it was quantised, and the loss of mAP by quantising is at most what `quantisation` allows.

    Args:
        model: one of ours, or an ONNX or OpenVINO file with its preprocessing (to "openvino" only).
        out: the folder; must not be there, or be empty.
        to: "onnx", "openvino" or "torchscript".
        model_id: what embeddings of the model carry; that of int8 gets "-int8" after it.
        crops: uint8 `[N, h, w, 3]`, real ones of the model's size; made patterns where left out.
        quantisation: makes the model int8 (to "openvino" only; Jacob et al. 2018, "Quantization and Training of Neural
            Networks for Efficient Integer-Arithmetic-Only Inference"; here after training, by NNCF).
        about: the model's own card in Markdown (`model_card`), which card.md goes on with after the bundle's part.

    Returns:
        The content of bundle.json.

    Raises:
        ReidError: an unknown form, a package that is missing, crops of another size, a model that cannot be converted,
            a proof that does not hold.
    """
    out = Path(out)
    _check_wishes(model, out, to, quantisation)
    size = model.preprocessing.size
    real = _patterns(size, 9, seed=1) if crops is None else _checked("crops", crops, size)
    random = np.random.default_rng(0).integers(0, 256, (sum(BATCHES), *size, 3), dtype=np.uint8)
    reference = _reference(model)
    with atomic_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        path = folder / FILES[to]
        unproven = path if quantisation is None else Path(scratch) / path.name
        if to == "openvino":
            network = _openvino_network(model, Path(scratch))
            _save_openvino(network, unproven)
        else:
            assert isinstance(model, ReIDModel)
            _trace(model, path, to)
        networks, refused, parity = _prove(unproven, to, reference, {"random": random, "real": real})
        words = {"random": "random bytes", "real": "made patterns" if crops is None else f"{len(real)} given crops"}
        proof: dict[str, Any] = {"lowest_cosine": parity, "asked": FLOAT_COSINE, "crops": words}
        if quantisation is not None:
            _save_openvino(_quantised(network, quantisation.calibration), path)
            before, networks = networks, {"openvino": reader.open_network(path, "openvino", None)}
            proof["int8"] = _prove_int8(before["openvino"], networks["openvino"], quantisation)
        first = next(iter(networks.values()))
        check = _write_check(folder, size, first if quantisation else reference, quantisation is not None)
        measured = {name: _speed(network, size) for name, network in networks.items()}
        speeds = dict(sorted(measured.items(), key=lambda one: -one[1]))
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
            "runtimes": {name: {"crops_per_second": speed} for name, speed in speeds.items()},
            "refused": refused,
            "parity": proof,
            "check": check,
            "versions": _versions(networks),
            "sha256": {one.name: reader.digest(one) for one in sorted(folder.iterdir())},
        }
        (folder / "bundle.json").write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", "utf-8")
        (folder / "card.md").write_text(card(out.name, manifest) + (about or PURPOSE), "utf-8")
        shutil.copy(inspect.getfile(reader), folder / "run.py")
        for name in speeds:
            open_bundle(folder, name)
    return manifest


def _check_wishes(model: ReIDModel | ForeignModel, out: Path, to: str, quantisation: Quantisation | None) -> None:
    if to not in FILES:
        raise ReidError(f"There is no form {to!r} to export to.{did_you_mean(to, FILES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReidError(f"{out} is there already: remove it, or name another folder.")
    if isinstance(model, ForeignModel) and to != "openvino":
        raise ReidError(f"{model.path} is not a model of this package: it can be exported to openvino only.")
    if isinstance(model, ReIDModel) and to != "torchscript" and importlib.util.find_spec("onnx") is None:
        raise ReidError(f"Our models reach {to} by way of ONNX: pip install onnx")
    if not any(reader.installed(name) for name in reader.READERS[to]):
        packages = " or ".join(f"pip install {reader.PACKAGES[name]}" for name in reader.READERS[to])
        raise ReidError(f"Without a runtime the bundle cannot be proven: {packages}")
    if quantisation is None:
        return
    if to != "openvino":
        raise ReidError(f"int8 is made for OpenVINO only, not for {to}: export to openvino.")
    try:
        import nncf  # noqa: F401
    except ImportError as error:
        raise ReidError("int8 needs NNCF: pip install nncf") from error
    _checked("calibration crops", quantisation.calibration, model.preprocessing.size)


def _checked(what: str, images: Images, size: tuple[int, int]) -> Images:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*size, 3) or len(images) == 0:
        raise ReidError(
            f"The {what} are {images.dtype} {list(images.shape)}; they must be uint8 [N, {size[0]}, {size[1]}, 3] in "
            "RGB, at least one."
        )
    return images


def _reference(model: ReIDModel | ForeignModel) -> Callable[[Images], Features]:
    return lambda images: model.embed(torch.from_numpy(images)).cpu().numpy()


def _prove(
    path: Path, form: str, reference: Callable[[Images], Features], kinds: Mapping[str, Images]
) -> tuple[dict[str, reader.Network], dict[str, str], dict[str, dict[str, float]]]:
    """Networks of the runtimes that give the reference's embeddings, why others do not, and the former's cosines."""
    expected = {kind: reference(images) for kind, images in kinds.items()}
    for kind, rows in expected.items():
        if not np.isfinite(rows).all():
            raise ReidError(f"The model gives NaN or infinity for {kind} crops: there is nothing to export.")
    networks: dict[str, reader.Network] = {}
    refused: dict[str, str] = {}
    parity: dict[str, dict[str, float]] = {}
    for name in filter(reader.installed, reader.READERS[form]):
        found: dict[str, float] = {}
        try:
            network = reader.open_network(path, name, None)
            for kind, images in kinds.items():
                for batch in BATCHES:
                    got = np.concatenate([network(images[i : i + batch]) for i in range(0, len(images), batch)])
                    found[f"{kind}, batch {batch}"] = _lowest_cosine(got, expected[kind])
        except Exception as error:  # every runtime raises kinds of its own
            refused[name] = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            continue
        where = min(found, key=found.__getitem__)
        if found[where] >= FLOAT_COSINE:
            networks[name], parity[name] = network, found
        else:
            refused[name] = f"cosine {found[where]:.6f} on {where}, at least {FLOAT_COSINE} is asked"
    if not networks:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ReidError(f"The exported model is not the model: {reasons}. Nothing was written.")
    return networks, refused, parity


def _lowest_cosine(a: Features, b: Features) -> float:
    """Of rows that have length 1; -1 where they have not (a row of zeros is like another), or the shapes differ."""
    if a.shape != b.shape or not all(np.isin(np.linalg.norm(x, axis=1).round(3), (0, 1)).all() for x in (a, b)):
        return -1.0
    cosines = (a.astype(np.float64) * b).sum(axis=1)
    return float(np.where((a == 0).all(axis=1) & (b == 0).all(axis=1), 1.0, cosines).min())


# --- networks ---------------------------------------------------------------------------------------------------------


class _Whole(nn.Module):
    """uint8 [N, h, w, 3] RGB → float32 [N, D]: `ReIDModel.embed` in a form that can be traced."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: ReIDModel, *, normalise: bool) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float()
        self.normalise = normalise
        preprocessing = model.preprocessing
        self.swap = preprocessing.channel_order == "bgr"
        std, mean = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.std, preprocessing.mean))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).float()
        if self.swap:
            x = x.flip(1)
        rows: Tensor = self.model(x * self.scale + self.shift).embeddings
        return functional.normalize(rows, eps=1e-12) if self.normalise else rows


def _trace(model: ReIDModel, path: Path, form: str, *, normalise: bool = True) -> None:
    """Write the model as ONNX or TorchScript."""
    whole = _Whole(model, normalise=normalise).eval()
    example = torch.zeros(2, *model.preprocessing.size, 3, dtype=torch.uint8)
    with torch.no_grad(), _quiet():
        try:
            if form == "torchscript":
                torch.jit.freeze(torch.jit.trace(whole, (example,), check_trace=False)).save(str(path))
                return
            # The tracing exporter: it is in every torch from 2.4 on and needs onnx alone.
            torch.onnx.export(
                whole,
                (example,),
                str(path),
                input_names=["images"],
                output_names=["embeddings"],
                dynamic_axes={"images": {0: "N"}, "embeddings": {0: "N"}},
                opset_version=17,
                dynamo=False,
            )
        except Exception as error:  # tracing runs the model's own code, and fails in as many ways
            words = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ReidError(f"{model.spec['backbone']} cannot be converted to {form}: {words}") from error


def _openvino_network(model: ReIDModel | ForeignModel, scratch: Path) -> Any:
    """The model as OpenVINO has it, before normalisation; files that it may go on reading lie in `scratch`."""
    import openvino

    if isinstance(model, ForeignModel):
        return _with_preprocessing(model)
    _trace(model, scratch / "model.onnx", "onnx", normalise=False)
    return openvino.Core().read_model(scratch / "model.onnx")


def _with_preprocessing(model: ForeignModel) -> Any:
    """The network of an ONNX or OpenVINO file behind its preprocessing, with an open batch size."""
    import openvino
    from openvino.preprocess import ColorFormat, PrePostProcessor

    network = openvino.Core().read_model(model.path)
    try:
        network.reshape([-1, 3, *model.preprocessing.size])
    except RuntimeError as error:
        words = str(error).strip().splitlines()[-1]
        raise ReidError(f"{model.path} has a batch size that cannot be opened: {words}") from error
    steps = PrePostProcessor(network)
    outside = steps.input().tensor()
    outside.set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC")).set_color_format(ColorFormat.RGB)
    inside = steps.input().preprocess().convert_element_type(openvino.Type.f32)
    if model.preprocessing.channel_order == "bgr":
        inside.convert_color(ColorFormat.BGR)
    inside.mean([255 * value for value in model.preprocessing.mean])
    inside.scale([255 * value for value in model.preprocessing.std])
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    network = steps.build()
    output = network.get_results()[model.output_number].input_value(0)
    return openvino.Model([output], network.get_parameters(), model.path.stem)


def _save_openvino(network: Any, path: Path) -> None:
    """Write it with rows of length 1. They are made so after quantising, which would round the lengths too."""
    import openvino
    from openvino import opset8 as ops

    rows = ops.convert(network.get_results()[0].input_value(0), "f32")
    rows = ops.reshape(rows, np.array([0, -1], np.int64), True)
    rows = ops.normalize_l2(rows, np.array([1], np.int64), 1e-24, "max")
    whole = openvino.Model([rows], network.get_parameters(), "reid")
    whole.inputs[0].get_tensor().set_names({"images"})
    whole.outputs[0].get_tensor().set_names({"embeddings"})
    openvino.save_model(whole, path, compress_to_fp16=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's warnings that it will be gone one day and that shapes are fixed: parity is proven."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- int8 -------------------------------------------------------------------------------------------------------------


def _quantised(network: Any, calibration: Images) -> Any:
    """int8, save for gates and for what comes after the last pooling: little work, and where rounding harms most."""
    os.environ.setdefault("NNCF_CI", "1")  # or NNCF reports its use over the network
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        network,
        nncf.Dataset([crop[None] for crop in calibration]),
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=_head(network), types=["Multiply"], validate=False),
    )


def _head(network: Any) -> list[str]:
    """Names of the operations between the last feature map and the embedding."""

    def is_map(shape: Any) -> bool:
        return shape.rank.is_static and len(shape) == 4 and any(side != 1 for side in list(shape)[2:])

    found: dict[str, None] = {}
    waiting = [network.get_results()[0].input_value(0)]
    while waiting:
        output = waiting.pop()
        node = output.get_node()
        if (
            node.get_type_name() == "Constant"
            or node.get_friendly_name() in found
            or is_map(output.get_partial_shape())
        ):
            continue
        found[node.get_friendly_name()] = None
        waiting += [port.get_source_output() for port in node.inputs()]
    return list(found)


def _prove_int8(before: reader.Network, after: reader.Network, wanted: Quantisation) -> dict[str, Any]:
    split = wanted.split
    scores = []
    features: list[tuple[Features, Features]] = []
    for network in (before, after):
        query, gallery = (_embed(network, pixels) for pixels in (split.query, split.gallery))
        features.append((query, gallery))
        q, g = split.query.crops, split.gallery.crops
        scores.append(evaluate(query, gallery, q.pids, g.pids, q.camids, g.camids, cross_camera=split.cross_camera))
    loss = 100 * (scores[0].mAP - scores[1].mAP)
    if not loss <= wanted.largest_loss:
        raise ReidError(
            f"int8 loses {loss:.2f} points of mAP on {split.name} ({100 * scores[0].mAP:.2f} → "
            f"{100 * scores[1].mAP:.2f}); at most {wanted.largest_loss:g} are allowed. Nothing was written. Calibrate "
            "on more crops, or on crops that are more like those to come."
        )
    return {
        "split": split.name,
        "queries": len(split.query.crops),
        "gallery": len(split.gallery.crops),
        "mAP_float": scores[0].mAP,
        "mAP_int8": scores[1].mAP,
        "rank1_float": scores[0].rank(1),
        "rank1_int8": scores[1].rank(1),
        "points_lost": loss,
        "points_allowed": wanted.largest_loss,
        "mean_cosine": float((features[0][0] * features[1][0]).sum(axis=1).mean()),
        "calibration_crops": len(wanted.calibration),
    }


def _embed(network: reader.Network, pixels: Pixels) -> Features:
    batches = read_batches(pixels.store, np.arange(len(pixels.crops)), 64)
    return np.concatenate([network(np.ascontiguousarray(batch.numpy())) for batch in batches])


# --- check crops, speed, card -----------------------------------------------------------------------------------------


def _patterns(size: tuple[int, int], n: int, *, seed: int) -> Images:
    """Made pictures uint8 `[n, h, w, 3]`: waves of other colours in each, strongest in red and weakest in blue."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    waves = rng.uniform(-8, 8, (n, 3, 4, 2))
    phase = rng.uniform(0, 2 * np.pi, (n, 3, 4))
    turns = waves[..., 0, None, None] * (y / height) + waves[..., 1, None, None] * (x / width)
    pictures = np.sin(2 * np.pi * turns + phase[..., None, None]).mean(axis=2)
    level = np.array([170, 110, 60])[:, None, None] + rng.uniform(-40, 40, (n, 3, 1, 1))
    return np.ascontiguousarray((level + 80 * pictures).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def _write_check(
    folder: Path, size: tuple[int, int], network: Callable[[Images], Features], int8: bool
) -> dict[str, Any]:
    """Two made crops and their embeddings, chosen so that a wrong order of channels or range of values changes them."""
    lowest = INT8_COSINE if int8 else FLOAT_COSINE
    found = []
    for seed in range(4):
        images = _patterns(size, 2, seed=10 + seed)
        expected = network(images)
        wrong = {
            "channels_reversed": np.ascontiguousarray(images[..., ::-1]),
            "values_0_to_1": (images > 127).astype(np.uint8),
        }
        cosines = {name: _lowest_cosine(network(changed), expected) for name, changed in wrong.items()}
        found.append((max(cosines.values()), seed, images, expected, cosines))
    worst, _, images, expected, cosines = min(found, key=lambda one: one[:2])
    np.savez(folder / "check.npz", images=images, embeddings=expected)
    return {
        "file": "check.npz",
        "lowest_cosine": lowest,
        "cosine_when_wrong": cosines,
        "tells": bool(worst < lowest - (1 - lowest)),
    }


def _speed(network: reader.Network, size: tuple[int, int]) -> float:
    """Crops a second in batches of 16 on all cores, the median of three."""
    images = np.random.default_rng(0).integers(0, 256, (16, *size, 3), dtype=np.uint8)
    network(images)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        network(images)
        times.append(time.perf_counter() - start)
    return round(len(images) / statistics.median(times), 1)


def _versions(networks: Mapping[str, Any]) -> dict[str, str]:
    packages = ["torch", "numpy", *(reader.PACKAGES[name] for name in networks), "nncf"]
    found = {"reid": __version__, "python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def card(name: str, manifest: Mapping[str, Any]) -> str:
    """What a bundle is and how it was proven, in Markdown, from its manifest alone."""
    proof = manifest["parity"]
    height, width = manifest["size"]
    packages = " or ".join(reader.PACKAGES[runtime] for runtime in manifest["runtimes"])
    lines = [
        f"# Bundle: {name}",
        "",
        f"- **Model**: `{manifest['model']}`, {manifest['precision']}, {manifest['form']}",
        f"- **Input**: uint8 [N, {height}, {width}, 3], RGB, 0..255, of crops resized to {height}×{width} (h × w)",
        f"- **Output**: float32 [N, {manifest['dimension']}], rows of length 1, compared by cosine",
        f"- **Preprocessing**, inside the model: {json.dumps(manifest['preprocessing'])}",
        "- **Made with**: " + ", ".join(f"{package} {version}" for package, version in manifest["versions"].items()),
        "",
        "```python",
        f"from run import Bundle  # run.py of this folder; needs NumPy and {packages}",
        "",
        f'features = Bundle("{name}").embed(crops)',
        "```",
        "",
        "Lowest cosine to the embeddings of the model that was exported"
        + (", before int8:" if "int8" in proof else ":"),
        "",
    ]
    for runtime, found in proof["lowest_cosine"].items():
        lines += [f"- {runtime}, {where}: {cosine:.7f}" for where, cosine in found.items()]
    lines += [f"- {runtime}: refused, {reason}" for runtime, reason in manifest["refused"].items()]
    lines += ["", f"Random: {proof['crops']['random']}. Real: {proof['crops']['real']}.", ""]
    if "int8" in proof:
        int8 = proof["int8"]
        lines += [
            f"int8, on {int8['split']}, {int8['queries']:,} queries, {int8['gallery']:,} in the gallery: "
            f"mAP {100 * int8['mAP_float']:.2f} → {100 * int8['mAP_int8']:.2f}, "
            f"rank-1 {100 * int8['rank1_float']:.2f} → {100 * int8['rank1_int8']:.2f}; "
            f"{int8['points_allowed']:g} points of mAP were allowed to go. "
            f"Calibrated on {int8['calibration_crops']} crops.",
            "",
        ]
    speeds = ", ".join(f"{runtime} {found['crops_per_second']:g}" for runtime, found in manifest["runtimes"].items())
    lines += [f"Crops a second at export, batches of 16, all cores: {speeds}.", ""]
    if not manifest["check"]["tells"]:
        lines += ["The check crops do not tell a wrong order of channels or range of values: it hardly sees them.", ""]
    return "\n".join(lines) + "\n"
