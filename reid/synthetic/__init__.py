"""Synthetic data: rendered pedestrians who are seen by several cameras, generated from a seed."""

from reid.synthetic.settings import Difficulty, SyntheticSettings, TrackerFaults
from reid.synthetic.writer import synthesize

__all__ = ["Difficulty", "SyntheticSettings", "TrackerFaults", "synthesize"]
