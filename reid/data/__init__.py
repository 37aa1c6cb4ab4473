"""Data sets on disk to training batches: layouts, crops, tracks, packed store, augmentation, samplers, loader."""

from reid.data.crops import Benchmark, Crops, merge
from reid.data.samplers import IdentitySampler, RandomSampler
from reid.data.tracks import Tracks

__all__ = ["Benchmark", "Crops", "IdentitySampler", "RandomSampler", "Tracks", "merge"]
