"""Speed from JPEG files to embeddings on the CPU: torchreid's extractor (or a plain loop) and this project's runtimes.

Weights are random. int8 is timed whatever it does to the embeddings.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from benchmarks.measure import Benchmark
from reid.core.console import console
from reid.core.errors import ReidError
from reid.data.crops import Crops
from reid.data.layouts import load_benchmark
from reid.data.pixels import Pixels, Split
from reid.data.store import FileStore
from reid.embedding.embedder import Embedder
from reid.embedding.export import Quantisation, export_bundle
from reid.models import build_model

MODELS = {"resnet50": "resnet50", "osnet_x1_0": "osnet_x1_0", "osnet_x0_25": "osnet_x0_25"}
"""Our backbones by torchreid's name for the same network."""

SIZE = (256, 128)
BATCH = 32

Contender = Callable[[list[str]], object]


@click.command(cls=Benchmark)
@click.argument("source", required=False, metavar="[LAYOUT:ROOT]")
@click.option(
    "--model", "models", multiple=True, type=click.Choice(list(MODELS)), default=tuple(MODELS), show_default=True,
    help="Network; may be repeated.",
)  # fmt: skip
@click.option("--peer", type=click.Path(path_type=Path), help="Source tree of deep-person-reid, the baseline.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="Threads of each contender.")
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0), help="Time per contender, round.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds; the median counts.")
def main(
    source: str | None, models: tuple[str, ...], peer: Path | None, threads: int, seconds: float, rounds: int
) -> None:
    """Print crops/s of each contender and the median ratio to the baseline of the same round."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = [str(path) for path in load_benchmark(source).train.paths[:512]] if source else _synthetic_crops(folder)
        for name in models:
            base, contenders = _contenders(name, paths, peer, threads, folder)
            rates = _measure(contenders, paths, seconds, rounds)
            cpu = torch.backends.cpu.get_cpu_capability()
            console.print(
                f"{name}, {SIZE[0]}×{SIZE[1]}, {threads} threads ({cpu}), batches of {BATCH}, {rounds} rounds"
            )
            for name_, found in rates.items():
                ratio = statistics.median(a / b for a, b in zip(found, rates[base], strict=True))
                console.print(f"  {name_:<34} {statistics.median(found):8.1f} crops/s  {ratio:6.2f} ×", highlight=False)


def _synthetic_crops(folder: Path, n: int = 256) -> list[str]:
    """JPEG files of 128×64 pixels, smooth as photographs are."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(n):
        small = rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)
        paths.append(str(folder / f"{number}.jpg"))
        cv2.imwrite(paths[-1], cv2.resize(small, (64, 128), interpolation=cv2.INTER_CUBIC))
    return paths


def _contenders(
    name: str, paths: list[str], peer: Path | None, threads: int, folder: Path
) -> tuple[str, dict[str, Contender]]:
    """The baseline's name, and all contenders from files to embeddings."""
    model = build_model(MODELS[name], neck="none", height=SIZE[0], width=SIZE[1])
    base = "torchreid FeatureExtractor" if peer else "plain loop: PIL, eager torch"
    contenders: dict[str, Contender] = {base: _torchreid(name, peer, folder) if peer else _plain(model)}
    eager = build_model(MODELS[name], neck="none", height=SIZE[0], width=SIZE[1])
    contenders["torch, channels_last"] = _embedder(eager.to(memory_format=torch.channels_last), "auto", threads)
    crops = Crops.from_columns(paths, np.arange(len(paths)) // 4, np.arange(len(paths)) % 2)
    store = FileStore(crops, size=SIZE)
    for form, int8 in (("onnx", False), ("openvino", False), ("openvino", True)):
        bundle = folder / f"{name}-{form}-{int8}.bundle"
        few = np.arange(min(64, len(paths)))
        pixels = Pixels(crops.take(few), store.take(few))
        quantisation = Quantisation(store.read(few), Split("synthetic", pixels, pixels, True), 100.0) if int8 else None
        export_bundle(model, bundle, to=form, model_id=name, crops=store.read(few[:8]), quantisation=quantisation)
        runtime = {"onnx": "onnxruntime", "openvino": "OpenVINO"}[form]
        contenders[f"{runtime}, {'int8' if int8 else 'float32'}"] = _embedder(bundle, form, threads)
    return base, contenders


def _embedder(model: Any, runtime: str, threads: int) -> Contender:
    return Embedder(model, device="cpu", runtime=runtime, batch_size=BATCH, threads=threads)


def _plain(model: torch.nn.Module) -> Contender:
    """What extractors commonly do: Pillow, torchvision's transforms one image at a time, then the network."""
    steps = transforms.Compose(
        [
            transforms.Resize(SIZE),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    model = model.eval()

    def way(paths: list[str]) -> object:
        features = []
        for start in range(0, len(paths), BATCH):
            images = torch.stack([steps(Image.open(path).convert("RGB")) for path in paths[start : start + BATCH]])
            with torch.no_grad():
                features.append(model(images).embeddings)
        return torch.cat(features)

    return way


def _torchreid(name: str, peer: Path, folder: Path) -> Contender:
    """torchreid's own extractor with random weights, in batches; its ResNet-50 with a last stride of 1, as ours."""
    if not (peer / "torchreid").is_dir():
        raise ReidError(f"--peer {peer} contains no torchreid. Pass a copy of the source of deep-person-reid.")
    if "gdown" not in sys.modules and importlib.util.find_spec("gdown") is None:  # imported for downloads only
        sys.modules["gdown"] = types.ModuleType("gdown")
    sys.path.insert(0, str(peer))
    try:
        networks = importlib.import_module("torchreid.models")
        utils = importlib.import_module("torchreid.utils")
    finally:
        sys.path.remove(str(peer))
    weights = folder / f"{name}.pth"
    torch.save(networks.build_model(name, 1, pretrained=False, use_gpu=False).state_dict(), weights)
    extractor = utils.FeatureExtractor(name, str(weights), image_size=SIZE, device="cpu", verbose=False)
    if name == "resnet50":
        resnet = importlib.import_module("torchreid.models.resnet")
        extractor.model = resnet.ResNet(1, "softmax", resnet.Bottleneck, [3, 4, 6, 3], last_stride=1).eval()

    def way(paths: list[str]) -> object:
        return torch.cat([extractor(paths[start : start + BATCH]) for start in range(0, len(paths), BATCH)])

    return way


def _measure(contenders: dict[str, Contender], paths: list[str], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Crops a second `[rounds]` by way; in each round every way runs about `seconds`, one after another."""
    counts = {}
    for name, way in contenders.items():
        way(paths[:BATCH])
        start = time.perf_counter()
        way(paths[: 2 * BATCH])
        rate = len(paths[: 2 * BATCH]) / (time.perf_counter() - start)
        counts[name] = BATCH * max(2, round(rate * seconds / BATCH))
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, way in contenders.items():
            some = [paths[row % len(paths)] for row in range(counts[name])]
            start = time.perf_counter()
            way(some)
            rates[name].append(len(some) / (time.perf_counter() - start))
    return rates


if __name__ == "__main__":
    main()
