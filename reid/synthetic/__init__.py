"""Synthetic data: rendered pedestrians who are seen by several cameras, generated from a seed."""

from reid.synthetic.recording import Recording, record, simulate_embeddings
from reid.synthetic.settings import Difficulty, FloorSettings, SyntheticSettings, TrackerFaults
from reid.synthetic.writer import synthesize

__all__ = [
    "Difficulty",
    "FloorSettings",
    "Recording",
    "SyntheticSettings",
    "TrackerFaults",
    "record",
    "simulate_embeddings",
    "synthesize",
]
