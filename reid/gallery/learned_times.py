"""Transition times that `reid match` learned, stored with the tracklets of each source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reid.core.atomic import write_json
from reid.core.errors import DataError
from reid.core.locks import exclusive
from reid.core.reading import read_json

FILE = "transitions.json"
SPREADS = 2.0
"""A gap is expected within this many spreads (standard deviations) of the median."""

Pair = tuple[str, str]


def store_learned_times(gallery: Path, source: str, match: Path) -> None:
    """Copy the transition times of a match into a gallery; those of the same source are replaced.

    Args:
        gallery: its folder.
        source: under which the tracklets of the match were added.
        match: folder that `reid match` wrote; without match.json, or without times, nothing is stored.

    Raises:
        DataError: match.json is damaged, or the gallery cannot be written.
    """
    path = match / "match.json"
    content = read_json(path) if path.is_file() else {}
    learned = content.get("transition_times", []) if isinstance(content, dict) else []
    _as_times(path, {source: learned})
    with exclusive(gallery, wait=True):
        stored = read_json(gallery / FILE) if (gallery / FILE).is_file() else {}
        if learned or source in stored:
            write_json(gallery / FILE, {**stored, source: learned})


def learned_times(galleries: Sequence[Path]) -> dict[Pair, tuple[float, float]]:
    """Return the expected seconds from one camera to the next: the median and two spreads to each side.

    They are those between consecutive sightings of one identity. Where several sources have times for a pair of
    cameras, those of the most links count; ties: the first.

    Args:
        galleries: folders.

    Raises:
        DataError: a file is damaged.

    Example:
        >>> learned_times([])
        {}
    """
    best: dict[Pair, tuple[int, tuple[float, float]]] = {}
    for folder in galleries:
        if (folder / FILE).is_file():
            for pair, links, times in _as_times(folder / FILE, read_json(folder / FILE)):
                if pair not in best or links > best[pair][0]:
                    best[pair] = links, times
    return {pair: times for pair, (_, times) in best.items()}


def _as_times(path: Path, sources: Mapping[str, Any]) -> list[tuple[Pair, int, tuple[float, float]]]:
    try:
        return [
            (
                (str(entry["from"]), str(entry["to"])),
                int(entry["links"]),
                (
                    float(entry["median_s"]) - SPREADS * float(entry["spread_s"]),
                    float(entry["median_s"]) + SPREADS * float(entry["spread_s"]),
                ),
            )
            for entries in sources.values()
            for entry in entries
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: no valid transition times ({error}). Match again, and add the match again."
        ) from error
