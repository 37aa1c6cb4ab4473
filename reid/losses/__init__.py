"""Distances, triplet mining, losses and the training objective."""

from __future__ import annotations

from reid.losses.center import CenterLoss
from reid.losses.centroids import CentroidMemory
from reid.losses.circle import CircleLoss
from reid.losses.contrastive import ContrastiveLoss
from reid.losses.distances import DISTANCES, paired_distances, pairwise_distances
from reid.losses.factory import LOSSES, make_loss
from reid.losses.heads import ArcFaceLoss, CosFaceLoss
from reid.losses.infonce import InfoNCELoss, SupConLoss
from reid.losses.mahalanobis import Mahalanobis, kissme, xqda
from reid.losses.memory import CrossBatchMemory
from reid.losses.mining import MINERS, MINING_NAMES, batch_all, mine_triplets
from reid.losses.objective import CollapseWatch, Objective
from reid.losses.pml import PmlLoss
from reid.losses.quadruplet import QuadrupletLoss
from reid.losses.triplet import MinkowskiTripletLoss, TripletLoss, triplet_loss

__all__ = [
    "DISTANCES",
    "LOSSES",
    "MINERS",
    "MINING_NAMES",
    "ArcFaceLoss",
    "CenterLoss",
    "CentroidMemory",
    "CircleLoss",
    "CollapseWatch",
    "ContrastiveLoss",
    "CosFaceLoss",
    "CrossBatchMemory",
    "InfoNCELoss",
    "Mahalanobis",
    "MinkowskiTripletLoss",
    "Objective",
    "PmlLoss",
    "QuadrupletLoss",
    "SupConLoss",
    "TripletLoss",
    "batch_all",
    "kissme",
    "make_loss",
    "mine_triplets",
    "paired_distances",
    "pairwise_distances",
    "triplet_loss",
    "xqda",
]
