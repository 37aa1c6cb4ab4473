"""Ranking, re-ranking and their results; arrays only."""
