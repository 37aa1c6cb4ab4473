"""Calibrations as JSON files, stored next to the checkpoint or the embeddings that they belong to."""

from __future__ import annotations

import json
from pathlib import Path

from reid.core.atomic import write_text
from reid.core.errors import DataError, ReidError
from reid.core.reading import read_json
from reid.evaluation.calibration import Calibration

NAME = "calibration.json"


def save_calibration(calibration: Calibration, path: str | Path) -> Path:
    """Write JSON with one line for each key, completely or not at all, and return the path.

    Raises:
        DataError: the file cannot be written.
    """
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in calibration.as_dict().items()]
    write_text(path, "{\n  " + ",\n  ".join(lines) + "\n}\n")
    return Path(path)


def load_calibration(path: str | Path) -> Calibration:
    """Read a file that `save_calibration` wrote.

    Raises:
        DataError: missing, not JSON, or not a calibration of a known format; gives the file and the key.
    """
    content = read_json(path, "Create it with `reid calibrate`.")
    try:
        return Calibration.from_dict(content)
    except ReidError as error:
        raise DataError(f"{path}: {error}") from error


def stored_calibration(path: str | Path) -> Path | None:
    """Return the `calibration.json` in a folder, or in the folder of a file, if it exists."""
    path = Path(path)
    found = (path if path.is_dir() else path.parent) / NAME
    return found if found.is_file() else None
