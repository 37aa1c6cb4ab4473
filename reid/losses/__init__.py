"""Distances, mining, the triplet loss and the objective."""
