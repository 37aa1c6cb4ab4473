"""Distances, mining, the losses and the objective."""

from __future__ import annotations

from reid.losses.center import CenterLoss
from reid.losses.circle import CircleLoss
from reid.losses.contrastive import ContrastiveLoss
from reid.losses.distances import DISTANCES, check_finite, paired_distances, pairwise_distances
from reid.losses.factory import LOSSES, make_loss
from reid.losses.heads import ArcFaceLoss, CosFaceLoss
from reid.losses.infonce import InfoNCELoss, SupConLoss
from reid.losses.mahalanobis import Mahalanobis, kissme, xqda
from reid.losses.memory import CrossBatchMemory
from reid.losses.mining import MINERS, MINING, batch_all, batch_hard
from reid.losses.objective import CollapseWatch, Objective
from reid.losses.pml import PmlLoss
from reid.losses.quadruplet import QuadrupletLoss
from reid.losses.triplet import MinkowskiTripletLoss, TripletLoss, triplet_loss

__all__ = [
    "DISTANCES",
    "LOSSES",
    "MINERS",
    "MINING",
    "ArcFaceLoss",
    "CenterLoss",
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
    "batch_hard",
    "check_finite",
    "kissme",
    "make_loss",
    "paired_distances",
    "pairwise_distances",
    "triplet_loss",
    "xqda",
]
