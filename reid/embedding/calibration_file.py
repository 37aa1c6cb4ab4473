"""A calibration on disk: a small JSON beside the checkpoint or the embeddings that it is of."""

from __future__ import annotations

import json
from pathlib import Path

from reid.core.atomic import write_text
from reid.core.errors import ReidError
from reid.evaluation.calibration import Calibration

NAME = "calibration.json"


def save_calibration(calibration: Calibration, path: str | Path) -> Path:
    """Write it as JSON, a line for each key, whole or not at all, and return the path.

    Raises:
        ReidError: it cannot be written.
    """
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in calibration.as_dict().items()]
    write_text(path, "{\n  " + ",\n  ".join(lines) + "\n}\n")
    return Path(path)


def load_calibration(path: str | Path) -> Calibration:
    """Read what `save_calibration` wrote.

    Raises:
        ReidError: missing, no JSON, or no calibration of a format known here; the file and key are named.
    """
    path = Path(path)
    try:
        stored = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ReidError(f"There is no calibration {path}. Make one with `reid calibrate`.") from error
    except (OSError, ValueError) as error:
        raise ReidError(f"{path} cannot be read as JSON: {error}. Make it anew with `reid calibrate`.") from error
    try:
        return Calibration.from_dict(stored)
    except ReidError as error:
        raise ReidError(f"{path}: {error}") from error


def calibration_beside(path: str | Path) -> Path | None:
    """The `calibration.json` in the folder of a checkpoint or of embeddings (or in a folder given), if it is there."""
    path = Path(path)
    found = (path if path.is_dir() else path.parent) / NAME
    return found if found.is_file() else None
