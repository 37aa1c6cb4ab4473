"""The made world: people seen by several cameras, from a seed."""

from reid.streets.tracks import TrackerFaults
from reid.streets.world import Difficulty, Streets
from reid.streets.write import make_streets

__all__ = ["Difficulty", "Streets", "TrackerFaults", "make_streets"]
