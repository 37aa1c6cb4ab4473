"""Ranking, re-ranking and their results. Knows arrays only: no paths, no data sets, no configuration."""

from reid.evaluation.ranking import RankingResult, evaluate, evaluate_distances, top_matches
from reid.evaluation.rerank import rerank, rerank_in_words

__all__ = ["RankingResult", "evaluate", "evaluate_distances", "rerank", "rerank_in_words", "top_matches"]
