"""Embedding and evaluation of crops during training, on one or several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from reid.core.console import track
from reid.core.distributed import DistributedContext
from reid.data.loader import read_batches
from reid.data.pixels import Pixels, Split
from reid.evaluation import RankingResult, evaluate
from reid.models import ReIDModel

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context of a number format; `fp32` changes nothing."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])


def embed_pixels(
    model: ReIDModel,
    pixels: Pixels,
    distributed: DistributedContext,
    *,
    batch_size: int,
    flip: bool,
    precision: str,
    label: str,
) -> NDArray[np.float32]:
    """Return L2-normalised embeddings `[N, D]` of all crops, in order, in every process; the work is divided."""
    rows = np.array_split(np.arange(len(pixels.crops)), distributed.world_size)[distributed.rank]

    def features() -> Iterator[NDArray[np.float32]]:
        batches = read_batches(pixels.store, rows, batch_size)
        total = -(-len(rows) // batch_size)
        for images in track(batches, label, total) if distributed.is_first else batches:
            with autocast(distributed.device, precision):
                yield model.embed(images.to(distributed.device, non_blocking=True), flip=flip).cpu().numpy()

    embeddings = list(features()) or [np.zeros((0, model.embedding_size), dtype=np.float32)]
    return np.concatenate(distributed.gather_rows(np.concatenate(embeddings)))


def score(
    model: ReIDModel, split: Split, distributed: DistributedContext, *, batch_size: int, flip: bool, precision: str
) -> RankingResult:
    """Embed a split and rank its gallery for each query (cosine distance, precision AP, the split's camera rule)."""
    query, gallery = (
        embed_pixels(
            model, pixels, distributed, batch_size=batch_size, flip=flip, precision=precision, label=split.name
        )
        for pixels in (split.query, split.gallery)
    )
    return evaluate(
        query,
        gallery,
        split.query.crops.pids,
        split.gallery.crops.pids,
        split.query.crops.camids,
        split.gallery.crops.camids,
        cross_camera=split.cross_camera,
    )
