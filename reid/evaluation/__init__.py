"""Ranking, re-ranking, verification and calibration of features. Works on arrays only."""

from reid.evaluation.calibration import Calibration, calibrate
from reid.evaluation.clustering import estimate_identity_size
from reid.evaluation.expansion import expand_gallery, expand_queries
from reid.evaluation.identification import OpenSetResult, open_set
from reid.evaluation.pairs import PairCounts, count_pairs
from reid.evaluation.ranking import CameraPairs, RankingResult, evaluate, evaluate_distances, top_matches
from reid.evaluation.reassociation import GapScores, ReassociationResult, reassociate
from reid.evaluation.rerank import RerankedPairs, Reranking, auto_neighbours, rerank, rerank_blocks, rerank_within
from reid.evaluation.singleshot import SingleShotResult, single_shot_cmc
from reid.evaluation.track_calibration import calibrate_tracks
from reid.evaluation.track_separation import TrackSeparation, gain_interval, separate_tracks
from reid.evaluation.verification import VerificationResult, verify

__all__ = [
    "Calibration",
    "CameraPairs",
    "GapScores",
    "OpenSetResult",
    "PairCounts",
    "RankingResult",
    "ReassociationResult",
    "RerankedPairs",
    "Reranking",
    "SingleShotResult",
    "TrackSeparation",
    "VerificationResult",
    "auto_neighbours",
    "calibrate",
    "calibrate_tracks",
    "count_pairs",
    "estimate_identity_size",
    "evaluate",
    "evaluate_distances",
    "expand_gallery",
    "expand_queries",
    "gain_interval",
    "open_set",
    "reassociate",
    "rerank",
    "rerank_blocks",
    "rerank_within",
    "separate_tracks",
    "single_shot_cmc",
    "top_matches",
    "verify",
]
