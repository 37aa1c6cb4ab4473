"""BatchNorm statistics of other data: the simplest adaptation of a model to new cameras."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from reid.core.console import track
from reid.data.loader import read_batches
from reid.data.store import Store
from reid.models import ReIDModel
from reid.models.model import evaluating

MOST_CROPS = 8192
"""Crops that the statistics are computed of, drawn at random; more change nothing."""


@torch.no_grad()
def reestimate_batchnorm(
    model: ReIDModel, store: Store, *, batch_size: int = 128, most: int = MOST_CROPS, seed: int = 0
) -> int:
    """Replace the running statistics of every BatchNorm layer by those of other crops (AdaBN, Li et al. 2017).

    No label and no gradient is used, and no weight changes. Each layer normalises with the statistics of its batch, as
    in training, and its new running mean and variance are the means of these over all batches.

    Args:
        model: changed in place; it stays in its mode.
        store: the crops.
        batch_size: crops; the last batch may have up to half as many more.
        most: crops to use; more are drawn from at random.
        seed: of the drawing and the order.

    Returns:
        The number of BatchNorm layers; 0: the model has none, and is unchanged.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    layers = [layer for layer in layers if layer.track_running_stats]
    if not layers:
        return 0
    rows = np.random.default_rng(seed).permutation(len(store))[:most]
    batches = max(len(rows) // batch_size, 1)
    device, momenta = next(model.parameters()).device, [layer.momentum for layer in layers]
    with evaluating(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
            layer.train()
        try:
            for part in track(np.array_split(rows, batches), "Statistics", batches):
                for images in read_batches(store, part, len(part)):
                    model(model.preprocessing(images.to(device)))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    return len(layers)
