"""The train batches of each epoch: their size, the size of their crops, and who is in them."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from reid.config import Config
from reid.core.distributed import DistributedContext
from reid.core.errors import ReidError
from reid.data.augment import Augment
from reid.data.crops import Crops
from reid.data.loader import LoaderOptions, TrainLoader
from reid.data.pixels import Pixels
from reid.data.samplers import (
    BalancedSampler,
    HardIdentitySampler,
    IdentitySampler,
    RandomSampler,
    Sampler,
    ids_per_batch,
)
from reid.models.preprocessing import Preprocessing
from reid.training.schedules import in_force


class Loaders:
    """Makes the loader of an epoch by the share of the run that is done when it begins (`schedule.sizes`,
    `schedule.batch_sizes`). One sampler serves all crop sizes, so that an epoch's plan does not depend on them.

    Args:
        labels: `[N]` class of each crop of `train`.
        preprocessing: the model's; its size is that of scoring, its mean the colour that erasing fills in.

    Raises:
        ReidError: stages that are wrong, or a batch size that the processes cannot share or the sampler not fill.
    """

    def __init__(
        self,
        config: Config,
        ranks: DistributedContext,
        train: Pixels,
        labels: NDArray[np.int64],
        preprocessing: Preprocessing,
    ) -> None:
        self.config, self.ranks, self.train, self.labels = config, ranks, train, labels
        self.preprocessing = preprocessing
        self.sampler = cache(self._sampler)
        for stage in [(0.0,), *config.schedule.batch_sizes]:
            self.at(stage[0])

    def at(self, share: float) -> TrainLoader:
        """The loader of an epoch that begins at `share` (0..1) of the run."""
        schedule = self.config.schedule
        sizes = in_force(schedule.sizes, share)
        sized = in_force(schedule.batch_sizes, share)
        return TrainLoader(
            self.train.store,
            self.labels,
            self.train.crops,
            self.sampler(sized[0] if sized else self.config.sampler.batch_size),
            self._augment((sizes[0], sizes[1]) if sizes else self.preprocessing.size),
            LoaderOptions(
                seed=self.config.seed,
                rank=self.ranks.rank,
                world_size=self.ranks.world_size,
                pin=self.ranks.device.type == "cuda",
                paced=True,
            ),
        )

    def _sampler(self, batch_size: int) -> Sampler:
        config, ranks, crops = self.config.sampler, self.ranks, self.train.crops
        if batch_size % ranks.world_size:
            raise ReidError(
                f"A batch of {batch_size} crops cannot be shared by {ranks.world_size} processes: make it a multiple "
                f"of {ranks.world_size}."
            )
        own = batch_size // ranks.world_size
        sources = np.unique(crops.sources)
        if config.balance == "none" or len(sources) == 1:
            return self._sampler_of(crops, own)
        if config.kind == "hard_identity":
            raise ReidError("sampler.balance=source has no look-alikes: use sampler.kind=identity, or balance=none.")
        if own % len(sources):
            raise ReidError(
                f"A batch of {own} crops a process cannot hold equal parts of {len(sources)} sources "
                f"(sampler.balance=source): make it a multiple of {len(sources)}."
            )
        rows = [np.flatnonzero(crops.sources == source) for source in sources]
        return BalancedSampler([self._sampler_of(crops.take(part), own // len(sources)) for part in rows], rows)

    def _sampler_of(self, crops: Crops, batch_size: int) -> IdentitySampler | RandomSampler:
        config, ranks, seed = self.config.sampler, self.ranks, self.config.seed
        if config.kind == "random":
            return RandomSampler(len(crops), batch_size, seed, ranks.rank, ranks.world_size)
        k = config.crops_per_id
        place = (crops.pids, crops.camids, ids_per_batch(batch_size, k), k, seed, ranks.rank, ranks.world_size)
        if config.kind == "hard_identity":
            return HardIdentitySampler(*place, config.lookalikes)
        return IdentitySampler(*place)

    def _augment(self, size: tuple[int, int]) -> Augment:
        settings = self.config.augment
        red, green, blue = (round(255 * value) for value in self.preprocessing.mean)
        pad = round(settings.pad * size[0] / self.preprocessing.size[0])
        return Augment(size, settings.model_copy(update={"pad": pad}), fill=(red, green, blue))
