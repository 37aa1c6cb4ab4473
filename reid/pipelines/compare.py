"""Compare training runs: scores, settings that differ, curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid.core.atomic import result_folder, write_json
from reid.core.errors import DataError
from reid.core.reading import flatten, read_json, read_yaml
from reid.models.checkpoints import load_checkpoint
from reid.report.learning import plot_learning
from reid.training.run_folder import LAST, LOG, SETTINGS, read_log

FIRST_PANELS = ("loss", "triplet", "softmax", "accuracy", "active", "positive", "negative", "norm")
"""The order of the panels; other logged quantities follow, the learning rate last."""

Curves = dict[str, dict[str, tuple[list[float], list[float]]]]


@dataclass(frozen=True)
class Run:
    """Contents of a run folder.

    Attributes:
        name: of the folder.
        settings: by dotted key.
        lines: log lines of training steps.
        history: log lines of evaluations.
        scores: mAP and rank1 as fractions, by data set: the last of the log, and those of `reid test`.
        steps: done so far.
        minutes: training time so far; None without a checkpoint.
        data: contents of data.json.
        environment: contents of environment.json.
    """

    name: str
    settings: dict[str, Any]
    lines: list[dict[str, Any]]
    history: list[dict[str, Any]]
    scores: dict[str, dict[str, float]]
    steps: int
    minutes: float | None
    data: dict[str, Any]
    environment: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: in the order given.
        differences: settings that are not equal in all runs, with the value of each run; None where a run lacks it.
        same_data: whether all runs were trained on the same rows.
    """

    runs: list[Run]
    differences: dict[str, list[Any]]
    same_data: bool


def compare(folders: Sequence[Path], out: Path) -> Comparison:
    """Read run folders, finished or not, and write comparison.json and comparison.png to `out`.

    Raises:
        DataError: a folder is not a run, or a file in it is damaged.
    """
    runs = read_runs(folders)
    found = differences(runs)
    curves = curves_of(runs)
    names = [run.name for run in runs]
    kept = ("steps", "minutes", "scores", "history", "data", "environment")
    content = {
        "runs": {run.name: {name: getattr(run, name) for name in kept} for run in runs},
        "differences": {key: dict(zip(names, values, strict=True)) for key, values in found.items()},
        "curves": curves,
    }
    with result_folder(out, "compare", "comparison.json") as staging:
        plot_learning(staging / "comparison.png", curves)
        write_json(staging / "comparison.json", content)
    digests = {str(run.data.get("train", {}).get("sha256")) for run in runs}
    return Comparison(runs, found, len(digests) == 1)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders. A run is named by its folder, or by its path if two folders have the same name."""
    repeated = len({folder.resolve().name for folder in folders}) < len(folders)
    return [_read(folder, str(folder) if repeated else folder.resolve().name) for folder in folders]


def _read(folder: Path, name: str) -> Run:
    if not (folder / SETTINGS).is_file():
        raise DataError(
            f"{folder} is not a run folder: it contains no {SETTINGS}. Pass a folder that `reid train` wrote."
        )
    settings = dict(flatten(read_yaml(folder / SETTINGS)))
    content = read_log(folder / LOG)
    data, environment, tested = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("data.json", "environment.json", "test/metrics.json")
    )
    environment.pop("command", None)  # it contains paths of this machine
    lines = [line for line in content if "loss" in line]
    history = [line for line in content if "loss" not in line]
    scores = {key: value for line in history for key, value in line.items() if isinstance(value, dict)}
    for key, found in tested.get("sets", {}).items():
        scores[f"{key} by reid test"] = {"mAP": found["plain"]["mAP"], "rank1": found["plain"]["rank-1"]}
    minutes = None
    if (folder / LAST).is_file():
        minutes = load_checkpoint(folder / LAST)["progress"]["seconds"] / 60
    steps = max((line["step"] for line in content), default=0)
    return Run(name, settings, lines, history, scores, steps, minutes, data, environment)


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the settings that are not equal in all runs, with the value of each run; None where a run lacks it."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def curves_of(runs: Sequence[Run]) -> Curves:
    """Return every logged quantity as (steps, values) by run: scores first, then loss terms, then the rest."""
    logged = {run.name: [_scores(line) for line in run.history] + run.lines for run in runs}
    found = dict.fromkeys(key for lines in logged.values() for line in lines for key in line)
    scores = [key for key in found if key.endswith(": mAP")]
    others = [key for key in found if key not in (*scores, *FIRST_PANELS, "step", "epoch", "lr")]
    curves: Curves = {}
    for key in (*scores, *FIRST_PANELS, *others, "lr"):
        for name, lines in logged.items():
            having = [line for line in lines if key in line]
            if having:
                curves.setdefault(key, {})[name] = [line["step"] for line in having], [line[key] for line in having]
    return curves


def _scores(line: dict[str, Any]) -> dict[str, Any]:
    found = {f"{name}: mAP": value["mAP"] for name, value in line.items() if isinstance(value, dict)}
    return {"step": line["step"], **found}
