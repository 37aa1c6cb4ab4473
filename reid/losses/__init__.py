"""Distances, mining, the triplet loss and the objective."""

from __future__ import annotations

from reid.losses.distances import DISTANCES, pairwise_distances
from reid.losses.mining import MINING, batch_hard
from reid.losses.objective import CollapseWatch, Objective
from reid.losses.triplet import TripletLoss

__all__ = ["DISTANCES", "MINING", "CollapseWatch", "Objective", "TripletLoss", "batch_hard", "pairwise_distances"]
