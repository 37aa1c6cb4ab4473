"""Speed of a training step against a plain torch loop and, where a source tree is given, against torchreid's engine.

All contenders do the same arithmetic in float32: the same network (last stride 2, no neck), batch-hard triplet and
label-smoothed softmax over 751 classes, Adam with weight decay. This project starts from uint8 crops, the others from
normalised float ones. Steps run in turn on one thread; processor time, medians.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import cv2
import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from benchmarks.measure import Benchmark
from reid.config import load_config
from reid.core.console import console
from reid.core.errors import ReidError
from reid.data.crops import Crops
from reid.data.loader import Batch
from reid.data.pixels import Pixels, TrainingData
from reid.data.store import FileStore
from reid.training.trainer import Trainer

IDS, CROPS, CLASSES = 16, 4, 751


@click.command(cls=Benchmark)
@click.option("--backbone", default="resnet50", show_default=True)
@click.option("--size", type=(int, int), default=(256, 128), show_default=True, help="Height and width in pixels.")
@click.option("--steps", default=5, show_default=True, type=click.IntRange(1), help="Steps; the median counts.")
@click.option("--torchreid", type=click.Path(), metavar="FOLDER", help="Source tree of torchreid, to time its step.")
def main(backbone: str, size: tuple[int, int], steps: int, torchreid: str | None) -> None:
    """Time a training step of 16 x 4 crops of noise on the CPU."""
    torch.set_num_threads(1)
    contenders = {"reid": _ours(backbone, size)}
    contenders["plain torch loop"] = _plain(backbone, size)
    if torchreid:
        contenders["torchreid"] = _torchreid(torchreid, backbone, size)
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(steps + 1):
        for name, step in contenders.items():
            began = time.process_time()
            step()
            if number:  # the first chooses kernels and asks for memory
                took[name].append(time.process_time() - began)
    table = Table(box=None)
    for column in ("", "processor s a step", "crops/s", "reid is faster by"):
        table.add_column(column, justify="left" if not column else "right")
    ours = took["reid"]
    for name, seconds in took.items():
        median = statistics.median(seconds)
        ratio = statistics.median(theirs / own for theirs, own in zip(seconds, ours, strict=True))
        table.add_row(name, f"{median:.3f}", f"{IDS * CROPS / median:.1f}", "" if name == "reid" else f"{ratio:.2f} ×")
    console.print(f"{backbone} {size[0]}×{size[1]}, {IDS}×{CROPS}, one thread, {steps} steps in turn")
    console.print(table)


def _crops(size: tuple[int, int]) -> Batch:
    rng = np.random.default_rng(0)
    labels = torch.arange(IDS).repeat_interleave(CROPS)
    images = torch.from_numpy(rng.integers(0, 256, (IDS * CROPS, *size, 3), dtype=np.uint8))
    return Batch(images, labels, labels, torch.zeros_like(labels), torch.arange(IDS * CROPS))


def _ours(backbone: str, size: tuple[int, int]) -> Callable[[], object]:
    settings = [
        f"model.backbone={backbone}", "model.last_stride=2", "model.neck=none", f"model.height={size[0]}",
        f"model.width={size[1]}", "device=cpu",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{pid}.png") for pid in range(CLASSES)]
        for path in paths:
            cv2.imwrite(str(path), np.zeros((8, 4, 3), np.uint8))
        crops = Crops.from_columns(paths, np.arange(CLASSES))
        data = TrainingData(Pixels(crops, FileStore(crops, size=size)), (), ())
        trainer = Trainer(load_config(None, settings), folder, data=data)
    trainer.network.train()
    batch = _crops(size)
    return lambda: trainer.train_step([batch])


def _plain(backbone: str, size: tuple[int, int]) -> Callable[[], object]:
    """What one writes first: torch's defaults throughout, values logged as they come."""
    from reid.models import build_model

    model = build_model(
        backbone, num_classes=CLASSES, neck="none", last_stride=2, height=size[0], width=size[1]
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), 3.5e-4, weight_decay=5e-4)
    batch = _crops(size)
    images = _normalised(batch.images)

    def batch_hard(features: Tensor, labels: Tensor) -> Tensor:
        distances = torch.cdist(features, features)
        same = labels[:, None] == labels
        hardest = distances.masked_fill(~same, 0).max(dim=1).values
        nearest = distances.masked_fill(same, torch.inf).min(dim=1).values
        return functional.margin_ranking_loss(nearest, hardest, torch.ones_like(nearest), margin=0.3)

    def step() -> None:
        output = model(images)
        triplet = batch_hard(output.features, batch.labels)
        softmax = functional.cross_entropy(output.logits, batch.labels, label_smoothing=0.1)
        optimizer.zero_grad()
        (triplet + softmax).backward()
        optimizer.step()
        triplet.item(), softmax.item()

    return step


def _normalised(images: Tensor) -> Tensor:
    x = images.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((x - mean) / std).contiguous()


def _torchreid(folder: str, backbone: str, size: tuple[int, int]) -> Callable[[], object]:
    """A step of torchreid's own engine for images with triplet and softmax loss, from its source tree in `folder`."""
    if not (Path(folder) / "torchreid").is_dir():
        raise ReidError(f"--torchreid {folder} is not a source tree of torchreid: no folder 'torchreid' is in it.")
    sys.path.insert(0, folder)
    try:
        package = _import_with_stubs("torchreid")
    finally:
        sys.path.remove(folder)
    model = package.models.build_model(backbone, num_classes=CLASSES, loss="triplet", pretrained=False, use_gpu=False)
    manager = SimpleNamespace(train_loader=None, test_loader=None, num_train_pids=CLASSES)
    optimizer = package.optim.build_optimizer(model, optim="adam", lr=3.5e-4, weight_decay=5e-4)
    engine = package.engine.ImageTripletEngine(manager, model, optimizer, use_gpu=False, label_smooth=True)
    model.train()
    batch = _crops(size)
    data = {"img": _normalised(batch.images), "pid": batch.labels}
    return lambda: engine.forward_backward(data)


def _import_with_stubs(name: str) -> Any:
    """Import a package whose downloads and readers are not needed here: what it lacks is put in as an empty module."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == name:
            raise
        sys.modules[error.name] = ModuleType(error.name)
    for loaded in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[loaded]
    return _import_with_stubs(name)


if __name__ == "__main__":
    main()
