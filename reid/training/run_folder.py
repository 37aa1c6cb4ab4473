"""The folder of a training run: its files, its progress and its checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reid.config import Config, load_config, save_settings
from reid.core.atomic import write_json, write_text
from reid.core.distributed import DistributedContext
from reid.core.errors import ConfigError
from reid.core.reading import parse_json
from reid.data.pixels import TrainingData
from reid.training.environment import environment

LAST, BEST, LOG, SETTINGS, DATA = "last.pt", "best.pt", "log.jsonl", "config.yaml", "data.json"


@dataclass
class Progress:
    """Progress of a run. It is saved with every checkpoint."""

    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished steps of the current epoch."""
    step: int = 0
    """Finished steps."""
    fraction: float = 0.0
    """Fraction of training that was done when the current epoch began."""
    skipped: int = 0
    """Steps that were skipped because a value was not finite."""
    best: float = -1.0
    """Best mean mAP over the evaluated splits."""
    seconds: float = 0.0
    """Wall time of training and evaluation, including earlier sessions of the run."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry per evaluation: epoch, step, and scores of each split."""


def is_used(out: Path) -> bool:
    """Return whether the run folder is a file, or contains anything but hidden files (a killed process leaves some)."""
    return out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir()))


def start_run(
    out: Path, config: Config, distributed: DistributedContext, data: TrainingData, *, overwrite: bool
) -> None:
    """Write settings, environment, data fingerprint and an empty log.

    Raises:
        ConfigError: the folder is used, unless `overwrite`.
    """
    if not overwrite and is_used(out):
        raise ConfigError(f"{out} is not empty. Continue that run with --resume {out}, or use another --out.")
    save_settings(config, out / SETTINGS)
    write_json(out / "environment.json", environment(distributed))
    write_json(out / DATA, data.fingerprint())
    write_text(out / LOG, "")


def run_settings(out: Path) -> Config:
    """Read the settings of a run.

    Raises:
        ConfigError: the folder contains no settings.
    """
    if not (out / SETTINGS).is_file():
        fix = f"Copy it next to {LAST}" if (out / LAST).is_file() else f"Start a run with --out {out}"
        raise ConfigError(f"{out} has no {SETTINGS}, so there is no run to resume. {fix}.")
    return load_config(out / SETTINGS)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; empty if there is none. The unfinished last line of a killed run is left out.

    Raises:
        DataError: the file cannot be read, or a line is not JSON.
    """
    if not path.is_file():
        return []
    *lines, _ = path.read_text("utf-8", errors="replace").split("\n")
    return [parse_json(line, f"{path}, line {n}", allow_nan=True) for n, line in enumerate(lines, start=1)]


def clean_up(out: Path, step: int) -> None:
    """Remove log lines that were written after the checkpoint of `step`.

    The write also removes temporary files of killed processes (`reid.core.atomic`).
    """
    path = out / LOG
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    write_text(path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))


def shared_settings(config: Config, data: TrainingData) -> dict[str, Any]:
    """Return the settings for a checkpoint: names of the data sets and of the weights file instead of local paths."""
    settings = config.as_dict()
    names = dict.fromkeys(name.partition("#")[0] for name in data.train.crops.source_names)
    settings["data"] |= {"train": list(names), "test": [], "store_dir": ""}
    if settings["model"]["weights"] != "none":
        settings["model"]["weights"] = Path(settings["model"]["weights"]).name
    return settings


def advice(out: Path) -> str:
    """Return what to do after a loss that is not finite."""
    last = out / LAST
    where = f"The last good checkpoint is {last}" if last.exists() else "No checkpoint has been written yet"
    return f"{where}. Lower optim.lr, increase schedule.warmup_epochs, set optim.clip_norm, or use precision=fp32."


def _step_of(line: str) -> float:
    try:
        return float(parse_json(line, "log", allow_nan=True)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
