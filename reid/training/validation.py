"""Features of many crops from one model, on one process or shared among all."""

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
    """The forward pass's number format: `fp32` leaves everything as it is."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])


def embed_pixels(
    model: ReIDModel,
    pixels: Pixels,
    ranks: DistributedContext,
    *,
    batch_size: int,
    flip: bool,
    precision: str,
    label: str,
) -> NDArray[np.float32]:
    """L2-normalised features `[N, D]` of all crops, in order, on every rank; the ranks share the work."""
    rows = np.array_split(np.arange(len(pixels.crops)), ranks.world_size)[ranks.rank]

    def features() -> Iterator[NDArray[np.float32]]:
        batches = read_batches(pixels.store, rows, batch_size)
        total = -(-len(rows) // batch_size)
        for images in track(batches, label, total) if ranks.is_first else batches:
            with autocast(ranks.device, precision):
                yield model.embed(images.to(ranks.device, non_blocking=True), flip=flip).cpu().numpy()

    own = list(features()) or [np.zeros((0, model.embedding_size), dtype=np.float32)]
    return np.concatenate(ranks.gather_rows(np.concatenate(own)))


def score(
    model: ReIDModel, split: Split, ranks: DistributedContext, *, batch_size: int, flip: bool, precision: str
) -> RankingResult:
    """Embed a split and rank its gallery for each query (cosine, precision AP, the split's cross-camera rule)."""
    query, gallery = (
        embed_pixels(model, pixels, ranks, batch_size=batch_size, flip=flip, precision=precision, label=split.name)
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
