"""Embedding and evaluation of crops during training, on one or several processes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from reid.config import Config
from reid.core.console import track
from reid.core.distributed import DistributedContext
from reid.data.loader import read_batches
from reid.data.pixels import Pixels, Split
from reid.evaluation import RankingResult, evaluate
from reid.models import ReIDModel

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a number format; `fp32` changes nothing."""
    return torch.autocast(device.type, PRECISIONS.get(precision), enabled=precision in PRECISIONS)


def embed_pixels(
    model: ReIDModel, pixels: Pixels, distributed: DistributedContext, config: Config, label: str, *, flip: bool
) -> NDArray[np.float32]:
    """Return L2-normalised embeddings `[N, D]` of all crops, in order, in every process; the work is divided.

    Args:
        model: the model.
        pixels: the crops.
        distributed: this process among the embedding processes.
        config: `eval.batch_size` and `precision` are used.
        label: shown in the progress bar.
        flip: whether to average each embedding with that of the mirrored crop.
    """
    batch_size = config.eval.batch_size
    rows = np.array_split(np.arange(len(pixels.crops)), distributed.world_size)[distributed.rank]
    batches = read_batches(pixels.store, rows, batch_size)
    total = -(-len(rows) // batch_size)
    embeddings = [np.zeros((0, model.embedding_size), dtype=np.float32)]
    for images in track(batches, label, total) if distributed.is_first else batches:
        with autocast(distributed.device, config.precision):
            found = model.embed(images.to(distributed.device, non_blocking=True), flip=flip)
        embeddings.append(found.cpu().numpy())
    return np.concatenate(distributed.gather_rows(np.concatenate(embeddings)))


def score(model: ReIDModel, split: Split, distributed: DistributedContext, config: Config) -> RankingResult:
    """Embed a split and rank its gallery for each query (cosine distance, precision AP, the split's camera rule).

    `eval.batch_size`, `eval.flip` and `precision` of `config` are used.
    """
    sides, flip = (split.query, split.gallery), config.eval.flip
    features = [embed_pixels(model, pixels, distributed, config, split.name, flip=flip) for pixels in sides]
    pids, camids = [pixels.crops.pids for pixels in sides], [pixels.crops.camids for pixels in sides]
    return evaluate(*features, *pids, *camids, cross_camera=split.cross_camera)
