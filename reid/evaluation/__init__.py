"""Ranking, re-ranking, verification and calibration. Knows arrays only: no paths, no data sets, no configuration."""

from reid.evaluation.calibration import Calibration, calibrate, calibrate_tracks
from reid.evaluation.expansion import expand_gallery, expand_queries
from reid.evaluation.ranking import CameraPairs, RankingResult, evaluate, evaluate_distances, top_matches
from reid.evaluation.rerank import (
    RerankedPairs,
    describe_camera_aware_reranking,
    describe_reranking,
    rerank,
    rerank_blocks,
    rerank_camera_aware,
    rerank_camera_aware_blocks,
    rerank_within,
)
from reid.evaluation.singleshot import SingleShotResult, single_shot_cmc
from reid.evaluation.verification import OpenSetResult, PairCounts, VerificationResult, count_pairs, open_set, verify

__all__ = [
    "Calibration",
    "CameraPairs",
    "OpenSetResult",
    "PairCounts",
    "RankingResult",
    "RerankedPairs",
    "SingleShotResult",
    "VerificationResult",
    "calibrate",
    "calibrate_tracks",
    "count_pairs",
    "describe_camera_aware_reranking",
    "describe_reranking",
    "evaluate",
    "evaluate_distances",
    "expand_gallery",
    "expand_queries",
    "open_set",
    "rerank",
    "rerank_blocks",
    "rerank_camera_aware",
    "rerank_camera_aware_blocks",
    "rerank_within",
    "single_shot_cmc",
    "top_matches",
    "verify",
]
