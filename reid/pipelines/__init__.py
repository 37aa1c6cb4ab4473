"""Whole jobs for commands and Python users: train, test, match, embed, demo."""
