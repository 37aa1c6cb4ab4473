"""Tracks of several cameras: who is the same person? Knows arrays only; files are `files.py`'s."""
