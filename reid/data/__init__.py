"""From a folder on disk to batches: layouts, packed store, augmentation, samplers, loader."""

from reid.data.crops import Benchmark, Crops, merge
from reid.data.samplers import IdentitySampler, RandomSampler

__all__ = ["Benchmark", "Crops", "IdentitySampler", "RandomSampler", "merge"]
