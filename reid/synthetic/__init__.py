"""The made world: people seen by several cameras, from a seed."""

from reid.synthetic.simulated_tracks import TrackerFaults
from reid.synthetic.world import Difficulty, Streets
from reid.synthetic.writer import synthesize

__all__ = ["Difficulty", "Streets", "TrackerFaults", "synthesize"]
