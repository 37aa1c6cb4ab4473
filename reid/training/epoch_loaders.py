"""Train batches of each epoch: sampler, batch size and crop size."""

from __future__ import annotations

from functools import cache

import numpy as np

from reid.config import Config
from reid.core.distributed import DistributedContext
from reid.core.errors import ConfigError
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
from reid.training.schedules import current_stage


class EpochLoaders:
    """Build the loader of an epoch from the fraction of training done (`schedule.sizes`, `schedule.batch_sizes`).

    All crop sizes share one sampler, so that the identities of an epoch do not depend on the crop size.

    Args:
        config: all settings.
        distributed: this process among the training processes.
        train: train crops and their pixels.
        preprocessing: that of the model; its size is that of evaluation, its mean the colour of erased rectangles.

    Raises:
        ConfigError: a batch size that cannot be divided among the processes or filled by the sampler.
    """

    def __init__(
        self, config: Config, distributed: DistributedContext, train: Pixels, preprocessing: Preprocessing
    ) -> None:
        self.config, self.distributed, self.train, self.preprocessing = config, distributed, train, preprocessing
        self.labels, _ = train.crops.labels()
        self.sampler = cache(self._sampler)
        for stage in [(0.0,), *config.schedule.batch_sizes]:
            self.at(stage[0])

    def at(self, fraction: float) -> TrainLoader:
        """Return the loader of an epoch that begins when `fraction` (0..1) of training is done."""
        schedule, distributed = self.config.schedule, self.distributed
        size = current_stage(schedule.sizes, fraction)
        batch = current_stage(schedule.batch_sizes, fraction)
        pin = distributed.device.type == "cuda"
        return TrainLoader(
            self.train.store,
            self.labels,
            self.train.crops,
            self.sampler(batch[0] if batch else self.config.sampler.batch_size),
            self._augment((size[0], size[1]) if size else self.preprocessing.size),
            LoaderOptions(self.config.seed, distributed.rank, distributed.world_size, pin=pin, paced=True),
        )

    def _sampler(self, batch_size: int) -> Sampler:
        config, distributed, crops = self.config.sampler, self.distributed, self.train.crops
        sources = np.unique(crops.sources) if config.balance == "source" else crops.sources[:1]
        parts = distributed.world_size * len(sources)
        if batch_size % parts:
            raise ConfigError(
                f"A batch of {batch_size} crops cannot be divided equally among {distributed.world_size} processes and "
                f"{len(sources)} sources (sampler.balance={config.balance}). Use a multiple of {parts}."
            )
        per_process = batch_size // distributed.world_size
        at_a_time = per_process // -(-per_process // (self.config.loss.chunk or per_process))
        if at_a_time * (distributed.world_size if self.config.sync_batchnorm else 1) < 2:
            raise ConfigError(
                f"A batch of {batch_size} crops on {distributed.world_size} processes with loss.chunk="
                f"{self.config.loss.chunk} passes one crop at a time, too few for batch normalisation. Use a larger "
                "batch or chunk."
            )
        if len(sources) == 1:
            return self._sampler_of(crops, batch_size // parts)
        rows = [np.flatnonzero(crops.sources == source) for source in sources]
        return BalancedSampler([self._sampler_of(crops.take(part), batch_size // parts) for part in rows], rows)

    def _sampler_of(self, crops: Crops, batch_size: int) -> IdentitySampler | RandomSampler:
        config = self.config.sampler
        place = self.config.seed, self.distributed.rank, self.distributed.world_size
        if config.kind == "random":
            return RandomSampler(len(crops), batch_size, *place)
        ids, k = ids_per_batch(batch_size, config.crops_per_id), config.crops_per_id
        if config.kind == "identity":
            return IdentitySampler(crops.pids, crops.camids, ids, k, *place)
        return HardIdentitySampler(crops.pids, crops.camids, ids, k, *place, lookalikes=config.lookalikes)

    def _augment(self, size: tuple[int, int]) -> Augment:
        settings = self.config.augment
        red, green, blue = (round(255 * value) for value in self.preprocessing.mean)
        pad = round(settings.pad * size[0] / self.preprocessing.size[0])
        return Augment(size, settings.model_copy(update={"pad": pad}), fill=(red, green, blue))
